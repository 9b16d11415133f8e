"""The formats: what each part becomes in them, and how their files are written and read.

Axes: B images or clips, H × W or T × H × W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..recognition.recognizer import Recognizer
from .suppression import end_suppression_early

FORMATS = ("torch_export", "onnx", "torchscript")

_ONNX_OPSET = 17  # of the tracing exporter; 16 is the first with Detectron2's RoIAlign
_ONE_ONNX_FILE = 1_500_000_000  # bytes of weights; the format ends at 2 GB
Runner = Callable[[Tensor], Tensor | Sequence[Tensor]]


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


def torch_program(
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
    program = torch_program(exported, example, axes)
    torch.export.save(program, file, extra_files=dict(metadata))


def _write_onnx(
    exported: FeatureMaps | Logits,
    example: Tensor,
    file: Path,
    axes: Sequence[int],
    metadata: Mapping[str, str],
) -> None:
    program = torch.onnx.export(
        torch_program(exported, example, axes),
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


def write_detector_onnx(
    exported: Any, example: Tensor, file: Path, axes: Sequence[int], metadata: Mapping[str, str]
) -> None:
    """Writes a detector as ONNX.

    Args:
        exported: a :class:`mvitv2_det.detection.traceable.Detections`.
        example: an image (3, H, W).
        file: to write.
        axes: those of any size; where there is none, the file takes images of (H, W) alone.
        metadata: texts by name.
    """
    # torchvision gives NMS and RoIAlign to the tracing exporter, which takes no metadata.
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
    import onnx

    proto = onnx.load(file, load_external_data=False)
    end_suppression_early(proto.graph)
    onnx.helper.set_model_props(proto, dict(metadata))
    onnx.save(proto, file)


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
WRITERS: dict[tuple[str, str], _Writer] = {
    ("backbone", "torch_export"): _write_torch_export,
    ("backbone", "onnx"): _write_onnx,
    ("backbone", "torchscript"): _write_torchscript,
    ("classifier", "torch_export"): _write_torch_export,
    ("classifier", "onnx"): _write_onnx,
    ("classifier", "torchscript"): _write_torchscript,
    ("detector", "onnx"): write_detector_onnx,
    ("detector", "torchscript"): _write_torchscript,
}
READERS: dict[str, Callable[[Path], Runner]] = {
    "torch_export": lambda file: torch.export.load(file).module(),
    "onnx": _read_onnx,
    "torchscript": lambda file: torch.jit.load(str(file)),
}
