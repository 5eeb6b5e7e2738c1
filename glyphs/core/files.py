"""Files that are never half written, and folders that one process at a time writes to."""

import contextlib
import errno
import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from glyphs.core.errors import GlyphError

try:
    import fcntl
except ImportError:  # as on Windows
    fcntl = None  # type: ignore[assignment]

NO_BYTES = re.compile("[\\ud800-\\udc7f\\udd00-\\udfff]")  # surrogates that stand for no byte of a name

MOST_WRITTEN = 16 << 20  # bytes of a file that a person wrote; a list of a million words has 10 MB
UNFINISHED = ".{}.unfinished"  # the name that a file has while it is written: no name that users give
LONGEST_NAME = 255 - len(UNFINISHED.format("").encode())  # of the bytes that file systems allow, those that it leaves
DRAWING = Path("prediction.png")  # where a picture is drawn that has no other place
LOCK = ".lock"  # the file in a folder that says that a process holds it


def read_written(path: Path) -> bytes:
    """The content of a file that a person wrote: a word list, a form, settings.

    Raises
    ------
    OSError : it cannot be read, or has more than `MOST_WRITTEN` bytes, as a device without an end.
    """
    with path.open("rb") as file:
        content = file.read(MOST_WRITTEN + 1)
    if len(content) > MOST_WRITTEN:
        raise OSError(errno.EFBIG, f"it has more than {MOST_WRITTEN >> 20} MB", str(path))
    return content


def pretrained_folder() -> Path:
    """Where the weights in the box lie: within an installed package, else beside it in the repository."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "pretrained"
    return installed if installed.is_dir() else package.parent / "pretrained"


def valid_utf8(name: str) -> str:
    """A file's name with the bytes that are not UTF-8, which Python keeps as surrogates, written like `\\xe9`.

    Other surrogates, which a JSON file can hold, are written like `\\ud800`.
    """
    name = NO_BYTES.sub(lambda found: f"\\u{ord(found[0]):x}", name)
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def too_long(path: Path) -> bool:
    """Whether a file's name is too long to be written."""
    return len(os.fsencode(path.name)) > LONGEST_NAME


def unused(path: Path) -> Path:
    """The path itself, or, where there is something already, the first of NAME2, NAME3, ... where there is nothing."""
    others = (path.with_name(f"{path.stem}{number}{path.suffix}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], others) if not os.path.lexists(each))


def replace_file(path: Path, content: bytes) -> None:
    """Write a file as `replacing` does, from bytes in memory."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file so that, whenever the process or the machine dies, its old or its new content is there, whole.

    What the context writes takes the file's place when it ends without an exception.

    Raises
    ------
    GlyphError : it cannot be written (no permission, disk full), or another process writes it; the old file is as it
        was.
    """
    aside = path.with_name(UNFINISHED.format(path.name))
    try:
        if path.is_dir():  # now, not when all is done
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        with open_alone(aside, path) as file:
            try:
                file.truncate()
                yield file
                file.flush()
                os.fsync(file.fileno())
                if fcntl:  # while nobody else has it
                    aside.replace(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    aside.unlink(missing_ok=True)
                raise
        if not fcntl:  # Windows renames no open file
            aside.replace(path)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        remedy = "free some space" if error.errno == errno.ENOSPC else "check the folder and its permissions"
        kept = "; the file of before is untouched" if os.path.exists(path) else ""  # noqa: PTH110 - never raises
        raise GlyphError(f"{path}: cannot be written ({error.strerror}){kept}; {remedy}") from None
    # The rename itself must reach the disk too, but not every file system lets a folder be synced.
    with contextlib.suppress(OSError):
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_alone(aside: Path, path: Path) -> BinaryIO:
    """Open the file that is to take a path's place, and keep other processes from it until it is closed.

    It may hold what a process that was killed has left.

    Raises
    ------
    GlyphError : another process writes it.
    OSError : it cannot be opened.
    """

    def untruncated(name: str, flags: int) -> int:
        return os.open(name, flags & ~os.O_TRUNC, 0o666)

    while True:
        file = open(aside, "wb", opener=untruncated)  # noqa: SIM115 - a Path takes no opener
        try:
            claim_file(file, path)
            if not fcntl or os.path.samestat(os.fstat(file.fileno()), aside.stat()):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()  # the one who had it was done meanwhile, and gave it its name


def claim_file(file: BinaryIO, path: Path) -> None:
    """Keep other processes that claim an open file out until it is closed; the lock dies with its process.

    Where the system or the file system has no locks, nobody is kept out.

    Raises
    ------
    GlyphError : another process has claimed it; `path` is how users know it.
    """
    if not fcntl:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise GlyphError(f"{path}: another process is writing it; wait for it, or choose another file") from None
    except OSError:
        pass


@contextlib.contextmanager
def explain_write_error(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal into a GlyphError that names the path."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise GlyphError(f"{path}: cannot be written ({error.strerror}); check the folder and its space") from None


@contextlib.contextmanager
def claim_folder(
    folder: Path, remedy: str = "choose another --output-dir", before_waiting: Callable[[], object] | None = None
) -> Iterator[None]:
    """Make the folder where it is missing, and keep other processes that claim it out while the context lasts.

    The lock is the operating system's and dies with its process, however that dies.

    Parameters
    ----------
    remedy : what to do where the folder cannot be had.
    before_waiting : called where another process holds the folder; this one then waits until it is free.

    Raises
    ------
    GlyphError : the folder cannot be made or written to, or another process holds it and this one is not to wait.
    """
    import filelock  # here: it takes 0.04 s to import, which reading need not wait for

    lock = filelock.FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if before_waiting is None:
                raise GlyphError(f"{folder}: another run is writing to this folder; wait for it, or {remedy}") from None
            before_waiting()
            lock.acquire()
    except OSError as error:
        raise GlyphError(f"{folder}: cannot be written to ({error.strerror}); {remedy}") from None
    try:
        probe = folder / f"{LOCK}.probe"
        replace_file(probe, b"")  # the lock file may be an old one, in a folder now read-only
        probe.unlink()
        yield
    finally:
        lock.release()
