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
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .attention.multiscale import MultiScaleAttention
from .errors import UserError
from .recognition.recognizer import Recognizer

PARTS = ("backbone", "detector", "classifier")
FORMATS = ("torch_export", "onnx", "torchscript")
TOLERANCE = 1e-4  # float32, of the largest value

_TRACED_SIZE = (256, 320)  # pixels: more than one window, and quick
_LEAST_DYNAMIC_SIDE = 64  # pixels: one token along a side would be taken for the rule
_SOFT_NMS = "SoftNMSOutputLayers"  # by name: Detectron2, which its module needs, may be missing
_ONNX_OPSET = 17  # of the tracing exporter; 16 is the first with Detectron2's RoIAlign
_ONE_ONNX_FILE = 1_500_000_000  # bytes of weights; the format ends at 2 GB
Runner = Callable[[Tensor], Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class Comparison:
    """How an exported file compares with the model that it was made of.

    Attributes:
        sizes: (H, W) of the images, or (T, H, W) of the clips, compared on.
        error: the largest difference over the largest value, of the worst output.
        instances: number of a detector's instances that were compared; None for other parts.
    """

    sizes: list[tuple[int, ...]]
    error: float
    instances: int | None


class FeatureMaps(nn.Module):
    """A backbone that returns its feature maps as a tuple, fine to coarse.

    Attributes:
        names: the names of the maps.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.names = list(backbone.output_shape())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps normalised images (B, 3, H, W) to one (B, C, H / s, W / s) for each stride s."""
        return tuple(self.backbone(images).values())


class Logits(nn.Module):
    """A classifier's outputs before softmax.

    Attributes:
        names: the name of the only output.
    """

    def __init__(self, classifier: Recognizer) -> None:
        super().__init__()
        self.classifier = classifier
        self.names = ["logits"]

    def forward(self, images: Tensor) -> Tensor:
        """Maps normalised images (B, 3, H, W) or clips (B, 3, T, H, W) to (B, classes)."""
        return self.classifier(images)


def export_model(
    model: nn.Module,
    file: Path,
    *,
    part: str,
    format: str,
    image_size: tuple[int, ...],
    dynamic: bool = False,
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
    _check_request(model, part, format, image_size, dynamic)
    # Axes of (B, 3, H, W) or (B, 3, T, H, W) whose sizes the file leaves open.
    axes: tuple[int, ...] = (0,) if part == "classifier" else ()
    if dynamic:
        axes = (0, len(image_size), len(image_size) + 1)
    with _in_evaluation(model), warnings.catch_warnings(), torch.no_grad():
        # Tracers warn of what may go wrong; the comparison finds out whether it did.
        warnings.simplefilter("ignore")
        example = noise(image_size, seed=0)
        images = list(check_images) or [
            noise(size, seed=index + 1) for index, size in enumerate(_sizes(image_size, dynamic))
        ]
        if part == "detector":
            from .detection.traceable import Detections  # which needs Detectron2

            exported: nn.Module = Detections(model, example)
        else:
            is_classifier = isinstance(model, Recognizer)
            exported = (
                Logits(model)
                if isinstance(model, Recognizer)
                else FeatureMaps(getattr(model, "backbone", model))
            )
            batch = 2 if axes else 1  # torch.export makes sizes of 1 constant
            example = _normalised(example, model)
            example = example.expand(batch, *[-1] * (example.dim() - 1)).contiguous()
            if not (is_classifier and check_images):
                images = [_normalised(image, model) for image in images]
            images = [image if image.dim() == example.dim() else image[None] for image in images]
            if is_classifier:
                first = images[0]
                images.append(torch.cat((first, first.flip(-1), first.flip(-2))))
        exported.eval()
        try:
            with _naming_failures(part, format):
                _WRITERS[part, format](exported, example, file, axes, metadata or {})
                run = _READERS[format](file)
        except UserError:
            _remove(file)
            raise
        comparison = _compare(run, exported, images, part, len(image_size))
    if not comparison.error <= TOLERANCE:
        _remove(file)
        raise UserError(
            f"the exported {part} differs from the model by {comparison.error:.1e} of the largest "
            f"value, more than {TOLERANCE:g}, on images of {describe(comparison.sizes)}; "
            + ("export it without dynamic sizes" if dynamic else "use another format")
        )
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
        from .detection.traceable import Detections

        example = noise(_TRACED_SIZE, seed=0)
        with _naming_failures("detector", "onnx"):
            _write_detector_onnx(Detections(model, example).eval(), example, file, (0, 2, 3), {})


def check_part_and_format(part: str, format: str) -> None:
    """Refuses what cannot be exported, before anything is read.

    Args:
        part: one of :data:`PARTS`.
        format: one of :data:`FORMATS`.

    Raises:
        UserError: there is no such part or format, the part cannot be exported in the format, or
            the format needs packages that are not installed.
    """
    for name, value, known in (("part", part, PARTS), ("format", format, FORMATS)):
        if value not in known:
            raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if (part, format) not in _WRITERS:
        raise UserError(
            "a detector cannot be exported with torch_export: its non-maximum suppression leaves "
            "numbers of proposals and instances that only the data decide; export the detector as "
            "onnx or torchscript, or --part backbone with torch_export"
        )
    if format == "onnx":
        needed = ("onnx", "onnxscript", "onnxruntime")
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"ONNX needs {', '.join(missing)}: python -m pip install 'mvitv2_det[export]'"
            )


def _check_request(
    model: nn.Module, part: str, format: str, image_size: tuple[int, ...], dynamic: bool
) -> None:
    check_part_and_format(part, format)
    _check_model(model, part, image_size, dynamic)


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


def noise(size: tuple[int, ...], seed: int) -> Tensor:
    """Makes an image (3, H, W) or a clip (3, T, H, W), 0 to 255, of noise coarse enough to find."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, *size)
    for step in (64, 16, 4, 1):
        coarse = torch.rand(1, 3, *(-(-side // step) for side in size), generator=generator)
        image += nn.functional.interpolate(coarse, size=size, mode="nearest") / 4
    return 255 * image[0]


def _normalised(image: Tensor, model: nn.Module) -> Tensor:
    """Normalises (3, …) to (1, 3, …) with the model's mean, or else the image's own."""
    mean = getattr(model, "pixel_mean", image.mean())
    std = getattr(model, "pixel_std", image.std())
    return ((image - mean) / std)[None]


def _sizes(image_size: tuple[int, ...], dynamic: bool) -> list[tuple[int, ...]]:
    """Chooses sizes to compare on: the example's, and two that no stride or window divides."""
    *frames, height, width = image_size
    others = [(height // 2 + 7, width + 33), (height + 65, width // 2 + 3)]
    return [image_size, *((*frames, *other) for other in others if dynamic)]


def _torch_program(
    exported: nn.Module, example: Tensor, axes: Sequence[int]
) -> torch.export.ExportedProgram:
    """Exports a function of ``images`` by ``torch.export``; ``axes`` of these may have any size."""
    if not axes:
        return torch.export.export(exported, (example,), strict=False)
    any_size = {axis: torch.export.Dim.DYNAMIC for axis in axes}
    # Treat sizes as unknown: if the example has a single window, others may have more.
    config: Any = torch.fx.experimental._config  # torch gives it its functions when it is imported
    with config.patch(backed_size_oblivious=True):
        program = torch.export.export(
            exported, (example,), dynamic_shapes={"images": any_size}, strict=False
        )
    # The remaining guards check the memory layout of the example's maps, such as more than one
    # window in a row. The graph does not depend on it, but the guards would refuse other images.
    program._guards_code = []
    return program


def _write_torch_export(
    exported: nn.Module,
    example: Tensor,
    file: Path,
    axes: Sequence[int],
    metadata: Mapping[str, str],
) -> None:
    program = _torch_program(exported, example, axes)
    torch.export.save(program, file, extra_files=dict(metadata))


def _write_onnx(
    exported: FeatureMaps | Logits,
    example: Tensor,
    file: Path,
    axes: Sequence[int],
    metadata: Mapping[str, str],
) -> None:
    program = torch.onnx.export(
        _torch_program(exported, example, axes),
        (example,),
        dynamo=True,
        input_names=["images"],
        output_names=exported.names,
        verbose=False,
    )
    weights = sum(p.numel() * p.element_size() for p in exported.parameters())
    program = cast("torch.onnx.ONNXProgram", program)  # With dynamo=True there always is one.
    program.model.metadata_props.update(metadata)
    program.save(file, external_data=weights > _ONE_ONNX_FILE)


def _write_detector_onnx(
    exported: Any, example: Tensor, file: Path, axes: Sequence[int], metadata: Mapping[str, str]
) -> None:
    # torchvision gives NMS and RoIAlign to the tracing exporter.
    count = {name: {0: "instances"} for name in exported.names}
    sizes = {"image": {1: "height", 2: "width"}} if axes else {}
    torch.onnx.export(
        exported,
        (example,),
        str(file),
        dynamo=False,
        opset_version=_ONNX_OPSET,
        input_names=["image"],
        output_names=exported.names,
        dynamic_axes=count | sizes,
    )


def _write_torchscript(
    exported: nn.Module,
    example: Tensor,
    file: Path,
    axes: Sequence[int],
    metadata: Mapping[str, str],
) -> None:
    traced = torch.jit.trace(exported, (example,), check_trace=False)
    torch.jit.save(traced, str(file), _extra_files=dict(metadata))


def _read_onnx(file: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (inputs,) = session.get_inputs()
    return lambda images: [
        torch.from_numpy(output) for output in session.run(None, {inputs.name: images.numpy()})
    ]


_Writer = Callable[[Any, Tensor, Path, Sequence[int], Mapping[str, str]], None]
_WRITERS: dict[tuple[str, str], _Writer] = {
    ("backbone", "torch_export"): _write_torch_export,
    ("backbone", "onnx"): _write_onnx,
    ("backbone", "torchscript"): _write_torchscript,
    ("classifier", "torch_export"): _write_torch_export,
    ("classifier", "onnx"): _write_onnx,
    ("classifier", "torchscript"): _write_torchscript,
    ("detector", "onnx"): _write_detector_onnx,
    ("detector", "torchscript"): _write_torchscript,
}
_READERS: dict[str, Callable[[Path], Runner]] = {
    "torch_export": lambda file: torch.export.load(file).module(),
    "onnx": _read_onnx,
    "torchscript": lambda file: torch.jit.load(str(file)),
}


def _compare(
    run: Runner, model: nn.Module, images: Sequence[Tensor], part: str, axes: int
) -> Comparison:
    """Compares the outputs for images whose last ``axes`` are (H, W) or (T, H, W)."""
    error, instances, sizes = 0.0, 0, []
    for image in images:
        sizes.append(tuple(image.shape[-axes:]))
        expected = _outputs(model(image))
        try:
            actual = _outputs(run(image))
        except Exception:  # such as a size that the exported graph does not take
            error = float("inf")
            break
        instances += len(expected[0])
        for mine, theirs in zip(actual, expected, strict=True):
            error = max(error, _relative_error(mine, theirs))
    sizes = list(dict.fromkeys(sizes))
    return Comparison(sizes, error, instances if part == "detector" else None)


def _outputs(result: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return (result,) if isinstance(result, Tensor) else result


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    """Divides the largest difference by the largest value; infinite if shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    difference = (actual - expected).abs().max().item()
    return difference / max(expected.abs().max().item(), torch.finfo(torch.float32).tiny)


def describe(sizes: Sequence[tuple[int, ...]]) -> str:
    """Sizes in words, such as ``16×224×224``."""
    return ", ".join("×".join(map(str, size)) for size in sizes)


def _remove(file: Path) -> None:
    for written in (file, file.with_name(f"{file.name}.data")):
        written.unlink(missing_ok=True)
