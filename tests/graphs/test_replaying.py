"""Replayed passes of inference and training; without a GPU, a stand-in for the recording."""

import copy
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mvitv2_det import MViT, constant_weights, replay_graphs
from mvitv2_det.graphs import passes, replaying
from tests.models import TINY, randomize

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
WIDE = {"embed_dim": 96}  # the Triton kernels are for heads of 64 channels and more
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
        before = passes.kept_tensors()
        with Recording():
            outputs = run()
        # A constant that is first made in a recording lies in the graph's own memory.
        assert len(passes.kept_tensors()) == len(before)
        counts["recorded"] += 1
        has_gradients = torch.is_grad_enabled()

        def replay():
            counts["replayed"] += 1
            with torch.set_grad_enabled(has_gradients):
                again = run()
            for held, new in zip(outputs, again, strict=True):
                held.copy_(new)

        return replay, outputs

    monkeypatch.setattr(passes, "_warm_up", lambda run: run())
    monkeypatch.setattr(passes, "_record", record)
    monkeypatch.setattr(replaying, "_DEVICES", ("cpu", "cuda"))
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


def test_graphs_of_constant_weights_end_with_the_promise(stand_in):
    """They are replayed within the context alone; what is recorded outside stays."""
    model, other = small_backbone(), small_backbone()
    image = torch.randn(1, 3, 64, 96)
    graphed = replay_graphs(model)
    for recorded in (2, 3):
        with torch.no_grad():
            model(image)
            with constant_weights(model):
                assert equal(model(image), model(image))
            model.load_state_dict(other.state_dict())
            assert equal(model(image), other(image))
        assert stand_in["recorded"] == recorded and len(graphed._graphs) == 2


def test_what_is_not_replayed(stand_in):
    model = small_backbone()
    graphed = replay_graphs(model)
    image = torch.randn(1, 3, 64, 64)
    model(image)["scale5"].sum().backward()
    assert graphed.why_not(image) == "gradients are asked for, and graphs for training are not"
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


def trained(model: MViT, images: Sequence[Tensor]) -> list[Tensor]:
    """All gradients after a pass on each image, summed."""
    model.zero_grad()
    for image in images:
        sum(feature.float().square().mean() for feature in model(image).values()).backward()
    return [parameter.grad for parameter in model.parameters()]


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(
        (one is None and other is None) or torch.equal(one, other)
        for one, other in zip(found, wanted, strict=True)
    )


def test_training_gives_the_same_gradients(stand_in):
    """Bit-equal, summed over images of two sizes, twice: gradients outlive the next replay."""
    model = small_backbone().train()
    images = [torch.randn(1, 3, *size) for size in ((64, 96), (96, 64), (64, 96))]
    wanted = trained(model, images)
    assert any(grad.abs().sum() > 0 for grad in wanted if grad is not None)
    replay_graphs(model, training=True)
    assert same(trained(model, images), wanted)
    first = [parameter.grad for parameter in model.parameters()]
    assert same(trained(model, images), wanted) and same(first, wanted)
    assert stand_in == {"recorded": 4, "replayed": 12}


def test_training_between_evaluations(stand_in):
    """Weights, and what trains, may change."""
    model, twin = small_backbone(), small_backbone()
    twin.load_state_dict(model.state_dict())
    replay_graphs(model, training=True)
    image = torch.randn(1, 3, 64, 64)
    for frozen in (False, True, False):
        found = {}
        for one in (model, twin):
            one.patch_embed.requires_grad_(not frozen)
            found[one] = trained(one.train(), [image])
            torch.optim.SGD(one.parameters(), lr=0.1).step()
        assert same(found[model], found[twin])
        with torch.no_grad():
            assert equal(model.eval()(image), twin.eval()(image))
    # Of training with all parameters, with some, and of inference.
    assert stand_in["recorded"] == 2 + 2 + 1


