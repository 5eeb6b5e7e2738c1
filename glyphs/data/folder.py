"""Training on one's own glyphs: a folder of pictures for each class, prepared once and then mapped into memory.

The prepared images lie in one file, all of one size, which training reads through the operating system's page cache:
a set larger than memory trains.  Beside it, index.jsonl has a line for each picture that was looked at, with a
checksum of the line and of its pixels.  Both only ever grow by whole entries, pixels first, so a build that was
interrupted goes on where it stopped, and one that was damaged since where the damage begins; a picture whose size or
time changed is looked at again.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from glyphs.core.ahead import work_ahead
from glyphs.core.cpus import usable_cpus
from glyphs.core.errors import DataError, PictureError
from glyphs.core.files import explain_write_error, replace_file, valid_utf8
from glyphs.core.progress import progress
from glyphs.data.division import hold_out
from glyphs.data.layout import class_folders, folder_names, part_folders
from glyphs.data.survey import any_transparent
from glyphs.pictures.find import PictureFolder, describe_skipped
from glyphs.pictures.glyph import VERSION, Glyph, GlyphStatus, preprocess
from glyphs.pictures.plain import InputForm, to_planes

log = logging.getLogger(__name__)

PIXELS = "glyphs.u8"
INDEX = "index.jsonl"
SKIPPED = "skipped.txt"
AHEAD = 32  # pictures that wait for a thread, while results are written
FLUSH_EVERY = 1000  # pictures between two times that the index catches up with the pixels on disk
TEST_SHARE = 0.2  # of each class, where there is no test folder
# Why a picture that can be read is not used, and what then helps.
REFUSALS = {status.replace("_", " ") for status in get_args(GlyphStatus) if status != "ok"}
AS_THEY_ARE = "--preprocess plain takes pictures as they are, for symbols and logos"


class Key(NamedTuple):
    """What tells a picture from what it was before."""

    name: str  # path below the data folder
    size: int  # bytes
    time: int  # of the last change, in nanoseconds


class Picture(NamedTuple):
    path: str
    key: Key
    label: int


class FolderData(NamedTuple):
    """A folder data set: the images of all parts, and which of them belong to each, in the order of their names."""

    images: Tensor  # uint8 [M, channels, H, W], mapped from the cache
    labels: Tensor  # int64 [M]; -1 for an image that no picture has any more
    contents: Tensor  # int64 [M]; equal for pictures whose files are the same
    train: Tensor  # int64 [N], places of images
    val: Tensor | None  # int64 [V], where the pictures come with a part for validation
    test: Tensor  # int64 [T]
    class_names: list[str]
    test_refused: int  # pictures of the test part that could not be prepared
    files: list[str]  # M paths below the data folder; empty for an image that no picture has any more


def load_folders(data_dir: Path, cache_dir: Path, form: InputForm, seed: int) -> FolderData:
    """Load a folder of pictures, preparing those that the cache does not have yet.

    Parameters
    ----------
    data_dir : a folder for each class; or parts with these in them, see `glyphs.data.layout.part_folders`.  Without a
        test part, a fifth of the pictures is held out; see `glyphs.data.division.hold_out`.
    cache_dir : made where it is missing.

    Raises
    ------
    DataError : naming the folder, where there are fewer than two classes, one has no usable picture, those of the
        parts differ, or nothing is left for the test.
    GlyphError : the cache cannot be written.
    """
    roots = part_folders(data_dir) or {"train": data_dir}
    folders = {part: list_pictures(root, data_dir) for part, root in roots.items()}
    names = folders["train"][0]
    for part, (others, _) in folders.items():
        if others != names:
            odd = sorted(set(others) ^ set(names))[0]
            here = " and ".join(roots[each].name for each in ("train", part))
            raise DataError(f"{data_dir}: the class {odd} is in only one of {here}; give both the same folders")
    if len(roots) > 1 and (beside := sorted(set(folder_names(data_dir)) - {root.name for root in roots.values()})):
        log.warning(f"note: {data_dir} comes in parts; what else is in it is passed over: {', '.join(beside[:5])}")
    everything = [picture for _, pictures in folders.values() for picture in pictures]
    with_cover = form.mode == "plain" and any_transparent([picture.path for picture in everything])
    store = Store(cache_dir, data_dir, form, with_cover=with_cover)
    store.add(everything)
    usable = {part: [p for p in found if store.places[p.key] is not None] for part, (_, found) in folders.items()}
    empty = sorted(set(range(len(names))) - {picture.label for picture in usable["train"]})
    if empty:
        raise DataError(
            f"{roots['train'] / names[empty[0]]}: holds no usable picture; add some, or remove the folder"
            + (f"; {AS_THEY_ARE}" if REFUSALS & set(store.problems.values()) else "")
        )
    labels = torch.full((store.count,), -1)
    contents = torch.tensor(store.contents, dtype=torch.int64)
    files = [""] * store.count
    for picture in (picture for pictures in usable.values() for picture in pictures):
        files[store.places[picture.key] or 0] = picture.key.name
    parts = {}
    for part, pictures in usable.items():
        parts[part] = torch.tensor([store.places[p.key] for p in pictures], dtype=torch.int64)
        labels[parts[part]] = torch.tensor([p.label for p in pictures], dtype=torch.int64)
    # Without a test part nobody can say which refused pictures would be in it: its share of them would.
    refused = {part: len(found) - len(usable[part]) for part, (_, found) in folders.items()}
    test_refused = refused.get("test", round(TEST_SHARE * refused["train"]))
    if "test" not in parts:
        parts["test"], rest = hold_out(parts["train"], labels, contents, TEST_SHARE, seed, "test")
        log.warning(
            f"note: {data_dir} has no test folder: {len(parts['test']):,} of {len(parts['train']):,} pictures are held "
            "out for the test"
        )
        parts["train"] = rest
    train = parts["train"]
    for part in roots.keys() - {"train"}:
        copies = int(torch.isin(contents[parts[part]], contents[train]).sum())
        if copies:
            log.warning(
                f"note: {copies:,} of {len(parts[part]):,} pictures in {roots[part]} are copies of pictures in "
                f"{roots['train']}: what is measured on them will look better than it is; remove them from one of the "
                "two"
            )
    for part, purpose in (("val", "validate"), ("test", "test")):
        if part in parts and len(parts[part]) == 0:
            raise DataError(
                f"{roots.get(part, roots['train'])}: its {len(usable.get(part, usable['train'])):,} usable pictures "
                f"leave none to {purpose} on; add more, at least three different ones of a class and better thirty of "
                "each"
            )
    class_names = [valid_utf8(name) for name in names]
    return FolderData(
        store.images(), labels, contents, train, parts.get("val"), parts["test"], class_names, test_refused, files
    )


def list_pictures(root: Path, data_dir: Path) -> tuple[list[str], list[Picture]]:
    """The class folders in a folder, sorted, and the pictures in each of them, in the order of their names."""
    names = class_folders(root)
    pictures = []
    skipped: Counter[str] = Counter()
    for label, name in enumerate(names):
        folder = PictureFolder(root / name)
        for inside, path in folder:
            relative = os.path.relpath(root / name / inside, data_dir)
            key = Key(relative, 0, 0)  # of what cannot be read: preparing it will say why
            if isinstance(path, str):
                with contextlib.suppress(OSError):
                    status = os.stat(path)  # noqa: PTH116 - a million Path objects are slow
                    key = Key(relative, status.st_size, status.st_mtime_ns)
            pictures.append(Picture(str(root / name / inside), key, label))
        skipped += folder.skipped
    if skipped:
        log.warning(f"note: {root}: {describe_skipped(skipped)}")
    return names, pictures


class Store:
    """The cache of prepared pictures.

    Parameters
    ----------
    folder : where the cache lies.
    root : the pictures' names are relative to it.
    form, with_cover : as for `preprocess`; a cache of another form, of another folder or by other code is made anew.
    """

    def __init__(self, folder: Path, root: Path, form: InputForm, *, with_cover: bool = False) -> None:
        self.folder = folder
        self.form, self.with_cover = form, with_cover
        self.shape = (form.shape[0] + with_cover, *form.shape[1:])
        self.image_bytes = math.prod(self.shape)
        self.places: dict[Key, int | None] = {}  # None for a picture that cannot be used
        self.problems: dict[Key, str] = {}
        self.contents: list[int] = []  # of the picture at each place, see `content_of`
        self.count = 0
        with explain_write_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
            about = {"format": 4, "version": VERSION, **form._asdict(), "cover": with_cover}
            self._read_index(about | {"root": os.path.realpath(root)})

    def add(self, pictures: list[Picture]) -> None:
        """Prepare those pictures that are not in the store, as many at a time as there are cores."""
        new = [picture for picture in pictures if picture.key not in self.places]
        if new:
            pixels, index = self.folder / PIXELS, self.folder / INDEX
            with explain_write_error(self.folder), pixels.open("ab") as pixels_file, index.open("ab") as index_file:
                self._append(new, pixels_file, index_file)
        skipped = [valid_utf8(f"{key.name}: {self.problems[key]}") for _, key, _ in pictures if key in self.problems]
        report = "".join(f"{line}\n" for line in skipped).encode()
        if not (self.folder / SKIPPED).exists() or (self.folder / SKIPPED).read_bytes() != report:
            replace_file(self.folder / SKIPPED, report)  # else another process of the same run has
        if skipped:
            refused = sum(self.problems.get(key) in REFUSALS for _, key, _ in pictures)
            log.warning(
                f"note: {len(skipped):,} of {len(pictures):,} pictures cannot be used, and are listed in "
                f"{self.folder / SKIPPED}: {'; '.join(skipped[:2])}{'; ...' if len(skipped) > 2 else ''}"
                + (f" ({refused:,} do not show one character: {AS_THEY_ARE})" if refused else "")
            )

    def images(self) -> Tensor:
        """uint8 [M, channels, H, W], read from disk as they are used."""
        # Read-only: of a mapping that may be written to, Linux refuses one that is larger than memory.
        pixels = np.memmap(self.folder / PIXELS, np.uint8, mode="r", shape=(self.count, *self.shape))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes
            return torch.from_numpy(pixels)

    def _append(self, pictures: list[Picture], pixels: BinaryIO, index: BinaryIO) -> None:
        lines: list[bytes] = []
        with progress(total=len(pictures), desc="preparing", unit=" pictures") as bar:
            prepared = prepare_all([picture.path for picture in pictures], self.form, with_cover=self.with_cover)
            for (_, key, _), (result, content) in zip(pictures, prepared, strict=True):
                problem, image = None, b""
                if isinstance(result, str):
                    problem = result
                elif result.pixels is None:
                    problem = result.status.replace("_", " ")
                else:
                    image = to_planes(result.pixels[None]).tobytes()
                pixels.write(image)
                lines.append(index_line([*key, content, problem], image))
                self._note(key, content, problem)
                bar.update()
                if len(lines) == FLUSH_EVERY:
                    flush(lines, pixels, index)
        flush(lines, pixels, index)

    def _note(self, key: Key, content: int, problem: str | None) -> None:
        self.places[key] = None
        if problem is not None:
            self.problems[key] = problem
        else:
            self.places[key] = self.count
            self.contents.append(content)
            self.count += 1

    def _read_index(self, head: dict[str, Any]) -> None:
        """Take in what an earlier build left, and cut off what it left half done."""
        pixels, index = self.folder / PIXELS, self.folder / INDEX
        first = json.dumps(head).encode() + b"\n"
        content = index.read_bytes() if index.exists() and pixels.exists() else b""
        if not content.startswith(first):
            replace_file(pixels, b"")
            replace_file(index, first)
            return
        end = len(first)
        with pixels.open("rb") as images:
            for line in content[end:].splitlines(keepends=True):
                try:
                    name, size, time, which, problem, checksum = json.loads(line)
                except (ValueError, TypeError, RecursionError):
                    break
                image = images.read(self.image_bytes) if problem is None else b""
                if not line.endswith(b"\n") or (problem is None and len(image) < self.image_bytes):
                    break
                if checksum != zlib.crc32(image, zlib.crc32(line[: line.rindex(b",")])):
                    again = len(content[end:].splitlines())
                    log.warning(f"note: {self.folder} is damaged: {again:,} pictures are prepared again")
                    break
                self._note(Key(name, size, time), which, problem)
                end += len(line)
        os.truncate(index, end)
        os.truncate(pixels, self.count * self.image_bytes)


def index_line(entry: list[Any], image: bytes) -> bytes:
    """An entry of the index, a JSON list, whose last item is the checksum of those before it and of the pixels."""
    start = json.dumps(entry).encode()[:-1]
    return start + f", {zlib.crc32(image, zlib.crc32(start))}]\n".encode()


def flush(lines: list[bytes], pixels: BinaryIO, index: BinaryIO) -> None:
    """Write the lines, after the pixels that they speak of."""
    pixels.flush()
    os.fsync(pixels.fileno())
    index.writelines(lines)
    index.flush()
    os.fsync(index.fileno())
    lines.clear()


def prepare(path: str, form: InputForm, *, with_cover: bool = False) -> Glyph | str:
    """The picture prepared, or what is wrong with it."""
    try:
        return preprocess(path, form, with_cover=with_cover)
    except PictureError as error:
        return str(error)


def content_of(path: str) -> int:
    """63 bits that tell the file's content from others; 0 where it cannot be read, which `prepare` reports."""
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError):
        return 0
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def prepare_all(paths: list[str], form: InputForm, *, with_cover: bool = False) -> Iterator[tuple[Glyph | str, int]]:
    """Each picture prepared, or what is wrong with it, and `content_of` it, in order; on all cores, a little ahead."""

    def examine(path: str) -> tuple[Glyph | str, int]:
        result = prepare(path, form, with_cover=with_cover)
        # What is no picture is not read for it: it may be a device, or a pipe that never ends.
        return result, 0 if isinstance(result, str) else content_of(path)

    return work_ahead(examine, ((path,) for path in paths), usable_cpus(), AHEAD)
