"""Exporting a backbone, a whole detector or a classifier, and checking what was exported.

========== ============ ===== ===========
part       torch_export onnx  torchscript
========== ============ ===== ===========
backbone   yes          yes   yes
detector   no           yes   yes
classifier yes          yes   yes
========== ============ ===== ===========

A classifier, of images or of clips, needs no Detectron2.

A detector goes through Detectron2's ``TracingAdapter``. ``torch.export`` has no way for it: how
many proposals and instances remain after non-maximum suppression is decided by the data, and
Detectron2 decides on those numbers in Python.

Axes: B images or clips, H × W or T × H × W pixels, N instances, M × M pixels of a mask in its box.
"""

import importlib.util
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..attention.multiscale import MultiScaleAttention
from ..errors import UserError
from ..recognition.recognizer import Recognizer
from .comparing import (
    Comparison,
    compare,
    compare_quantized,
    describe,
    noise,
    normalised,
    sizes_to_compare,
)
from .quantizing import quantize_file
from .writers import FORMATS, READERS, WRITERS, FeatureMaps, Logits, write_detector_onnx

__all__ = [
    "FORMATS",
    "PARTS",
    "PRECISIONS",
    "TOLERANCE",
    "Comparison",
    "check_part_and_format",
    "describe",
    "export_model",
    "noise",
    "write_detector",
]

PRECISIONS = ("fp32", "int8")
PARTS = ("backbone", "detector", "classifier")
TOLERANCE = 1e-4  # float32, of the largest value

_TRACED_SIZE = (256, 320)  # pixels: more than one window, and quick
_LEAST_DYNAMIC_SIDE = 64  # pixels: one token along a side would be taken for the rule
_SOFT_NMS = "SoftNMSOutputLayers"  # by name: Detectron2, which its module needs, may be missing


def export_model(
    model: nn.Module,
    file: Path,
    *,
    part: str,
    format: str,
    image_size: tuple[int, ...],
    dynamic: bool = False,
    precision: str = "fp32",
    check_images: Sequence[Tensor] = (),
    metadata: Mapping[str, str] | None = None,
) -> Comparison:
    """Exports a model, reads the file again, and compares it with the model.

    Args:
        model: a detector; for ``part="backbone"`` a backbone as well; for ``part="classifier"`` a
            recogniser of images or clips. On the CPU, in float32.
        file: to write; above 1.5 GB of weights ONNX puts them into a second file beside it.
        part: one of :data:`PARTS`; the backbone is with its FPN, where there is one.
        format: one of :data:`FORMATS`.
        image_size: (H, W) of the images, or (T, H, W) of the clips, to trace with.
        dynamic: take images, or frames of clips, of any size; otherwise of ``image_size`` alone. A
            backbone then also takes any number of images at once, otherwise one; a classifier
            always does.
        precision: one of :data:`PRECISIONS`; ``int8`` is that of the weights of linear layers, by
            :func:`mvitv2_det.export.quantizing.quantize_file`.
        check_images: to compare on, (3, H, W), 0 to 255, and for a classifier normalised, of clips
            (3, T, H, W); by default noise, three sizes of it where ``dynamic``.
        metadata: texts to keep in the file by name: in the metadata of ONNX, and in files of these
            names inside of the others.

    Returns:
        how near the file is to the model.

    Raises:
        UserError: it cannot be exported so; or what was exported differs from the model by more
            than :data:`TOLERANCE`, and is not kept.
    """
    check_part_and_format(part, format, precision)
    _check_model(model, part, image_size, dynamic)
    # Axes of (B, 3, H, W) or (B, 3, T, H, W) whose sizes the file leaves open.
    axes: tuple[int, ...] = (0,) if part == "classifier" else ()
    if dynamic:
        axes = (0, len(image_size), len(image_size) + 1)
    with _in_evaluation(model), warnings.catch_warnings(), torch.no_grad():
        # Tracers warn of what may go wrong; the comparison finds out whether it did.
        warnings.simplefilter("ignore")
        example = noise(image_size, seed=0)
        images = list(check_images) or [
            noise(size, seed=index + 1)
            for index, size in enumerate(sizes_to_compare(image_size, dynamic))
        ]
        if part == "detector":
            from ..detection.traceable import Detections  # which needs Detectron2

            exported: nn.Module = Detections(model, example)
        else:
            is_classifier = isinstance(model, Recognizer)
            exported = (
                Logits(model)
                if isinstance(model, Recognizer)
                else FeatureMaps(getattr(model, "backbone", model))
            )
            batch = 2 if axes else 1  # torch.export makes sizes of 1 constant
            example = normalised(example, model)
            example = example.expand(batch, *[-1] * (example.dim() - 1)).contiguous()
            if not (is_classifier and check_images):
                images = [normalised(image, model) for image in images]
            images = [image if image.dim() == example.dim() else image[None] for image in images]
            if is_classifier:
                first = images[0]
                images.append(torch.cat((first, first.flip(-1), first.flip(-2))))
        exported.eval()
        try:
            with _naming_failures(part, format):
                WRITERS[part, format](exported, example, file, axes, metadata or {})
                comparison = compare(READERS[format](file), exported, images, part, len(image_size))
            _check_equal(comparison, part, dynamic)
            if precision == "int8":
                with _naming_failures(part, "onnx in int8"):
                    quantize_file(file)
                    changed = compare_quantized(READERS[format](file), exported, images, part)
                if not math.isfinite(changed):
                    raise UserError(f"the {part} in int8 gives no finite numbers: leave int8 out")
                comparison = replace(comparison, quantized=changed)
        except UserError:
            _remove(file)
            raise
    return comparison


