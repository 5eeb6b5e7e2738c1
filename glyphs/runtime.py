"""The machine: device, threads, precision and seeds; and batches in an order that follows from the seed."""

import contextlib
import hashlib
import os
import random
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from glyphs.cli import launched
from glyphs.cpus import usable_cpus
from glyphs.distributed import rank, world_size
from glyphs.errors import ConfigError, DataError, TrainingError

Batch = tuple[Tensor, Tensor]  # images [N, 1, H, W], uint8 or float in [0, 1]; labels int64 [N]


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
            "put the images into a glyphs.data.TensorLoader, or train in one process"
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


def choose_device(name: str) -> torch.device:
    """Turn `auto`, `cpu` or `cuda` into a device: for each process that torchrun started on this machine, its own.

    Raises
    ------
    ConfigError : `cuda` was asked for and there is none, or there are fewer than processes.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world_size() > 1:
        number, there_are = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= there_are:
            raise ConfigError(
                f"--nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}: this machine has {there_are} CUDA devices; "
                f"start no more processes than that, or use --device cpu"
            )
        torch.cuda.set_device(number)
        return torch.device("cuda", number)
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """The device in words, for the first line of a run."""
    cuda = device.type == "cuda"
    words = torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.get_num_threads()} threads"
    return words if world_size() == 1 else f"{world_size()} processes ({words} each)"


def limit_threads() -> None:
    """Use as many threads as this process may run at once, not as many as the host has.

    PyTorch's own number (a thread for each physical core) misses a container's CPU quota; threads beyond it only wait
    for each other.  torchrun lets it start with one thread, which is no limit.
    """
    torch.set_num_threads(min(torch.get_num_threads(), usable_cpus()) if not launched() else usable_cpus())


def autocast_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """The dtype that training computes in.

    precision : `float32`, `bfloat16` or `auto`: bfloat16 on CUDA, float16 on GPUs before Ampere, float32 on CPU.
    """
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def use_deterministic_algorithms(on: bool) -> None:
    """On CUDA, choose only kernels that give the same bits every time; on CPU they all do."""
    if on:
        # cuBLAS reads this when it first starts; without it PyTorch refuses to promise determinism.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if on != torch.are_deterministic_algorithms_enabled():  # the call imports PyTorch's compiler, for a second or two
        torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.benchmark = not on


def address(*numbers: int | str) -> int:
    """A seed for the place that these numbers name, such as (seed, "dropout", epoch, step).

    Randomness is addressed, not consumed: what happens at a step depends on nothing that happened before it, so
    a run that was killed and resumed draws what the uninterrupted run would have drawn.
    """
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits: torch takes a signed number


def seed_everything(seed: int) -> None:
    """Seed the global generators: PyTorch's on every device (dropout), NumPy's and Python's (users' transforms)."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


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
        batch = next(batches)
        if step >= first_step:
            yield step, batch


@contextlib.contextmanager
def explain_out_of_memory(batch_size: int) -> Iterator[None]:
    """Turn CUDA's out-of-memory error into a TrainingError that names the batch size and the next to try."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        remedy = f"try --batch-size {batch_size // 2}" if batch_size > 1 else "no smaller batch is left"
        raise TrainingError(f"CUDA ran out of memory at --batch-size {batch_size}; {remedy}") from None
