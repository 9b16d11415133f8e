"""The plain model does without the wing of speed."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JOIN = Path("mvitv2_det", "backbone", "trunk.py")
# What the plain model consists of, and what its speed depends on.
PLAIN = ("attention", "backbone")
TESTED = (
    "tests/attention",
    "tests/backbone",
    "tests/recognition",
    "tests/weights",
    "tests/test_configs.py",
)
# Beside those marked long, tests of what others hold: larger sizes run the same code.
OF_DETECTRON2 = "tests/backbone/test_against_detectron2.py::test_"
LONG = (
    *(f"{OF_DETECTRON2}{kind}_of_detection_sizes" for kind in ("outputs", "gradients")),
    "tests/backbone/test_mvit.py::test_every_parameter_gets_a_gradient",
    "tests/recognition/test_recognizer.py::test_the_wing_takes_clips_and_class_tokens",
    # In float32 rounding may choose another token of a maximum, and so other gradients.
    "tests/recognition/test_against_timm.py::test_in_float32",
    "tests/recognition/test_against_timm.py::test_the_large_ones",
    "tests/recognition/test_table_costs.py",
    "tests/weights/test_recognizers.py::test_published_sizes",
    "tests/weights/test_load_weights.py::test_every_published_size_fits",
)


def lines_of_the_join(source: str) -> list[str]:
    return [line for line in source.splitlines() if "fused import" in line or "accelerate(" in line]


def test_one_import_and_one_call_join_them():
    assert lines_of_the_join((ROOT / JOIN).read_text()) == [
        "from ..fused import accelerate",
        "        accelerate(self, attention_backend, recompute_products)",
    ]


@pytest.mark.parametrize(
    "file",
    sorted(file for part in PLAIN for file in (ROOT / "mvitv2_det" / part).rglob("*.py")),
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_the_plain_model_knows_nothing_of_speed(file):
    """No import of the wing but the join, no compiler, no autograd function, no device."""
    source = file.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and "fused" in (node.module or "").split("."):
            assert file == ROOT / JOIN
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("compiler", "compile", "Function", "is_autocast_enabled")
            assert not (node.attr == "type" and ast.unparse(node.value).endswith("device"))


@pytest.mark.long
def test_it_passes_its_tests_without_the_wing(tmp_path):
    """Backbone, attention, weights and configs, in a copy without the wing and its join."""
    for folder in ("mvitv2_det", "tests", "configs", "projects", "docs"):
        shutil.copytree(
            ROOT / folder,
            tmp_path / folder,
            ignore=shutil.ignore_patterns("fused", "__pycache__", "api"),
        )
    for file in ("pyproject.toml", "train_net.py"):
        shutil.copy(ROOT / file, tmp_path)
    trunk = tmp_path / JOIN
    source = trunk.read_text(encoding="utf-8")
    for line in lines_of_the_join(source):
        source = source.replace(line + "\n", "")
    trunk.write_text(source, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]  # those of the run that this test is a part of
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    long = [f"--deselect={name}" for name in LONG]
    run = subprocess.run(
        [*command, *long, *TESTED], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    assert re.search(r"\d{3} passed", run.stdout), run.stdout[-1000:]
    check = "import mvitv2_det, sys; assert mvitv2_det.__file__.startswith(sys.argv[1])"
    subprocess.run([sys.executable, "-c", check, str(tmp_path)], cwd=tmp_path, check=True)
