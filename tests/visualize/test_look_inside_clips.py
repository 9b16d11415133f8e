"""Attention in space and time is what the network computes with, and is drawn over the frames."""

import numpy as np
import pytest
import torch
from PIL import Image
from recognition.classifiers import save_classifier
from recognition.clip_classifiers import describe_clips, save_clip_classifier, write_noise

from mvitv2_det.commands import main
from mvitv2_det.visualize.attention_maps import attention_of_pixel

pytest.importorskip("av")


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("block", [0, 1, 3])
@pytest.mark.parametrize("pixel", [(3, 40, 21), (0, 0, 63), None])
def test_it_gives_the_output_of_the_block(tmp_path, class_token, block, pixel):
    """What the values' mean under this attention is, the block has; float32, 1e-5."""
    if pixel is None and not class_token:
        pytest.skip("there is no token to look from")
    file = save_clip_classifier(tmp_path / "w.pth", class_token=class_token)
    model = describe_clips(class_token=class_token).build().eval()
    model.load_state_dict(torch.load(file, weights_only=True)["model"])
    clip = torch.randn(1, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    found = attention_of_pixel(model, clip, block, pixel)
    inputs = []
    hook = model.blocks[block].attn.register_forward_pre_hook(lambda _, x: inputs.extend(x))
    with torch.no_grad():
        model(clip)
        hook.remove()
        attention, x = model.blocks[block].attn, inputs[0]
        q, k, v = attention.project_and_pool(x)
        probabilities = found.probabilities.flatten(1)
        total = probabilities.sum(1)
        if class_token and inputs[1] is not None:
            token_q, token_k, token_v = attention.project_token(inputs[1])
            of_map = attention.attend_with_token(q, k, v, token_k, token_v)
            of_token = attention.attend_from_token(token_q, k, v, token_k, token_v)
            on_token = 1 - total[:, None, None]
            mean = probabilities[:, None] @ v.flatten(1, -2) + on_token * token_v
            assert found.on_token == pytest.approx(on_token.mean().item(), abs=1e-5)
        else:
            of_map = attention.attend(q, k, v)
            mean = probabilities[:, None] @ v.flatten(1, -2)
            torch.testing.assert_close(total, torch.ones_like(total))
    if pixel is None:
        expected = of_token
    else:
        side = 64 // q.shape[2]
        expected = of_map[:, pixel[0] // 2, pixel[1] // side, pixel[2] // side][:, None]
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-4)
    assert found.key_frames == 2 and found.seen.shape == k.shape[1:-1]


def test_the_command(tmp_path, capsys):
    weights = str(save_clip_classifier(tmp_path / "w.pth"))
    video = write_noise(tmp_path / "a.mp4", 0)
    arguments = ["look-inside", str(video), "--weights", weights, "--output", str(tmp_path)]
    options = ["--frame", "2", "--position", "36", "48", "--block", "0"]
    assert main([*arguments, *options]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/attention_block_0.png\n"
    with Image.open(tmp_path / "attention_block_0.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    # The query is marked at its own time alone: the second of two panels.
    cyan = (pixels[..., 0] < 60) & (pixels[..., 1] > 190) & (pixels[..., 2] > 220)
    assert cyan.any() and np.nonzero(cyan)[1].min() > pixels.shape[1] / 2
    assert main([*arguments, "--block", "1"]) == 0

    def error(*options, weights=weights):
        command = ["look-inside", str(video), "--weights", weights, "--output", str(tmp_path)]
        assert main([*command, *options]) == 2
        return capsys.readouterr().err

    assert "0 to 3, with --position, got 4" in error("--frame", "4", "--position", "9", "9")
    assert "0 to 3, with --position, got 1" in error("--frame", "1")
    assert "inside of the image of height 72" in error("--position", "72", "9")
    of_images = str(save_classifier(tmp_path / "images.pth"))
    assert "--frame is of clips" in error("--frame", "0", weights=of_images)
