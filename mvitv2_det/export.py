"""Exporting a backbone or a whole detector, and checking what was exported.

======== ============ ===== ===========
part     torch_export onnx  torchscript
======== ============ ===== ===========
backbone yes          yes   yes
detector no           yes   yes
======== ============ ===== ===========

A detector goes through Detectron2's ``TracingAdapter``. ``torch.export`` has no way for it: how
many proposals and instances remain after non-maximum suppression is decided by the data, and
Detectron2 decides on those numbers in Python.

Axes: B images, H × W pixels, N instances, M × M pixels of a mask in its box.
"""

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import Backbone
from torch import Tensor, nn

from .attention.multiscale import MultiScaleAttention
from .errors import UserError

PARTS = ("backbone", "detector")
FORMATS = ("torch_export", "onnx", "torchscript")
TOLERANCE = 1e-4  # float32, of the largest value

_LEAST_DYNAMIC_SIDE = 64  # pixels: one token along a side would be taken for the rule
_ONNX_OPSET = 17  # of the tracing exporter; 16 is the first with Detectron2's RoIAlign
_ONE_ONNX_FILE = 1_500_000_000  # bytes of weights; the format ends at 2 GB
_SHAPE_OF = {"backbone": "(B, 3, H, W)", "detector": "(3, H, W)"}

Runner = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Comparison:
    """How an exported file compares with the model that it was made of.

    Attributes:
        sizes: (H, W) of the images compared on.
        error: the largest difference over the largest value, of the worst output.
        instances: number of a detector's instances that were compared; None for a backbone.
    """

    sizes: list[tuple[int, int]]
    error: float
    instances: int | None


class FeatureMaps(nn.Module):
    """A backbone that returns its feature maps as a tuple, fine to coarse.

    Attributes:
        names: the names of the maps.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.names = list(backbone.output_shape())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps normalised images (B, 3, H, W) to one (B, C, H / s, W / s) for each stride s."""
        return tuple(self.backbone(images).values())


class Detections(TracingAdapter):
    """A detector that takes one image and gives tensors.

    Takes (3, H, W) float32, 0 to 255, in the channel order of the config's ``input_format``.
    Gives, in pixels of that image, sorted by descending score: boxes (N, 4) as x0, y0, x1, y1;
    classes (N,), int64; scores (N,); and of a model with masks their probabilities inside of the
    boxes, (N, M, M), which ``detectron2.layers.paste_masks_in_image`` puts in place.

    Attributes:
        names: the names of the outputs.
    """

    def __init__(self, detector: nn.Module, image: Tensor) -> None:
        super().__init__(detector, image, _detect)
        self.names = ["boxes", "classes", "scores"]
        if getattr(detector.roi_heads, "mask_on", False):
            self.names.append("masks")


def export_model(
    model: nn.Module,
    file: Path,
    *,
    part: str,
    format: str,
    image_size: tuple[int, int],
    dynamic: bool = False,
    check_images: Sequence[Tensor] = (),
) -> Comparison:
    """Exports a model, reads the file again, and compares it with the model.

    Args:
        model: a detector, or for ``part="backbone"`` a backbone as well, on the CPU, in float32.
        file: to write; above 1.5 GB of weights ONNX puts them into a second file beside it.
        part: one of :data:`PARTS`; the backbone is with its FPN, where there is one.
        format: one of :data:`FORMATS`.
        image_size: (H, W) of the images to trace with.
        dynamic: take images of any size; otherwise of ``image_size`` alone. A backbone then also
            takes any number of images at once, otherwise one.
        check_images: to compare on, (3, H, W), 0 to 255; by default noise, three sizes of it where
            ``dynamic``.

    Returns:
        how near the file is to the model.

    Raises:
        UserError: it cannot be exported so; or what was exported differs from the model by more
            than :data:`TOLERANCE`, and is not kept.
    """
    _check_request(model, part, format, image_size, dynamic)
    backbone = getattr(model, "backbone", model)
    with _in_evaluation(model), warnings.catch_warnings(), torch.no_grad():
        # Tracers warn of what may go wrong; the comparison finds out whether it did.
        warnings.simplefilter("ignore")
        example = _noise(image_size, seed=0)
        if part == "backbone":
            exported = FeatureMaps(backbone)
            batch = 2 if dynamic else 1  # torch.export makes sizes of 1 constant
            example = _normalised(example, model).expand(batch, -1, -1, -1).contiguous()
        else:
            exported = Detections(model, example)
        exported.eval()
        images = list(check_images) or [
            _noise(size, seed=index + 1) for index, size in enumerate(_sizes(image_size, dynamic))
        ]
        if part == "backbone":
            images = [_normalised(image, model) for image in images]
        try:
            _WRITERS[part, format](exported, example, file, dynamic)
            run = _READERS[format](file)
        except Exception as error:  # exporters raise whatever they meet
            _remove(file)
            reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
            raise UserError(
                f"the {part} cannot be exported as {format}: {type(error).__name__}: {reason}"
            ) from error
        comparison = _compare(run, exported, images, part)
    if not comparison.error <= TOLERANCE:
        _remove(file)
        raise UserError(
            f"the exported {part} differs from the model by {comparison.error:.1e} of the largest "
            f"value, more than {TOLERANCE:g}, on images of {_describe(comparison.sizes)}; "
            + ("export it without dynamic sizes" if dynamic else "use another format")
        )
    return comparison


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


