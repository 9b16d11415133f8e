"""What the folder of a run says of it, beside its predictions."""

import json
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, OmegaConf

from ..config import load_config
from ..errors import UserError
from ..visualize.run_files import read_metrics

RESULTS = Path("inference", "coco_instances_results.json")
CLASSIFICATIONS = Path("inference", "classifications.json")


@dataclass(frozen=True)
class RunFolder:
    """A run.

    Attributes:
        path: the folder.
        cfg: its config.
        metrics: the records of ``metrics.json``; none of an evaluation.
        starts: the entries of ``run.json``.
    """

    path: Path
    cfg: DictConfig
    metrics: list[dict[str, float]]
    starts: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path, trust: Collection[str] = ()) -> "RunFolder":
        """Reads a folder.

        Raises:
            UserError: there is no config in it, or a file of it is damaged.
        """
        if not (path / "config.yaml").is_file():
            raise UserError(
                f"there is no config.yaml in {path}: expected the output folder of a training or "
                f"an evaluation"
            )
        cfg = load_config(str(path / "config.yaml"), trust)
        if "model" not in cfg or "train" not in cfg:
            raise UserError(f"{path / 'config.yaml'} is no LazyConfig of a run of train")
        metrics = path / "metrics.json"
        try:
            starts = json.loads((path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            starts = []  # of a run before there was such a file
        return cls(
            path,
            cfg,
            read_metrics(metrics) if metrics.is_file() else [],
            [start for start in starts if isinstance(start, dict)],
        )

    @property
    def name(self) -> str:
        """The folder's own."""
        return self.path.resolve().name

    def weights(self) -> Path | None:
        """The final checkpoint, or that of the best evaluation."""
        for name in ("model_final.pth", "model_best.pth"):
            if (self.path / name).is_file():
                return self.path / name
        return None

    def split(self, name: str) -> tuple[Path, Path] | None:
        """The json file and the image folder of ``train`` or ``val``; None if they are not known.

        They are those of the config's ``dataset``, or those of Detectron2's catalog.
        """
        json_file = OmegaConf.select(self.cfg, f"dataset.{name}_json")
        images = OmegaConf.select(self.cfg, f"dataset.{name}_images")
        loader = {"train": "train", "val": "test"}[name]
        known = OmegaConf.select(self.cfg, f"dataloader.{loader}.dataset.names")
        if not (json_file and images) and known in DatasetCatalog.list():
            metadata = MetadataCatalog.get(known)
            json_file, images = metadata.get("json_file"), metadata.get("image_root")
        return (Path(json_file), Path(images)) if json_file and images else None


def command_line(start: dict[str, Any]) -> str:
    """The command of an entry of ``run.json``, to be typed again."""
    words = [str(word) for word in start.get("command", [])]
    if not words:
        return ""
    program = words[0]
    if program.endswith("mvitv2_det/__main__.py"):
        words[:1] = ["python", "-m", "mvitv2_det"]
    elif program.endswith(".py"):
        words[:1] = ["python", program]
    else:
        words[0] = Path(program).name
    return shlex.join(words)
