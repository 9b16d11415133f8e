#!/usr/bin/env python3
"""Installs Detectron2 where there is none.

    python tools/install_detectron2.py

An installed Detectron2 is left as it is. Otherwise this installs the one build of it that a
package registry has: sal-detectron2 0.7.2, which is Detectron2's main branch of mid-2024 but for
formatting. Its wheel is tagged for Python 3.10 and holds Python code alone, so it goes into the
environment of any other Python as well; what it depends on comes with mvitv2_det. The wheel's
sha256 is pinned: any other file is refused.
"""

import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

REQUIREMENT = "sal-detectron2==0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"


def installed_file() -> str | None:
    """The file of the Detectron2 that this Python would import, or None."""
    spec = importlib.util.find_spec("detectron2")
    return spec.origin if spec else None


def install(target: str) -> None:
    """Installs the pinned wheel into a folder of packages; pip compares the sha256.

    Raises:
        subprocess.CalledProcessError: pip found no such file, or one with another sha256.
    """
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--python-version", "3.10", "--only-binary=:all:", "--target", target]
        command += ["--require-hashes", "--requirement", str(requirements)]
        subprocess.run(command, check=True)


def main() -> int:
    installed = installed_file()
    if installed is not None:
        print(f"Detectron2 is installed already and is used as it is: {installed}")
        return 0
    try:
        install(sysconfig.get_paths()["purelib"])
    except subprocess.CalledProcessError:
        print(
            f"error: {REQUIREMENT} with sha256 {SHA256} could not be installed; build Detectron2 "
            f"from its repository instead, as the README says",
            file=sys.stderr,
        )
        return 1
    print(f"Installed Detectron2 from {REQUIREMENT}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
