"""Attention maps are those of the module, and the pictures show what they say."""

import numpy as np
import pytest
import torch
from models import TINY, randomize
from PIL import Image

from mvitv2_det import MViT, MViTFPN, Recognizer, UserError, Variant, ViT
from mvitv2_det.attention.multiscale import MultiScaleAttention
from mvitv2_det.attention.spec import AttentionSpec
from mvitv2_det.visualize.attention_maps import (
    attention_of_pixel,
    draw_attention,
    query_attention,
)
from mvitv2_det.visualize.feature_maps import norm_map, pca_colors

KINDS = {
    "global": {},
    "global, strided": {"stride_q": 2, "stride_kv": 1},
    "windows": {"window_size": 4, "stride_kv": 2},
    "shifted": {"window_size": 4, "shift": 2},
    "shifted, masked": {"window_size": 4, "shift": 2, "mask_window_padding": True},
    "joint": {"rel_pos_kind": "joint"},
    "keys' positions": {"rel_pos_terms": ("q", "k"), "window_size": 4},
    "windows without pooling": {"window_size": 4, "pool_q": False, "pool_kv": False},
    "no positions": {"use_rel_pos": False, "pool_q": False, "pool_kv": False},
}


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_give_the_modules_output(kind):
    """Float64: probabilities × values, plus the query (Eq. 5), projected; 6×9 tokens, 2 heads.

    What is left of the probability lies on padding, whose value is 0 or the projection's bias.
    """
    spec = AttentionSpec(8, 16, 2, table_size=8, **KINDS[kind])
    module = randomize(MultiScaleAttention(spec)).double().eval()
    x = torch.randn(1, 6, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = module(x)
        q, _, v = module.project_and_pool(x)
        for row, column in [(0, 0), (2, 4), (expected.shape[1] - 1, expected.shape[2] - 1)]:
            found = query_attention(module, x, (row, column))
            z = torch.einsum("hyx,hyxd->hd", found.probabilities, v) + q[:, row, column]
            if kind == "windows without pooling":
                on_padding = 1 - found.probabilities.sum(dim=(1, 2))
                z = z + on_padding[:, None] * module.qkv.bias.reshape(3, 2, 8)[2]
            actual = module.proj(z.flatten())
            torch.testing.assert_close(actual, expected[0, row, column], rtol=0, atol=1e-6)


@pytest.mark.parametrize("residual", [False, True])
def test_probabilities_with_a_class_token(residual):
    """Float64: from two places and from the token itself, to the map and to the token."""
    spec = AttentionSpec(8, 16, 2, table_size=8, stride_kv=2, residual_class_token=residual)
    module = randomize(MultiScaleAttention(spec)).double().eval()
    x, token = (torch.randn(1, *size, 8, dtype=torch.float64) for size in ((6, 9), (1,)))
    with torch.no_grad():
        expected, expected_token = module(x, token)
        q, _, v = module.project_and_pool(x)
        token_q, _, token_v = module.project_token(token)
        for query in [(0, 0), (5, 8), None]:
            found = query_attention(module, x, query, 1, token)
            on_token = 1 - found.probabilities.sum(dim=(1, 2))
            assert found.on_token == pytest.approx(on_token.mean().item()) and found.on_token > 0
            assert found.on_padding < 1e-9 and found.seen.all()
            z = torch.einsum("hyx,hyxd->hd", found.probabilities, v)
            z = z + on_token[:, None] * token_v[:, 0]
            if query is not None:
                z, wanted = z + q[:, query[0], query[1]], expected[0, query[0], query[1]]
            else:
                z, wanted = z + (token_q[:, 0] if residual else 0), expected_token[0, 0]
            torch.testing.assert_close(module.proj(z.flatten()), wanted, rtol=0, atol=1e-6)


def test_a_recogniser_looks_from_its_class_token():
    sizes = Variant(8, (1, 1, 1, 1), 1, 0.0)
    model = Recognizer.image(sizes, 3, class_token=True, image_size=64).eval()
    found = attention_of_pixel(model, torch.randn(1, 3, 64, 96), 2, None)
    assert found.query is None and found.probabilities.shape == (4, 8, 12)
    found = attention_of_pixel(model, torch.randn(1, 3, 64, 96), 2, (63, 95))
    assert found.query == (3, 5)
    without = Recognizer.image(sizes, 3, image_size=64).eval()
    with pytest.raises(UserError, match="no class token to look from: give a position"):
        attention_of_pixel(without, torch.randn(1, 3, 64, 96), 2, None)


def test_windows_bound_what_is_seen():
    """9 tokens in windows of 4: the last window holds one column and three of padding."""
    module = randomize(
        MultiScaleAttention(AttentionSpec(8, 8, 1, table_size=8, window_size=4))
    ).eval()
    with torch.no_grad():
        found = query_attention(module, torch.randn(1, 8, 9, 8), (5, 8))
    assert found.seen.nonzero().tolist() == [[row, 8] for row in range(4, 8)]
    assert 0 < found.on_padding < 1
    assert found.probabilities[:, ~found.seen].abs().max() == 0


@pytest.mark.parametrize("with_fpn", [True, False])
def test_pixels_find_their_query(with_fpn):
    """Strides 4, 8, 16 and 32 of the four blocks, whose queries are strided but the first's."""
    backbone = MViT(**TINY).eval()
    if with_fpn:
        backbone = MViTFPN(backbone, ["scale2", "scale3", "scale4", "scale5"], 8).eval()
    images = torch.randn(1, 3, 70, 130)
    for block, stride in enumerate([4, 8, 16, 32]):
        found = attention_of_pixel(backbone, images, block, (69, 100))
        assert found.query == (69 // stride, 100 // stride) and found.query_side == stride
        if block == 3:
            assert found.seen.all() and found.on_padding < 1e-6
    with pytest.raises(UserError, match=r"block must be in 0 \.\. 3, got 4"):
        attention_of_pixel(backbone, images, 4, (0, 0))
    with pytest.raises(UserError, match=r"position must lie in the image of \(70, 130\)"):
        attention_of_pixel(backbone, images, 0, (70, 0))


def test_plain_vit():
    windows = {"window_size": 2, "window_layout": "fixed"}
    model = ViT(embed_dim=16, depth=2, num_heads=2, img_size=64, **windows).eval()
    found = attention_of_pixel(model, torch.randn(1, 3, 64, 96), 0, (40, 90))
    assert found.query == (2, 5) and found.seen.sum() == 4


def test_picture_marks_the_brightest_key(tmp_path):
    """The key with all of the attention is the one that is yellow; others stay dark."""
    module = randomize(MultiScaleAttention(AttentionSpec(8, 8, 1, table_size=8))).eval()
    with torch.no_grad():
        found = query_attention(module, torch.randn(1, 4, 6, 8), (0, 0), token_side=16)
    found.probabilities.zero_()[0, 2, 1] = 1
    draw_attention(np.full((64, 96, 3), 128, np.uint8), found, "title", tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    # The colour bar is on the right, titles are at the top; the key is in the lower half.
    yellow = (pixels.min(2) < 200) & (pixels[:, :, :2].min(2) > 150)
    ys, xs = np.nonzero(yellow)
    ys = ys[(xs < 0.7 * width) & (ys > 50)]
    assert len(ys) > 100 and ys.min() > height / 2


def test_colours_follow_the_features():
    """Two kinds of tokens, alike among themselves, have two colours far apart."""
    features = torch.zeros(5, 4, 6)
    features[1, :, :3] = 3
    features[2, :, 3:] = 4
    features += 1e-3 * torch.randn(5, 4, 6)
    assert torch.allclose(norm_map(features)[:, 0], torch.tensor(3.0), atol=0.1)
    colors = pca_colors(features)
    assert colors.shape == (4, 6, 3) and colors.min() >= 0 and colors.max() <= 1
    assert (colors[:, 0, 0] - colors[:, 5, 0]).abs().min() > 0.9
    assert pca_colors(torch.ones(2, 3, 3)).isfinite().all()
