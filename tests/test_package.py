"""What an installed package must carry, and what its parts may not import."""

import ast
import configparser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mvitv2_det

ROOT = Path(__file__).parents[1]


def imports(file: Path) -> set[str]:
    """First names of all modules that a file imports absolutely."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("file", sorted((ROOT / "mvitv2_det").rglob("*.py")), ids=lambda f: f.stem)
def test_package_imports_neither_projects_nor_configs(file):
    assert not imports(file) & {"projects", "configs", "tools", "tests", "train_net", "fairscale"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the content of the wheel."""
    pytest.importorskip("hatchling", reason="building the wheel needs hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def test_wheel_brings_the_command_and_says_that_it_is_typed(installed):
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    parser = configparser.ConfigParser()
    parser.read(entry_points)
    assert dict(parser["console_scripts"]) == {"mvitv2-det": "mvitv2_det.commands:main"}
    assert callable(mvitv2_det.commands.main)
    assert (installed / "mvitv2_det" / "py.typed").is_file()


@pytest.mark.long
def test_wheel_carries_the_configs(installed, tmp_path):
    """``get_config`` works from the wheel alone, away from the checkout."""
    script = (
        "import mvitv2_det; from mvitv2_det.config import config_folder\n"
        "cfg = mvitv2_det.get_config('mask_rcnn_mvitv2_t_3x')\n"
        "print(mvitv2_det.__file__, config_folder(), cfg.train.max_iter)"
    )
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    package = installed / "mvitv2_det"
    assert answer == [str(package / "__init__.py"), str(package / "configs"), "67500"]
    assert (package / "weights" / "released.csv").is_file()


def test_version_is_in_the_changelog():
    assert f"## {mvitv2_det.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
