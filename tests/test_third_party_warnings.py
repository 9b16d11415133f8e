"""What a user sees on the terminal while Detectron2 is imported and used."""

import os
import subprocess
import sys

USE_DETECTRON2 = """
import detectron2.modeling
from detectron2.utils.tracing import is_fx_tracing
import torch
is_fx_tracing()
torch.meshgrid(torch.ones(2), torch.ones(2))
import numpy
from detectron2.data.detection_utils import annotations_to_instances
mask = numpy.ones((4, 4), bool)
mask.flags.writeable = False
one = {"bbox": [0, 0, 4, 4], "bbox_mode": 0, "category_id": 0, "segmentation": mask}
annotations_to_instances([one], (4, 4), mask_format="bitmask")
"""
SILENCE = (
    "from mvitv2_det.third_party_warnings import silence_third_party_warnings\n"
    "silence_third_party_warnings()\n"
)


def errors_of(script: str) -> str:
    """What a fresh process writes to standard error, with Python's warnings as a user has them."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    command = [sys.executable, "-c", script]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stderr


def test_known_warnings_are_silent():
    assert errors_of(SILENCE + USE_DETECTRON2) == ""


def test_other_warnings_and_log_lines_are_not():
    script = SILENCE + (
        "import logging, warnings\n"
        "warnings.warn('of the user', stacklevel=1)\n"
        "logging.getLogger('torch.fx._symbolic_trace').warning('of torch')\n"
    )
    errors = errors_of(script)
    assert "of the user" in errors and "of torch" in errors
