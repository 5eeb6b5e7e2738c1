"""What a run does beside training: progress, a line an epoch, history.csv, TensorBoard, signals, and what you add.

class GoodEnough(Callback):
    def on_epoch_end(self, trainer, row):
        if row["val_accuracy"] > 0.9:
            trainer.stop()


Trainer(model, train, val, config, class_names, callbacks=[GoodEnough()])
"""

import csv
import importlib.util
import io
import logging
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from glyphs.core.config import Config
from glyphs.core.errors import ConfigError
from glyphs.core.files import replace_file
from glyphs.core.process import SIGNALS
from glyphs.core.progress import progress
from glyphs.training.early_stopping import EarlyStopping

log = logging.getLogger(__name__)


class Run(Protocol):
    """What a callback sees of the Trainer."""

    config: Config
    output_dir: Path
    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int  # epochs complete
    step: int  # steps done of the epoch under way
    num_steps: int  # of an epoch
    own_stats: Tensor  # float [num_steps, 4], a `StepStats` for each step of the epoch, on the device
    history: list[dict[str, float]]
    early_stopping: EarlyStopping  # which knows the best epoch so far

    def stop(self) -> None:
        """End the run after this step or epoch."""


class Callback:
    """Does something at points of a run; override what you need.

    `trainer.stop()` ends the run after the step or the epoch.  Every one of several processes calls its own callbacks.
    What a callback remembers is not in the checkpoint: a resumed run begins with a new one.
    """

    def on_epoch_start(self, trainer: Run) -> None:
        """Before the first step of an epoch, or before the first that a resumed run does of it."""

    def on_step_end(self, trainer: Run) -> None:
        """After an update of the weights, which `trainer.step` counts."""

    def on_report(self, trainer: Run, so_far: Mapping[str, float]) -> None:
        """About once a second: `loss`, `accuracy`, `learning_rate` and `images_per_second` of the epoch so far."""

    def on_epoch_end(self, trainer: Run, row: dict[str, float]) -> None:
        """After the validation, before latest_checkpoint.pth is written; the row is the epoch's in `trainer.history`.

        A run that is killed before it has written the checkpoint comes here again.  What is added to the row goes into
        history.csv.
        """

    def on_fit_end(self, trainer: Run) -> None:
        """However the run ends: close what is open."""


class ProgressBar(Callback):
    """A bar for each epoch; where there is no terminal, a line a minute, beside the epoch's own."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_epoch_start(self, trainer: Run) -> None:
        epoch = f"epoch {trainer.epoch + 1}/{trainer.config.num_epochs}"
        self.bar = progress(
            total=trainer.num_steps, initial=trainer.step, seconds=60, desc=epoch, unit="batch", leave=False
        )

    def on_step_end(self, trainer: Run) -> None:
        self.bar.update()
        if trainer.step == trainer.num_steps:
            self.bar.close()

    def on_report(self, trainer: Run, so_far: Mapping[str, float]) -> None:
        self.bar.set_postfix_str(
            f"loss {so_far['loss']:.3f}, accuracy {so_far['accuracy']:.1%}, lr {so_far['learning_rate']:.2g}, "
            f"{so_far['images_per_second']:,.0f} images/s",
            refresh=False,
        )

    def on_fit_end(self, trainer: Run) -> None:
        if self.bar is not None:
            self.bar.close()


class EpochLine(Callback):
    """A line for each epoch, to the log."""

    def on_epoch_end(self, trainer: Run, row: dict[str, float]) -> None:
        left = row["seconds"] * (trainer.config.num_epochs - trainer.epoch)
        best = trainer.early_stopping.best.get("epoch") == row["epoch"]
        log.info(
            f"epoch {trainer.epoch}/{trainer.config.num_epochs}: loss {row['train_loss']:.3f}, "
            f"accuracy {row['train_accuracy']:.1%}; validation loss {row['val_loss']:.3f}, "
            f"accuracy {row['val_accuracy']:.2%}{' (best)' if best else ''}; "
            f"{row['images_per_second']:,.0f} images/s, {tqdm.format_interval(left)} left"
        )


class HistoryFile(Callback):
    """history.csv: a row for each epoch."""

    def on_epoch_end(self, trainer: Run, row: dict[str, float]) -> None:
        text = io.StringIO()
        # A resumed run may have other metrics than the epochs before.
        columns = dict.fromkeys(name for each in trainer.history for name in each)
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(trainer.history)
        replace_file(trainer.output_dir / "history.csv", text.getvalue().encode())


def require_tensorboard() -> None:
    """Raise ConfigError where the package that `TensorBoard` needs is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("--tensorboard needs a package that is missing: pip install tensorboard")


class TensorBoard(Callback):
    """TensorBoard event files of what the history says."""

    def __init__(self) -> None:
        require_tensorboard()
        self.writer: Any = None

    def on_epoch_start(self, trainer: Run) -> None:
        if self.writer is not None:
            return
        from torch.utils.tensorboard import SummaryWriter

        # A resumed run may do the last epoch's end again: what an earlier process wrote for it is dropped.
        self.writer = SummaryWriter(str(trainer.output_dir / "tensorboard"), purge_step=trainer.epoch + 1)

    def on_epoch_end(self, trainer: Run, row: dict[str, float]) -> None:
        for name in row.keys() - {"epoch"}:
            self.writer.add_scalar(name, row[name], int(row["epoch"]))

    def on_fit_end(self, trainer: Run) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class SignalWatch:
    """Within its context, a first signal waits for the end of the step; a second one of its kind acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread only
        self._previous = {signum: signal.getsignal(signum) for signum in SIGNALS}
        for signum, handler in self._previous.items():
            if handler is not signal.SIG_IGN:  # as under nohup
                signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        signal.signal(signum, self._previous[signum])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
