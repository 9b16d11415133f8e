"""mvitv2-det look-inside as its users call it, in process."""

import pytest
import torch
from models import randomize
from PIL import Image

from mvitv2_det import MViT
from mvitv2_det.commands import main

CONFIG = """
from detectron2.config import LazyCall as L
from mvitv2_det import MViT
model = L(MViT)(embed_dim=8, depth=4, num_heads=1, last_block_indexes=(0, 1, 2, 3))
"""


@pytest.fixture
def arguments(tmp_path):
    """The command on an image of height 60 and width 80, without ``--position``."""
    (tmp_path / "config.py").write_text(CONFIG)
    model = MViT(embed_dim=8, depth=4, num_heads=1, last_block_indexes=(0, 1, 2, 3))
    torch.save({"model": randomize(model).state_dict()}, tmp_path / "w.pth")
    Image.effect_noise((80, 60), 50).save(tmp_path / "i.png")
    return [
        *("look-inside", str(tmp_path / "i.png"), "--config", str(tmp_path / "config.py")),
        *("--weights", str(tmp_path / "w.pth"), "--output", str(tmp_path / "inside")),
    ]


def test_draws_global_blocks_by_default(arguments, tmp_path, capsys):
    """The position is in pixels of the image as it was before it was resized."""
    assert main([*arguments, "--position", "59", "79"]) == 0
    names = {file.name for file in (tmp_path / "inside").iterdir()}
    assert names == {f"attention_block_{b}.png" for b in (1, 2, 3)} | {"feature_maps.png"}
    assert capsys.readouterr().out.count("\n") == 4


def test_weights_of_a_classifier_are_enough(arguments, tmp_path):
    """They lack the norms of the feature maps."""
    state = torch.load(tmp_path / "w.pth")["model"]
    state = {name: value for name, value in state.items() if not name.startswith("scale")}
    torch.save({"model": state}, tmp_path / "w.pth")
    assert main([*arguments, "--position", "0", "0", "--block", "1"]) == 0


def test_mistakes_are_one_line(arguments, tmp_path, capsys):
    def error(*options):
        assert main([*arguments, *options]) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: ") and printed.count("\n") == 1
        return printed

    found = error("--position", "60", "0")
    assert "inside of the image of height 60 and width 80, got 60 0" in found
    assert "block must be in 0 .. 3, got 9" in error("--position", "0", "0", "--block", "9")
    (tmp_path / "file").write_text("")
    found = error("--position", "0", "0", "--output", str(tmp_path / "file"))
    assert f"cannot write {tmp_path}/file" in found
    state = torch.load(tmp_path / "w.pth")["model"]
    del state["blocks.2.mlp.fc1.bias"]
    torch.save({"model": state}, tmp_path / "w.pth")
    assert "(blocks.2.mlp.fc1.bias, …)" in error("--position", "0", "0")
