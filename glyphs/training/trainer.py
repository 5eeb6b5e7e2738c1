"""Training: EarlyStopping and the Trainer.

    trainer = Trainer(model, train_loader, val_loader, config, class_names)
    history = trainer.fit()

A run can be killed at any moment: what it does at a step follows from (seed, epoch, step) and the state in
latest_checkpoint.pth, so `trainer.resume(checkpoint)` ends with the same weights, bit for bit on one CPU.
"""

import contextlib
import csv
import functools
import io
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from glyphs.config import Config
from glyphs.data.protocols import Divisible, Loader, fetch_steps, own_share, require_batches, start_anew
from glyphs.devices import autocast_dtype, choose_device, move, sums_dtype, use_deterministic_algorithms
from glyphs.distributed import Exchange, Orders, average_gradients, barrier, rank, spread_buffers, total, world_size
from glyphs.errors import CheckpointError, ConfigError, TrainingError
from glyphs.files import replace_file
from glyphs.model import EnhancedGlyphCNN
from glyphs.process import SIGNALS, Interrupted
from glyphs.randomness import address, seed_everything
from glyphs.training.checkpoint import save_checkpoint
from glyphs.training.early_stopping import EarlyStopping
from glyphs.training.loss import make_criterion
from glyphs.training.schedule import LONGEST_WARMUP, PLATEAU_PATIENCE, cosine_with_warmup

MAX_GRADIENT_NORM = 1.0

