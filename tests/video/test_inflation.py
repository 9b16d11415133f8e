"""Section 4.3: an image network, inflated, begins at its accuracy on clips of one frame."""

import pytest
import torch
from torch.nn.functional import cross_entropy, interpolate

from mvitv2_det import Recognizer, Variant, load_weights

SIZES = Variant(embed_dim=8, blocks=(1, 1, 1, 1), num_heads=1, drop_path_rate=0.0)


@pytest.mark.long
def test_trained_on_digits_then_inflated():
    """A class token would see T copies of the map: the networks have none, and equal strides."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    pixels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    images = interpolate(pixels, scale_factor=4, mode="bilinear").expand(-1, 3, -1, -1)
    labels = torch.tensor(digits.target)
    held_out = slice(1500, 1600)
    network = Recognizer.image(SIZES, 10, image_size=32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    for _ in range(2):
        for batch in torch.randperm(1500).split(50):
            optimizer.zero_grad()
            cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    clips_network = Recognizer.video(
        SIZES, 4, 10, class_token=False, image_size=32, adaptive_kv_stride=4
    )
    load_weights(clips_network, network, strict=True)
    network.eval(), clips_network.eval()
    with torch.no_grad():
        of_images = network(images[held_out])
        still = images[held_out, :, None].expand(-1, -1, 8, -1, -1)
        of_clips = torch.cat([clips_network(part) for part in still.split(50)])
    accuracy = (of_images.argmax(1) == labels[held_out]).float().mean()
    assert accuracy > 0.5
    assert (of_clips.argmax(1) == of_images.argmax(1)).all()
    # float32
    assert torch.allclose(of_clips, of_images, atol=1e-4 * of_images.abs().max())
