"""CUDA graphs of inference; without a GPU, a stand-in for the recording."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mvitv2_det import MViT, graphs, replay_graphs
from tests.models import TINY, randomize

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# What waits for a GPU, or reads its memory from the host: a recording fails at it.
SYNCHRONISES = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique")


class Recording(TorchDispatchMode):
    """Fails where the recording of a graph would."""

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        name = operation.__name__.partition(".")[0]
        if any(name.startswith(word) for word in SYNCHRONISES):
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        return operation(*arguments, **(keywords or {}))


@pytest.fixture
def stand_in(monkeypatch):
    """Lets tensors of the CPU be recorded; returns the number of recordings and of replays."""
    counts = {"recorded": 0, "replayed": 0}

    def record(run, pool):
        run()
        before = graphs.kept_tensors()
        with Recording():
            outputs = run()
        # A constant that is first made in a recording lies in the graph's own memory.
        assert len(graphs.kept_tensors()) == len(before)
        counts["recorded"] += 1

        def replay():
            counts["replayed"] += 1
            again = run()
            if isinstance(outputs, Tensor):
                outputs.copy_(again)
            else:
                for name, tensor in outputs.items():
                    tensor.copy_(again[name])

        return replay, outputs

    monkeypatch.setattr(graphs, "_record", record)
    monkeypatch.setattr(graphs, "_DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return counts


def small_backbone() -> MViT:
    return randomize(MViT(**TINY, attention_backend="sdpa")).eval()


def equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_graph_for_each_size_gives_the_same_bits(stand_in):
    model = small_backbone()
    images = [torch.randn(1, 3, *size) for size in ((64, 96), (96, 64), (64, 96))]
    with torch.inference_mode():
        wanted = [model(image) for image in images]
    replay_graphs(model)
    with torch.inference_mode():
        first = model(images[0])
        found = [first, *(model(image) for image in images[1:])]
    assert all(map(equal, found, wanted))  # the first outputs outlived two more replays
    assert stand_in == {"recorded": 2, "replayed": 3}


def test_weights_may_change_in_place(stand_in):
    model, other = small_backbone(), small_backbone()
    image = torch.randn(1, 3, 64, 96)
    replay_graphs(model)
    with torch.no_grad():
        model(image)
        model.load_state_dict(other.state_dict())
        assert equal(model(image), other(image))
    assert stand_in["recorded"] == 1


def test_what_is_not_replayed(stand_in):
    model = small_backbone()
    graphed = replay_graphs(model)
    image = torch.randn(1, 3, 64, 64)
    model(image)["scale5"].sum().backward()
    assert graphed.why_not(image) == "gradients are asked for"
    with torch.no_grad():
        model.train()(image)
        assert graphed.why_not(image) == "the module is in training mode"
        model.eval()
        graphed.stop()
        model(image)
    assert stand_in == {"recorded": 0, "replayed": 0}


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"max_graphs": 1}, "there are 1 graphs already, as many as asked for"),
        ({"max_gib": 1e-6}, "the graphs hold 0.0 GiB already, as much as asked for"),
    ],
)
def test_bounds(stand_in, caplog, bounds, reason):
    model = small_backbone()
    graphed = replay_graphs(model, **bounds)
    images = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for image in (*images, *images):
            model(image)
        assert graphed.why_not(images[0]) is None
        assert graphed.why_not(images[1]) == reason
    assert stand_in == {"recorded": 1, "replayed": 2}
    assert caplog.text.count("no CUDA graph for inputs of (1, 3, 64, 96)") == 1


class ReadsOnTheHost(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sum().item()


def test_what_cannot_be_recorded_runs_as_before(stand_in):
    module, x = ReadsOnTheHost().eval(), torch.ones(2)
    graphed = replay_graphs(module)
    with torch.no_grad():
        assert module(x).tolist() == [2, 2]
        assert "it cannot be recorded: operation not permitted" in graphed.why_not(x)


def test_hooks_still_run_and_copies_have_graphs_of_their_own(stand_in):
    model, seen = small_backbone(), []
    replay_graphs(model)
    twin = copy.deepcopy(model)
    twin.register_forward_hook(lambda *_: seen.append(1))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        twin.patch_embed.proj.weight.mul_(2)
        assert not equal(twin(image), model(image))
    assert seen == [1] and stand_in["recorded"] == 2


def test_on_a_cpu_nothing_changes():
    model, image = small_backbone(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = model(image)
        graphed = replay_graphs(model)
        assert equal(model(image), wanted)
        assert graphed.why_not(image) == "CUDA graphs are of GPUs, got a tensor on cpu"


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("backend", ["sdpa", "triton", "reference"])
def test_same_bits_on_a_gpu(backend):
    model = randomize(MViT(**TINY, attention_backend=backend)).cuda().eval()
    images = [torch.randn(1, 3, *size, device="cuda") for size in ((64, 96), (96, 64), (64, 96))]
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        wanted = [model(image) for image in images]
        replay_graphs(model)
        assert all(map(equal, [model(image) for image in images], wanted))
