"""EMNIST, folders of pictures and the demo set, and the batches that training and evaluation draw from them.

The Balanced images are 88 MB: they lie on the device as one tensor, and a batch is gathered from it by index, instead
of being made by worker processes image by image.  Trainer, LRFinder and Evaluator ask only for a sized iterable of
`(images, labels)`, so a torch DataLoader over your own Dataset works too.

A batch, whoever makes it: images [N, 1, H, W], uint8 or float in [0, 1], white ink on black, upright; labels int64
[N].  The model normalises; no loader does.
"""

import copy
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from glyphs.core.config import Config
from glyphs.core.devices import move
from glyphs.core.distributed import in_turn, rank
from glyphs.core.errors import ConfigError
from glyphs.core.randomness import address
from glyphs.data.augment import Transform, augment, color_transform, vary_paper
from glyphs.data.demo import DEMO_CLASSES, render_demo
from glyphs.data.division import hold_out, stratified_split
from glyphs.data.emnist import CLASS_NAMES, Part, load_emnist
from glyphs.data.overlap import copies
from glyphs.data.own_augmentation import OwnAugmentation, OwnTransform
from glyphs.data.verdicts import amend
from glyphs.models.checkpoint import load_checkpoint
from glyphs.models.network import as_floats
from glyphs.pictures.plain import EMNIST_FORM, InputForm, form_of, on_paper, to_planes, with_form

OPEN = (Config.preprocess, Config.image_size, Config.color)  # nothing is said of the images' form
COVERED_CHANNELS = (2, 4)  # grey or colours, and the cover of the paper
CHECKSUM_ROWS = 65536  # images read at a time, since there may be more than memory holds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Augmentation:
    """How far training images are distorted; see `glyphs.data.augment.augment`.

    then : what each image goes through after that, such as `glyphs.data.augment.color_transform`.
    """

    rotation: float
    shear: float
    translate: float
    edge: str = "zeros"
    then: Transform | None = None


