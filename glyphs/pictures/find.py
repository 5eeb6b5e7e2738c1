"""The pictures in a folder."""

import importlib.util
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from glyphs.core.errors import DataError, PictureError
from glyphs.pictures.decode import LaterPage, Source, count_pages

# What counts as a picture.
DRAWN = (".svg",) if importlib.util.find_spec("resvg_py") else ()
SUFFIXES = (
    *DRAWN,
    *(".png", ".jpg", ".jpeg", ".jp2", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".tga", ".ico"),
    ".pdf",
)
PAGED = (".tif", ".tiff", ".gif", ".webp", ".pdf")  # files that may have several pages, or frames
MOST_PAGES = 500  # that are read of a file


class AllPages:
    """Pictures by their names, each page of files of several: page 2 of `scan.tif` is `scan.tif#2`.

    Parameters
    ----------
    pictures : names, and paths or other pictures, or why there is none; iterated over as often as this is.
    """

    def __init__(self, pictures: Iterable[tuple[str, Source | PictureError]]) -> None:
        self.pictures = pictures

    def __iter__(self) -> Iterator[tuple[str, Source | PictureError]]:
        for name, picture in self.pictures:
            yield name, picture
            if isinstance(picture, str) and picture.lower().endswith(PAGED):
                pages = count_pages(picture)
                for number in range(2, min(pages, MOST_PAGES) + 1):
                    yield f"{name}#{number}", LaterPage(picture, number)
                if pages > MOST_PAGES:
                    left_out = f"{picture}: has {pages:,} pages; those after {MOST_PAGES} are left out: divide it"
                    yield f"{name}#{MOST_PAGES + 1}", PictureError(left_out)


class PictureFolder:
    """The pictures in a folder and its sub-folders: names relative to it, sorted, and paths; in constant memory.

    What is a picture is told by the suffix; `skipped` counts the other files of the last iteration, by their suffixes
    in lower case.  What is hidden (see `is_hidden`) is passed over.  A folder that links lead to twice, or for ever, is
    read once.  A sub-folder that cannot be read comes with the error to report in place of a path.

    Raises
    ------
    DataError : while iterating; the folder itself cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[tuple[str, str | PictureError]]:
        self.skipped.clear()
        seen: set[tuple[int, int]] = set()
        waiting = [""]  # the next name is the last; a folder's ends with a slash
        while waiting:
            name = waiting.pop()
            if name and not name.endswith("/"):
                if name.lower().endswith(SUFFIXES):
                    yield name, f"{self.folder}/{name}"
                else:
                    self.skipped[os.path.splitext(name)[1].lower()] += 1  # noqa: PTH122 - a million Path objects are slow
                continue
            try:
                status = (self.folder / name).stat()
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(self.folder / name) as entries:
                    inside = [name + entry.name + "/" * is_folder(entry) for entry in entries if not is_hidden(entry)]
            except OSError as error:
                if not name:
                    raise DataError(f"{self.folder}: cannot be read as a folder ({error.strerror})") from None
                yield name.rstrip("/"), PictureError(f"{self.folder}/{name}: cannot be read ({error.strerror})")
                continue
            waiting += sorted(inside, reverse=True)


def describe_skipped(skipped: Counter[str]) -> str:
    """The files that were no pictures, from their counts by suffix: `3 other files skipped (2 .psd, 1 .txt)`."""
    kinds = ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in skipped.most_common(3))
    return f"{skipped.total():,} other files skipped" + (f" ({kinds})" if kinds else "")


def is_hidden(entry: os.DirEntry[str]) -> bool:
    """Whether a file or folder was left by other programs, such as .ipynb_checkpoints, or __MACOSX of a zip archive."""
    return entry.name.startswith(".") or entry.name == "__MACOSX"


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link that leads nowhere, or to itself, is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False
