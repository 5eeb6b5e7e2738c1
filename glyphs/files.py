"""Files that are never half written, and folders that one process at a time writes to."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from glyphs.errors import GlyphError


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that, whenever the process or the machine dies, its old or its new content is there, whole.

    Raises
    ------
    GlyphError : it cannot be written (no permission, disk full); the old file is as it was.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        if os.name == "posix":  # the rename itself must reach the disk too
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        aside.unlink(missing_ok=True)
        remedy = "free some space" if error.errno == errno.ENOSPC else "check the folder and its permissions"
        kept = "; the file of before is untouched" if path.exists() else ""
        raise GlyphError(f"{path}: cannot be written ({error.strerror}){kept}; {remedy}") from None


@contextlib.contextmanager
def claim_folder(folder: Path) -> Iterator[None]:
    """Make the folder where it is missing, and keep other processes that claim it out while the context lasts.

    The lock is the operating system's and dies with its process, however that dies.

    Raises
    ------
    GlyphError : the folder cannot be made or written to, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise GlyphError(
            f"{folder}: another run is writing to this folder; wait for it, or choose another --output-dir"
        ) from None
    except OSError as error:
        raise GlyphError(f"{folder}: cannot be written to ({error.strerror}); choose another --output-dir") from None
    try:
        replace_file(folder / ".lock.probe", b"")  # the lock file may be an old one, in a folder now read-only
        (folder / ".lock.probe").unlink()
        yield
    finally:
        lock.release()
