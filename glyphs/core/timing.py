"""How long networks take: several in turns, so that a machine that slows down slows all of them."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from glyphs.core.arrays import Bytes

ROUNDS = 5
ROUND_SECONDS = 0.2  # at least, of each network in each round
WARM_UP_CALLS = 3
UNSTEADY = 0.5  # distance of the quartiles by the median
UNSTEADY_WORDS = (
    "are unsteady (their quartiles lie more than half the median apart): let the machine do nothing else, and measure "
    "again"
)


@dataclass(frozen=True)
class Timing:
    """Seconds a call takes: the median of blocks of calls, and their interquartile range.

    Attributes
    ----------
    batch : images a call.
    median, iqr : seconds.
    """

    batch: int
    median: float
    iqr: float

    @property
    def images_per_second(self) -> float:
        return self.batch / self.median


def unsteady(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether any of these measurements, each with `seconds` and `seconds_iqr`, spreads too far to be relied on."""
    return any(row["seconds_iqr"] > UNSTEADY * row["seconds"] for row in rows)


def time_networks(
    networks: Sequence[Callable[[Bytes], Any]], batch: int, shapes: Sequence[tuple[int, int, int]] | None = None
) -> list[Timing]:
    """Time each network on a batch of noise (the arithmetic does not depend on what images show), after a warm-up.

    torch.utils.benchmark repeats the call until a block is long enough to be timed; a network whose answer lies on the
    CPU, as those of glyphs.models.runtime, has waited for its device by then.

    Parameters
    ----------
    networks : from images, uint8 [N, channels, H, W], to anything that is there when they return.
    shapes : of each one's images, without N; None for 1x28x28.
    """
    # Else it says, where a CUDA toolkit is installed but no GPU, that it cannot compile for one.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils import benchmark

    rng = np.random.default_rng(0)
    timers = []
    for network, shape in zip(networks, shapes or [(1, 28, 28)] * len(networks), strict=True):
        images = rng.integers(0, 256, (batch, *shape), dtype=np.uint8)
        for _ in range(WARM_UP_CALLS):
            network(images)
        names = {"network": network, "images": images}
        # Timer's own default is one thread.
        timers.append(benchmark.Timer("network(images)", globals=names, num_threads=torch.get_num_threads()))
    seconds: list[list[float]] = [[] for _ in networks]
    for _ in range(ROUNDS):
        for timer, times in zip(timers, seconds, strict=True):
            times += timer.blocked_autorange(min_run_time=ROUND_SECONDS).times
    timings = []
    for times in seconds:
        low, middle, high = np.percentile(times, (25, 50, 75)).tolist()
        timings.append(Timing(batch, middle, high - low))
    return timings
