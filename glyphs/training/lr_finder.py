"""Leslie Smith's learning-rate range test (arXiv 1506.01186, section 3.3)."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from glyphs.core.devices import autocast_dtype, move
from glyphs.core.errors import TrainingError
from glyphs.core.progress import progress
from glyphs.core.protocols import Loader, fetch_steps, require_batches
from glyphs.core.randomness import randomness_kept
from glyphs.models.network import as_floats, modes_kept

if TYPE_CHECKING:
    from glyphs.output.plots import Figure

RECENT = 5  # losses whose mean tells whether the sweep diverges
DIVERGENCE = 4.0  # stop once that mean is this many times the lowest there was
SMOOTHING = 8  # steps on each side over which the curve is smoothed
LEAST_FALL = 0.04  # of the loss: at the rate that a fall of 0.013 suggested nothing was learnt; a fall of 0.08 is one
EDGE = 2  # steps from either end of the sweep where a fastest fall is not believed


@dataclass(frozen=True)
class RangeTest:
    """What a range test saw: a learning rate and a smoothed loss for each step, and what it suggests."""

    learning_rates: list[float]
    losses: list[float]
    suggestion: float

    def plot(self, path: Path | None = None) -> "Figure":
        """The loss against the rate, as a matplotlib figure; written to a PNG file where a path is given."""
        from glyphs.output.plots import plot_lr_finder  # matplotlib takes a second to import

        return plot_lr_finder(self.learning_rates, self.losses, self.suggestion, path)


class LRFinder:
    """Raise the learning rate exponentially, a batch a step, and find where the loss falls fastest.

    Whatever happens, the model, the optimizer and all random generators are afterwards as they were before.

    Parameters
    ----------
    model, optimizer, criterion : as for training; `criterion(logits, labels)` gives the loss.
    precision : as in the settings; float16, which would need a gradient scaler, is float32 here.

    Examples
    --------
    Any module and any loader will do:

    >>> import torch
    >>> from glyphs import LRFinder
    >>> _ = torch.manual_seed(0)
    >>> images, labels = torch.rand(512, 1, 28, 28), torch.arange(512) % 4
    >>> images[torch.arange(512), 0, 7 * labels] = 1  # a bright row tells the class
    >>> loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=64)
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(28 * 28, 4))
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> found = LRFinder(model, optimizer, torch.nn.CrossEntropyLoss()).range_test(loader)
    >>> 1e-7 < found.suggestion < 10
    True
    >>> figure = found.plot()  # which a notebook shows
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: Callable[[Tensor, Tensor], Tensor],
        precision: str = "auto",
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.criterion = criterion
        self.precision = precision

    def range_test(
        self,
        loader: Loader,
        *,
        start_lr: float = 1e-7,
        end_lr: float = 10.0,
        num_steps: int = 150,
        seed: int = 0,
    ) -> RangeTest:
        """Run the test.

        Raises
        ------
        TrainingError : the loss was not finite, or diverged, before there was anything to see.
        DataError : the loader has no batch.
        """
        require_batches(loader, "training")
        device = next(self.model.parameters()).device
        # float16 would need a gradient scaler; a hundred steps can afford float32.
        bfloat16 = autocast_dtype(device, self.precision) is torch.bfloat16
        rates: list[float] = []
        losses: list[float] = []
        lowest = math.inf
        with self._everything_restored():
            self.model.train()
            batches = progress(
                self._endless(loader, seed), total=num_steps, desc="learning-rate finder", unit="step", leave=False
            )
            for step, (images, labels) in enumerate(batches):
                if step == num_steps:
                    break
                rate = start_lr * (end_lr / start_lr) ** (step / (num_steps - 1))
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                self.optimizer.zero_grad()
                with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                    loss = self.criterion(self.model(as_floats(move(images, device))), move(labels, device))
                value = loss.item()  # the only wait of a step
                if not math.isfinite(value):
                    break
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                rates.append(rate)
                losses.append(value)
                recent = float(np.mean(losses[-RECENT:]))
                lowest = min(lowest, recent)
                if recent > DIVERGENCE * lowest:
                    break
        smoothed = smooth(losses)
        return RangeTest(rates, smoothed, suggest(rates, smoothed))

    @staticmethod
    def _endless(loader: Loader, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        epoch = 0
        while True:
            for _, batch in fetch_steps(loader, seed, epoch):
                yield batch
            epoch += 1

    @contextlib.contextmanager
    def _everything_restored(self) -> Iterator[None]:
        model_state = copy.deepcopy(self.model.state_dict())
        optimizer_state = copy.deepcopy(self.optimizer.state_dict())
        try:
            with modes_kept(self.model), randomness_kept(next(self.model.parameters()).device):
                yield
        finally:
            self.model.load_state_dict(model_state)
            self.optimizer.load_state_dict(optimizer_state)
            self.optimizer.zero_grad()


def smooth(losses: list[float]) -> list[float]:
    """Average each loss with its neighbours on both sides, the near ones counting most.

    A running average of the past, as is often used here, lags behind: over a sweep of eight decades in 150 steps, the
    customary weight of 0.95 moves the steepest point to a rate ten times too high.
    """
    if not losses:
        return []
    window = np.hanning(2 * SMOOTHING + 3)[1:-1]
    # Over the ends, the average is of those neighbours that there are.
    sums, weights = (np.convolve(values, window)[SMOOTHING:-SMOOTHING] for values in (losses, np.ones(len(losses))))
    smoothed: list[float] = (sums / weights).tolist()
    return smoothed


def suggest(learning_rates: list[float], losses: list[float]) -> float:
    """The learning rate at which the smoothed loss falls most steeply against the logarithm of the rate.

    Only what lies before the lowest loss counts: after it the curve climbs, and its noise would mislead.

    Raises
    ------
    TrainingError : the curve suggests nothing: the loss falls over too few steps or too little to tell from noise, or
        falls fastest at an end of the sweep, so that the best rate lies outside.
    """
    remedy = "give it more data or larger batches, or set --learning-rate by hand"
    end = int(np.argmin(losses)) + 1 if losses else 0
    if end <= 2 * SMOOTHING:
        raise TrainingError(
            f"the learning-rate finder saw the loss fall over only {end} of {len(losses)} steps; {remedy}"
        )
    highest, lowest = max(losses[:end]), losses[end - 1]
    if highest - lowest < LEAST_FALL * max(abs(highest), abs(lowest)):
        raise TrainingError(
            f"the learning-rate finder saw the loss fall only from {highest:.3g} to {lowest:.3g}, which may be noise; "
            + remedy
        )
    slope = np.gradient(np.asarray(losses[:end]), np.log(learning_rates[:end]))
    place = int(np.argmin(slope))
    if not EDGE <= place < len(losses) - EDGE:
        raise TrainingError(
            f"the learning-rate finder saw the loss fall fastest at {learning_rates[place]:.2g}, an end of its sweep; "
            + remedy
        )
    return learning_rates[place]
