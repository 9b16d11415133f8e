#!/usr/bin/env python3
"""Installs the packages of the lock, and this project, into the Python that runs this.

    python tools/install_locked.py [LOCK]

LOCK is requirements/lock.txt unless given. pip compares every file with the hashes in it. Two
kinds of packages are kept as they are where the environment has them in another version than the
lock's: torch with what belongs to it (torchvision, Triton, CUDA's libraries), so that a build for
another CUDA, or for CPUs alone, stays; and OpenCV, whichever of its packages brought it. Detectron2
is not in the lock: tools/install_detectron2.py installs it.
"""

import importlib.util
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements" / "lock.txt"
OPENCV = "opencv-python-headless"
TORCH_FAMILY = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*")


def read_lock(file: Path) -> dict[str, list[str]]:
    """Reads the requirements of each package, with their markers and hashes.

    Returns:
        For each name the lines that start with it, one for each of its versions.
    """
    requirements: dict[str, list[str]] = {}
    text = file.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line and not line.startswith(("#", " ")):
            requirements.setdefault(line.split("==")[0], []).append(line)
    return requirements


def installed_version(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def is_locked(name: str, version: str, lock: dict[str, list[str]]) -> bool:
    """Whether this version is one of the lock's."""
    return any(line.split()[0] == f"{name}=={version}" for line in lock.get(name, []))


def keep_installed(lock: dict[str, list[str]]) -> dict[str, list[str]]:
    """Takes out of the lock what the environment has in a version of its own, and says so.

    Raises:
        SystemExit: there is a torch of the environment's own, but no torchvision beside it.
    """
    torch = installed_version("torch")
    if torch and not is_locked("torch", torch, lock):
        if importlib.util.find_spec("torchvision") is None:
            raise SystemExit(
                f"error: torch {torch} is installed without torchvision; install the torchvision "
                f"that belongs to it from where this torch came from"
            )
        print(f"torch {torch} is installed already and is kept, with its torchvision.")
        lock = {name: lines for name, lines in lock.items() if not TORCH_FAMILY.fullmatch(name)}
    if importlib.util.find_spec("cv2") and not installed_version(OPENCV):
        print(f"OpenCV is installed already and is kept instead of {OPENCV}.")
        lock = {name: lines for name, lines in lock.items() if name != OPENCV}
    return lock


def pip_install(*arguments: str) -> None:
    """Installs what the arguments say, with neither dependencies nor a build environment.

    Raises:
        subprocess.CalledProcessError: pip failed, and has said why.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--use-pep517", *arguments]
    subprocess.run(command, check=True)


def install(lock: dict[str, list[str]]) -> None:
    """Installs the requirements, setuptools before those that are built with it."""
    first = {name: lines for name, lines in lock.items() if name == "setuptools"}
    for requirements in (first, lock):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "requirements.txt")
            file.write_text("\n".join(line for lines in requirements.values() for line in lines))
            pip_install("--require-hashes", "--requirement", str(file))


def main(arguments: list[str]) -> int:
    try:
        install(keep_installed(read_lock(Path(arguments[0]) if arguments else LOCK)))
        pip_install("--editable", str(ROOT))
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
