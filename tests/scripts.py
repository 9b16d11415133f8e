"""Scripts outside of the package, as modules, and what commands print."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def load_script(path: str) -> ModuleType:
    """The module of a script, by its path in the checkout; it runs as if imported."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location("_".join(file.with_suffix("").parts[-2:]), file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def one_error(capfd):
    """The one line on standard error that starts with error, and no stack trace anywhere."""
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line
