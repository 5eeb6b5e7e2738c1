"""Randomness is addressed, not consumed: a seed for each thing that is drawn at random."""

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


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


@contextlib.contextmanager
def randomness_kept(device: torch.device) -> Iterator[None]:
    """Afterwards the global generators are as they were: PyTorch's on the CPU and on this device, NumPy's, Python's."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        # Of other GPUs nothing is drawn, and asking them for their state would start them.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
