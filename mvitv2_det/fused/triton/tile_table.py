"""Blocks of the kernels: those measured on such a GPU where ``tiles.csv`` has them, else a rule's.

``projects/backbone_benchmark/tune_tiles.py`` measures and writes the table. Its rows are for
classes of shapes, not for sizes of maps: kernels are compiled for their blocks, and images of all
sizes have to share them.
"""

import csv
from collections.abc import Callable, Mapping
from functools import cache, wraps
from pathlib import Path
from typing import NamedTuple

import torch

from ...errors import UserError
from . import DTYPES
from .launch import Blocks

TABLE = Path(__file__).with_name("tiles.csv")
# In pooling, queries and keys of a block are rows and columns of a program's strip of the map.
KERNELS = (
    "attention_forward",
    "attention_over_keys",
    "attention_over_queries",
    "extend",
    "logits_backward",
    "pool_forward",
    "pool_backward",
    "pool_gather",
)
FEW_KEYS = 64  # of a window: one block of them
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


class Case(NamedTuple):
    """What a kernel's blocks depend on.

    Attributes:
        dtype: of the tensors.
        channels: of a head.
        terms: that extend a query, or those of an axis; 0 in pooling.
        few_keys: whether attention is to windows of at most :data:`FEW_KEYS` keys.
    """

    dtype: torch.dtype
    channels: int
    terms: int = 0
    few_keys: bool = False


class Key(NamedTuple):
    """What a row of the table is for."""

    gpu: str
    capability: str  # major.minor
    kernel: str
    case: Case


Rule = Callable[[Case], Blocks]
_COLUMNS = ["gpu", "capability", "kernel", *Case._fields, *Blocks.__dataclass_fields__]


def measured_or(kernel: str) -> Callable[[Rule], Callable[[torch.device, Case], Blocks]]:
    """Makes of a rule the choice of a kernel's blocks, which the table decides where it can.

    The rule itself stays at hand as ``__wrapped__``. A choice is made once: at batch 1 the host's
    time decides.
    """

    def decorate(rule: Rule) -> Callable[[torch.device, Case], Blocks]:
        @wraps(rule)
        @cache
        def choose(device: torch.device, case: Case) -> Blocks:
            if device.type != "cuda":
                return rule(case)
            gpu, capability = names_of(device)
            rows = {
                key.gpu: blocks
                for key, blocks in _shipped().items()
                if key[1:] == (capability, kernel, case)
            }
            # GPUs of one capability have the same multiprocessors, such as an H100 and an H200.
            return rows.get(gpu) or next(iter(rows.values()), None) or rule(case)

        return choose

    return decorate


def names_of(device: torch.device) -> tuple[str, str]:
    """Name and compute capability of a GPU, as in the table."""
    major, minor = torch.cuda.get_device_capability(device)
    return torch.cuda.get_device_name(device), f"{major}.{minor}"


@cache
def _shipped() -> dict[Key, Blocks]:
    return read(TABLE)


def read(file: Path) -> dict[Key, Blocks]:
    """Reads a table.

    Raises:
        UserError: a row is not one of a table, or two rows are for the same.
    """
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        if reader.fieldnames != _COLUMNS:
            raise _refusal(file, 1, f"the columns must be {','.join(_COLUMNS)}")
        rows: dict[Key, Blocks] = {}
        for row in reader:
            key, blocks = _parse(file, reader.line_num, row)
            if key in rows:
                raise _refusal(file, reader.line_num, "another row is for the same")
            rows[key] = blocks
    return rows


def write(file: Path, rows: Mapping[Key, Blocks]) -> None:
    """Writes a table, sorted."""
    lines = [
        {
            **key._asdict(),
            **key.case._asdict(),
            "dtype": str(key.case.dtype).removeprefix("torch."),
            "few_keys": int(key.case.few_keys),
            **vars(blocks),
        }
        for key, blocks in rows.items()
    ]
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(lines, key=lambda line: [str(line[name]) for name in _COLUMNS]))


def _parse(file: Path, line: int, row: Mapping[str | None, str | None]) -> tuple[Key, Blocks]:
    """The row's key and blocks, whose values are all such that the kernels can take them."""

    def integer(name: str, allowed: Callable[[int], bool], wanted: str) -> int:
        text = row[name] or ""
        if not text.isdecimal() or not allowed(int(text)):
            raise _refusal(file, line, f"{name} must be {wanted}, got {text!r}")
        return int(text)

    def side(name: str, most: int, least: int = 1) -> int:
        wanted = f"a power of two from {least} to {most}"
        return integer(name, lambda n: least <= n <= most and n & (n - 1) == 0, wanted)

    if None in row or None in row.values():
        raise _refusal(file, line, f"a row has {len(_COLUMNS)} values")
    for name, known in (("kernel", KERNELS), ("dtype", _DTYPES)):
        if row[name] not in known:
            raise _refusal(file, line, f"{name} must be one of {', '.join(known)}")
    if not row["gpu"] or not row["capability"]:
        raise _refusal(file, line, "gpu and capability must be given")
    case = Case(
        _DTYPES[str(row["dtype"])],
        integer("channels", lambda n: n > 0, "at least 1"),
        integer("terms", lambda n: n >= 0, "at least 0"),
        bool(integer("few_keys", lambda n: n <= 1, "0 or 1")),
    )
    least = 1 if str(row["kernel"]).startswith("pool") else 16  # of a product on tensor cores
    keyless = row["kernel"] in ("extend", "logits_backward")
    blocks = Blocks(
        side("queries", 256, least),
        integer("keys", lambda n: n == 0, "0") if keyless else side("keys", 256, least),
        side("warps", 16),
        integer("stages", lambda n: 1 <= n <= 8, "from 1 to 8"),
        integer("registers", lambda n: 32 <= n <= 255, "from 32 to 255, or nothing")
        if row["registers"]
        else None,
    )
    return Key(str(row["gpu"]), str(row["capability"]), str(row["kernel"]), case), blocks


def _refusal(file: Path, line: int, what: str) -> UserError:
    return UserError(
        f"{file}, line {line}: {what}; write the table anew with "
        "projects/backbone_benchmark/tune_tiles.py"
    )
