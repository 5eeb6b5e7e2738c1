"""The machine: device, threads, precision and what it has memory for."""

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from glyphs.core.cpus import usable_cpus
from glyphs.core.distributed import world_size
from glyphs.core.errors import ConfigError, TrainingError
from glyphs.core.process import launched

IMPORTED_IN = os.getpid()
# What PyTorch, cuDNN and cuBLAS say where memory is short; only the first is an OutOfMemoryError.
OUT_OF_MEMORY = (
    "out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "unable to find a valid cuDNN algorithm to run convolution",  # none whose work space still fits
)


def choose_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `mps` into a device: for each process that torchrun started here, its own.

    Raises
    ------
    ConfigError : `cuda` or `mps` was asked for and there is none, or there are fewer than processes.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    if name == "mps":
        # PyTorch 2.4 has the device, but not its autocast.
        if not (torch.backends.mps.is_available() and torch.amp.is_autocast_available("mps")):
            raise ConfigError("--device mps: PyTorch finds no GPU of Apple's here, or is too old; use --device cpu")
        if world_size() > 1:
            raise ConfigError(f"--device mps: {world_size()} processes cannot work together on it; use --device cpu")
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
    if device.type == "cuda":
        words = torch.cuda.get_device_name(device)
    else:
        words = "Apple GPU" if device.type == "mps" else f"CPU, {torch.get_num_threads()} threads"
    return words if world_size() == 1 else f"{world_size()} processes ({words} each)"


def forked() -> bool:
    """Whether this process was made by fork from the one that imported PyTorch."""
    return os.getpid() != IMPORTED_IN


def limit_threads() -> None:
    """Use as many threads as this process may run at once, not as many as the host has.

    PyTorch's own number (a thread for each physical core) misses a container's CPU quota; threads beyond it only wait
    for each other.  torchrun lets it start with one thread, which is no limit.  And a process that was made by fork
    uses one: OpenMP's threads do not come with it, but it would wait for them, for ever.
    """
    if forked():
        torch.set_num_threads(1)
        return
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


def sums_dtype(device: torch.device) -> torch.dtype:
    """The dtype to add up in on the device: float64, which Apple's GPUs do not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; the host does not wait for CUDA, which copies while earlier work is under way."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)  # from other memory the copy would wait
    return tensor.to(device)


def use_deterministic_algorithms(on: bool) -> None:
    """On CUDA, choose only kernels that give the same bits every time; on CPU they all do."""
    if on:
        # cuBLAS reads this when it first starts; without it PyTorch refuses to promise determinism.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if on != torch.are_deterministic_algorithms_enabled():  # the call imports PyTorch's compiler, for a second or two
        torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.benchmark = not on


@contextlib.contextmanager
def explain_out_of_memory(batch_size: int) -> Iterator[None]:
    """Turn a GPU's out-of-memory error into a TrainingError that names the batch size and the next to try."""
    try:
        yield
    except RuntimeError as error:  # torch.cuda.OutOfMemoryError is one, and those of libraries are nothing more
        said = str(error)
        if not any(words in said for words in OUT_OF_MEMORY):
            raise
        gpu = "MPS" if "MPS" in said else "CUDA"
        remedy = f"try --batch-size {batch_size // 2}" if batch_size > 1 else "no smaller batch is left"
        raise TrainingError(f"{gpu} ran out of memory at --batch-size {batch_size}; {remedy}") from None