class TensorLoader:
    """Batches gathered by index from tensors, shuffled and augmented where asked.

    The order of an epoch and the distortion of a batch follow from (seed, epoch, step) alone.

    Parameters
    ----------
    images : uint8 [M, channels, H, W]; with one channel more, the cover of the paper (`glyphs.pictures.plain`), where
        pictures can be seen through: batches have them laid on paper, of varied colours where they are augmented.
    labels : int64 [M], on the same device.
    index : int64 [N], which images to use; by default all.
    shuffle_seed : None for the order of the index; else each epoch has its own order.
    augmentation : None for the images as they are (uint8); else they become float in [0, 1].  A transform of the
        user's, see `glyphs.data.own_augmentation.OwnAugmentation`, gets one image after the other; what it draws from
        global generators follows, in training, from the seed.
    device : where the batches go; by default they stay on the images' device.
    refused : pictures that belong to this part of a data set, and could not be prepared.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        index: Tensor | None = None,
        shuffle_seed: int | None = None,
        augmentation: Augmentation | OwnTransform | None = None,
        device: torch.device | str | None = None,
        refused: int = 0,
    ) -> None:
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.index = torch.arange(len(labels)) if index is None else index
        self.shuffle_seed = shuffle_seed
        self.device = images.device if device is None else torch.device(device)
        self.refused = refused
        self.augmentation: Augmentation | OwnTransform | None = None
        self.epoch = 0
        self.first_step = 0
        self.part = slice(None)  # of each batch
        self.form: InputForm | None = None  # what of a picture the images are, where that is known
        self.places = torch.arange(len(self.index))
        if augmentation is not None and not isinstance(augmentation, Augmentation) and len(self.index) > 0:
            augmentation = OwnAugmentation(augmentation, self._uncovered(images[self.index[:1]], 0, 1)[0])
        self.augmentation = augmentation

    def __len__(self) -> int:
        count, size = len(self.index), self.batch_size
        # Of a last batch of one image batch norm knows no variance: in training it joins the batch before it.
        joined = self.shuffle_seed is not None and size > 1 and count > size and count % size == 1
        return -(-count // size) - joined

    def _batch(self, step: int) -> slice:
        """Which places of the order the batch of a step has."""
        end = len(self.index) if step == len(self) - 1 else (step + 1) * self.batch_size
        return slice(step * self.batch_size, end)

    def seek(self, epoch: int, first_step: int) -> None:
        """Choose what the next iteration gives: the batches of this epoch, from this step on."""
        self.epoch = epoch
        self.first_step = first_step

    def class_counts(self, num_classes: int) -> Tensor:
        """int64 [num_classes]: images of each class."""
        return torch.bincount(self.labels[self.index.to(self.labels.device)], minlength=num_classes)

    def share(self, number: int, count: int) -> "TensorLoader":
        """The loader of process `number` of `count`: of each batch the images number, number + count, and so on."""
        shared = copy.copy(self)
        shared.part = slice(number, None, count)
        steps = (self.places // self.batch_size).clamp(max=len(self) - 1)
        shared.places = self.places[(self.places - steps * self.batch_size) % count == number]
        return shared

    def part_of(self, step: int) -> float:
        """The part of the step's images that this loader gives, from 0 to 1."""
        whole = range(len(self.index))[self._batch(step)]
        return len(whole[self.part]) / len(whole)

    def fingerprint(self) -> int:
        """A checksum of the images and labels, to tell whether a resumed run sees the data it began with."""
        checksum = 0
        for rows in torch.split(self.index.to(self.images.device), CHECKSUM_ROWS):
            for tensor in (self.images[rows], self.labels[rows]):
                checksum = zlib.crc32(tensor.cpu().contiguous().numpy().data, checksum)
        return checksum

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.index
        if self.shuffle_seed is not None:
            # Drawn on the CPU, so that the order is the same on every device.
            generator = torch.Generator().manual_seed(address(self.shuffle_seed, "order", self.epoch))
            order = order[torch.randperm(len(order), generator=generator)]
        order = order.to(self.images.device)
        generator = torch.Generator(self.device)
        first_step, self.first_step = self.first_step, 0
        for step in range(first_step, len(self)):
            batch = order[self._batch(step)]
            rows = batch[self.part]
            images = move(self._uncovered(self.images[rows], step, len(batch)), self.device)
            labels = move(self.labels[rows], self.device)
            if self.augmentation is None or len(rows) == 0:
                pass
            elif not isinstance(self.augmentation, Augmentation):
                images = self.augmentation(images)
            else:
                generator.manual_seed(address(self.shuffle_seed or 0, "augment", self.epoch, step))
                images = augment(
                    images,
                    generator,
                    len(batch),
                    self.part,
                    rotation=self.augmentation.rotation,
                    shear=self.augmentation.shear,
                    translate=self.augmentation.translate,
                    edge=self.augmentation.edge,
                )
                if self.augmentation.then is not None:
                    images = self._transform(images, self.augmentation.then, step, len(batch))
            yield images, labels

    def _transform(self, images: Tensor, transform: Transform, step: int, batch: int) -> Tensor:
        """The images of a step, each through the transform with a seed of its own, whichever process has it."""
        places = range(batch)[self.part]
        changed = []
        with torch.random.fork_rng(devices=[]):
            for place, image in zip(places, images, strict=True):
                torch.manual_seed(address(self.shuffle_seed or 0, "transform", self.epoch, step, place))
                changed.append(transform(image))
        return torch.stack(changed)

    def _uncovered(self, images: Tensor, step: int, batch: int) -> Tensor:
        """The pictures of a step, laid on paper where they have its cover: uint8 [N, channels, H, W]."""
        if images.shape[1] not in COVERED_CHANNELS:
            return images
        layers = images.movedim(1, -1).cpu().numpy()
        if self.augmentation is None:
            laid = on_paper(layers)
        else:
            rng = np.random.default_rng(address(self.shuffle_seed or 0, "paper", self.epoch, step))
            laid = vary_paper(layers, rng, batch, self.part)
        return torch.from_numpy(to_planes(laid))

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, float [channels], on a scale of 0 to 1, of the images."""
        total, squares, count = torch.zeros(()), torch.zeros(()), 0
        plain = copy.copy(self)
        plain.augmentation = plain.shuffle_seed = None
        for images, _ in plain:
            values = as_floats(images).double()
            total, squares = total + values.sum((0, 2, 3)), squares + values.square().sum((0, 2, 3))
            count += values[:, 0].numel()
        mean = total / count
        return mean.float(), (squares / count - mean.square()).clamp_min(0).sqrt().float()


class DataLoaders(NamedTuple):
    """What training and evaluation need to know of the data.

    The training loader's index has each image as often as the setting `passes_per_epoch` says.
    """

    train: TensorLoader
    val: TensorLoader
    test: TensorLoader
    class_names: list[str]

    def in_batches(self, before: Config, after: Config) -> "DataLoaders":
        """What the settings `after` would have loaded, where these were loaded with `before`, which differ in the batch
        size and in `passes_per_epoch` at most."""
        train, val, test = (copy.copy(loader) for loader in (self.train, self.val, self.test))
        once = len(train.index) // before.passes_per_epoch
        train.index = train.index[:once].repeat(after.passes_per_epoch)
        for loader in (train, val, test):
            loader.batch_size = after.batch_size
            loader.places = torch.arange(len(loader.index))
        return DataLoaders(train, val, test, self.class_names)


def get_data_loaders(
    config: Config | Mapping[str, Any],
    device: torch.device | str = "cpu",
    *,
    augmentation: Augmentation | OwnTransform | None = None,
) -> DataLoaders:
    """Load the data set that the settings name and put it on the device.

    Parameters
    ----------
    augmentation : instead of the one that the settings describe: how far to distort, or a function of an image, such as
        a Compose of torchvision's transforms; see `glyphs.data.own_augmentation.OwnAugmentation`.

    Returns
    -------
    The train, validation and test loaders, and the class names.  Validation is `val_split` of the training
    images, the same share of each class, and follows from the seed; of a folder see `glyphs.data.division.hold_out`,
    unless it has a part for validation.

    Raises
    ------
    DataError : naming the file, where one is missing and cannot be downloaded, is damaged, or is inconsistent.

    Examples
    --------
    >>> from torchvision import transforms
    >>> from glyphs import get_data_loaders
    >>> own = transforms.Compose([transforms.RandomRotation(20), transforms.RandomErasing(p=0.5)])
    >>> data = get_data_loaders({"dataset": "demo"}, augmentation=own)
    >>> images, labels = next(iter(data.train))
    >>> images.shape, images.dtype, labels.shape
    (torch.Size([128, 1, 28, 28]), torch.float32, torch.Size([128]))
    """
    config = settled(config)
    form = form_of(config.to_dict())
    own_val = None
    if config.dataset == "folder":
        training, own_val, test = load_folder_sets(config)
    else:
        training, test = load_set(config, "train", device), load_set(config, "test", device)
    images, labels, chosen, class_names, contents, *_ = training
    if config.max_train_images is not None:
        chosen, _ = stratified_split(labels, chosen, config.max_train_images, config.seed)
    if own_val is not None:
        held_out, rest = own_val.chosen, chosen
    elif contents is None:
        held_out, rest = stratified_split(labels, chosen, round(config.val_split * len(chosen)), config.seed)
    else:
        held_out, rest = hold_out(chosen, labels, contents, config.val_split, config.seed, "validation")
    if len(held_out) == 0 or len(rest) == 0:
        raise ConfigError(
            f"{len(chosen)} training images leave none for training or none for validation at val_split "
            f"{config.val_split}; use more images"
        )
    if config.dataset == "emnist" and rank() == 0:  # of pictures in folders, copies stay together
        in_val, in_test = copies(images[rest], images[held_out], test.images[test.chosen])
        if in_val or in_test:
            log.warning(
                f"note: {in_val:,} of {len(held_out):,} validation images and {in_test:,} of {len(test.chosen):,} test "
                "images are copies, pixel by pixel, of images to train on: what is measured on these flatters a model"
            )
    if augmentation is None:
        augmentation = make_augmentation(config, form)
    train = TensorLoader(
        images,
        labels,
        config.batch_size,
        index=rest.repeat(config.passes_per_epoch),
        shuffle_seed=config.seed,
        augmentation=augmentation,
        device=device,
    )
    train.form = form
    val_labels = labels if own_val is None else own_val.labels
    val = TensorLoader(images, val_labels, config.batch_size, index=held_out, device=device)
    return DataLoaders(train, val, make_test_loader(test, config, device), class_names)


def make_augmentation(config: Config, form: InputForm) -> Augmentation | None:
    """How far the settings distort training images of this form: characters in shape only, pictures in colour too.

    None where all of them are 0.
    """
    amounts = config.rotation_degree, config.affine_degree, config.translate
    if form.mode != "plain":
        return Augmentation(*amounts, form.edge) if any(amounts) else None
    if not any((*amounts, config.color_jitter, config.erasing, config.mirror)):
        return None
    return Augmentation(*amounts, form.edge, color_transform(config.color_jitter, config.erasing, mirror=config.mirror))


def settled(config: Config | Mapping[str, Any]) -> Config:
    """The settings, with what the data decide about images decided: `preprocess`, `image_size` and `color`.

    A folder's pictures are looked at for what the settings leave open, and what that gave is logged.

    Raises
    ------
    ConfigError : the settings contradict each other, or the data set, whose images are what they are.
    DataError : the folder cannot be read, or has no pictures.
    """
    config = config if isinstance(config, Config) else Config.from_dict(config)
    if config.dataset == "folder":
        from glyphs.data.survey import choose_form  # SciPy, which EMNIST does without

        if config.finetune is not None and (config.preprocess, config.image_size, config.color) == OPEN:
            return with_form(config, form_of(load_checkpoint(Path(config.finetune))["config"]))
        return with_form(config, choose_form(config))
    asked = form_of(config.to_dict())
    if asked.shape != EMNIST_FORM.shape:
        raise ConfigError(
            f"--image-size and --color are for --dataset folder: images of {config.dataset} are {EMNIST_FORM.words}"
        )
    return with_form(config, EMNIST_FORM)


def get_test_loader(
    config: Config | Mapping[str, Any], device: torch.device | str = "cpu"
) -> tuple[TensorLoader, list[str]]:
    """Load only the test part: its loader and the class names.  Raises as `get_data_loaders` does."""
    config = settled(config)
    test = load_folder_sets(config)[-1] if config.dataset == "folder" else load_set(config, "test", device)
    return make_test_loader(test, config, device), test.class_names


class GlyphSet(NamedTuple):
    """One part of a data set."""

    images: Tensor  # uint8 [M, channels, H, W]
    labels: Tensor  # int64 [M], on the same device
    chosen: Tensor  # int64 [N], which of the images belong to the part
    class_names: list[str]
    contents: Tensor | None = None  # int64 [M], of pictures: equal where their files are the same
    refused: int = 0  # pictures of the part that could not be prepared
    files: Sequence[str] = ()  # M, of pictures: their paths below the data folder

    def amended(self, config: Config) -> "GlyphSet":
        """The part as the settings `drop` and `relabel` have it; see `glyphs.data.verdicts.amend`."""
        labels, chosen = amend(self.images, self.labels, self.chosen, self.class_names, self.contents, config)
        return self._replace(labels=labels, chosen=chosen)


def make_test_loader(test: GlyphSet, config: Config, device: torch.device | str) -> TensorLoader:
    return TensorLoader(
        test.images, test.labels, config.batch_size, index=test.chosen, device=device, refused=test.refused
    )


def load_set(config: Config, part: Part, device: torch.device | str) -> GlyphSet:
    """Load one part of EMNIST or of the demo set onto the device."""
    if config.dataset == "demo":
        images, labels = render_demo(part)
        class_names = list(DEMO_CLASSES)
    else:
        images, labels = load_emnist(Path(config.data_dir), config.emnist_split, part)
        class_names = CLASS_NAMES[config.emnist_split]
    part_of_set = GlyphSet(images, labels, torch.arange(len(labels)), class_names).amended(config)
    return part_of_set._replace(images=images.to(device), labels=part_of_set.labels.to(device))


def load_folder_sets(config: Config) -> tuple[GlyphSet, GlyphSet | None, GlyphSet]:
    """Training, validation (where there is such a part) and test part of a folder of pictures.

    They stay mapped from disk: they may be larger than memory.  `config` is settled.
    """
    # Here, since SciPy takes half a second to import.
    from glyphs.data.folder import load_folders

    cache_dir = Path(config.output_dir) / "pictures"
    form = form_of(config.to_dict())
    data = in_turn(lambda: load_folders(Path(config.data_dir), cache_dir, form, config.seed))

    def part(places: Tensor, refused: int = 0) -> GlyphSet:
        return GlyphSet(data.images, data.labels, places, data.class_names, data.contents, refused, data.files).amended(
            config
        )

    return part(data.train), None if data.val is None else part(data.val), part(data.test, data.test_refused)
