"""What an audit looks at: all images of a data set with their names, labels and parts; and what it says of each."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from glyphs.core.ahead import work_ahead
from glyphs.core.config import Config
from glyphs.core.cpus import usable_cpus
from glyphs.core.errors import CheckpointError, PictureError
from glyphs.core.files import valid_utf8
from glyphs.core.progress import progress
from glyphs.data.division import stratified_split
from glyphs.data.emnist import find_emnist, load_emnist
from glyphs.data.loaders import GlyphSet, TensorLoader, load_folder_sets, load_set, settled
from glyphs.data.overlap import marks, overlap
from glyphs.data.verdicts import digests_of
from glyphs.models.runtime import Loaded
from glyphs.pictures.decode import open_picture, to_grey

ROWS = 4096  # images loaded at a time
PICTURE_SIDE = 64  # pixels a side at which the pictures of a folder are looked at and shown


@dataclasses.dataclass(frozen=True)
class AuditSet:
    """N images: those of the test part first, so that of two copies the one to train on is the later one.

    Attributes
    ----------
    images : uint8 [N, C, H, W], as a network sees them.
    pictures : uint8 [N, 1, S, S], as they are: of a folder the pictures at 64x64, else the images themselves.
    labels : int64 [N].
    files, parts, digests : N of each: names for people, `train`, `val` or `test`, and what finds an image again.
    refused : a line for each picture that cannot be used.
    """

    images: Tensor
    pictures: Tensor
    labels: Tensor
    files: list[str]
    parts: list[str]
    digests: list[str]
    class_names: list[str]
    refused: list[str]

    def __len__(self) -> int:
        return len(self.files)


class Suspect(NamedTuple):
    """An image that seems wrong: its place, the class that it seems to be of (None: not known), and why."""

    place: int
    suggested: int | None
    score: float  # from 0 to 1
    reason: str


def load_audit_set(config: Config) -> AuditSet:
    """All images of the data set that the settings name.  Raises as `glyphs.data.loaders.get_data_loaders` does."""
    config = settled(config)
    val = None
    if config.dataset == "folder":
        train, val, test = load_folder_sets(config)
    else:
        train, test = load_set(config, "train", "cpu"), load_set(config, "test", "cpu")
    chosen = train.chosen
    if config.max_train_images is not None:
        chosen, _ = stratified_split(train.labels, chosen, config.max_train_images, config.seed)
    named: list[tuple[str, GlyphSet, Tensor]] = [("test", test, test.chosen), ("train", train, chosen)]
    if val is not None:
        named.insert(1, ("val", val, val.chosen))
    files: list[str] = []
    parts: list[str] = []
    digests: list[str] = []
    for name, part, places in named:
        files += [part.files[place] if part.files else f"{name}/{place}" for place in places.tolist()]
        parts += [name] * len(places)
        digests += digests_of(part.images[places], None if part.contents is None else part.contents[places])
    loaders = [TensorLoader(part.images, part.labels, ROWS, index=places) for _, part, places in named]
    images = torch.cat([rows for loader in loaders for rows, _ in loader])
    pictures, refused = images, []
    if config.dataset == "folder":
        pictures = thumbnails([Path(config.data_dir, file) for file in files])
        skipped = Path(config.output_dir, "pictures", "skipped.txt")
        refused = skipped.read_text(encoding="utf-8").splitlines() if skipped.exists() else []
    labels = torch.cat([part.labels[places] for _, part, places in named])
    names = [valid_utf8(file) for file in files]
    return AuditSet(images, pictures, labels, names, parts, digests, train.class_names, refused)


def thumbnails(paths: Sequence[Path]) -> Tensor:
    """Pictures as they are, but grey and of one size: uint8 [N, 1, 64, 64]."""

    def thumbnail(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        try:
            grey = np.rint(to_grey(open_picture(path)) * 255).astype(np.uint8)
        except PictureError:  # it has gone since it was prepared
            return np.zeros((PICTURE_SIDE, PICTURE_SIDE), np.uint8)
        return np.asarray(Image.fromarray(grey).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC))

    made = work_ahead(thumbnail, ((path,) for path in paths), usable_cpus())
    return torch.from_numpy(np.stack(list(progress(made, desc="looking", total=len(paths), unit="picture"))))[:, None]


def unseen_by(model: Loaded, path: Path, images: AuditSet, config: Config) -> Tensor:
    """Which images a model was not trained on, by what its file says of its training: bool [N].

    Of EMNIST that is checked pixel by pixel with the images that its file names.

    Raises
    ------
    CheckpointError : it knows other classes, nothing is known of its training, or no image is new to it.
    """
    settings = model.facts["settings"]
    remedy = "--folds 5 judges all images without it"
    if model.class_names != images.class_names:
        raise CheckpointError(
            f"{path}: knows {len(model.class_names)} classes, the data have {len(images.class_names)} others; {remedy}"
        )
    trained = settings.get("dataset")
    if trained is None:
        raise CheckpointError(f"{path}: does not say what it was trained on; {remedy}")
    if trained != config.dataset:
        return torch.ones(len(images), dtype=torch.bool)
    in_test = torch.tensor([part == "test" for part in images.parts])
    if trained != "emnist":
        if words := overlap(settings, config):
            raise CheckpointError(f"{path} {words}; {remedy}")
        return in_test
    data_dir, split = Path(config.data_dir), str(settings.get("emnist_split"))
    if find_emnist(data_dir, split, "train") is None:
        raise CheckpointError(
            f"{path}: was trained on EMNIST {split}, whose training images are not in {data_dir}: which images are new "
            f"to it cannot be told; add them, or {remedy}"
        )
    seen = {mark.hex() for mark in marks(load_emnist(data_dir, split, "train")[0])}
    new = torch.tensor([digest not in seen for digest in images.digests])
    if not bool(new.any()):
        raise CheckpointError(f"{path}: was trained on all of these images; {remedy}")
    return new
