"""EMNIST: its classes, its files, and their download (arXiv 1702.05373)."""

import logging
import string
import zipfile
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from glyphs.core.distributed import in_turn
from glyphs.core.errors import DataError
from glyphs.core.files import LOCK, claim_folder, explain_write_error, replace_file
from glyphs.data.download import digest, download, only_if_used
from glyphs.data.idx import read_idx

log = logging.getLogger(__name__)

Part = Literal["train", "test"]

# Lower-case letters that Balanced and ByMerge count as their capitals (arXiv 1702.05373, section II-E).
MERGED = set("cijklmopsuvwxyz")
ALL_62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
MERGED_47 = [character for character in ALL_62 if character not in MERGED]
CLASS_NAMES: dict[str, list[str]] = {
    "balanced": MERGED_47,
    "byclass": list(ALL_62),
    "bymerge": MERGED_47,
    "letters": list(string.ascii_lowercase),
    "digits": list(string.digits),
    "mnist": list(string.digits),
}
# Images in the official train and test files.
OFFICIAL_COUNTS = {
    "balanced": (112_800, 18_800),
    "byclass": (697_932, 116_323),
    "bymerge": (697_932, 116_323),
    "letters": (124_800, 20_800),
    "digits": (240_000, 40_000),
    "mnist": (60_000, 10_000),
}


def load_emnist(data_dir: Path, split: str, part: Part) -> tuple[Tensor, Tensor]:
    """Read one part of one EMNIST split from `data_dir/EMNIST/raw`, downloading it first where it is missing.

    Returns
    -------
    images : uint8 [N, 1, 28, 28], upright (the files store them transposed).
    labels : int64 [N], from 0 (the letters split stores them from 1).
    """
    images_path, labels_path = in_turn(
        lambda: find_emnist(data_dir, split, part) or download_emnist(data_dir, split, part)
    )
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1).long()
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} holds {len(images):,} images, but {labels_path.name} {len(labels):,} labels; "
            "fetch both again"
        )
    if images.shape[1:] != (28, 28):
        raise DataError(
            f"{images_path}: images are {images.shape[1]}x{images.shape[2]} pixels, expected 28x28; fetch it again"
        )
    if split == "letters":
        labels -= 1
    names = CLASS_NAMES[split]
    outside = (labels < 0) | (labels >= len(names))
    if outside.any():
        at = int(outside.nonzero()[0])
        stored = int(labels[at]) + (split == "letters")
        raise DataError(
            f"{labels_path}: label {stored} at position {at} is out of range for {len(names)} classes; fetch it again"
        )
    empty = (torch.bincount(labels, minlength=len(names)) == 0).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"{labels_path}: no image of class {', '.join(names[i] for i in empty)}; fetch it again")
    official = OFFICIAL_COUNTS[split][part == "test"]
    if len(labels) != official:
        log.warning(f"note: {images_path} holds {len(labels):,} images, not the official {official:,}")
    return images.transpose(1, 2).unsqueeze(1).contiguous(), labels


def emnist_names(split: str, part: Part) -> tuple[str, str]:
    """The names of a part's two files, images and labels, without `.gz`."""
    return f"emnist-{split}-{part}-images-idx3-ubyte", f"emnist-{split}-{part}-labels-idx1-ubyte"


def find_emnist(data_dir: Path, split: str, part: Part) -> tuple[Path, Path] | None:
    """The paths of a part's two files, gzipped or plain, or None where one is missing."""
    found = []
    for name in emnist_names(split, part):
        candidates = (data_dir / "EMNIST" / "raw" / (name + suffix) for suffix in (".gz", ""))
        path = next((candidate for candidate in candidates if candidate.exists()), None)
        if path is None:
            return None
        found.append(path)
    return found[0], found[1]


def download_emnist(data_dir: Path, split: str, part: Part) -> tuple[Path, Path]:
    """Fetch the EMNIST archive from where torchvision knows it to be, and take out of it the files of this split.

    A download that broke off is gone on with; the files are written aside and renamed.  The archive stays, and serves
    the other splits.  Of several programs that do this to one folder, one does it, and the others wait.
    """
    raw = data_dir / "EMNIST" / "raw"

    def tell() -> None:
        log.info(f"another program is fetching files into {raw}: waiting for it")

    with only_if_used(raw / LOCK), claim_folder(raw, "check the folder and its space", before_waiting=tell):
        found = find_emnist(data_dir, split, part)  # which another program may have fetched meanwhile
        if found is None:
            fetch_split(raw, split)
            found = find_emnist(data_dir, split, part)
    assert found is not None
    return found


def fetch_split(raw: Path, split: str) -> None:
    """Download the archive where it is not there, whole, and unpack the four files of a split."""
    from torchvision.datasets import EMNIST  # a second that only a download need wait

    archive = raw / "gzip.zip"
    remedy = f"put that archive at {archive} by hand, or try the built-in set with --dataset demo"
    if not archive.exists() or digest(archive) != EMNIST.md5:
        log.info(f"EMNIST {split} is not in {raw}: fetching {EMNIST.url} (562 MB)")
        if archive.exists():  # as other programs leave it where they are interrupted
            with explain_write_error(archive):
                archive.replace(f"{archive}.part")
        try:
            download(EMNIST.url, archive, EMNIST.md5)
        except DataError as error:
            raise DataError(
                f"EMNIST could not be downloaded from {EMNIST.url} ({error}); run it again, {remedy}"
            ) from None
    try:
        with zipfile.ZipFile(archive) as files:
            for each in ("train", "test"):
                for name in emnist_names(split, each):
                    replace_file(raw / f"{name}.gz", files.read(f"gzip/{name}.gz"))
    except (OSError, RuntimeError, zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error}); fetch it again, or {remedy}") from None
