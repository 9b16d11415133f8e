"""Safe reading and writing of checkpoint files of every kind.

Reading detects the kind from the first bytes of a file, not from its name. Every fault of a file
becomes an error of one line that names the file.
"""

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError
from ..whole_files import written_whole
from .unpickle import claimed_bytes, load_arrays

# Key of the weights in a checkpoint of, in this order: Detectron2 and this project;
# facebookresearch/mvit and PySlowFast; the training scripts of timm and others. A checkpoint
# without any of these keys holds nothing but weights.
WEIGHT_KEYS = ("model", "model_state", "state_dict")

# First bytes of torch files that are not zip files (written by torch before 1.6).
_LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa850")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint file, without running any code in the file.

    Args:
        path: a torch file, a ``.safetensors`` file, or a pickle of NumPy arrays as in Detectron2's
            model zoo.

    Returns:
        CPU tensors by the names that they have in the file, without optimiser state and other
        contents.

    Raises:
        UserError: the file does not exist, is truncated, is not a checkpoint, asks to run code,
            or declares tensors that are larger than the file.
    """
    return read_checkpoint(path)[0]


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the tensors of a checkpoint file as :func:`read_weights`, and what else it holds.

    Returns:
        the tensors by name; and the file's entries beside them, such as the optimiser's state, by
        theirs, none if the file holds nothing but weights.

    Raises:
        UserError: as :func:`read_weights`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint file {str(path)!r}")
    try:
        content = _read(path)
    except UserError as error:
        raise UserError(f"checkpoint {str(path)!r}: {error}") from error
    except Exception as error:  # Unpickling arbitrary bytes can raise any exception.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"checkpoint {str(path)!r} cannot be read; it is cut off or damaged: {reason}"
        ) from error
    try:
        return select_weights(content, max_bytes=path.stat().st_size), other_entries(content)
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
    # The file holds four pickles; magic number, protocol and system precede the tensors.
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
        # torch's message is a page long and explains how to disable the safety check.
        reason = str(error).partition("WeightsUnpickler error: ")[2].strip() or str(error)
        if refused := re.search(r"(?:GLOBAL|[Uu]nsupported class) ([\w.]+)", reason):
            raise UserError(
                f"it was refused because it wants to run {refused[1]}; only tensors and plain "
                f"containers are read"
            ) from error
        raise pickle.UnpicklingError(reason.splitlines()[0]) from error


def other_entries(content: object) -> dict[str, Any]:
    """The entries of a checkpoint beside its weights."""
    if not isinstance(content, Mapping):
        return {}
    return {
        name: value
        for name, value in content.items()
        if name not in WEIGHT_KEYS and not isinstance(value, (Tensor, np.ndarray))
    }


def select_weights(content: object, max_bytes: int | None = None) -> dict[str, Tensor]:
    """Selects the tensors among the contents of a checkpoint.

    Args:
        content: a mapping from names to tensors or arrays, or a mapping that holds such a mapping
            under one of ``WEIGHT_KEYS``.
        max_bytes: the largest size of a tensor that is accepted; None accepts any.

    Returns:
        The tensors by name, detached; arrays become tensors.

    Raises:
        UserError: ``content`` holds no tensor, or one that is too large.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"it holds no weights but a {type(content).__name__}")
    for key in WEIGHT_KEYS:
        if isinstance(nested := content.get(key), Mapping):
            content = nested
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
    """Copies an array into a tensor, in the byte order of this machine."""
    native = array.astype(array.dtype.newbyteorder("="), copy=True)
    if native.dtype.kind == "u" and native.dtype.itemsize > 1:
        native = native.astype(np.int64)
    return torch.from_numpy(native)


def write_weights(weights: Mapping[str, Tensor], path: str | Path, key: str | None) -> None:
    """Writes a checkpoint file; the ending of its name selects the kind.

    Args:
        weights: tensors by name.
        path: ``.safetensors``; ``.pkl`` as in Detectron2's model zoo; ``.pth``, ``.pyth``, ``.pt``
            or ``.bin`` for torch files.
        key: key of the weights in a torch file; None writes a file of nothing but weights.

    Raises:
        UserError: the ending is unknown, or the file cannot be written.
    """
    path = Path(path)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    check_target(path)
    try:
        with written_whole(path) as unfinished:
            _write(weights, unfinished, key)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


TORCH_ENDINGS = (".pth", ".pyth", ".pt", ".bin")
ENDINGS = (".safetensors", ".pkl", *TORCH_ENDINGS)


def check_target(path: Path) -> None:
    """Checks that weights can be written to a file of this name.

    Raises:
        UserError: the ending of the name is not one of ``ENDINGS``.
    """
    if path.suffix not in ENDINGS:
        raise UserError(f"{str(path)!r} must end in {', '.join(ENDINGS)}")


def _write(weights: dict[str, Tensor], path: Path, key: str | None) -> None:
    if path.suffix == ".safetensors":
        # The format refuses tensors that share memory.
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
