"""Runtimes other than PyTorch: a detector is exported once, kept beside its weights, and run.

They run on a CPU, and give what PyTorch gives to the rounding of float32 (``fp32``). Nothing of
them is imported before it is asked for.
"""

import importlib.util
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from .exported import ExportedDetector
    from .files import run_exported

__all__ = ["PRECISIONS", "TORCH", "ExportedDetector", "check_runtime", "run_exported"]

TORCH = "torch"
# Precisions of each runtime; those of PyTorch are by autocast, and known where that is used.
PRECISIONS = {"openvino": ("fp32", "bf16", "int8"), "onnxruntime": ("fp32", "int8")}
# Packages that a runtime needs beside this project's own, and the extra that brings them.
_NEEDED: dict[str, tuple[tuple[str, ...], str]] = {
    "openvino": (("openvino", "onnx"), "openvino"),
    "onnxruntime": (("onnxruntime", "onnx"), "export"),
}
_MODULES = {"ExportedDetector": "exported", "run_exported": "files"}


def check_runtime(runtime: str, precision: str, device: str | None) -> None:
    """Refuses what cannot run, before anything is read.

    Args:
        runtime: ``torch``, or one of :data:`PRECISIONS`.
        precision: one of the runtime's; those of ``torch`` are not checked here.
        device: a name of torch's; None for whatever there is.

    Raises:
        UserError: there is no such runtime, its packages are not installed, or it does not run
            with the precision or on the device.
    """
    if runtime == TORCH:
        return
    if runtime not in PRECISIONS:
        raise UserError(
            f"the runtime must be one of {', '.join((TORCH, *PRECISIONS))}, got {runtime!r}"
        )
    if precision not in PRECISIONS[runtime]:
        raise UserError(
            f"the precision of {runtime} must be {' or '.join(PRECISIONS[runtime])}, "
            f"got {precision!r}"
        )
    if device is not None and device != "cpu":
        raise UserError(f"{runtime} runs on a CPU here, got the device {device!r}: leave it out")
    packages, extra = _NEEDED[runtime]
    if precision == "int8":  # which ONNX Runtime's tool makes
        packages, extra = (*packages, "onnxruntime"), f"{extra},export"
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the runtime {runtime} needs {', '.join(missing)}: "
            f"python -m pip install 'mvitv2_det[{extra}]'"
        )


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