def test_one_training_pass_at_a_time(stand_in):
    model = small_backbone().train()
    images = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64)
    wanted = trained(model, images)
    graphed = replay_graphs(model, training=True)
    model.zero_grad()
    features = [model(image) for image in images]  # the second of them is not replayed
    assert "another pass is still to come" in graphed.why_not(images[0])
    assert stand_in["replayed"] == 1
    for found in reversed(features):
        sum(feature.square().mean() for feature in found.values()).backward()
    assert same([parameter.grad for parameter in model.parameters()], wanted)
    assert graphed.why_not(images[0]) is None
    del features, found
    dropped = model(images[0])
    assert graphed.why_not(images[0]) is not None
    del dropped  # a pass that is never followed by a backward pass
    assert graphed.why_not(images[0]) is None


@pytest.mark.gpu
@NEEDS_GPU
def test_random_numbers_after_a_recording_that_fails():
    class DrawsAndReads(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight * torch.rand_like(x) * x.sum().item()

    module, x = DrawsAndReads().cuda(), torch.ones(3, device="cuda")
    wanted = module(x).grad_fn is not None
    graphed = replay_graphs(module, training=True)
    for _ in range(2):
        module(x).sum().backward()
    assert wanted and "it cannot be recorded" in graphed.why_not(x)


def test_a_generator_that_a_recording_has_left_unusable(monkeypatch):
    """Stand-ins for a GPU's generator and tensors."""
    states, device = [], SimpleNamespace(index=0)

    class Fresh:
        def __init__(self, device):
            pass

        graphsafe_get_state = staticmethod(lambda: "fresh")

    generator = SimpleNamespace(graphsafe_set_state=states.append)
    monkeypatch.setattr(torch.cuda, "default_generators", (generator,))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: "before")
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.append(state))
    monkeypatch.setattr(torch, "Generator", Fresh)
    for draw, renewed in ((lambda: None, False), (refuse, True)):
        tensor = SimpleNamespace(uniform_=draw)
        monkeypatch.setattr(torch, "empty", lambda *_, tensor=tensor, **__: tensor)
        assert passes.renew_generator(device) is renewed
    assert states == ["before", "fresh", "before"]


def refuse():
    raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")


def test_one_backward_pass_for_each(stand_in):
    model = small_backbone().train()
    replay_graphs(model, training=True)
    loss = model(torch.randn(1, 3, 64, 64))["scale5"].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a replayed pass has one backward pass"):
        loss.backward()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.requires_grad_(False), "nothing trains"),
        (lambda m: m.blocks[0].to(torch.float64), "several types"),
        (lambda m: m.blocks[0].mlp.register_forward_hook(print), "a module inside has hooks"),
        (lambda m: m.blocks[0].mlp.fc1.weight.register_hook(print), "a parameter has hooks"),
        (lambda m: m.add_module("bn", nn.BatchNorm2d(1)), "a batch norm inside"),
        (lambda m: setattr(m, "use_act_checkpoint", True), "computed again in backward"),
    ],
)
def test_what_training_is_not_replayed(stand_in, change, reason):
    model = small_backbone().train()
    change(model)
    assert reason in replay_graphs(model, training=True).why_not(torch.randn(1, 3, 64, 64))
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    of_input = replay_graphs(small_backbone(), training=True).why_not(image)
    assert of_input == "the gradient of the input is asked for"


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
@pytest.mark.parametrize("backend", ["sdpa", "triton", "auto", "reference"])
def test_same_gradients_on_a_gpu(backend, drop_path_rate):
    """To 1e-2 of the largest of each parameter in bfloat16, with the same dropped paths."""
    options = TINY | {"attention_backend": backend, "drop_path_rate": drop_path_rate}
    model = randomize(MViT(**options | WIDE)).cuda().train()
    images = [torch.randn(2, 3, *size, device="cuda") for size in ((64, 96), (96, 64), (64, 96))]
    found = []
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            torch.manual_seed(1)
            found.append(trained(model, images))
        replay_graphs(model, training=True)
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one - other).abs().max() <= 1e-2 * one.abs().max() + 1e-6


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("backend", ["sdpa", "triton", "reference"])
def test_same_bits_on_a_gpu(backend):
    model = randomize(MViT(**TINY | WIDE, attention_backend=backend)).cuda().eval()
    images = [torch.randn(1, 3, *size, device="cuda") for size in ((64, 96), (96, 64), (64, 96))]
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        wanted = [model(image) for image in images]
        replay_graphs(model)
        assert all(map(equal, [model(image) for image in images], wanted))
