"""Scripts outside of the package, as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def load_script(path: str) -> ModuleType:
    """The module of a script, by its path in the checkout; it runs as if imported."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location("_".join(file.with_suffix("").parts[-2:]), file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
