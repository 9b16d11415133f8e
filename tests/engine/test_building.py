"""What the nodes of a config make."""

import logging

import pytest
import torch
from omegaconf import OmegaConf

from mvitv2_det.engine import building


@pytest.mark.parametrize(
    ("device", "dtype", "able", "expected"),
    [
        ("cpu", "bfloat16", True, torch.bfloat16),
        ("cpu", "bfloat16", False, None),
        ("cpu", "float16", True, None),
        ("cuda", "float16", False, torch.float16),
    ],
)
def test_precision_is_one_that_the_device_multiplies(
    device, dtype, able, expected, monkeypatch, caplog
):
    monkeypatch.setattr(building, "multiplies_bfloat16", lambda: able)
    cfg = OmegaConf.create({"train": {"device": device, "amp": {"enabled": True, "dtype": dtype}}})
    with caplog.at_level(logging.INFO):
        assert building.precision_of(cfg) == expected
    assert ("Training in float32" in caplog.text) == (expected is None)
    cfg.train.amp.enabled = False
    assert building.precision_of(cfg) is None