BEST_MODEL = "best_model.pth"
LATEST_CHECKPOINT = "latest_checkpoint.pth"


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW with weight decay on weight matrices and kernels, but not on biases and norms (arXiv 1812.01187, 3.1)."""
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        fused=True,
    )


def is_finished(checkpoint: Mapping[str, Any]) -> bool:
    """Whether the run of a loaded latest_checkpoint.pth had come to its end."""
    training, config = checkpoint["training"], checkpoint["config"]
    stopped_early = training["early_stopping"]["epochs_without_gain"] >= config["early_stopping_patience"]
    return bool(training["epoch"] >= config["num_epochs"] or stopped_early)


class Trainer:
    """Trains a model, and writes checkpoints, config.json and history.csv into `config.output_dir`.

    `scheduler` may be replaced before `fit` by any of `torch.optim.lr_scheduler` over `optimizer`.  It is stepped after
    every step of the training; a ReduceLROnPlateau after every epoch, with the validation loss.

    Where several processes work together (`glyphs.distributed.process_group`), each takes its share of every batch, and
    process 0 writes.  What they compute is what one would, but for rounding, dropout and batch norm's statistics.

    Parameters
    ----------
    model : moved to the device that the settings name.
    train_loader, val_loader : sized iterables of (images, labels); see `glyphs.data.loaders` for what a batch is.
    class_names : stored in the checkpoints, one for each output of the model.

    Raises
    ------
    ConfigError : the loaders cannot be shared out among the processes there are, or there is no such device.
    DataError : a loader has no batch.

    It does not keep a second process out of the folder, as the training script does: see `glyphs.files.claim_folder`.
    """

    def __init__(
        self,
        model: EnhancedGlyphCNN,
        train_loader: Loader,
        val_loader: Loader,
        config: Config | Mapping[str, Any],
        class_names: list[str],
    ) -> None:
        self.config = config if isinstance(config, Config) else Config.from_dict(config)
        require_batches(train_loader, "training")
        require_batches(val_loader, "validation")
        if self.config.deterministic:  # where it is off, what the caller has chosen stays
            use_deterministic_algorithms(True)
        self.device = choose_device(self.config.device)
        self.model = model.to(self.device)
        self.parallel_model = average_gradients(self.model, self.device)
        self.train_loader = own_share(train_loader)
        self.val_loader = own_share(val_loader)
        self.class_names = class_names
        self.output_dir = Path(self.config.output_dir)
        self.num_steps = len(train_loader)

        self.dtype = autocast_dtype(self.device, self.config.precision)
        self.criterion = make_criterion(self.config, train_loader, len(class_names)).to(self.device)
        self.optimizer = make_optimizer(model, self.config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.scheduler = self._make_scheduler()
        self.early_stopping = EarlyStopping(self.config.early_stopping_patience)

        self.epoch = 0  # epochs complete
        self.step = 0  # steps done of the epoch under way
        self.epoch_seconds = 0.0  # spent on them
        # Loss, correct answers, images and gradient norm of each step, left on the device: reading one waits for it.
        # Their sum over the processes is what happened; see `_all_stats`.
        self.step_stats = torch.zeros(self.num_steps, 4, dtype=sums_dtype(self.device), device=self.device)
        self.history: list[dict[str, float]] = []
        self.best_accuracy = -1.0
        self._signal: int | None = None
        self._exchange = Exchange()
        self._saved_at = time.monotonic()

    @property
    def finished(self) -> bool:
        """No epoch is left, or early stopping has ended the run."""
        return self.epoch >= self.config.num_epochs or self.early_stopping.should_stop

    def fit(self) -> list[dict[str, float]]:
        """Train to the end; afterwards the model holds the weights with the lowest validation loss.

        Returns
        -------
        history : a row an epoch, as in history.csv.

        Raises
        ------
        TrainingError : the loss or the gradient is not finite.  The last good checkpoint stays.
        Interrupted : Ctrl-C, SIGTERM or SIGHUP came; latest_checkpoint.pth holds the state of that moment.
        GlyphError : a file cannot be written.
        """
        if rank() == 0:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            replace_file(self.output_dir / "config.json", (json.dumps(self.config.to_dict(), indent=2) + "\n").encode())
        self._saved_at = time.monotonic()
        with self._signals_noted(), self._tensorboard() as log:
            while not self.finished:
                self._train_epoch()
                row = self._end_epoch()
                if log is not None:
                    for name in row.keys() - {"epoch"}:
                        log.add_scalar(name, row[name], int(row["epoch"]))
                self._stop_where_asked(self._orders(at_once=True))
        if self.early_stopping.should_stop:
            self._say(f"stopped early: no better validation loss for {self.early_stopping.patience} epochs")
        self.early_stopping.restore(self.model)
        barrier()  # what process 0 has written, all may now read
        return self.history

    def _train_epoch(self) -> None:
        self.model.train()
        started = time.perf_counter() - self.epoch_seconds
        with tqdm(
            total=self.num_steps,
            initial=self.step,
            desc=f"epoch {self.epoch + 1}/{self.config.num_epochs}",
            unit="batch",
            leave=False,
            disable=None,
        ) as progress:
            # Each process has its own dropout.
            seed = self.config.seed if rank() == 0 else address(self.config.seed, "process", rank())
            for step, (images, labels) in fetch_steps(self.train_loader, seed, self.epoch, self.step):
                part = self.train_loader.part_of(step) if isinstance(self.train_loader, Divisible) else 1.0
                images, labels = move(images, self.device), move(labels, self.device)
                self.step_stats[step] = self._train_step(images, labels, part)
                self.step = step + 1
                self.epoch_seconds = time.perf_counter() - started
                progress.update()
                orders = self._orders()
                if orders.report:
                    progress.set_postfix_str(self._describe_progress())
                self._save_where_due(orders)

    def _train_step(self, images: Tensor, labels: Tensor, part: float = 1.0) -> Tensor:
        """One update of the weights; returns loss, correct answers, images and gradient norm, on the device.

        part : of the step's images, these are; the other processes have the others.
        """
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            logits = self.parallel_model(images)
            # A process without images must still take part in averaging the gradients: with zeros.
            loss = self.criterion(logits, labels) * part if len(labels) else logits.sum()
        # The mean over the processes of these gradients is the gradient of the whole batch's mean loss.
        self.scaler.scale(loss * world_size()).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if not isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step()
        correct = (logits.argmax(1) == labels).sum()
        # All processes have the same norm: one counts it.
        return torch.stack([loss.detach(), correct, correct.new_full((), len(labels)), norm * (rank() == 0)])

    def _end_epoch(self) -> dict[str, float]:
        """Validate, write the checkpoints, and return the epoch's row of the history."""
        self._check_finite()
        rate = self.optimizer.param_groups[0]["lr"]  # that of the next step, which is as good as the last one's
        val_loss, val_accuracy = self.validate()
        loss, accuracy, images = self._summarise_steps()
        row = {
            "epoch": self.epoch + 1,
            "train_loss": loss,
            "train_accuracy": accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "learning_rate": rate,
            "images_per_second": images / self.epoch_seconds,
            "seconds": self.epoch_seconds,
        }
        self.history.append(row)
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(val_loss)
        self.early_stopping.update(val_loss, self.model)
        self.epoch += 1
        self.step = 0
        self.epoch_seconds = 0.0
        better = val_accuracy > self.best_accuracy
        self.best_accuracy = max(self.best_accuracy, val_accuracy)
        self._say(self._describe_epoch(row, better))
        if better and rank() == 0:
            metrics = {key: row[key] for key in ("epoch", "val_loss", "val_accuracy")}
            path = self.output_dir / BEST_MODEL
            save_checkpoint(path, self.model, self.config, self.class_names, metrics=metrics)
        if rank() == 0:
            self._write_history()
        # Last: were the run killed before this, it would do the epoch's end again, with the same result.
        self.save()
        return row

    @torch.inference_mode()
    def validate(self) -> tuple[float, float]:
        """Mean cross-entropy (without label smoothing) and accuracy on the validation images.

        With a uniform class prior both are means over the classes, each of which counts alike.
        """
        spread_buffers(self.model)
        self.model.eval()
        # For a user's own loader that draws at random: a resumed run must see the same images.
        seed_everything(address(self.config.seed, "validation", self.epoch))
        totals = torch.zeros(3, len(self.class_names), dtype=sums_dtype(self.device), device=self.device)  # by class
        for images, labels in start_anew(self.val_loader):
            images, labels = move(images, self.device), move(labels, self.device)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
                logits = self.model(images)
            losses = F.cross_entropy(logits.float(), labels, reduction="none")
            correct = logits.argmax(1) == labels
            totals.index_add_(1, labels, torch.stack([losses, correct, torch.ones_like(losses)]).to(totals.dtype))
            self._stop_where_asked(self._orders())
        totals = total(totals.cpu().double())
        if self.config.class_prior == "uniform":
            totals = (totals / totals[2])[:, totals[2] > 0]
        loss_sum, correct_sum, count = totals.sum(1).tolist()
        if not math.isfinite(loss_sum):
            rate = self.optimizer.param_groups[0]["lr"]
            raise TrainingError(
                f"epoch {self.epoch + 1}, step {self.num_steps}: the validation loss is {loss_sum} at learning rate "
                f"{rate:.3g}; lower --learning-rate"
            )
        return loss_sum / count, correct_sum / count

    def save(self) -> None:
        """Write latest_checkpoint.pth: everything that a resumed run needs."""
        training = {
            "epoch": self.epoch,
            "step": self.step,
            "num_steps": self.num_steps,
            "epoch_seconds": self.epoch_seconds,
            "step_stats": self._all_stats(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "early_stopping": self.early_stopping.state_dict(),
            "best_accuracy": self.best_accuracy,
            "history": self.history,
            "fingerprint": self._fingerprint,
        }
        path = self.output_dir / LATEST_CHECKPOINT
        metrics = {key: self.history[-1][key] for key in ("epoch", "val_loss", "val_accuracy") if self.history}
        if rank() == 0:
            save_checkpoint(path, self.model, self.config, self.class_names, metrics=metrics, training=training)
        self._saved_at = time.monotonic()

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        """Take up the state of a loaded latest_checkpoint.pth; `fit` then goes on from that step.

        Raises
        ------
        CheckpointError : it holds no training state, or comes from other data, classes or another architecture.
        """
        training = checkpoint.get("training")
        if training is None:
            raise CheckpointError(f"the checkpoint holds weights only; resume from a {LATEST_CHECKPOINT}")
        if checkpoint["class_names"] != self.class_names:
            raise CheckpointError(
                "the checkpoint's classes are not those of the data; give it the data that it began with"
            )
        if (training["num_steps"], training["fingerprint"]) != (self.num_steps, self._fingerprint):
            raise CheckpointError(
                "the training images are not those that the run began with; give it the same data again, or start "
                "a new run with another --output-dir"
            )
        try:
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(training["optimizer"])
            self.scheduler.load_state_dict(training["scheduler"])
            if training["scaler"]:  # empty where the run so far needed no scaler: this one then begins as in a new run
                self.scaler.load_state_dict(training["scaler"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint is of another architecture ({str(error).splitlines()[0]}); resume with the settings "
                "that it began with"
            ) from None
        self.early_stopping.load_state_dict(training["early_stopping"])
        self.epoch, self.step = training["epoch"], training["step"]
        self.epoch_seconds = training["epoch_seconds"]
        if rank() == 0:
            self.step_stats[: self.step] = training["step_stats"].to(self.step_stats.dtype).to(self.device)
        self.best_accuracy = training["best_accuracy"]
        self.history = training["history"]

    def _make_scheduler(self) -> torch.optim.lr_scheduler.LRScheduler:
        if self.config.scheduler == "plateau":
            return torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, patience=PLATEAU_PATIENCE)
        epochs = self.config.num_epochs
        warmup = min(self.config.warmup_epochs / epochs, LONGEST_WARMUP)
        total = epochs * self.num_steps
        # Counted so that neither the first nor the last step has a rate of exactly 0, and is wasted.
        return torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: cosine_with_warmup((step + 1) / (total + 1), warmup)
        )

    @functools.cached_property
    def _fingerprint(self) -> int | None:
        fingerprint = getattr(self.train_loader, "fingerprint", None)
        return fingerprint() if fingerprint is not None else None

    def _all_stats(self) -> Tensor:
        """`step_stats` of the steps done of this epoch, float64 [steps, 4], over all processes."""
        return total(self.step_stats[: self.step].cpu().double())

    def _summarise_steps(self) -> tuple[float, float, int]:
        """Mean loss, accuracy and number of images over the steps done of this epoch."""
        loss, correct, images, _ = self._all_stats().unbind(1)
        count = images.sum()
        return float((loss * images).sum() / count), float(correct.sum() / count), int(count)

    def _check_finite(self) -> None:
        stats = self._all_stats()
        # With a gradient scaler (float16), a gradient that overflows is expected: it skips that step.
        watched = stats[:, [0]] if self.scaler.is_enabled() else stats[:, [0, 3]]
        bad = (~watched.isfinite()).any(1).nonzero().flatten()
        if len(bad) > 0:
            step = int(bad[0])
            rate = self.optimizer.param_groups[0]["lr"]
            if isinstance(self.scheduler, torch.optim.lr_scheduler.LambdaLR):
                done = self.epoch * self.num_steps + step
                rate = self.scheduler.base_lrs[0] * self.scheduler.lr_lambdas[0](done)
            raise TrainingError(
                f"epoch {self.epoch + 1}, step {step + 1} of {self.num_steps}: the loss is {float(stats[step, 0])} and "
                f"the gradient norm {float(stats[step, 3])} at learning rate {rate:.3g}; lower --learning-rate. "
                "An earlier checkpoint, where there is one, is untouched"
            )

    def _orders(self, *, at_once: bool = False) -> Orders:
        due = time.monotonic() - self._saved_at > self.config.checkpoint_every
        return self._exchange.orders(self._signal, due, at_once=at_once)

    def _save_where_due(self, orders: Orders) -> None:
        self._stop_where_asked(orders)
        if orders.save:
            self._check_finite()
            self.save()

    def _stop_where_asked(self, orders: Orders) -> None:
        """If a signal came, save and raise Interrupted."""
        if orders.signum is None:
            return
        self._check_finite()
        self.save()
        path = self.output_dir / LATEST_CHECKPOINT
        self._say(f"saved after epoch {self.epoch}, step {self.step} of {self.num_steps}; go on with --resume {path}")
        raise Interrupted(orders.signum)

    @contextlib.contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """Let a first signal wait for the end of the step; a second one of its kind acts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread only
            return
        previous = {signum: signal.getsignal(signum) for signum in SIGNALS}

        def note(signum: int, frame: FrameType | None) -> None:
            self._signal = signum
            signal.signal(signum, previous[signum])

        for signum, handler in previous.items():
            if handler is not signal.SIG_IGN:  # as under nohup
                signal.signal(signum, note)
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    @contextlib.contextmanager
    def _tensorboard(self) -> Iterator[Any]:
        """A SummaryWriter where the settings ask for one, else None."""
        if not self.config.tensorboard or rank() > 0:
            yield None
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError("--tensorboard needs a package that is missing: pip install tensorboard") from None
        # A resumed run may do the last epoch's end again: what an earlier process wrote for it is dropped.
        with SummaryWriter(str(self.output_dir / "tensorboard"), purge_step=self.epoch + 1) as writer:
            yield writer

    def _write_history(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.history[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        replace_file(self.output_dir / "history.csv", text.getvalue().encode())

    def _describe_progress(self) -> str:
        self._check_finite()
        loss, accuracy, images = self._summarise_steps()
        rate = self.optimizer.param_groups[0]["lr"]
        speed = images / self.epoch_seconds
        return f"loss {loss:.3f}, accuracy {accuracy:.1%}, lr {rate:.2g}, {speed:,.0f} images/s"

    def _describe_epoch(self, row: Mapping[str, float], better: bool) -> str:
        left = row["seconds"] * (self.config.num_epochs - self.epoch)
        return (
            f"epoch {self.epoch}/{self.config.num_epochs}: loss {row['train_loss']:.3f}, "
            f"accuracy {row['train_accuracy']:.1%}; validation loss {row['val_loss']:.3f}, "
            f"accuracy {row['val_accuracy']:.2%}{' (best)' if better else ''}; "
            f"{row['images_per_second']:,.0f} images/s, {tqdm.format_interval(left)} left"
        )

    @staticmethod
    def _say(text: str) -> None:
        tqdm.write(text, file=sys.stderr)
