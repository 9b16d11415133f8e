#!/usr/bin/env python3
"""Measures what int8 does to a trained detector in ONNX Runtime, and to the backbones T and B.

    python projects/backbone_benchmark/quantized.py --config output/demo/config.yaml \\
        --weights output/demo/model_final.pth --threads 1

Of the detector: the size of the file, seconds of an image, and AP on the config's validation split.
Of the backbones, with random weights: size and seconds. All take turns in one process. Results:
results/quantized.csv and results/quantized.md.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[2]))

from mvitv2_det.third_party_warnings import silence_third_party_warnings

silence_third_party_warnings()  # before that which warns is imported

import onnxruntime
import torch
from detectron2.config import instantiate
from torch import nn

from mvitv2_det import VARIANTS, MViT
from mvitv2_det.data import prepare_datasets
from mvitv2_det.engine.evaluating import evaluate
from mvitv2_det.errors import UserError
from mvitv2_det.export import export_model, write_detector
from mvitv2_det.export.quantizing import LINEAR, quantize_file
from mvitv2_det.runtimes import check_runtime
from mvitv2_det.runtimes.exported import ExportedDetector
from mvitv2_det.runtimes.sessions import open_session
from mvitv2_det.trained import read_config, read_trained
from projects.backbone_benchmark.tables import ratio, seconds_cell
from projects.common import results as files
from projects.common.timing import Step, Timing, cpu_clock, interleave, resident

TORCH, FLOAT = "PyTorch", "ONNX Runtime"
INT8 = {"int8: linear layers": LINEAR, "int8: and convolutions": (*LINEAR, "Conv")}
OPENVINO = "OpenVINO"
RESULTS = Path(__file__).parent / "results"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="of a trained detector")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--images", type=int, default=16, help="that are timed (default: 16)")
    parser.add_argument("--variants", nargs="*", choices=tuple(VARIANTS), default=["T", "B"])
    parser.add_argument("--size", nargs=2, type=int, default=[512, 512], help="of the backbones")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--threads", type=int, help="(default: one for each core)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace, command: str) -> None:
    """Measures and writes the results."""
    files.check_measurable(
        "cpu", "fp32", images=args.images, rounds=args.rounds, threads=args.threads
    )
    if args.threads:
        torch.set_num_threads(args.threads)
    check_runtime("onnxruntime", "int8", None)
    progress = files.Progress()
    rows = detector_rows(args, progress)
    for variant in args.variants:
        rows += backbone_rows(variant, tuple(args.size), args, progress)
    head = {"command": command} | files.describe_machine("cpu")
    head |= {"onnxruntime": onnxruntime.__version__}
    args.output.mkdir(parents=True, exist_ok=True)
    files.write_csv(args.output / "quantized.csv", head, rows)
    title = "Exported files with weights of 8 bits"
    notes = [
        "Seconds are of one image, medians over the rounds with quartiles. With one thread they "
        "are those in which the process computed. Speed is that over ONNX Runtime in float32.",
    ]
    (args.output / "quantized.md").write_text(files.markdown(title, head, rows, notes), "utf-8")


def detector_rows(args: argparse.Namespace, progress: files.Progress) -> list[dict[str, object]]:
    """Size, time and AP of the trained detector."""
    cfg = read_config(args.config)
    prepare_datasets(cfg, training=False)
    model = read_trained(cfg, args.weights)
    batches = islice(instantiate(cfg.dataloader.test), args.images)
    inputs = [one for batch in batches for one in batch][: args.images]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "float.onnx"
        write_detector(model, file)
        sizes = {TORCH: _bytes(model), FLOAT: file.stat().st_size}
        models: dict[str, nn.Module] = {TORCH: model}
        models[FLOAT] = ExportedDetector(open_session(file, "onnxruntime", "fp32"))
        for name, smaller in _quantized(file).items():
            models[name] = ExportedDetector(open_session(smaller, "onnxruntime", "int8"))
            sizes[name] = smaller.stat().st_size
        try:
            check_runtime("openvino", "fp32", None)
            models[OPENVINO] = ExportedDetector(open_session(file, "openvino", "fp32"))
            sizes[OPENVINO] = file.stat().st_size
        except UserError as error:
            progress(f"{OPENVINO}: {error}")

    def step(model: nn.Module) -> Step:
        @torch.inference_mode()
        def pass_each() -> None:
            for one in inputs:
                model([one])

        return pass_each

    rows = _timed({name: step(model) for name, model in models.items()}, sizes, len(inputs), args)
    for row in rows:
        found = evaluate(cfg, models[str(row["by"])])
        for task in ("bbox", "segm"):
            if task in found:
                row[f"{task} AP"] = f"{found[task]['AP']:.2f}"
        progress(f"detector {row}")
    return [{"what": "detector"} | row for row in rows]


def backbone_rows(
    variant: str, size: tuple[int, int], args: argparse.Namespace, progress: files.Progress
) -> list[dict[str, object]]:
    """Size and time of a backbone with random weights, one image of ``size``."""
    torch.manual_seed(0)
    backbone = MViT(**VARIANTS[variant].backbone_arguments()).eval()
    images = torch.randn(1, 3, *size)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "float.onnx"
        export_model(backbone, file, part="backbone", format="onnx", image_size=size)
        opened = {FLOAT: file} | _quantized(file)
        sizes = {name: one.stat().st_size for name, one in opened.items()}
        sizes[TORCH] = _bytes(backbone)
        sessions = {name: open_session(one, "onnxruntime", "fp32") for name, one in opened.items()}
    steps: dict[str, Step] = {
        name: lambda session=session: session([images.numpy()])
        for name, session in sessions.items()
    }

    @torch.inference_mode()
    def eager() -> object:
        return backbone(images)

    rows = _timed({TORCH: eager} | steps, sizes, 1, args)
    for row in rows:
        progress(f"{variant} {row}")
    what = f"backbone {variant}, {size[0]}×{size[1]}"
    return [{"what": what} | row | {"bbox AP": "", "segm AP": ""} for row in rows]


def _bytes(model: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


def _quantized(file: Path) -> dict[str, Path]:
    """Quantises a file in each way, beside it."""
    made = {}
    for number, (name, operators) in enumerate(INT8.items()):
        made[name] = file.with_name(f"int8_{number}.onnx")
        quantize_file(file, made[name], operators=operators)
    return made


def _timed(
    steps: Mapping[str, Step], sizes: Mapping[str, int], images: int, args: argparse.Namespace
) -> list[dict[str, object]]:
    """A row for each step, which computes ``images``."""
    times = interleave(
        {name: resident(step) for name, step in steps.items()},
        rounds=args.rounds,
        clock=cpu_clock(),
    )
    per_image = {
        name: Timing(tuple(seconds / images for seconds in timing.seconds))
        for name, timing in times.items()
    }
    return [
        {
            "by": name,
            "MB": f"{sizes[name] / 1e6:.1f}",
            "s": seconds_cell(timing),
            "speed": ratio(timing.speed_over(per_image[FLOAT])),
        }
        for name, timing in per_image.items()
    ]


if __name__ == "__main__":
    sys.exit(files.main("projects/backbone_benchmark/quantized.py", parse, run, None))