def write_detector(model: nn.Module, file: Path) -> None:
    """Writes a detector as ONNX for one image of any size; the caller compares it with the model.

    See :class:`mvitv2_det.detection.traceable.Detections` for what it takes and gives.

    Args:
        model: a detector on the CPU, in float32.
        file: to write.

    Raises:
        UserError: it cannot be exported so.
    """
    _check_model(model, "detector", _TRACED_SIZE, dynamic=True)
    with _in_evaluation(model), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        from ..detection.traceable import Detections

        example = noise(_TRACED_SIZE, seed=0)
        with _naming_failures("detector", "onnx"):
            write_detector_onnx(Detections(model, example).eval(), example, file, (0, 2, 3), {})


def check_part_and_format(part: str, format: str, precision: str = "fp32") -> None:
    """Refuses what cannot be exported, before anything is read.

    Args:
        part: one of :data:`PARTS`.
        format: one of :data:`FORMATS`.
        precision: one of :data:`PRECISIONS`.

    Raises:
        UserError: there is no such part, format or precision, the part cannot be exported in the
            format, or the format needs packages that are not installed.
    """
    for name, value, known in (
        ("part", part, PARTS), ("format", format, FORMATS), ("precision", precision, PRECISIONS)
    ):  # fmt: skip
        if value not in known:
            raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if (part, format) not in WRITERS:
        raise UserError(
            "a detector cannot be exported with torch_export: its non-maximum suppression leaves "
            "numbers of proposals and instances that only the data decide; export the detector as "
            "onnx or torchscript, or --part backbone with torch_export"
        )
    if precision == "int8" and format != "onnx":
        raise UserError(f"int8 is for the format onnx alone, got {format}")
    if format == "onnx":
        needed = ("onnx", "onnxscript", "onnxruntime")
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"ONNX needs {', '.join(missing)}: python -m pip install 'mvitv2_det[export]'"
            )


def _check_equal(comparison: Comparison, part: str, dynamic: bool) -> None:
    if not comparison.error <= TOLERANCE:
        raise UserError(
            f"the exported {part} differs from the model by {comparison.error:.1e} of the largest "
            f"value, more than {TOLERANCE:g}, on images of {describe(comparison.sizes)}; "
            + ("export it without dynamic sizes" if dynamic else "use another format")
        )


def _check_model(model: nn.Module, part: str, image_size: tuple[int, ...], dynamic: bool) -> None:
    if (part == "classifier") != isinstance(model, Recognizer):
        raise UserError(f"the {part} of a {type(model).__name__} cannot be exported")
    axes = model.axes if isinstance(model, Recognizer) else 2
    if len(image_size) != axes:
        kind = "images have a height and a width" if axes == 2 else "clips have frames, too"
        raise UserError(f"the image size must have {axes} numbers, as {kind}, got {image_size}")
    if part == "detector" and not hasattr(model, "roi_heads"):
        raise UserError(
            f"the config's model is a {type(model).__name__} without box heads: export "
            f"--part backbone"
        )
    if part == "detector" and any(type(m).__name__ == _SOFT_NMS for m in model.modules()):
        raise UserError(
            "Soft-NMS cannot be exported: the image decides how many steps it takes; use the hard "
            "NMS of Detectron2's FastRCNNOutputLayers"
        )
    least = _LEAST_DYNAMIC_SIDE if dynamic else 1
    if min(image_size[-2:]) < least:
        raise UserError(f"the image size must be at least {least}×{least}, got {image_size}")
    if dynamic and any(
        isinstance(module, MultiScaleAttention) and module.spec.shift for module in model.modules()
    ):
        raise UserError(
            "shifted windows cannot be exported with dynamic sizes: an axis that one window "
            "covers is not shifted; export it for one image size"
        )
    if dynamic and getattr(getattr(model, "backbone", model), "least_side", False):
        raise UserError(
            "a backbone that pads to a square would cut larger images off where sizes are dynamic: "
            "export it with model.backbone.square_pad=0, or for one image size"
        )


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def _naming_failures(part: str, format: str) -> Iterator[None]:
    """Turns whatever exporters raise into a :class:`UserError`."""
    try:
        yield
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise UserError(
            f"the {part} cannot be exported as {format}: {type(error).__name__}: {reason}"
        ) from error


def _remove(file: Path) -> None:
    for written in (file, file.with_name(f"{file.name}.data")):
        written.unlink(missing_ok=True)
