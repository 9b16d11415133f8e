import torch
from torch.nn.functional import scaled_dot_product_attention

from mvitv2_det.attention.attend import attend


def test_equals_torch_with_the_bias_written_out():
    q, k, v = torch.randn(3, 4, 5, 8), torch.randn(3, 2, 3, 8), torch.randn(3, 2, 3, 8)
    along_h, along_w = torch.randn(3, 4, 5, 2), torch.randn(3, 4, 5, 3)
    bias = along_h[..., :, None] + along_w[..., None, :]
    expected = scaled_dot_product_attention(
        q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2), bias.reshape(3, 20, 6), scale=0.3
    )
    torch.testing.assert_close(attend(q, k, v, 0.3, [along_h, along_w]).flatten(1, 2), expected)


def test_without_positions():
    q, k, v = (torch.randn(2, 3, 4, 8) for _ in range(3))
    expected = scaled_dot_product_attention(q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2))
    torch.testing.assert_close(attend(q, k, v, 8**-0.5).flatten(1, 2), expected)


def test_three_axes():
    q, k, v = (torch.randn(2, 2, 3, 4, 8) for _ in range(3))
    logits = [torch.randn(2, 2, 3, 4, side) for side in (2, 3, 4)]
    bias = (
        logits[0][..., :, None, None]
        + logits[1][..., None, :, None]
        + logits[2][..., None, None, :]
    )
    expected = scaled_dot_product_attention(
        q.flatten(1, 3), k.flatten(1, 3), v.flatten(1, 3), bias.reshape(2, 24, 24)
    )
    torch.testing.assert_close(attend(q, k, v, 8**-0.5, logits).flatten(1, 3), expected)
