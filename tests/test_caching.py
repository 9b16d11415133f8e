"""What is kept of weights that are promised not to change, and for how long."""

import copy
import gc
import weakref

import pytest
import torch
from models import TINY, randomize
from torch import Tensor, nn

from mvitv2_det import MViT, constant_weights
from mvitv2_det.caching import Keeper
from mvitv2_det.fused import tokens

IMAGE = (1, 3, 64, 96)


def backbone() -> MViT:
    return randomize(MViT(**TINY)).eval()


@pytest.fixture
def casts(monkeypatch):
    """Weak references to what is cast to bfloat16 at a block's start."""
    made, cast = [], tokens.cast

    def noting(tensors, dtype):
        found = cast(tensors, dtype)
        made.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(tokens, "cast", noting)
    monkeypatch.setattr("mvitv2_det.processor.multiplies_bfloat16", lambda: True)
    return made


def infer(model: MViT, image: Tensor) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return model(image)["scale5"]


def test_weights_are_cast_once_and_let_go_of(casts):
    model, image = backbone(), torch.randn(*IMAGE)
    wanted = infer(model, image)
    in_a_pass = len(casts)
    with constant_weights(model):
        casts.clear()
        assert torch.equal(infer(model, image), wanted)
        held = [one for one in casts if one() is not None]
        assert len(held) == len(model.blocks)
        casts.clear()
        with constant_weights(nn.ModuleList([model])):
            assert torch.equal(infer(model, image), wanted)
        assert torch.equal(infer(model, image), wanted)
        assert len(casts) == 2 * (in_a_pass - len(model.blocks))
    gc.collect()
    assert all(one() is None for one in held)


def test_outside_weights_may_change():
    model, other, image = backbone(), backbone(), torch.randn(*IMAGE)
    other.load_state_dict({name: 2 * one for name, one in model.state_dict().items()})

    def fail() -> None:
        with constant_weights(model):
            before.append(infer(model, image))
            raise ZeroDivisionError

    before: list[Tensor] = []
    with pytest.raises(ZeroDivisionError):
        fail()
    for own, new in zip(model.parameters(), other.parameters(), strict=True):
        own.data.copy_(new.data)
    assert torch.equal(infer(model, image), infer(other, image))
    assert not torch.equal(before[0], infer(model, image))


def test_passes_with_gradients_keep_nothing(casts):
    model, image = backbone(), torch.randn(*IMAGE)

    def count() -> int:
        casts.clear()
        model(image)
        return len(casts)

    outside = count()
    assert outside >= len(model.blocks)
    with constant_weights(model):
        with torch.no_grad():
            model(image)
        assert [count(), count()] == [outside, outside]
    assert all(block.kept is None for block in model.blocks)


def test_copies_are_promised_nothing():
    model = backbone()
    with constant_weights(model):
        assert all(block.kept is None for block in copy.deepcopy(model).blocks)
        assert all(block.kept is not None for block in model.blocks)


def test_what_there_is_no_room_for_is_made_each_time(monkeypatch):
    monkeypatch.setattr("mvitv2_det.caching._SIZES", 2)
    keeper, made = Keeper(), []
    for key in (1, 2, 3, 1, 3):
        assert keeper.once(key, lambda key=key: made.append(key) or -key) == -key
    assert made == [1, 2, 3, 3]
    keeper.end()
    assert keeper.ended and keeper.once(1, lambda: "again") == "again"
    assert keeper.once(1, lambda: "and again") == "and again"
