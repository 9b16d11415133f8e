#!/usr/bin/env python3
"""Measures how fast clips are read, and what the network takes for longer and larger ones.

    python projects/video/benchmark.py --workers 2 --rounds 4
    python projects/video/benchmark.py --parts torchvision frames side --rounds 3

Part loading: clips a second of the loader, by backend, and of the network. Videos are ten seconds
of 340×256 at 30 frames a second in H.264, moving cut-outs of scikit-learn's photographs; --videos
names a folder of your own. A clip is 16×4, augmented as in the recipe of Kinetics, or decoded
alone. The network is MViTv2-S in inference and in a training step.

Parts frames and side: time and peak memory of its inference against the number of frames (8 to 64,
of 224²) and the side (112 to 448, of 16 frames), with exponents, by the fast path and the plain
model.

Part torchvision: MViTv2-S 16×4 beside torchvision's mvit_v2_s on the same weights: logits, seconds
of an inference and of a training step, and bytes saved for the backward pass.

Results: a table of each part, NAME.csv and NAME.md.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from mvitv2_det.third_party_warnings import silence_third_party_warnings

silence_third_party_warnings()  # before that which warns is imported

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.models.video import mvit_v2_s

from mvitv2_det import Recognizer, UserError, load_weights
from mvitv2_det.predict.inputs import VIDEO_ENDINGS
from mvitv2_det.recognition.description import ClipInput
from mvitv2_det.video import open_video
from mvitv2_det.video.writing import write_video
from projects.backbone_benchmark import scaling
from projects.common import results as files
from projects.common.compare import compare
from projects.common.sources import Sample
from projects.common.timing import Timing, interleave, resident
from projects.video.augment import ClipAugmentation
from projects.video.data import TrainingClips

RESULTS = Path(__file__).parent / "results"
INPUT = ClipInput()
VARIANT: Any = "S"
RECIPE = {"auto_augment": "rand-m7-n4-mstd0.5-inc1", "scale": (0.08, 1.0), "re_prob": 0.25}
FILE_BACKENDS = ("av", "torchcodec", "opencv")
FRAMES, SIDES = (8, 16, 24, 32, 48, 64), (112, 160, 224, 288, 352, 448)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=["loading"])
    parser.add_argument("--videos", type=Path, help="folder of videos (default: made ones)")
    parser.add_argument("--clips", type=int, default=16, help="of a turn (default: 16)")
    parser.add_argument("--workers", type=int, default=2, help="of the loader (default: 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=files.default_device())
    parser.add_argument("--batch", type=int, default=1, help="of the network (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: 3)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace, command: str) -> None:
    """Measures and writes the results."""
    files.check_measurable(
        args.device, "fp32", clips=args.clips, batch=args.batch, rounds=args.rounds
    )
    args.output.mkdir(parents=True, exist_ok=True)
    head = {"command": command} | files.describe_machine(args.device)
    head["batch of the network"] = str(args.batch)
    for part in args.parts:
        title, rows, notes = PARTS[part](args)
        files.write_csv(args.output / f"{part}.csv", head, rows)
        text = files.markdown(title, head, rows, notes)
        (args.output / f"{part}.md").write_text(text, "utf-8")


def loading(args: argparse.Namespace) -> tuple[str, files.Rows, list[str]]:
    """Clips a second of the loader and of the network."""
    with videos_of(args.videos) as videos:
        chosen = [videos[index % len(videos)] for index in range(args.clips)]
        tasks: dict[str, Callable[[], None]] = {}
        rows: list[dict[str, object]] = []
        for backend in FILE_BACKENDS:
            if reason := _why_not(backend, videos[0]):
                rows.append({"what": f"loader, {backend}", "clips a second": reason})
                continue
            tasks[f"loader, {backend}"] = passing(chosen, backend, RECIPE, args.workers)
            tasks[f"loader, {backend}, decoding and crop"] = passing(
                chosen, backend, {"scale": (0.08, 1.0)}, args.workers
            )
        counts = dict.fromkeys(tasks, args.clips)
        for name, step in network_steps(args.batch, args.device).items():
            tasks[name], counts[name] = step, args.batch
        found = interleave(
            {name: resident(step) for name, step in tasks.items()},
            rounds=args.rounds,
            device=args.device,
            progress=files.Progress(),
        )
    for name, timing in found.items():
        rate = "out of memory"
        if isinstance(timing, Timing):
            spread = timing.spread
            low, high = counts[name] / spread.upper, counts[name] / spread.lower
            rate = f"{counts[name] / spread.median:.2f} ({low:.2f} to {high:.2f})"
        rows.append({"what": name, "clips a second": rate})
    notes = [
        "Medians over the rounds, with quartiles.",
        f"{args.workers} workers, which start anew in each turn.",
    ]
    return "Clips a second: the loader by backend, and MViTv2-S 16×4", rows, notes


def growth(
    args: argparse.Namespace, sizes: Sequence[tuple[int, int]], of: str
) -> tuple[str, files.Rows, list[str]]:
    """Time and memory of inference on clips of (frames, side), of which one stays the same."""

    def inputs() -> Iterator[tuple[str, float, dict[str, Callable[[], None]]]]:
        for frames, side in sizes:
            clips = torch.randn(args.batch, 3, frames, side, side, device=args.device)
            steps = {}
            for name, backend in (("ours", "auto"), ("plain model", "reference")):
                network = Recognizer.video(
                    VARIANT, frames, image_size=side, attention_backend=backend
                ).eval()
                steps[name] = partial(torch.no_grad()(network.to(args.device)), clips)
            yield f"{frames}×{side}²", frames if of == "frames" else side, steps

    points = scaling.measure_inputs(inputs(), args.rounds, args.device, files.Progress())
    middle = sorted(point.size for point in points)[len(points) // 3]
    notes = [
        "Medians over the rounds, with quartiles.",
        scaling.exponents(points, of, smallest=middle),
    ]
    return f"MViTv2-S on clips: inference against the {of}", scaling.table(points), notes


def beside_torchvision(args: argparse.Namespace) -> tuple[str, files.Rows, list[str]]:
    """Time and memory of the same network here and in torchvision."""
    # Stochastic depth would give both networks other work in every step.
    theirs = mvit_v2_s(stochastic_depth_prob=0.0, dropout=0.0)
    ours = Recognizer.video(VARIANT, INPUT.frames, drop_path_rate=0.0)
    load_weights(ours, theirs, strict=True)
    networks = {"ours": ours.to(args.device), "torchvision": theirs.to(args.device)}
    clips = torch.randn(args.batch, 3, INPUT.frames, INPUT.size, INPUT.size, device=args.device)
    rows = compare(networks, clips, "S 16×4", args.rounds, "fp32", files.Progress())
    notes = ["Ratios are medians over the rounds, with quartiles."]
    return "MViTv2-S on clips of 16×224² against torchvision's mvit_v2_s", rows, notes


PARTS = {
    "loading": loading,
    "torchvision": beside_torchvision,
    "frames": partial(growth, sizes=[(frames, 224) for frames in FRAMES], of="frames"),
    "side": partial(growth, sizes=[(16, side) for side in SIDES], of="side"),
}


def passing(
    videos: Sequence[Path], backend: str, augmentation: dict[str, object], workers: int
) -> Callable[[], None]:
    """A pass over a clip of each video by the loader of training."""
    samples = [Sample(path, "a") for path in videos]
    node = {"backend": backend, "fps": 30}
    augment = ClipAugmentation(INPUT, **augmentation)
    clips = TrainingClips(samples, ["a"], node, augment, 1)
    loader = DataLoader(clips, batch_size=2, num_workers=workers)

    def step() -> None:
        for _ in loader:
            pass

    return step


def network_steps(batch: int, device: str) -> dict[str, Callable[[], None]]:
    """MViTv2-S in inference and in a training step."""
    network = Recognizer.video(VARIANT, INPUT.frames, drop_path_rate=0.0).to(device)
    clips = torch.randn(batch, 3, INPUT.frames, INPUT.size, INPUT.size, device=device)

    def infer() -> None:
        network.eval()
        with torch.no_grad():
            network(clips)

    def train() -> None:
        network.train()
        network(clips).square().mean().backward()
        network.zero_grad()

    return {"network, inference": infer, "network, training step": train}


@contextmanager
def videos_of(folder: Path | None) -> Iterator[list[Path]]:
    """The videos of a folder, or made ones that are removed at the end."""
    if folder is not None:
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_ENDINGS)
        if not found:
            raise UserError(f"--videos {folder} holds no video")
        yield found
        return
    from sklearn.datasets import load_sample_images  # slow to import

    with tempfile.TemporaryDirectory() as name:
        paths = []
        for number, photograph in enumerate(load_sample_images().images):
            places = np.linspace(0, 1, 300)
            height, width = photograph.shape[0] - 256, photograph.shape[1] - 340
            frames = (
                photograph[int(at * height) :][:256, int((1 - at) * width) :][:, :340]
                for at in places
            )
            paths.append(Path(name, f"{number}.mp4"))
            write_video(paths[-1], frames, 30, options={"preset": "medium"})
        yield paths


def _why_not(backend: str, video: Path) -> str:
    try:
        with open_video(video, backend) as opened:
            opened.frames([0])
    except UserError as error:
        return str(error).replace(str(video), "a video")[:80]
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return files.main("projects/video/benchmark.py", parse, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
