"""Released weights by name: where they are, what they are of, and a download that is checked.

``released.csv`` is the one list of them. Published results and links are those of the pages that it
names, and so are the numbers of parameters; licences are those of the repositories, for the pages
license no weights apart. Detectron2's model zoo says of its files that a name ends with the first
digits of the MD5 sum, torchvision's names end with those of the SHA-256 sum.
"""

import csv
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse

from iopath.common.file_io import get_cache_dir

from ..errors import UserError
from .download import download

_BYTES = 1 << 20  # read at a time
_DETECTRON2 = ("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/")


@dataclass(frozen=True)
class Released:
    """Weights that others have released.

    Attributes:
        name: what they are called here.
        kind: ``images``, ``clips`` or ``detector``: what the network takes, or is.
        trained_on: data sets, in the order of training.
        config: name of the config of the same network: for a detector one that
            :func:`mvitv2_det.get_config` knows, otherwise one of ``projects/``.
        published: results on the last data set, as published; empty where there are none.
        million_parameters: as published; empty where it is not.
        url: address of the file.
        checksum: how the sum of the file begins, as ``md5:1a1c30``; empty where none is published.
        licence: of the repository that releases them.
        page: address of what describes them.
    """

    name: str
    kind: str
    trained_on: str
    config: str
    published: str
    million_parameters: str
    url: str
    checksum: str
    licence: str
    page: str

    def check(self, file: Path) -> None:
        """Compares a downloaded file with the published sum; one that differs is renamed.

        Raises:
            UserError: it differs.
        """
        algorithm, _, expected = self.checksum.partition(":")
        if not expected:
            return
        found = hashlib.new(algorithm)
        with file.open("rb") as content:
            while part := content.read(_BYTES):
                found.update(part)
        if (digits := found.hexdigest()).startswith(expected):
            return
        refused = file.rename(f"{file}.refused")
        raise UserError(
            f"what was downloaded for {self.name!r} is damaged or another file: its {algorithm} "
            f"sum begins with {digits[: len(expected)]}, not {expected}; it is now {refused}: try "
            f"again"
        )


@cache
def released_weights() -> dict[str, Released]:
    """All weights that have a name, by it, in the order of the list."""
    lines = (files(__package__) / "released.csv").read_text(encoding="utf-8").splitlines()
    return {row["name"]: Released(**row) for row in csv.DictReader(lines)}


def find_released(source: str) -> Released | None:
    """The weights of this name; None if there are none, or there is a file of this name."""
    return None if Path(source).exists() else released_weights().get(source)


def fetch(source: str, get_local_path: Callable[[str], str]) -> str:
    """Downloads a name or an address once, into iopath's cache; a download is checked.

    What was interrupted goes on, and never is a file cut off; see :mod:`.download`.

    Args:
        source: a name of :func:`released_weights`, or what ``get_local_path`` takes.
        get_local_path: of a path manager.

    Returns:
        the path of the file.

    Raises:
        UserError: it cannot be had, or is not what was published.
    """
    weights = find_released(source)
    address = weights.url if weights else source
    try:
        is_known = not address.startswith(_DETECTRON2[0]) or find_spec("detectron2")
        if is_known and (found := _in_cache(address)):
            download(*found)  # where iopath then finds it
        path = get_local_path(address)
    except UserError:
        raise
    except Exception as error:  # Networks, hubs and disks raise exceptions of many types.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"checkpoint {source!r} cannot be fetched: {reason}{_by_hand(address)}"
        ) from error
    if weights:
        weights.check(Path(path))
    return path


def _by_hand(address: str) -> str:
    """How to do without a network, of an address that iopath would download."""
    found = _in_cache(address)
    return "; without a network, put {} at {}".format(*found) if found else ""


def _in_cache(address: str) -> tuple[str, Path] | None:
    """URL and place in iopath's cache of an address by HTTP; None of others."""
    url = address.replace(*_DETECTRON2, 1) if address.startswith(_DETECTRON2[0]) else address
    parsed = urlparse(url)
    if parsed.scheme not in ("http", "https") or not parsed.path:
        return None
    return url, Path(get_cache_dir(), parsed.path.lstrip("/"))
