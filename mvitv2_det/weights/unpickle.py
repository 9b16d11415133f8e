"""Reading pickles of strangers: nothing is imported and nothing is called but what stands here.

Detectron2's model zoo has ``.pkl`` files of NumPy arrays. A pickle is a program; this unpickler
runs it with a fixed vocabulary of arrays and plain containers.
"""

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from ..errors import UserError

# Booleans, integers and floats, in NumPy's short names.
_NUMBERS = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])


class _Dtype:
    """Stands for ``numpy.dtype`` while unpickling: numbers only, so no array holds objects."""

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        if not isinstance(code, str) or code not in _NUMBERS:
            raise pickle.UnpicklingError(f"it has an array of {code!r}, which are no numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for ``numpy.ndarray`` while unpickling: allocates nothing but what the file holds."""

    def __init__(self, *_: object) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = _frombuffer(data, dtype, shape, "F" if is_fortran else "C").array


def _frombuffer(data: bytes | str, dtype: _Dtype, shape: tuple, order: str) -> _Array:
    """An array over the bytes of the file, which must be as many as its shape says."""
    if isinstance(data, str):  # Python 2 wrote bytes as text.
        data = data.encode("latin1")
    result = _Array()
    result.array = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)
    return result


def _scalar(dtype: _Dtype, data: bytes) -> int | float | bool:
    return _frombuffer(data, dtype, (), "C").array.item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How pickles of protocol 2 carry bytes."""
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """What pickles of protocol 2 call for empty bytes; with an argument it would allocate."""
    return b""


def _allowed() -> dict[str, Callable]:
    """Global names that a pickle may use, and what they are here; NumPy 1 and 2 name modules
    differently."""
    names = {
        "collections.OrderedDict": OrderedDict,
        "_codecs.encode": _encode,
        "__builtin__.bytes": _no_bytes,
        "numpy.dtype": _Dtype,
        "numpy.ndarray": _Array,
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray._reconstruct"] = _Array
        names[f"{core}.multiarray.scalar"] = _scalar
        names[f"{core}.numeric._frombuffer"] = _frombuffer
    return names


_ALLOWED = _allowed()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable:
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
        what it holds; arrays as :class:`numpy.ndarray` without a copy of their bytes where
        possible.

    Raises:
        UserError: the pickle wants anything else; the message names it.
        ValueError, pickle.UnpicklingError: it is cut off or is no pickle.
    """
    check_opcodes(io.BytesIO(content))
    return _plain(_ArrayUnpickler(io.BytesIO(content), encoding="latin1").load())


def check_opcodes(content: io.BytesIO) -> None:
    """Refuses lengths beyond the end of a pickle, for which the unpickler would allocate first.

    Args:
        content: at the start of a pickle; where it was, afterwards.

    Raises:
        ValueError: as above, or the pickle is cut off.
    """
    start, size = content.tell(), len(content.getbuffer())
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "LONG_BINPUT" and argument > size:
            raise ValueError(f"memo {argument} in a pickle of {size} bytes")
    content.seek(start)


def _plain(value: object) -> object:
    """The same with arrays for what stood for them."""
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, dict):
        return {name: _plain(child) for name, child in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(child) for child in value)
    return value


def claimed_bytes(content: io.BytesIO) -> dict[str, int]:
    """The bytes that each storage of a torch pickle is said to have, by its key in the file.

    Builds nothing of what the pickle describes.

    Args:
        content: at the start of the pickle; at its end, afterwards.

    Raises:
        ValueError, pickle.UnpicklingError: it is cut off or is no pickle.
    """
    check_opcodes(content)
    claims = _Claims(content)
    claims.load()
    return claims.storages


class _Claims(pickle.Unpickler):
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
    """Takes any argument, state, item or key, and keeps none."""

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
