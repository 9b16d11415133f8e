"""Exported detectors on disk: one for each config and weights, made when it is first needed."""

import hashlib
import json
import logging
import os
import shutil
from contextlib import suppress
from functools import cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import detectron2
import torch
from omegaconf import OmegaConf
from torch import nn

from ..errors import UserError
from .exported import ExportedDetector
from .sessions import open_session

_COMPARED_SIZE, _PIXELS, _SCORE = (320, 448), 0.01, 1e-3

_log = logging.getLogger(__name__)


def run_exported(
    model: nn.Module,
    settings: Any,
    weights: str | Path,
    *,
    runtime: str,
    precision: str = "fp32",
) -> ExportedDetector:
    """Has another library run a detector, by a file that is kept beside the weights.

    The file is made where there is none for the same settings and weights, which takes as long as
    some passes. It is of ONNX and of images of any size, and all runtimes share it; int8 has one
    of its own. It may be deleted at any time.

    Args:
        model: a detector on the CPU, with its weights; is put into evaluation mode.
        settings: whatever else decides what the model computes: its config, and changes to it.
        weights: file or address that they were read from; of an address nothing is kept.
        runtime, precision: see :func:`mvitv2_det.runtimes.check_runtime`.

    Raises:
        UserError: the detector cannot be exported with sizes of images that may be any, the
            runtime cannot read the file, or it does not find what the model finds in fp32.
    """
    from ..export import write_detector
    from ..export.quantizing import quantize_file

    name = f"{Path(weights).stem}.{key_of(model, settings)}.onnx"
    if precision == "int8":
        name = f"{Path(name).stem}.int8.onnx"
    place = Path(weights).parent if os.path.isfile(weights) else None
    if place is not None and (place / name).is_file():
        return ExportedDetector(open_session(place / name, runtime, precision))
    with TemporaryDirectory(prefix="mvitv2_det_") as folder:
        file = Path(folder) / name
        _log.info("Exporting the detector for %s: this is done once for its weights", runtime)
        write_detector(model.eval(), file)
        exact = ExportedDetector(open_session(file, runtime, "fp32"))
        _check_equal(exact, model, runtime)
        if precision == "int8":
            quantize_file(file)
        if place is not None:
            _keep(file, place / name)
        # What has been read needs its file no more.
        if precision == "fp32":
            return exact
        return ExportedDetector(open_session(file, runtime, precision))


@torch.no_grad()
def _check_equal(exported: ExportedDetector, model: nn.Module, runtime: str) -> None:
    """Compares what both find in noise of a size that the file was not traced with.

    Rounding may let NMS choose another one of two boxes: some instances may differ.

    Raises:
        UserError: more than a tenth of the instances are not found by both.
    """
    from ..export import noise

    image = [{"image": noise(_COMPARED_SIZE, seed=1)}]
    found, expected = (detector(image)[0]["instances"] for detector in (exported, model))
    for ours, others in ((found, expected), (expected, found)):
        boxes, other_boxes = ours.pred_boxes.tensor, others.pred_boxes.tensor
        is_same = (boxes[:, None] - other_boxes[None]).abs().amax(-1) < _PIXELS
        is_same &= (ours.scores[:, None] - others.scores[None]).abs() < _SCORE
        is_same &= ours.pred_classes[:, None] == others.pred_classes[None]
        alone = int((~is_same.any(1)).sum())
        if alone > len(boxes) / 10:
            raise UserError(
                f"what {runtime} runs is not this detector: of {len(boxes)} instances in noise "
                f"{alone} are found by one of both alone; choose the runtime torch"
            )


def key_of(model: nn.Module, settings: Any) -> str:
    """A short hash of all that an exported file depends on: settings, weights and code."""
    digest = hashlib.sha256(_code())
    digest.update(json.dumps(settings, default=_text, sort_keys=True).encode())
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


@cache
def _code() -> bytes:
    """A hash of this package and of the versions of what it exports with."""
    digest = hashlib.sha256(f"{torch.__version__} {detectron2.__version__}".encode())
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.digest()


def _text(value: Any) -> Any:
    """What stands for a value that json does not know, such as a class that a config calls.

    Where that names an address in memory the hash is another one each time, which is safe.
    """
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    name = getattr(value, "__qualname__", None)
    return repr(value) if name is None else f"{value.__module__}.{name}"


def _keep(file: Path, target: Path) -> None:
    """Copies a file, so that no other process ever sees a part of it; says so where it cannot."""
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(file, part)
        os.replace(part, target)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        _log.warning(
            "cannot keep the exported detector beside its weights (%s): it is made again at the "
            "next start",
            error,
        )
