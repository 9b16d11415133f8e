"""Blocks compiled one by one, on a small network with windows and without, with strides and not."""

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from models import TINY, randomize, relative_error
from packaging.version import Version
from torch._dynamo.testing import CompileCounterWithBackend

from mvitv2_det import MViT, UserError
from mvitv2_det.fused import accelerate, choice, compile_blocks, compiling

# Global blocks 0 and 1 have the same numbers, but 0 drops no paths; block 2 has windows and strided
# queries. Those behind it make no feature map that is asked for, and do not run.
NETWORK = TINY | {
    "depth": 5,
    "last_block_indexes": (1, 2, 3, 4),
    "global_block_indexes": (0, 1),
    "adaptive_window_size": 16,
    "drop_path_rate": 0.2,
    "out_features": ("scale2", "scale3"),
}
KINDS = 2
KINDS_IN_TRAINING = 3
# Of windows of 64 pixels: whole ones along neither side, along either, and along both at last.
SIZES = [(80, 96), (96, 75), (128, 75), (75, 128), (101, 133), (128, 192)]
TOLERANCE = 1e-5

needs_torch = pytest.mark.skipif(
    Version(torch.__version__) < compiling.OLDEST_TORCH, reason="torch cannot compile blocks"
)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def pair() -> tuple[MViT, MViT, CompileCounterWithBackend]:
    """A network, its copy that is compiled by Dynamo alone, and what counts compilations."""
    model = randomize(MViT(**NETWORK))
    compiled, counter = copy.deepcopy(model), CompileCounterWithBackend("eager")
    compile_blocks(compiled, backend=counter)
    return model, compiled, counter


@torch._dynamo.config.patch(recompile_limit=1)  # of each kind of block; more is an error
@needs_torch
@pytest.mark.long
def test_inference_over_sizes(pair):
    model, compiled, counter = pair
    for size in SIZES:
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected, actual = model.eval()(images), compiled.eval()(images)
        for name, feature in expected.items():
            assert relative_error(actual[name], feature) < TOLERANCE, (size, name)
        assert counter.frame_count == KINDS, size


@torch._dynamo.config.patch(recompile_limit=1)
@needs_torch
@pytest.mark.long
def test_fused_attention_over_sizes(pair, monkeypatch):
    """What GPUs compile, by Dynamo alone: generated code of it does not run on the CPU."""
    monkeypatch.setattr(choice, "_why_not_sdpa", lambda *_: None)
    model, compiled, counter = pair
    accelerate(compiled, "sdpa")
    for size in SIZES:
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected, actual = model.eval()(images), compiled.eval()(images)
        for name, feature in expected.items():
            assert relative_error(actual[name], feature) < TOLERANCE, (size, name)
        assert counter.frame_count == KINDS, size


@needs_torch
@pytest.mark.long
def test_training_over_sizes(pair):
    model, compiled, counter = pair
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        expected, actual = (_gradients(one, images) for one in (model, compiled))
        # The exact gradient of norm_k.bias is zero where no key is padding.
        rounding = 1e-6 * max(gradient.abs().max() for gradient in expected.values())
        for name, gradient in expected.items():
            difference = (actual[name] - gradient).abs().max()
            assert difference < TOLERANCE * gradient.abs().max() + rounding, (size, name)
        assert counter.frame_count == KINDS_IN_TRAINING, size


@needs_torch
@pytest.mark.long
def test_mixed_precision_and_checkpoints(pair):
    """bf16 against the same operations without compilation, which round alike."""
    model, compiled, counter = pair
    compiled.use_act_checkpoint = True
    accelerate(model, "reference")
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        with torch.autocast("cpu", torch.bfloat16):
            torch.manual_seed(0)
            expected = model.train()(images)
            torch.manual_seed(0)
            actual = compiled.train()(images)
        for name, feature in expected.items():
            assert relative_error(actual[name], feature) < TOLERANCE, (size, name)
        sum(feature.float().square().mean() for feature in actual.values()).backward()
    assert counter.frame_count == KINDS_IN_TRAINING


def _gradients(model: MViT, images: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # of stochastic depth
    model.zero_grad()
    sum(feature.square().mean() for feature in model.train()(images).values()).backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


@needs_torch
def test_weights_copies_and_pickles(pair):
    """Names stay; a copy has the weights and runs, not compiled, and so does what is pickled."""
    model, compiled, counter = pair
    assert list(compiled.state_dict()) == list(model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(images)
        for other in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
            for name, feature in other.eval()(images).items():
                assert torch.equal(feature, expected[name])
    assert counter.frame_count == 0


def test_older_torch_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.13.1+cpu")
    with pytest.raises(UserError, match=r"needs torch 2\.14 or newer, got 2\.13\.1\+cpu"):
        compile_blocks(MViT(**NETWORK))
