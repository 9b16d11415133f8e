import torch
from torch.nn.functional import scaled_dot_product_attention

from mvitv2_det.attention.attend import attention_logits, softmax_over_keys, weighted_values


def attend(q, k, v, scale, terms=()):
    return weighted_values(softmax_over_keys(attention_logits(q, k, scale, terms)), v)


def test_equals_torch_with_the_bias_written_out():
    q, k, v = torch.randn(3, 4, 5, 8), torch.randn(3, 2, 3, 8), torch.randn(3, 2, 3, 8)
    along_h, along_w = torch.randn(3, 4, 5, 2), torch.randn(3, 4, 5, 3)
    bias = along_h[..., :, None] + along_w[..., None, :]
    expected = scaled_dot_product_attention(
        q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2), bias.reshape(3, 20, 6), scale=0.3
    )
    actual = attend(q, k, v, 0.3, [along_h[..., None], along_w[..., None, :]])
    torch.testing.assert_close(actual.flatten(1, 2), expected)


def test_without_positions():
    q, k, v = (torch.randn(2, 3, 4, 8) for _ in range(3))
    expected = scaled_dot_product_attention(q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2))
    torch.testing.assert_close(attend(q, k, v, 8**-0.5).flatten(1, 2), expected)


def test_three_axes():
    q, k, v = (torch.randn(2, 2, 3, 4, 8) for _ in range(3))
    terms = [torch.randn(2, 2, 3, 4, *shape) for shape in ((2, 1, 1), (1, 3, 1), (1, 1, 4))]
    bias = sum(terms)
    expected = scaled_dot_product_attention(
        q.flatten(1, 3), k.flatten(1, 3), v.flatten(1, 3), bias.reshape(2, 24, 24)
    )
    torch.testing.assert_close(attend(q, k, v, 8**-0.5, terms).flatten(1, 3), expected)


def test_attention_sums_to_one_over_the_keys():
    q, k = torch.randn(2, 3, 4, 8), torch.randn(2, 2, 5, 8)
    attention = softmax_over_keys(attention_logits(q, k, 1.0))
    assert attention.shape == (2, 3, 4, 2, 5)
    torch.testing.assert_close(attention.sum((3, 4)), torch.ones(2, 3, 4))
