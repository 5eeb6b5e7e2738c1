"""Large files from the network: gone on with where a connection broke, checked, and never half there."""

import contextlib
import hashlib
import http.client
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glyphs.core.errors import DataError
from glyphs.core.files import explain_write_error
from glyphs.core.progress import progress

log = logging.getLogger(__name__)

BYTES_AT_ONCE = 1 << 20  # bytes
TIMEOUT = 60.0  # seconds without a byte until a connection counts as broken
WAITS = (1.0, 4.0, 15.0, 60.0)  # seconds before each further try; what brought new bytes is not counted as one


def download(url: str, path: Path, md5: str) -> None:
    """Fetch a file to a path, with the folders it needs.

    While it comes it is called NAME.part; what is there from an earlier time is gone on with, if the server can (RFC
    9110, section 14).  A broken connection is tried again.

    Parameters
    ----------
    md5 : of the whole file, in hexadecimal digits.

    Raises
    ------
    DataError : there is no connection any more, the server refuses, or what came is not that file, and is removed.
    GlyphError : it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    waits = iter(WAITS)
    with only_if_used(part), progress(desc=path.name, unit="B", unit_scale=True) as bar:
        with explain_write_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            before = size_of(part)
            try:
                fetch_rest(url, part, bar)
                break
            except (OSError, http.client.HTTPException) as error:
                # A refusal is final, but for those of a server that is too busy.
                final = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
                if size_of(part) > before:
                    waits = iter(WAITS)
                wait = next(waits, None)
                if final or wait is None:
                    kept = f"; {size_of(part) / 1e6:,.0f} MB are kept, and gone on with the next time"
                    raise DataError(" ".join(str(error).split()) + kept * (size_of(part) > 0)) from None
                log.warning(
                    f"the connection broke after {size_of(part) / 1e6:,.0f} MB ({error}): trying again in {wait:g} s"
                )
                time.sleep(wait)
        if digest(part) != md5:
            part.unlink()
            raise DataError(f"the file that came is not the one that was asked for (its MD5 sum is not {md5})")
        with explain_write_error(path):
            part.replace(path)


def fetch_rest(url: str, part: Path, bar: Any) -> None:
    """Append to the part what it lacks.  Raises OSError and HTTPException where the connection breaks."""
    start = size_of(part)
    request = urllib.request.Request(url, headers={"User-Agent": "glyphs"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # there is nothing after it: it is whole
            return
        raise
    with answer:
        resumed = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if answer.status != 206 or resumed is None or int(resumed[1]) != start:
            start = 0  # the server gives the whole again
        length = answer.length  # None where it does not say
        bar.total = None if length is None else start + length
        bar.n = start
        bar.refresh()
        with explain_write_error(part):
            # Without a buffer, which would be written again when the file is closed: that would fail like a connection.
            file = part.open("r+b" if start else "wb", buffering=0)
        received = 0
        with file:
            file.seek(start)
            while chunk := answer.read1(BYTES_AT_ONCE):
                left = memoryview(chunk)
                with explain_write_error(part):
                    while left:
                        left = left[file.write(left) :]
                received += len(chunk)
                bar.update(len(chunk))
        if length is not None and received < length:
            raise ConnectionError("the server hung up")


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def digest(path: Path) -> str:
    """The MD5 sum of a file, in hexadecimal digits."""
    sum = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(BYTES_AT_ONCE):
            sum.update(chunk)
    return sum.hexdigest()


@contextlib.contextmanager
def only_if_used(file: Path) -> Iterator[None]:
    """Remove the file at the end where it is empty, and the folders around it that were not there before."""
    made = [folder for folder in file.parents if not folder.exists()]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if size_of(file) == 0:
                file.unlink(missing_ok=True)
        for folder in made:
            with contextlib.suppress(OSError):  # it is not there, or it is not empty
                folder.rmdir()
