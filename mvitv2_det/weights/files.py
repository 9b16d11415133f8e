"""Checkpoint files: reading any kind safely, writing each kind.

The kind is told by a file's first bytes, not by its name. Whatever is wrong with a file becomes
one line that names it.
"""

import io
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError
from .unpickle import claimed_bytes, load_arrays

# Where the weights are in a checkpoint: Detectron2 and this project; facebookresearch/mvit and
# PySlowFast; timm's and others' training scripts. Otherwise the checkpoint is all weights.
WEIGHT_KEYS = ("model", "model_state", "state_dict")

# What torch writes first where it does not write a zip file (before torch 1.6).
_LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa850")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, by name. No code of the file is run.

    Args:
        path: a torch file, a ``.safetensors`` file, or a pickle of NumPy arrays as in Detectron2's
            model zoo.

    Returns:
        CPU tensors under the file's own names; optimiser state and other company is left out.

    Raises:
        UserError: there is no such file; it is cut off or no checkpoint; it wants to run code; it
            claims tensors that are larger than itself.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint file {str(path)!r}")
    try:
        content = _read(path)
    except UserError as error:
        raise UserError(f"checkpoint {str(path)!r}: {error}") from error
    except Exception as error:  # Unpicklers raise anything for bytes that are no pickle.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"checkpoint {str(path)!r} cannot be read; it is cut off or damaged: {reason}"
        ) from error
    try:
        return select_weights(content, max_bytes=path.stat().st_size)
    except UserError as error:
        raise UserError(f"checkpoint {str(path)!r}: {error}") from error


def _read(path: Path) -> object:
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"PK"):
        return _read_torch_zip(path)
    if len(start) > 8 and start[8:9] == b"{":
        return load_file(path)
    if start.startswith(b"\x80"):
        is_legacy_torch = _LEGACY_MAGIC in start
        return _read_legacy_torch(path) if is_legacy_torch else load_arrays(path.read_bytes())
    what = "empty" if not start else f"it starts with {start!r}"
    raise UserError(
        f"no checkpoint ({what}): expected a torch file, a .safetensors file or a .pkl of "
        f"Detectron2's model zoo"
    )


def _read_torch_zip(path: Path) -> object:
    with zipfile.ZipFile(path) as archive:
        sizes = {e.filename: min(e.file_size, e.compress_size) for e in archive.infolist()}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise UserError("no torch file: a zip file with compressed entries")
        pickles = [name for name in sizes if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError("no torch file: a zip file without one data.pkl")
        claims = claimed_bytes(io.BytesIO(archive.read(pickles[0])))
    folder = pickles[0].removesuffix("data.pkl")
    for key, claimed in claims.items():
        if claimed > sizes.get(f"{folder}data/{key}", 0):
            raise UserError(
                f"it is damaged: tensor storage {key} claims {claimed} bytes, and has "
                f"{sizes.get(f'{folder}data/{key}', 0)}"
            )
    return _torch_load(path)


def _read_legacy_torch(path: Path) -> object:
    content = io.BytesIO(path.read_bytes())
    # Magic number, protocol and system come first, in pickles of their own.
    claims = [claimed_bytes(content) for _ in range(4)][-1]
    claimed, size = sum(claims.values()), path.stat().st_size
    if claimed > size:
        raise UserError(f"it is damaged: its tensors claim {claimed} bytes of a file of {size}")
    return _torch_load(path)


def _torch_load(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message is a page on how to read the file without care.
        reason = str(error).partition("WeightsUnpickler error: ")[2].strip() or str(error)
        if refused := re.search(r"(?:GLOBAL|[Uu]nsupported class) ([\w.]+)", reason):
            raise UserError(
                f"it was refused because it wants to run {refused[1]}; only tensors and plain "
                f"containers are read"
            ) from error
        raise pickle.UnpicklingError(reason.splitlines()[0]) from error


def select_weights(content: object, max_bytes: int | None = None) -> dict[str, Tensor]:
    """The tensors of what a checkpoint file held, or of any mapping.

    Args:
        content: a mapping of names to tensors or arrays, or one that has it under a key of
            ``WEIGHT_KEYS``.
        max_bytes: refuse larger tensors.

    Raises:
        UserError: there are no weights in it, or one is larger.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"it holds no weights but a {type(content).__name__}")
    for key in WEIGHT_KEYS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    weights = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            value = _tensor(value)
        if isinstance(value, Tensor) and isinstance(name, str):
            if max_bytes is not None and value.numel() * value.element_size() > max_bytes:
                raise UserError(f"tensor {name} of shape {tuple(value.shape)} exceeds the file")
            weights[name] = value.detach()
    if not weights:
        keys = ", ".join(repr(key) for key in list(content)[:5]) or "nothing"
        raise UserError(f"it holds no weights, but {keys}")
    return weights


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor of its own, in this machine's byte order."""
    native = array.astype(array.dtype.newbyteorder("="), copy=True)
    if native.dtype.kind == "u" and native.dtype.itemsize > 1:
        native = native.astype(np.int64)
    return torch.from_numpy(native)


def write_weights(weights: Mapping[str, Tensor], path: str | Path, key: str | None) -> None:
    """Writes a checkpoint file, of the kind that its name's ending says.

    Args:
        weights: tensors by name.
        path: ``.safetensors``; ``.pkl`` as in Detectron2's model zoo; ``.pth``, ``.pyth``, ``.pt``
            or ``.bin`` for torch files.
        key: what the weights stand under in a torch file; None: the file is all weights.

    Raises:
        UserError: another ending, or the file cannot be written.
    """
    path = Path(path)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    check_target(path)
    try:
        # A name of its own until it is whole: no half-written file is taken for a checkpoint.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
            unfinished = Path(folder) / path.name
            _write(weights, unfinished, key)
            unfinished.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


TORCH_ENDINGS = (".pth", ".pyth", ".pt", ".bin")
ENDINGS = (".safetensors", ".pkl", *TORCH_ENDINGS)


def check_target(path: Path) -> None:
    """Refuses a file name of no kind that can be written.

    Raises:
        UserError: the name ends otherwise.
    """
    if path.suffix not in ENDINGS:
        raise UserError(f"{str(path)!r} must end in {', '.join(ENDINGS)}")


def _write(weights: dict[str, Tensor], path: Path, key: str | None) -> None:
    if path.suffix == ".safetensors":
        # That format has no tensors that share their memory.
        save_file({name: tensor.clone() for name, tensor in weights.items()}, path)
    elif path.suffix == ".pkl":
        arrays = {name: _array(name, tensor) for name, tensor in weights.items()}
        content = {"model": arrays, "__author__": "mvitv2_det", "matching_heuristics": False}
        with path.open("wb") as file:
            pickle.dump(content, file, protocol=4)
    else:
        torch.save({key: weights} if key else weights, path)


def _array(name: str, tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        raise UserError(f"a .pkl has no bfloat16, as tensor {name} is; write .safetensors or .pth")
    return tensor.numpy()
