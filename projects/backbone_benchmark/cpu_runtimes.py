"""The backbone and the whole Mask R-CNN on a CPU: by PyTorch, OpenVINO and ONNX Runtime."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from detectron2.modeling import MViT as Detectron2MViT
from torch import nn

from mvitv2_det.errors import UserError
from mvitv2_det.export import export_model
from mvitv2_det.runtimes import PRECISIONS, check_runtime, run_exported
from mvitv2_det.runtimes.sessions import Session, open_session
from projects.backbone_benchmark import detector, networks
from projects.backbone_benchmark.networks import Setting
from projects.backbone_benchmark.tables import ratio, seconds_cell, speed_over
from projects.common.timing import Step, cpu_clock, interleave, resident

DETECTRON2, OURS = "Detectron2, PyTorch", "ours, PyTorch"
BACKBONE, DETECTOR = "backbone", "Mask R-CNN"


def measure(setting: Setting, rounds: int, report: Callable[[str], None] = print) -> list[dict]:
    """Times all in turns, first the backbones and then the detectors.

    Runtimes that are not installed, or that do not compute in the setting's precision on this CPU,
    are named and left out.

    Returns:
        a row for each, with its speed-up over Detectron2's in float32.
    """
    rows = []
    for part, make in ((BACKBONE, _backbones), (DETECTOR, _detectors)):
        with TemporaryDirectory() as folder:
            steps, errors = make(setting, Path(folder), report)
            times = interleave(
                {name: resident(step) for name, step in steps.items()},
                rounds=rounds,
                clock=cpu_clock(),
                progress=lambda line, part=part: report(f"{part} {setting.full_name} {line}"),
            )
        rows += [
            {
                **setting.columns,
                "what": part,
                "by": name,
                "s": seconds_cell(timing),
                "speed-up": ratio(speed_over(timing, times[DETECTRON2])),
                "largest difference": f"{errors[name]:.1e}" if name in errors else "",
            }
            for name, timing in times.items()
        ]
    return rows


def _backbones(
    setting: Setting, folder: Path, report: Callable[[str], None]
) -> tuple[dict[str, Step], dict[str, float]]:
    """Steps by name, and how far their feature maps are from Detectron2's in float32."""
    reference = networks.detectron2_network(setting)
    ours = networks.our_network(setting, reference, "auto").eval()
    exact = Setting(setting.variant, setting.size, setting.batch, "fp32", setting.device)
    steps: dict[str, Step] = {
        DETECTRON2: networks.inference(reference, exact),
        OURS: networks.inference(ours, setting),
    }
    images, file = setting.images().numpy(), folder / "backbone.onnx"
    for name, runtime in _runtimes(setting, report):
        if not file.exists():
            options = {"part": "backbone", "format": "onnx", "image_size": setting.size}
            export_model(ours, file, **options)
        if session := _session(file, runtime, setting, report):
            steps[name] = lambda session=session: session([images])[0]
    expected = list(steps[DETECTRON2]().values())
    errors = {}
    for name, step in steps.items():
        found = step()
        maps = list(found.values()) if isinstance(found, dict) else map(torch.from_numpy, found)
        errors[name] = max(
            ((one - other).abs().max() / other.abs().max()).item()
            for one, other in zip(maps, expected, strict=True)
        )
    return steps, errors


def _detectors(
    setting: Setting, folder: Path, report: Callable[[str], None]
) -> tuple[dict[str, Step], dict[str, float]]:
    """Steps by name; what detections differ by is for the tests to say."""
    theirs, ours = detector.build(setting, Detectron2MViT), detector.build(setting)
    ours.load_state_dict(theirs.state_dict())
    exact = Setting(setting.variant, setting.size, setting.batch, "fp32", setting.device)
    steps: dict[str, Step] = {
        DETECTRON2: detector.inference(theirs, exact),
        OURS: detector.inference(ours, setting),
    }
    weights = folder / "detector.pth"
    weights.touch()  # the file beside which the exported one is kept
    for name, runtime in _runtimes(setting, report):
        try:
            exported: nn.Module = run_exported(
                ours, None, weights, runtime=runtime, precision=setting.precision
            )
        except UserError as error:
            report(f"{name}: {error}")
            continue
        steps[name] = detector.inference(exported, exact)
    return steps, {}


def _runtimes(setting: Setting, report: Callable[[str], None]) -> list[tuple[str, str]]:
    """Names for tables, and names, of the runtimes that can be measured."""
    found = []
    for runtime, precisions in PRECISIONS.items():
        if setting.precision not in precisions:
            continue
        try:
            check_runtime(runtime, setting.precision, None)
        except UserError as error:
            report(f"{runtime}: {error}")
            continue
        found.append((f"ours, {runtime}", runtime))
    return found


def _session(
    file: Path, runtime: str, setting: Setting, report: Callable[[str], None]
) -> Session | None:
    try:
        return open_session(file, runtime, setting.precision)
    except UserError as error:
        report(f"{runtime}: {error}")
        return None
