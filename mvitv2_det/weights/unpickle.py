"""Safe reading of untrusted pickles.

Detectron2's model zoo has ``.pkl`` files of NumPy arrays. A pickle is a program that may import
and call anything. The unpicklers here only let it use the functions and classes of this module
and plain containers.
"""

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from ..errors import UserError

# Booleans, integers and floats, by NumPy's short names.
_NUMBERS = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])


class _Dtype:
    """Replacement of ``numpy.dtype``, for numbers only: no array can hold objects."""

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        if not isinstance(code, str) or code not in _NUMBERS:
            raise pickle.UnpicklingError(f"it has an array of {code!r}, which are no numbers")
        self.dtype: np.dtype[Any] = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Replacement of ``numpy.ndarray``, which allocates no memory beyond the bytes of the file."""

    def __init__(self, *_: object) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = _view(data, dtype, shape, "F" if is_fortran else "C")


def _view(
    data: bytes | str, dtype: _Dtype, shape: tuple[int, ...], order: Literal["C", "F"]
) -> np.ndarray:
    """Returns an array over bytes of the file; their number must match the shape."""
    if isinstance(data, str):  # Python 2 pickled bytes as text.
        data = data.encode("latin1")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _frombuffer(
    data: bytes | str, dtype: _Dtype, shape: tuple[int, ...], order: Literal["C", "F"]
) -> _Array:
    """Replacement of NumPy's ``_frombuffer``."""
    result = _Array()
    result.array = _view(data, dtype, shape, order)
    return result


def _scalar(dtype: _Dtype, data: bytes) -> int | float | bool:
    value: int | float | bool = _view(data, dtype, (), "C").item()
    return value


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Replacement of ``codecs.encode``, with which pickles of protocol 2 make bytes of text."""
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Replacement of ``bytes``, which pickles of protocol 2 call for empty bytes.

    It takes no argument, because ``bytes(number)`` would allocate that much memory.
    """
    return b""


def _allowed() -> dict[str, Callable[..., Any]]:
    """Maps the global names that a pickle may use to their replacements."""
    names: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": OrderedDict,
        "_codecs.encode": _encode,
        "__builtin__.bytes": _no_bytes,
        "numpy.dtype": _Dtype,
        "numpy.ndarray": _Array,
    }
    for core in ("numpy.core", "numpy._core"):  # NumPy 1 and NumPy 2.
        names[f"{core}.multiarray._reconstruct"] = _Array
        names[f"{core}.multiarray.scalar"] = _scalar
        names[f"{core}.numeric._frombuffer"] = _frombuffer
    return names


_ALLOWED = _allowed()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        full_name = f"{module}.{name}"
        if full_name not in _ALLOWED:
            raise UserError(
                f"it was refused because it wants to run {full_name}; only NumPy arrays and "
                f"plain containers are read from pickles"
            )
        return _ALLOWED[full_name]


def load_arrays(content: bytes) -> object:
    """Unpickles arrays and plain containers.

    Args:
        content: the whole pickle.

    Returns:
        The unpickled object. Its arrays are :class:`numpy.ndarray`, which share the memory of
        ``content`` where possible.

    Raises:
        UserError: the pickle asks for any other class or function; the message names it.
        ValueError, pickle.UnpicklingError: the content is truncated or is not a pickle.
    """
    check_opcodes(io.BytesIO(content))
    return _plain(_ArrayUnpickler(io.BytesIO(content), encoding="latin1").load(), {})


def check_opcodes(content: io.BytesIO) -> None:
    """Checks the lengths in a pickle, for which the unpickler would allocate memory at once.

    Args:
        content: a stream at the start of a pickle. Its position is restored.

    Raises:
        ValueError: a length exceeds that of the whole content, or the pickle is truncated.
    """
    start, size = content.tell(), len(content.getbuffer())
    argument: Any
    for opcode, argument, _ in pickletools.genops(content):
        # BINPUT's argument is a byte, MEMOIZE has none.
        if opcode.name in ("LONG_BINPUT", "PUT") and argument > size:
            raise ValueError(f"memo {argument} in a pickle of {size} bytes")
    content.seek(start)


def _plain(value: object, done: dict[int, object]) -> object:
    """Replaces each :class:`_Array` in a nested container with its array.

    Args:
        value: a container, or what is in one.
        done: results by the identity of what they replace. A container that is in another many
            times is read once: lists of twice the same list, forty deep, would not end otherwise.
    """
    if isinstance(value, _Array):
        return value.array
    if not isinstance(value, (dict, list, tuple)):
        return value
    if id(value) not in done:
        if isinstance(value, dict):
            mapping: dict[object, object] = {}
            done[id(value)] = mapping
            mapping.update((name, _plain(child, done)) for name, child in value.items())
        elif isinstance(value, list):
            items: list[object] = []
            done[id(value)] = items
            items.extend(_plain(child, done) for child in value)
        else:
            done[id(value)] = tuple(_plain(child, done) for child in value)
    return done[id(value)]


def claimed_bytes(content: io.BytesIO) -> dict[str, int]:
    """Finds the sizes that a torch pickle declares for its storages, without allocating them.

    Args:
        content: a stream at the start of the pickle. It is left at the end of the pickle.

    Returns:
        The size of each storage in bytes, by its key in the file.

    Raises:
        ValueError, pickle.UnpicklingError: the content is truncated or is not a pickle.
    """
    check_opcodes(content)
    claims = _Claims(content)
    claims.load()
    return claims.storages


class _Claims(pickle.Unpickler):
    """Unpickler that records the declared storages, and builds nothing else."""

    def __init__(self, content: io.BytesIO) -> None:
        super().__init__(content, encoding="latin1")
        self.storages: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> type:
        return type(name, (_Nothing,), {})

    def persistent_load(self, key: object) -> "_Nothing":
        if isinstance(key, tuple) and len(key) >= 5 and key[0] == "storage":
            element = _ELEMENT_BYTES.get(getattr(key[1], "__name__", ""), 1)
            self.storages[str(key[2])] = int(key[4]) * element
        return _Nothing()


_ELEMENT_BYTES = {
    "DoubleStorage": 8,
    "LongStorage": 8,
    "FloatStorage": 4,
    "IntStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "ShortStorage": 2,
}


class _Nothing:
    """Object that accepts any argument, state, item or key, and keeps none."""

    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, *_: object) -> "_Nothing":
        return self

    def __setstate__(self, _: object) -> None:
        pass

    def __setitem__(self, *_: object) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)

    def append(self, _: object) -> None:
        pass

    def extend(self, _: object) -> None:
        pass

    def add(self, _: object) -> None:
        pass
