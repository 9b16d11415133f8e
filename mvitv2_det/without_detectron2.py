"""What happens if Detectron2 is not installed: one line says how to get it.

``pip install mvitv2_det`` cannot bring Detectron2, because no package registry has it under its own
name. ``mvitv2_det`` itself, ``mvitv2-det --help`` and the plain attention work without.
"""

import importlib.util
import sys
import sysconfig
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

from .errors import MissingDetectron2

# The modules of this package that import Detectron2 themselves.
_NEED_DETECTRON2 = (
    "allowed_names",
    "backbone.feature_trunk",
    "config",
    "data",
    "detection",
    "engine",
    "evaluation",
    "export.metadata",
    "predict.classes",
    "predict.files",
    "predict.outputs",
    "predict.predictor",
    "predict.tiles",
    "predict.tracking",
    "report.ending",
    "report.run_folder",
    "runtimes.exported",
    "runtimes.files",
    "visualize.gallery",
    "visualize.instances",
    "visualize.look_inside",
    "visualize.results",
    "visualize.samples",
    "yaml_config",
)


class _Explanation(MetaPathFinder):
    """Raises the explanation when a module that needs Detectron2 is imported.

    It is the first that Python asks for a module. It answers for modules of this package alone, so
    that other packages can still find out that there is no Detectron2.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        package, _, module = fullname.partition(".")
        if package == __package__ and module in _NEED_DETECTRON2 and not _is_installed():
            raise MissingDetectron2(
                f"{fullname} needs Detectron2, which is not installed: run "
                f"'python tools/install_detectron2.py' in a checkout of this project, or "
                f"'{pip_command()}', or build it from "
                f"https://github.com/facebookresearch/detectron2",
                name="detectron2",
            )


def explain_missing_detectron2() -> None:
    """Makes imports that need Detectron2 say how to get it, if there is none."""
    if not _is_installed() and not any(isinstance(f, _Explanation) for f in sys.meta_path):
        sys.meta_path.insert(0, _Explanation())


def pip_command() -> str:
    """The command that installs Detectron2's Python code from a package registry.

    The wheel is tagged for Python 3.10 but holds Python code alone: with these options pip puts it
    into the environment of any other Python as well.
    """
    packages = sysconfig.get_paths()["purelib"]
    return (
        f"python -m pip install --no-deps --only-binary=:all: --python-version 3.10 "
        f"--target {packages} sal-detectron2==0.7.2"
    )


def _is_installed() -> bool:
    return importlib.util.find_spec("detectron2") is not None
