"""Training with compiled blocks and recomputed activations, alone and on two processes.

Dynamo alone compiles here: generated code takes a compiler of C++ long.
"""

from functools import partial

import pytest
import torch
from packaging.version import Version
from processes import detection_config, run
from torch import distributed as dist
from torch._dynamo.testing import CompileCounterWithBackend

from mvitv2_det import Recognizer, UserError, compile_blocks, fused
from mvitv2_det.engine import building, evaluate_checkpoint, evaluating, runner, train
from mvitv2_det.fused.compiling import OLDEST_TORCH

CHECKPOINTED = "model.backbone.bottom_up.use_act_checkpoint=true"

needs_torch = pytest.mark.skipif(
    Version(torch.__version__) < OLDEST_TORCH, reason="torch cannot compile blocks"
)


def fit(folder, name, *overrides):
    """Trains three iterations; counts what was compiled."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    fused.compile_blocks = partial(compile_blocks, backend=counter)
    cfg = detection_config(
        folder,
        f"train.output_dir={folder}/{name}",
        "train.seed=3",
        "model.backbone.bottom_up.drop_path_rate=0.3",
        "optimizer.lr=1e-2",
        *overrides,
    )
    try:
        train(cfg)
    finally:
        fused.compile_blocks = compile_blocks
    assert ("train.compile=true" in overrides) == (counter.frame_count > 0)


def _fit_twice_on_two(folder, name, *overrides):
    """Without the overrides and with them."""
    assert dist.get_world_size() == 2
    fit(folder, "plain")
    fit(folder, name, *overrides)


def weights(folder, name):
    return torch.load(folder / name / "model_final.pth", weights_only=True)["model"]


def check_same(one, other, tolerance):
    assert one.keys() == other.keys() and not any("_orig_mod" in name for name in one)
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=tolerance, atol=tolerance, msg=name)


class Reached(Exception):
    pass


@pytest.mark.parametrize("start", [train, evaluate_checkpoint])
@pytest.mark.parametrize("asked", [True, False])
def test_the_config_asks_for_it(start, asked, coco_folder, monkeypatch):
    def stop(*_, **__):
        raise Reached("compiled" if model else "not compiled")

    model = []
    monkeypatch.setattr(fused, "compile_blocks", lambda part: (model.append(part), stop()))
    for module in (runner, evaluating):
        monkeypatch.setattr(module, "create_ddp_model", stop)
    cfg = detection_config(
        coco_folder, f"train.output_dir={coco_folder}/out", f"train.compile={asked}"
    )
    with pytest.raises(Reached, match="^compiled" if asked else "not compiled"):
        start(cfg)


@needs_torch
@pytest.mark.long
def test_compiled_training_is_the_same_and_goes_on_without(coco_folder):
    """Tolerance: float32, three steps at a large rate, sums in another order."""
    fit(coco_folder, "plain")
    fit(coco_folder, "compiled", "train.compile=true", CHECKPOINTED)
    plain, compiled = (weights(coco_folder, name) for name in ("plain", "compiled"))
    check_same(compiled, plain, 1e-4)
    cfg = detection_config(
        coco_folder, f"train.output_dir={coco_folder}/compiled", "train.max_iter=4"
    )
    train(cfg, resume=True)
    after = weights(coco_folder, "compiled")
    assert any(not torch.equal(after[name], compiled[name]) for name in after)


@pytest.mark.long
def test_activations_are_recomputed_on_two_processes(coco_folder):
    """The same operations on the same numbers: bit for bit."""
    run(_fit_twice_on_two, coco_folder, coco_folder, "recomputed", CHECKPOINTED)
    check_same(weights(coco_folder, "plain"), weights(coco_folder, "recomputed"), 0)


@needs_torch
@pytest.mark.long
def test_compiled_training_on_two_processes(coco_folder):
    run(_fit_twice_on_two, coco_folder, coco_folder, "compiled", CHECKPOINTED, "train.compile=true")
    check_same(weights(coco_folder, "plain"), weights(coco_folder, "compiled"), 1e-4)


def test_what_has_no_blocks_of_images(coco_folder):
    cfg = detection_config(coco_folder, "train.compile=true")
    with pytest.raises(UserError, match=r"train\.compile: Linear has no blocks"):
        building.compile_model(cfg, torch.nn.Linear(2, 2))

    with torch.device("meta"), pytest.raises(UserError, match="without a class token"):
        building.compile_model(cfg, Recognizer.image("T", 10, class_token=True))
