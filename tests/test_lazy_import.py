"""``import mvitv2_det``: quick, complete, and clear about a Detectron2 that is not there."""

import ast
import os
import pkgutil
import subprocess
import sys

import pytest
from scripts import ROOT

import mvitv2_det


def python(code: str) -> str:
    """Runs code in a process of its own; returns what it prints."""
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_import_is_quick_and_quiet():
    """Nothing but the standard library is imported, and nothing is printed."""
    code = (
        "import sys; before = set(sys.modules); import mvitv2_det\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - sys.stdlib_module_names))"
    )
    assert python(code) == "['mvitv2_det']\n"


@pytest.mark.parametrize("name", mvitv2_det.__all__)
def test_names_are_there(name):
    assert getattr(mvitv2_det, name) is not None
    assert name in dir(mvitv2_det)


def test_three_lists_of_names_agree():
    """The imports that type checkers see, ``__all__``, and the table that imports when asked."""
    tree = ast.parse((ROOT / "mvitv2_det" / "__init__.py").read_text(encoding="utf-8"))
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in guarded.body for alias in node.names}
    assert seen == mvitv2_det._MODULES
    assert sorted(seen) == sorted(mvitv2_det.__all__)


def test_unknown_names():
    assert not hasattr(mvitv2_det, "nothing")
    with pytest.raises(AttributeError, match="module 'mvitv2_det' has no attribute 'MVit'"):
        mvitv2_det.MVit  # noqa: B018


def test_yacs_config_registers_the_backbones_and_submodules_are_attributes():
    code = (
        "import mvitv2_det\n"
        "from detectron2.config import get_cfg\n"
        "from detectron2.modeling import BACKBONE_REGISTRY\n"
        "assert 'build_mvitv2_backbone' not in BACKBONE_REGISTRY\n"
        "mvitv2_det.add_mvitv2_config(get_cfg())\n"
        "print('build_mvitv2_backbone' in BACKBONE_REGISTRY)\n"
        "print('build_mvitv2_fpn_backbone' in BACKBONE_REGISTRY)\n"
        "print(mvitv2_det.predict.__name__, mvitv2_det.backbone.trunk.NO_WEIGHT_DECAY[0])"
    )
    assert python(code) == "True\nTrue\nmvitv2_det.predict pos_embed\n"


def test_without_detectron2():
    """Every module imports without it, or says how to get it; others see that it is missing."""
    names = [
        module.name
        for module in pkgutil.walk_packages(mvitv2_det.__path__, "mvitv2_det.")
        if not module.name.endswith("__main__")
    ]
    assert len(names) > 50
    code = (
        "import importlib, importlib.util, sys; sys.modules['detectron2'] = None\n"
        f"for name in {names}:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ImportError as error:\n"
        "        assert 'needs Detectron2, which is not installed: run' in str(error), error\n"
        "        assert '\\n' not in str(error)\n"
        "        print(name)\n"
        "assert importlib.util.find_spec('detectron2') is None\n"
    )
    failed = python(code).split()
    assert {"mvitv2_det.backbone.mvit", "mvitv2_det.config"} <= set(failed)
    free = {"mvitv2_det.commands.train", "mvitv2_det.errors", "mvitv2_det.variants"}
    assert not free & set(failed)