def _detect(detector: Any, image: Tensor) -> tuple[Tensor, ...]:
    (found,) = detector.inference([{"image": image}], do_postprocess=False)
    outputs = (found.pred_boxes.tensor, found.pred_classes, found.scores)
    return (*outputs, found.pred_masks[:, 0]) if found.has("pred_masks") else outputs


def _check_request(
    model: nn.Module, part: str, format: str, image_size: tuple[int, int], dynamic: bool
) -> None:
    check_part_and_format(part, format)
    if part == "detector" and not hasattr(model, "roi_heads"):
        raise UserError(
            f"the config's model is a {type(model).__name__} without box heads: export "
            f"--part backbone"
        )
    least = _LEAST_DYNAMIC_SIDE if dynamic else 1
    if min(image_size) < least:
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


def _noise(size: tuple[int, int], seed: int) -> Tensor:
    """Makes an image (3, H, W), 0 to 255, of noise that is coarse enough for detectors."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, *size)
    for step in (64, 16, 4, 1):
        coarse = torch.rand(1, 3, *(-(-side // step) for side in size), generator=generator)
        image += nn.functional.interpolate(coarse, size=size, mode="nearest") / 4
    return 255 * image[0]


def _normalised(image: Tensor, model: nn.Module) -> Tensor:
    """Normalises (3, H, W) to (1, 3, H, W) with the model's mean, or else the image's own."""
    mean = getattr(model, "pixel_mean", image.mean())
    std = getattr(model, "pixel_std", image.std())
    return ((image - mean) / std)[None]


def _sizes(image_size: tuple[int, int], dynamic: bool) -> list[tuple[int, int]]:
    """Chooses sizes to compare on: the example's, and two that no stride or window divides."""
    height, width = image_size
    others = [(height // 2 + 7, width + 33), (height + 65, width // 2 + 3)]
    return [(height, width), *(others if dynamic else [])]


def _torch_program(
    exported: FeatureMaps, example: Tensor, dynamic: bool
) -> torch.export.ExportedProgram:
    """Exports the backbone by ``torch.export``."""
    if not dynamic:
        return torch.export.export(exported, (example,), strict=False)
    any_size = {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}
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


def _write_torch_export(exported: FeatureMaps, example: Tensor, file: Path, dynamic: bool) -> None:
    torch.export.save(_torch_program(exported, example, dynamic), file)


def _write_backbone_onnx(exported: FeatureMaps, example: Tensor, file: Path, dynamic: bool) -> None:
    program = torch.onnx.export(
        _torch_program(exported, example, dynamic),
        (example,),
        dynamo=True,
        input_names=["images"],
        output_names=exported.names,
        verbose=False,
    )
    weights = sum(p.numel() * p.element_size() for p in exported.parameters())
    # With dynamo=True there always is a program.
    cast("torch.onnx.ONNXProgram", program).save(file, external_data=weights > _ONE_ONNX_FILE)


def _write_detector_onnx(exported: Detections, example: Tensor, file: Path, dynamic: bool) -> None:
    # torchvision gives NMS and RoIAlign to the tracing exporter.
    count = {name: {0: "instances"} for name in exported.names}
    sizes = {"image": {1: "height", 2: "width"}} if dynamic else {}
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


def _write_torchscript(exported: nn.Module, example: Tensor, file: Path, dynamic: bool) -> None:
    torch.jit.trace(exported, (example,), check_trace=False).save(str(file))


def _read_onnx(file: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (inputs,) = session.get_inputs()
    return lambda images: [
        torch.from_numpy(output) for output in session.run(None, {inputs.name: images.numpy()})
    ]


_WRITERS: dict[tuple[str, str], Callable[[Any, Tensor, Path, bool], None]] = {
    ("backbone", "torch_export"): _write_torch_export,
    ("backbone", "onnx"): _write_backbone_onnx,
    ("backbone", "torchscript"): _write_torchscript,
    ("detector", "onnx"): _write_detector_onnx,
    ("detector", "torchscript"): _write_torchscript,
}
_READERS: dict[str, Callable[[Path], Runner]] = {
    "torch_export": lambda file: torch.export.load(file).module(),
    "onnx": _read_onnx,
    "torchscript": lambda file: torch.jit.load(str(file)),
}


def _compare(run: Runner, model: nn.Module, images: Sequence[Tensor], part: str) -> Comparison:
    error, instances, sizes = 0.0, 0, []
    for image in images:
        height, width = image.shape[-2:]
        sizes.append((height, width))
        expected = model(image)
        try:
            actual = run(image)
        except Exception:  # such as a size that the exported graph does not take
            error = float("inf")
            break
        instances += len(expected[0])
        for mine, theirs in zip(actual, expected, strict=True):
            error = max(error, _relative_error(mine, theirs))
    return Comparison(sizes, error, instances if part == "detector" else None)


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    """Divides the largest difference by the largest value; infinite if shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    difference = (actual - expected).abs().max().item()
    return difference / max(expected.abs().max().item(), torch.finfo(torch.float32).tiny)


def _describe(sizes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{height}×{width}" for height, width in sizes)


def _remove(file: Path) -> None:
    for written in (file, file.with_name(f"{file.name}.data")):
        written.unlink(missing_ok=True)
