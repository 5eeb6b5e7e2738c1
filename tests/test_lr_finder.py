"""The learning-rate range test."""

import math
import random
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glyphs.core.errors import DataError, TrainingError
from glyphs.core.protocols import Batch
from glyphs.data.loaders import TensorLoader
from glyphs.models.network import EnhancedGlyphCNN
from glyphs.training.lr_finder import LRFinder, smooth, suggest


def make_finder() -> tuple[LRFinder, TensorLoader]:
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    images = (labels * 80).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 28, 28).contiguous()
    model = EnhancedGlyphCNN(3, use_residual=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.123)
    return LRFinder(model, optimizer, nn.CrossEntropyLoss()), TensorLoader(images, labels, 12, shuffle_seed=1)


def snapshot(finder: LRFinder) -> list[Any]:
    """Every state that the range test touches, as comparable values."""
    return [
        [(name, value.tolist()) for name, value in finder.model.state_dict().items()],
        repr(finder.optimizer.state_dict()),
        finder.model.training,
        [p.grad for p in finder.model.parameters()],
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]
        random.getstate(),
    ]


def test_it_sweeps_exponentially_and_suggests_a_rate_on_the_way_down() -> None:
    finder, loader = make_finder()
    found = finder.range_test(loader, num_steps=100)
    assert found.learning_rates[0] == pytest.approx(1e-7)
    ratios = np.diff(np.log(found.learning_rates))
    assert ratios == pytest.approx(np.full(len(ratios), math.log(1e8) / 99))
    lowest = found.learning_rates[int(np.argmin(found.losses))]
    assert 1e-6 < found.suggestion < lowest


def test_it_waits_once_a_step_and_asks_no_gpu_for_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    finder, loader = make_finder()
    losses = []
    item = Tensor.item

    def wait(tensor: Tensor) -> Any:
        losses.extend([tensor] if tensor.requires_grad else [])  # the optimizer of this test waits too, for its steps
        return item(tensor)

    monkeypatch.setattr(Tensor, "item", wait)
    with patch("torch.random.fork_rng", wraps=torch.random.fork_rng) as fork:
        found = finder.range_test(loader, num_steps=40)
    assert len(losses) == len(found.losses)
    fork.assert_called_once_with([])


def test_it_stops_where_the_loss_diverges() -> None:
    finder, loader = make_finder()
    found = finder.range_test(loader, end_lr=1e6, num_steps=100)
    assert len(found.losses) < 100


def test_it_leaves_everything_as_it_was() -> None:
    finder, loader = make_finder()
    finder.model.eval()
    before = snapshot(finder)
    finder.range_test(loader, num_steps=40)
    assert snapshot(finder) == before


def test_it_leaves_frozen_parts_frozen() -> None:
    finder, loader = make_finder()
    finder.model.train()
    finder.model.get_submodule("stem.1").eval()
    before = [part.training for part in finder.model.modules()]
    finder.range_test(loader, num_steps=40)
    assert [part.training for part in finder.model.modules()] == before
    assert not all(before)


def test_a_loader_without_a_batch_is_refused() -> None:
    finder, loader = make_finder()
    with pytest.raises(DataError, match="training loader has no batch"):
        finder.range_test(TensorLoader(loader.images[:0], loader.labels[:0], 12))


class Broken:
    """Fails, or gives NaN, after twenty good batches."""

    def __init__(self, loader: TensorLoader, *, nan: bool) -> None:
        self.loader, self.nan = loader, nan

    def __len__(self) -> int:
        return 1000

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(4):
            yield from self.loader
        if not self.nan:
            raise OSError("the disk went away")
        images, labels = next(iter(self.loader))
        yield torch.full(images.shape, math.nan), labels


def test_it_leaves_everything_as_it_was_after_a_failure() -> None:
    finder, loader = make_finder()
    before = snapshot(finder)
    with pytest.raises(OSError, match="went away"):
        finder.range_test(Broken(loader, nan=False))
    assert snapshot(finder) == before


def test_a_loss_that_is_not_finite_ends_the_sweep_and_keeps_what_was_seen() -> None:
    finder, loader = make_finder()
    before = snapshot(finder)
    found = finder.range_test(Broken(loader, nan=True), start_lr=1e-4, num_steps=100)
    assert len(found.losses) == 20
    assert snapshot(finder) == before


def test_the_suggestion_is_the_steepest_point_of_a_known_curve() -> None:
    rates = np.logspace(-7, 1, 161)
    losses: Tensor = -torch.sigmoid(4 * (torch.from_numpy(np.log10(rates)) + 3))  # falls fastest at 1e-3
    rising = np.where(rates > 0.1, 5.0, 0.0)  # and blows up in the end
    assert suggest(rates.tolist(), smooth((losses.numpy() + rising).tolist())) == pytest.approx(1e-3, rel=0.15)


def test_smoothing_keeps_a_straight_line_where_it_is() -> None:
    line = [3 - 0.1 * step for step in range(60)]
    assert smooth(line)[10:-10] == pytest.approx(line[10:-10])


RATES = np.logspace(-7, 1, 150).tolist()


@pytest.mark.parametrize(
    ("losses", "fact"),
    [
        # 600 images of 47 classes, 16 at a time: the rate that this suggests taught nothing at all.
        ([3.90 - 0.0005 * step for step in range(100)] + [4.0] * 50, "only from 3.9 to 3.85"),
        ([4 * math.exp(-step / 2) + 1 for step in range(150)], "fastest at .*, an end"),
        ([10 - (step / 50) ** 2 for step in range(150)], "fastest at .*, an end"),
    ],
    ids=["noise", "fastest at the lowest rate", "fastest at the highest rate"],
)
def test_a_curve_that_suggests_nothing_is_an_error(losses: list[float], fact: str) -> None:
    with pytest.raises(TrainingError, match=f"{fact}.*--learning-rate by hand"):
        suggest(RATES, losses)


def test_a_loss_that_never_falls_is_an_error() -> None:
    with pytest.raises(TrainingError, match="--learning-rate by hand"):
        suggest([1e-3 * 2**i for i in range(30)], [1.0 + i for i in range(30)])


def test_it_computes_in_the_precision_that_training_will() -> None:
    finder, loader = make_finder()
    seen: list[torch.dtype] = []
    criterion = finder.criterion

    def noting(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(logits.dtype)
        return criterion(logits, labels)

    finder.criterion = noting
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        finder.precision = precision
        finder.range_test(loader, num_steps=40)
        assert set(seen) == {dtype}
        seen.clear()
