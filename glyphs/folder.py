"""Training on one's own glyphs: a folder of pictures for each class, prepared once and then mapped into memory.

The prepared images lie in one file, 784 bytes each, which training reads through the operating system's page cache:
a set larger than memory trains.  Beside it, index.jsonl has a line for each picture that was looked at.  Both only
ever grow by whole entries, pixels first, so a build that was interrupted goes on where it stopped; a picture whose
size or time changed is looked at again.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import joblib
import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from glyphs.errors import DataError, PictureError
from glyphs.files import replace_file, valid_utf8
from glyphs.preprocess import SIDE, VERSION, Glyph, Mode, has_picture_suffix, preprocess

IMAGE_BYTES = SIDE * SIDE
PIXELS = "glyphs.u8"
INDEX = "index.jsonl"
SKIPPED = "skipped.txt"
FLUSH_EVERY = 1000  # pictures between two times that the index catches up with the pixels on disk
Key = tuple[str, int, int]  # path below the data folder, size in bytes, time of the last change in nanoseconds


class Pictures(NamedTuple):
    """The pictures of one folder of classes: places in the store, and labels, one for each that could be used."""

    places: Tensor  # int64 [N]
    labels: Tensor  # int64 [N]
    class_names: list[str]


def load_folders(data_dir: Path, cache_dir: Path, mode: Mode) -> tuple[Tensor, Pictures, Pictures | None]:
    """Prepare every picture that the cache does not have yet.

    Parameters
    ----------
    data_dir : a folder for each class; or `train` and `test` with these in them.
    cache_dir : made where it is missing.

    Returns
    -------
    images : uint8 [M, 1, 28, 28], mapped from the cache.
    train, test : which of them belong to each part; test is None where the data has no such part.

    Raises
    ------
    DataError : naming the folder, where there are no classes, one has no usable picture, or those of train and test
        differ.
    """
    parted = (data_dir / "train").is_dir()
    roots = [data_dir / part for part in ("train", "test") if (data_dir / part).is_dir()] if parted else [data_dir]
    folders = [list_pictures(root) for root in roots]
    store = Store(cache_dir, data_dir, mode)
    store.add([Path(path) for folder in folders for path, _ in folder.samples])
    train = use_pictures(folders[0], store)
    empty = torch.bincount(train.labels, minlength=len(train.class_names)) == 0
    if empty.any():
        name = train.class_names[int(empty.nonzero()[0])]
        raise DataError(f"{roots[0] / name}: holds no usable picture; add some, or remove the folder")
    test = use_pictures(folders[1], store) if len(folders) == 2 else None
    if test is not None and test.class_names != train.class_names:
        odd = sorted(set(test.class_names) ^ set(train.class_names))[0]
        raise DataError(f"{data_dir}: the class {odd} is in only one of train and test; give both the same folders")
    return store.images(), train, test


def list_pictures(root: Path) -> ImageFolder:
    try:
        return ImageFolder(str(root), is_valid_file=has_picture_suffix, allow_empty=True)
    except FileNotFoundError:
        raise DataError(f"{root}: has no folders in it; give it one for each class, with pictures in each") from None
    except OSError as error:
        raise DataError(f"{root}: cannot be read ({error.strerror})") from None


def use_pictures(folder: ImageFolder, store: "Store") -> Pictures:
    """Look up the pictures of a folder, and leave out those that could not be used."""
    found = [(store.place(Path(path)), label) for path, label in folder.samples]
    usable = [(place, label) for place, label in found if place is not None]
    table = torch.tensor(usable, dtype=torch.int64).reshape(-1, 2)
    return Pictures(table[:, 0].contiguous(), table[:, 1].contiguous(), [valid_utf8(name) for name in folder.classes])


class Store:
    """The cache of prepared pictures.

    Parameters
    ----------
    folder : where the cache lies.
    root : the pictures' paths are kept relative to it.
    mode : how to prepare them; a cache made in another mode, of another folder or by other code is made anew.
    """

    def __init__(self, folder: Path, root: Path, mode: Mode) -> None:
        self.folder = folder
        self.root = root
        self.mode = mode
        self.places: dict[Key, int | None] = {}
        self.problems: dict[Key, str] = {}
        self.count = 0
        folder.mkdir(parents=True, exist_ok=True)
        head = {"version": VERSION, "mode": mode, "root": str(root.resolve())}
        self._read_index(head)

    def add(self, paths: list[Path]) -> None:
        """Prepare those pictures that are not in the store, as many at a time as there are cores."""
        new = [path for path in paths if self._key(path) not in self.places]
        if new:
            with (self.folder / PIXELS).open("ab") as pixels, (self.folder / INDEX).open("ab") as index:
                self._append(new, pixels, index)
        skipped = [f"{key[0]}: {self.problems[key]}" for key in map(self._key, paths) if key in self.problems]
        listing = "".join(f"{valid_utf8(line)}\n" for line in skipped)
        replace_file(self.folder / SKIPPED, listing.encode())
        if skipped:
            first = "; ".join(map(valid_utf8, skipped[:2]))
            print(
                f"note: {len(skipped):,} of {len(paths):,} pictures cannot be used, and are listed in "
                f"{self.folder / SKIPPED}: {first}{'; ...' if len(skipped) > 2 else ''}",
                file=sys.stderr,
            )

    def place(self, path: Path) -> int | None:
        """Where in the store a picture is, or None where it could not be used."""
        return self.places[self._key(path)]

    def images(self) -> Tensor:
        """uint8 [M, 1, 28, 28], read from disk as they are used."""
        if self.count == 0:
            return torch.empty(0, 1, SIDE, SIDE, dtype=torch.uint8)
        # Copy on write: torch warns of arrays that cannot be written to, and nobody writes.
        shape = (self.count, 1, SIDE, SIDE)
        return torch.from_numpy(np.memmap(self.folder / PIXELS, np.uint8, mode="c", shape=shape))

    def _key(self, path: Path) -> Key:
        status = path.stat()
        return str(path.relative_to(self.root)), status.st_size, status.st_mtime_ns

    def _append(self, paths: list[Path], pixels: BinaryIO, index: BinaryIO) -> None:
        lines: list[bytes] = []
        with tqdm(total=len(paths), desc="preparing", unit=" pictures", disable=None) as progress:
            for path, result in zip(paths, prepare_all(paths, self.mode), strict=True):
                key = self._key(path)
                problem = None
                if isinstance(result, str):
                    problem = result
                elif result.pixels is None:
                    problem = result.status.replace("_", " ")
                else:
                    pixels.write(result.pixels.tobytes())
                lines.append(json.dumps([*key, problem]).encode() + b"\n")
                self._note(key, problem)
                progress.update()
                if len(lines) == FLUSH_EVERY:
                    flush(lines, pixels, index)
        flush(lines, pixels, index)

    def _note(self, key: Key, problem: str | None) -> None:
        self.places[key] = None
        if problem is not None:
            self.problems[key] = problem
        else:
            self.places[key] = self.count
            self.count += 1

    def _read_index(self, head: dict[str, Any]) -> None:
        """Take in what an earlier build left, and cut off what it left half done."""
        pixels, index = self.folder / PIXELS, self.folder / INDEX
        first = json.dumps(head).encode() + b"\n"
        content = index.read_bytes() if index.exists() else b""
        if not content.startswith(first):
            replace_file(pixels, b"")
            replace_file(index, first)
            return
        end = len(first)
        prepared = pixels.stat().st_size // IMAGE_BYTES
        for line in content[end:].splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            path, size, time, problem = json.loads(line)
            if problem is None and self.count == prepared:
                break
            self._note((path, size, time), problem)
            end += len(line)
        with index.open("r+b") as file:
            file.truncate(end)
        with pixels.open("r+b") as file:
            file.truncate(self.count * IMAGE_BYTES)


def flush(lines: list[bytes], pixels: BinaryIO, index: BinaryIO) -> None:
    """Write the lines, after the pixels that they speak of."""
    pixels.flush()
    os.fsync(pixels.fileno())
    index.writelines(lines)
    index.flush()
    lines.clear()


def prepare(path: Path, mode: Mode) -> Glyph | str:
    """The picture prepared, or what is wrong with it."""
    try:
        return preprocess(path, mode)
    except PictureError as error:
        return str(error)


def prepare_all(paths: list[Path], mode: Mode) -> Iterator[Glyph | str]:
    """Each picture prepared, or what is wrong with it, in order; on all cores, reading ahead by a little."""
    parallel = joblib.Parallel(n_jobs=joblib.cpu_count(), prefer="threads", return_as="generator")
    results: Iterator[Glyph | str] = parallel(joblib.delayed(prepare)(path, mode) for path in paths)
    return results
