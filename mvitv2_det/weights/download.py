"""A download by HTTP that goes on where an earlier one was interrupted, which iopath's does not."""

from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from iopath.common.file_io import file_lock
from tqdm import tqdm

_BYTES = 1 << 20  # read at a time
_TIMEOUT = 60.0  # seconds in which a server must say something


def download(url: str, place: Path) -> None:
    """Downloads a file, unless it is there; it takes its place when it is whole.

    What an interruption leaves, ``place`` with ``.part`` at its end, is gone on with if the server
    still has the same version of the file (RFC 9110, ``Range`` and ``If-Range``). Processes that
    want the same file wait for each other.

    Args:
        url: of the file, http or https.
        place: where it goes; its folder is made.

    Raises:
        OSError: the server or the disk fails, or the connection ends early.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(str(place)):
        if place.is_file():
            return
        part = place.with_name(f"{place.name}.part")
        version = place.with_name(f"{place.name}.part.version")
        headers = {}
        if part.is_file() and version.is_file() and (known := version.read_text("ascii")):
            headers = {"Range": f"bytes={part.stat().st_size}-", "If-Range": known}
        try:
            _receive(Request(url, headers=headers), part, version)
        except HTTPError as error:
            if not headers or error.code != 416:  # there is nothing after what is there
                raise
            _receive(Request(url), part, version)
        part.replace(place)
        version.unlink()


def _receive(request: Request, part: Path, version: Path) -> None:
    with urlopen(request, timeout=_TIMEOUT) as answer:
        goes_on = answer.status == 206
        start = part.stat().st_size if goes_on else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        found = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        version.write_text(found, "ascii")
        name = part.name.removesuffix(".part")
        progress = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name)
        with progress, part.open("ab" if goes_on else "wb") as file:
            while block := answer.read(_BYTES):
                file.write(block)
                progress.update(len(block))
    size = part.stat().st_size
    if total is not None and size != total:
        raise OSError(f"the connection ended after {size} of {total} bytes; try again to go on")
