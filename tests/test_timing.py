"""glyphs.core.timing: what it measures must take as long as it says."""

import time
from typing import Any

import numpy as np
import pytest

from glyphs.core import timing
from glyphs.core.timing import Timing, time_networks


def test_times_are_those_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUND_SECONDS", 0.01)
    calls: list[str] = []

    def sleeper(name: str, seconds: float) -> Any:
        def network(images: np.ndarray[Any, Any]) -> None:
            assert (images.shape, images.dtype) == ((3, 1, 28, 28), np.uint8)
            calls.append(name)
            time.sleep(seconds)

        return network

    slow, quick = time_networks([sleeper("slow", 0.02), sleeper("quick", 0.005)], batch=3)
    assert slow.median >= 0.02
    assert 0.005 <= quick.median < slow.median
    assert slow.images_per_second == pytest.approx(3 / slow.median)
    # In turns, after the warm-up of both.
    turns = [a for a, b in zip(calls, [*calls[1:], ""], strict=True) if a != b]
    assert turns == ["slow", "quick"] * (timing.ROUNDS + 1)


def test_the_spread_is_the_distance_of_the_quartiles() -> None:
    assert Timing(4, 0.5, 0.1).images_per_second == 8
