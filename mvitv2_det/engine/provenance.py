"""What a run was made with, beside its weights: run.json, one entry for each start."""

import datetime
import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..whole_files import written_whole

_PACKAGES = ("mvitv2_det", "detectron2", "sal-detectron2", "torch", "torchvision", "timm", "numpy")


def note_start(
    folder: Path, *, processes: int, seed: int | None = None, start: int | None = None
) -> None:
    """Adds an entry to ``run.json`` of a run's folder; a file that is no such list is replaced.

    Args:
        folder: of the run, in which ``config.yaml`` is as well.
        processes: of the run.
        seed: of the run, also if it was drawn; None of an evaluation.
        start: the iteration that it starts with; None of an evaluation.

    Raises:
        OSError: the file cannot be written.
    """
    file = folder / "run.json"
    try:
        starts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        starts = []
    entry = {
        "command": sys.argv,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seed": seed,
        "start": start,
        "processes": processes,
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "git": _git_state(Path(__file__).parent),
    }
    with written_whole(file) as unfinished:
        text = json.dumps([*(starts if isinstance(starts, list) else []), entry], indent=1)
        unfinished.write_text(text, encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_state(folder: Path) -> dict[str, Any] | None:
    """The commit of a checkout, and which files differ from it; None where there is none."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*arguments: str) -> str:
        answer = subprocess.run(
            [git, "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        return answer.stdout.rstrip("\n")

    try:
        changed = ask("status", "--porcelain", "--untracked-files=no").splitlines()
        return {"commit": ask("rev-parse", "HEAD"), "changed": [line[3:] for line in changed]}
    except (OSError, subprocess.SubprocessError):
        return None
