"""The rows of the paper's tables: their numbers, from paper.csv, and their configs.

Columns of paper.csv: box AP on COCO or top-1 accuracy on ImageNet-1K in percent (``accuracy``), 10⁶
parameters, 10⁹ multiply-adds (``giga``), training iterations/s, test images/s, GB of peak training
memory (V100), and which of these cannot be reproduced (``note``).
"""

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from detectron2.config import LazyCall
from omegaconf import DictConfig

from mvitv2_det import VARIANTS, Recognizer, UserError, get_config
from mvitv2_det.config import config_files, load_config

FOLDER = Path(__file__).parent
NUMBERS = ("accuracy", "params", "giga", "train", "test", "memory")
OUT_OF_MEMORY = "OOM"
# What the rows of Tables 6, 7 and A.4 change, in detection and in classification.
_ABLATED = (
    "use_abs_pos",
    "use_rel_pos",
    "rel_pos_kind",
    "rel_pos_terms",
    "residual_pooling",
    "full_q_pooling",
)

TITLES = {
    "4a": "Attention mechanisms, ImageNet-1K",
    "4b": "Attention mechanisms, COCO",
    "5a": "MViTv1 and MViTv2, COCO",
    "6": "Positions",
    "7": "Residual pooling",
    "8": "Swin and MViTv2",
    "9": "Single scale and feature pyramid",
    "A.4": "Relative positions on q, k and v",
}


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: of the row.
        config: of the detector, for :func:`mvitv2_det.get_config`, or a file of ``configs/`` here.
        is_default: whether the paper prints the row in gray. Ratios are to this row.
        paper: the paper's numbers by the names of ``NUMBERS``, without those that it leaves
            out; ``"OOM"`` stands for out of memory.
        note: which number cannot be reproduced, and why.
    """

    name: str
    config: str
    is_default: bool
    paper: dict[str, float | str]
    note: str


@dataclass(frozen=True)
class Table:
    """The rows of a table that were measured on one task.

    Attributes:
        number: in the paper.
        task: ``"detection"`` on COCO or ``"classification"`` on ImageNet-1K.
    """

    number: str
    task: str
    rows: tuple[Row, ...]

    @cached_property
    def default(self) -> Row:
        """Returns the row that the others are compared with."""
        (row,) = (row for row in self.rows if row.is_default)
        return row

    @property
    def accuracy_name(self) -> str:
        """Names the measure of the paper's accuracies on this task."""
        return "box AP" if self.task == "detection" else "top-1 (%)"

    @property
    def title(self) -> str:
        """Returns the title of the table's results."""
        task = "Mask R-CNN" if self.task == "detection" else "classification"
        return f"Table {self.number}: {TITLES[self.number]} ({task})"

    @property
    def slug(self) -> str:
        """Returns the name of the table's files."""
        return f"table_{self.number.lower().replace('.', '')}_{self.task}"


def read_tables(number: str | None = None, task: str | None = None) -> list[Table]:
    """Reads the tables of a number and a task, by default of all numbers and both tasks.

    Raises:
        UserError: there is no such table.
    """
    rows: dict[tuple[str, str], list[Row]] = {}
    with open(FOLDER / "paper.csv", encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            rows.setdefault((line["table"], line["task"]), []).append(_row(line))
    numbers = sorted({table for table, its_task in rows if task in (None, its_task)})
    if number is not None and number not in numbers:
        of_task = f" with rows of {task}" if task else ""
        raise UserError(f"there is no table {number!r}{of_task}; there are {', '.join(numbers)}")
    return [
        Table(table, its_task, tuple(of_table))
        for (table, its_task), of_table in rows.items()
        if number in (None, table) and task in (None, its_task)
    ]


def _row(line: dict[str, str]) -> Row:
    numbers = {name: line[name] for name in NUMBERS if line[name]}
    return Row(
        name=line["row"],
        config=line["config"],
        is_default=line["default"] == "yes",
        paper={
            name: text if text == OUT_OF_MEMORY else float(text) for name, text in numbers.items()
        },
        note=line["note"],
    )


def model_of(row: Row, task: str) -> DictConfig:
    """Makes the LazyCall of the row's detector, or of the classifier that it begins with."""
    if row.config not in config_files():
        return load_config(str(FOLDER / "configs" / f"{row.config}.py")).model
    model = get_config(row.config).model
    return model if task == "detection" else classifier_of(model.backbone.bottom_up)


def classifier_of(backbone: DictConfig) -> DictConfig:
    """Makes the LazyCall of the classifier with the size and the options of a detector's MViT.

    In classification there are no windows, and all blocks of a stage have the same K/V stride.
    """
    (variant,) = (
        name
        for name, size in VARIANTS.items()
        if (size.embed_dim, size.depth) == (backbone.embed_dim, backbone.depth)
    )
    options = {name: backbone[name] for name in _ABLATED if name in backbone}
    return LazyCall(Recognizer.image)(variant=variant, **options)
