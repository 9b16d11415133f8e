"""Writing the report of a run: ``report.html`` in its folder."""

import logging
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from .. import __version__
from ..errors import UserError, naming_unwritable
from ..visualize.curves import ap_table, draw_curves
from ..visualize.results import draw_classifications
from ..visualize.run_files import evaluations
from ..whole_files import written_whole
from . import figures, sections
from .evaluation import TASKS, Truth, evaluate_task, pair_images, read_predictions
from .mistakes import judge
from .page import Part, Section, render
from .run_folder import CLASSIFICATIONS, RESULTS, RunFolder, command_line
from .statistics import data_statistics

logger = logging.getLogger(__name__)

REPORT = "report.html"
# What a report at the end of a training goes into: more would take minutes.
CHEAP_IMAGES, CHEAP_BYTES = 1000, 100e6


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows.

    Attributes:
        images: best and worst ones, each; 0 for none.
        score_threshold: of detections that are drawn or counted as confused, in [0, 1].
        cheap: leave out what would take minutes: measuring again on more than
            :data:`CHEAP_IMAGES` images, and json files of more than :data:`CHEAP_BYTES`.
    """

    images: int = 4
    score_threshold: float = 0.5
    cheap: bool = False

    def __post_init__(self) -> None:
        if self.images < 0:
            raise UserError(f"--images must be 0 or more, got {self.images}")
        if not 0 <= self.score_threshold <= 1:
            raise UserError(f"--score-threshold must be in [0, 1], got {self.score_threshold:g}")


def write_report(
    run: Path,
    file: Path | None = None,
    options: ReportOptions | None = None,
    trust: Collection[str] = (),
) -> Path:
    """Writes one HTML page that needs no other file.

    Args:
        run: folder of a training or an evaluation, of a detector or a classifier.
        file: to write; by default ``report.html`` in the folder.
        options: what it shows.
        trust: what the run's config may call beside what :mod:`mvitv2_det.allowed_names` knows.

    Returns:
        the file.

    Raises:
        UserError: it is no such folder, a file of it is damaged, or the page cannot be written.
    """
    options = options or ReportOptions()
    folder = RunFolder.read(run, trust)
    tiles: list[tuple[str, str]] = []
    if (run / CLASSIFICATIONS).is_file():
        found = _classification(folder)
        tiles = _accuracies(folder)
    else:
        found = _detection(folder, options, tiles)
    file = file or run / REPORT
    last = folder.starts[-1] if folder.starts else {}
    subtitle = ", ".join(filter(None, (_model(folder), last.get("time"), str(run.resolve()))))
    content = render(folder.name, subtitle, tiles, [*found, *_provenance(folder)])
    with naming_unwritable(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as unfinished:
            unfinished.write_text(content, encoding="utf-8")
    return file


def _detection(
    folder: RunFolder, options: ReportOptions, tiles: list[tuple[str, str]]
) -> list[Section]:
    """Measures the predictions again, where the data are there, and says what they are like."""
    curves = [_curves(folder)] if folder.metrics else []
    truths = {name: _read_truth(folder, name, options) for name in ("train", "val")}
    statistics = [data_statistics(one, name) for name, one in truths.items() if one]
    end = [sections.data(statistics)] if statistics else []
    truth, results = truths["val"], folder.path / RESULTS
    is_large = truth and options.cheap and len(truth.coco.imgs) > CHEAP_IMAGES
    if truth is None or is_large or not results.is_file():
        return [_logged(folder, truth, results, tiles), *curves, *end]
    predictions = read_predictions(results, truth)
    has_masks = any("segmentation" in one for one in predictions) and truth.has_masks()
    tasks = ["bbox", "segm"] if has_masks else ["bbox"]
    evaluated = {task: evaluate_task(truth, predictions, task) for task in tasks}
    pairs = list(pair_images(truth, predictions, tasks[-1]))
    judged = judge(pairs, truth.categories)
    for task, one in evaluated.items():
        tiles.append((f"{TASKS[task]} AP", f"{one.mean().ap:.1f}"))
    tiles += [("images", f"{len(pairs):,}"), ("instances", f"{len(judged.found):,}")]
    tiles.append(("best score threshold", f"{judged.best_threshold()[0]:.2f}"))
    split = folder.split("val")
    assert split is not None  # there is its truth
    threshold, number = options.score_threshold, options.images
    return [
        sections.result(evaluated),
        *curves,
        sections.by_class(evaluated),
        sections.precision_recall(evaluated),
        sections.mistakes(judged, tasks[-1]),
        sections.confused(pairs, truth, threshold),
        sections.best_and_worst(pairs, judged, truth, split[1], threshold, number),
        *end,
    ]


def _read_truth(folder: RunFolder, name: str, options: ReportOptions) -> Truth | None:
    """Reads a split; None if it is not known, not there, or too large for a cheap report."""
    split = folder.split(name)
    if split is None or not split[0].is_file():
        return None
    if options.cheap and split[0].stat().st_size > CHEAP_BYTES:
        return None
    return Truth(split[0])


def _logged(
    folder: RunFolder, truth: Truth | None, results: Path, tiles: list[tuple[str, str]]
) -> Section:
    """What the log says of the last evaluation, and why there is no more."""
    split = folder.split("val")
    if truth and not results.is_file():
        reason = f"There are no predictions to look into: {results} is missing."
    elif truth or (split and split[0].is_file()):
        reason = "The data are large. To look into the predictions: "
        reason += f"mvitv2-det report {folder.path}"
    else:
        where = split[0] if split else "the json of the validation split"
        reason = f"There are no data to look into the predictions with: {where} is missing here."
    evaluated = evaluations(folder.metrics)
    for key, name in (("bbox/AP", "box AP"), ("segm/AP", "mask AP")):
        if evaluated and key in evaluated[-1]:
            tiles.append((name, f"{evaluated[-1][key]:.1f}"))
    table = ap_table(folder.metrics) if evaluated else "The run has not been evaluated."
    return Section("Result", [Part(note=reason, text=table)])


def _curves(folder: RunFolder) -> Section:
    title = f"{folder.cfg.train.get('max_iter', 0):,} iterations"
    picture = figures.as_svg(lambda file: draw_curves(folder.metrics, title, file))
    return Section("Curves", [Part(picture=picture)])


def _classification(folder: RunFolder) -> list[Section]:
    """Curves, what is confused, and the worst mistakes."""
    found = [_curves(folder)] if folder.metrics else []
    if evaluations(folder.metrics):
        found.insert(0, Section("Result", [Part(text=ap_table(folder.metrics))]))
    with tempfile.TemporaryDirectory() as pictures:
        drawn = draw_classifications(folder.path / CLASSIFICATIONS, Path(pictures))
        for file, title in zip(drawn, ("Confusion", "Worst mistakes"), strict=False):
            picture = figures.as_jpeg(np.asarray(Image.open(file).convert("RGB")))
            found.append(Section(title, [Part(picture=picture)]))
    return found


def _accuracies(folder: RunFolder) -> list[tuple[str, str]]:
    evaluated = evaluations(folder.metrics)
    names = {"classification/top1": "top-1", "classification/top5": "top-5"}
    last = evaluated[-1] if evaluated else {}
    return [(name, f"{last[key]:.1f} %") for key, name in names.items() if key in last]


def _provenance(folder: RunFolder) -> list[Section]:
    """How to repeat the run and go on from it, what it was made with, and its config."""
    commands = [line for start in folder.starts if (line := command_line(start))]
    last = folder.starts[-1] if folder.starts else {}
    packages = {"python": last.get("python"), **(last.get("packages") or {})}
    rows = [[name, str(found)] for name, found in packages.items() if found]
    git = last.get("git")
    if git:
        changed = ", ".join(git["changed"])
        rows.append(["git", git["commit"] + (f" with changes in {changed}" if changed else "")])
    if last.get("seed") is not None:
        rows.append(["seed", str(last["seed"])])
    rows.append(["report by", f"mvitv2_det {__version__}"])
    repeat = [Part("Commands of the run", text="\n".join(dict.fromkeys(commands)))]
    config = (folder.path / "config.yaml").read_text(encoding="utf-8")
    return [
        Section(
            "To repeat it",
            [
                *(repeat if commands else []),
                Part("What to type next", text=next_commands(folder)),
                Part("Made with", header=["", ""], rows=rows),
            ],
        ),
        Section("Config", [Part(text=config)]),
    ]


def next_commands(folder: RunFolder) -> str:
    """What the weights can be used for, as commands to type."""
    weights = folder.weights() or OmegaConf.select(folder.cfg, "train.init_checkpoint")
    if not weights:
        return ""
    if (folder.path / CLASSIFICATIONS).is_file():
        return f"mvitv2-det classify photos/ --weights {quote(str(weights))} --output found"
    config = folder.path / "config.yaml"
    own = f"--config {quote(str(config))} --weights {quote(str(weights))}"
    return "\n".join(
        [
            f"mvitv2-det predict photos/ {own} --output found",
            f"mvitv2-det export {own} --part detector --format onnx --output detector.onnx",
            f"mvitv2-det report {quote(str(folder.path))}",
        ]
    )


def _model(folder: RunFolder) -> str:
    """The kind of the config's model."""
    target = OmegaConf.select(folder.cfg, "model._target_")
    return str(target).rsplit(".", 1)[-1] if target else ""
