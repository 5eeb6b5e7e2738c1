"""What training and evaluation ask of a loader; batches in the order of a seed; a model run over them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from glyphs.core.devices import move
from glyphs.core.distributed import rank, world_size
from glyphs.core.errors import ConfigError, DataError
from glyphs.core.randomness import address, seed_everything

T = TypeVar("T")
Batch = tuple[Tensor, Tensor]  # images [N, channels, H, W], uint8 or float in [0, 1]; labels int64 [N]


class Loader(Protocol):
    """What training and evaluation ask for: a sized iterable of batches, such as a torch DataLoader."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


@runtime_checkable
class Seekable(Protocol):
    """A loader that can start an epoch at any step without making the batches before it."""

    def seek(self, epoch: int, first_step: int) -> None: ...


@runtime_checkable
class Counted(Protocol):
    """A loader that knows how many images of each class an epoch has: int64 [num_classes]."""

    def class_counts(self, num_classes: int) -> Tensor: ...


@runtime_checkable
class Divisible(Protocol):
    """A loader whose batches several processes can share out among themselves."""

    places: Tensor  # int64: where the images that it gives come in the undivided loader, unshuffled

    def share(self, number: int, count: int) -> Loader:
        """The loader of process `number` of `count`: its part, perhaps empty, of every batch."""

    def part_of(self, step: int) -> float:
        """The part of the step's images that it gives, from 0 to 1."""


def own_share(loader: Loader) -> Loader:
    """The part of a loader's batches that this process works on.

    Raises
    ------
    ConfigError : there are several processes, and it cannot be divided.
    """
    if world_size() == 1:
        return loader
    if not isinstance(loader, Divisible):
        raise ConfigError(
            f"{world_size()} processes cannot share out a {type(loader).__name__}: each would train on all of it; "
            "put the images into a glyphs.data.loaders.TensorLoader, or train in one process"
        )
    return loader.share(rank(), world_size())


def require_batches(loader: Loader, name: str) -> None:
    """Raise DataError where a loader has no batch at all, with which every mean would be a division by zero."""
    if len(loader) == 0:
        raise DataError(
            f"the {name} loader has no batch: give it images, and where it drops an incomplete batch, smaller batches"
        )


def start_anew(loader: Loader) -> Iterator[Batch]:
    """Iterate over a loader; where it is a torch DataLoader, with new worker processes.

    Workers that persist (`persistent_workers=True`) would draw on from where the last epoch left their generators,
    which a resumed run cannot know.
    """
    if isinstance(loader, DataLoader):
        loader._iterator = None  # where it keeps such workers
    return iter(loader)


def fetch_steps(loader: Loader, seed: int, epoch: int, first_step: int = 0) -> Iterator[tuple[int, Batch]]:
    """Yield (step, batch) for one epoch, from `first_step` on; every batch is what it would be in a full epoch.

    The global generators are seeded for each step, so shuffling and transforms of a torch DataLoader, and dropout
    in the model, follow from (seed, epoch, step).  A loader that cannot seek makes the skipped batches again.
    """
    made_from = 0
    if isinstance(loader, Seekable):
        loader.seek(epoch, first_step)
        made_from = first_step
    seed_everything(address(seed, "epoch", epoch))  # a DataLoader seeds its workers when its iterator is made
    batches = start_anew(loader)
    for step in range(made_from, len(loader)):
        seed_everything(address(seed, "step", epoch, step))
        batch = next(batches, None)
        if batch is None:
            raise DataError(
                f"the training loader ended after {step} batches, but its len() is {len(loader)}: make its __len__ the "
                "number of batches that it gives"
            )
        if step >= first_step:
            yield step, batch


def run_model(
    model: Callable[[Tensor], T], batches: Iterable[Batch], device: torch.device
) -> Iterator[tuple[Tensor, Tensor, T]]:
    """Run a model, or anything else that takes a batch, over batches in inference mode.

    Yields
    ------
    images [N, channels, H, W] and labels [N], on the device, and what the model makes of the images.
    """
    for images, labels in batches:
        images, labels = move(images, device), move(labels, device)
        with torch.inference_mode():
            output = model(images)
        yield images, labels, output  # outside of it: what the caller does is the caller's
