"""The Trainer: what happens at a step, at an epoch's end, and what a resumed run takes up.

    trainer = Trainer(model, train_loader, val_loader, config, class_names)
    history = trainer.fit()

What a run says, and what it writes besides its checkpoints, are callbacks: see `glyphs.training.callbacks`.

A run can be killed at any moment: what it does at a step follows from (seed, epoch, step) and the state in
latest_checkpoint.pth, so `trainer.resume(checkpoint)` ends with the same weights, bit for bit on one CPU.
"""

import functools
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from glyphs.core.config import Config
from glyphs.core.devices import autocast_dtype, choose_device, move, sums_dtype, use_deterministic_algorithms
from glyphs.core.distributed import (
    Exchange,
    Orders,
    average_gradients,
    barrier,
    merge_rows,
    rank,
    spread_buffers,
    total,
    world_size,
)
from glyphs.core.errors import CheckpointError, ConfigError, TrainingError
from glyphs.core.files import replace_file
from glyphs.core.process import Interrupted
from glyphs.core.progress import progress
from glyphs.core.protocols import Divisible, Loader, fetch_steps, own_share, require_batches, run_model, start_anew
from glyphs.core.randomness import address, seed_everything
from glyphs.core.text import first_line
from glyphs.models.checkpoint import BEST_MODEL, LATEST_CHECKPOINT, ancestors_of, save_checkpoint, training_state
from glyphs.models.network import as_floats
from glyphs.pictures.plain import with_form
from glyphs.training.callbacks import Callback, EpochLine, HistoryFile, ProgressBar, SignalWatch, TensorBoard
from glyphs.training.early_stopping import EarlyStopping
from glyphs.training.loss import make_criterion
from glyphs.training.schedule import make_scheduler
from glyphs.training.step_stats import StepStats

MAX_GRADIENT_NORM = 1.0

Metric = Callable[[Tensor, Tensor], float | Tensor]  # logits float32 [N, C], labels int64 [N] -> a number

log = logging.getLogger(__name__)


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


class Trainer:
    """Trains a model, and writes checkpoints, config.json and history.csv into `config.output_dir`.

    Where several processes work together (`glyphs.core.distributed.process_group`), each takes its share of every
    batch, and process 0 writes.  What they compute is what one would, but for rounding, dropout and batch norm's
    statistics.

    Parameters
    ----------
    model : any module that makes logits, [N, C], of images, float [N, channels, H, W] in [0, 1].  It is moved to the
        device that the settings name.
    train_loader, val_loader : sized iterables of (images, labels), such as a torch DataLoader; see
        `glyphs.data.loaders` for what a batch is.
    config : the settings, as a Config or a dict of those that are not to be the defaults.
    class_names : stored in the checkpoints, one for each output of the model.
    criterion : `criterion(logits, labels)` is the loss of a batch, a mean over its images; by default cross-entropy, as
        the settings say.  The validation loss is cross-entropy in any case.
    optimizer : an optimizer over the model's parameters, or a function of the model that makes one; by default AdamW,
        as the settings say.
    scheduler : any of `torch.optim.lr_scheduler` over that optimizer, or a function of the optimizer that makes one; by
        default the one that the settings name.  It is stepped after every step of the training, `len(train_loader)`
        times an epoch; a ReduceLROnPlateau after every epoch, with the validation loss.
    callbacks : see `glyphs.training.callbacks.Callback`; called in this order.
    metrics : names of further columns of the history, each with a function of all validation logits and labels.
    ancestors : of a model that is fine-tuned, what those before it were trained on, for the checkpoints: see
        `glyphs.models.checkpoint.lineage`.

    Raises
    ------
    ConfigError : the loaders cannot be shared out among the processes there are, or there is no such device.
    DataError : a loader has no batch.

    It does not keep a second process out of the folder, as the training script does: see
    `glyphs.core.files.claim_folder`.

    Examples
    --------
    A small network of one's own, another optimizer, and an end once it is good enough:

    >>> import tempfile, torch
    >>> from glyphs import Trainer, get_data_loaders
    >>> from glyphs.training.callbacks import Callback
    >>> class GoodEnough(Callback):
    ...     def on_epoch_end(self, trainer, row):
    ...         if row["val_accuracy"] > 0.5:
    ...             trainer.stop()
    >>> config = {"dataset": "demo", "num_epochs": 20, "device": "cpu", "output_dir": tempfile.mkdtemp()}
    >>> data = get_data_loaders(config)
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(28 * 28, len(data.class_names)))
    >>> trainer = Trainer(
    ...     model, data.train, data.val, config, data.class_names,
    ...     optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    ...     scheduler=lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1),
    ...     callbacks=[GoodEnough()],
    ...     metrics={"top3": lambda logits, labels: (logits.topk(3).indices == labels[:, None]).any(1).float().mean()},
    ... )
    >>> history = trainer.fit()
    >>> 0.5 < history[-1]["val_accuracy"] < history[-1]["top3"], len(history) < 20
    (True, True)
    """

    def __init__(
        self,
        model: nn.Module,
        train_loader: Loader,
        val_loader: Loader,
        config: Config | Mapping[str, Any],
        class_names: list[str],
        *,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        optimizer: torch.optim.Optimizer | Callable[[nn.Module], torch.optim.Optimizer] | None = None,
        scheduler: LRScheduler | Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
        callbacks: Sequence[Callback] = (),
        metrics: Mapping[str, Metric] | None = None,
        ancestors: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.config = config if isinstance(config, Config) else Config.from_dict(config)
        if form := getattr(train_loader, "form", None):  # what a checkpoint must say, for pictures to be read as these
            self.config = with_form(self.config, form)
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
        self.ancestors: Sequence[Mapping[str, Any]] = ancestors
        self.output_dir = Path(self.config.output_dir)
        self.num_steps = len(train_loader)

        self.dtype = autocast_dtype(self.device, self.config.precision)
        self.criterion = criterion or make_criterion(self.config, train_loader, len(class_names))
        if isinstance(self.criterion, nn.Module):
            self.criterion.to(self.device)
        if not isinstance(optimizer, torch.optim.Optimizer):
            optimizer = optimizer(self.model) if optimizer is not None else make_optimizer(self.model, self.config)
        self.optimizer = optimizer
        if not isinstance(scheduler, LRScheduler):
            scheduler = (
                scheduler(self.optimizer)
                if scheduler is not None
                else make_scheduler(self.optimizer, self.config, self.num_steps)
            )
        self.scheduler = scheduler
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.early_stopping = EarlyStopping(self.config.early_stopping_patience)
        self.metrics = dict(metrics or {})
        self.callbacks = [*callbacks]
        if rank() == 0:
            self.callbacks += [ProgressBar(), EpochLine(), HistoryFile()]
            self.callbacks += [TensorBoard()] if self.config.tensorboard else []

        self.epoch = 0  # epochs complete
        self.step = 0  # steps done of the epoch under way
        self.epoch_seconds = 0.0  # spent on them
        # A row of StepStats for each step, left on the device: reading one waits for it.  The sum of the processes'
        # tables is what happened; see `step_stats`.
        self.own_stats = torch.zeros(self.num_steps, 4, dtype=sums_dtype(self.device), device=self.device)
        self.step_rate = self.learning_rate  # of the last step done
        self.val_images = math.inf  # that the last validation's accuracy is a mean over
        self.history: list[dict[str, float]] = []
        self.signals = SignalWatch()
        self._stop_asked = False  # here, by a callback
        self._stopping = False  # all processes know
        self._exchange = Exchange()
        self._saved_at = time.monotonic()

    @property
    def finished(self) -> bool:
        """No epoch is left, or early stopping has ended the run."""
        return self.epoch >= self.config.num_epochs or self.early_stopping.should_stop

    @property
    def learning_rate(self) -> float:
        """That of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def stop(self) -> None:
        """End the run after this step or epoch, for callbacks; a resumed one would go on from there."""
        self._stop_asked = True

    def fit(self) -> list[dict[str, float]]:
        """Train to the end; afterwards the model holds the weights of best_model.pth.

        Returns
        -------
        history : a row an epoch, as in history.csv.

        Raises
        ------
        ConfigError : the scheduler steps another optimizer than this trainer's.
        TrainingError : the loss or the gradient is not finite.  The last good checkpoint stays.
        Interrupted : Ctrl-C, SIGTERM or SIGHUP came; latest_checkpoint.pth holds the state of that moment.
        GlyphError : a file cannot be written.
        """
        if getattr(self.scheduler, "optimizer", self.optimizer) is not self.optimizer:
            raise ConfigError(
                "the scheduler steps another optimizer than the one that trains, whose rate would stay as it is; give "
                "the Trainer an optimizer and a scheduler over it, or functions that make them"
            )
        if rank() == 0:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            replace_file(self.output_dir / "config.json", (json.dumps(self.config.to_dict(), indent=2) + "\n").encode())
        self._saved_at = time.monotonic()
        self._stop_asked = self._stopping = False
        try:
            with self.signals:
                while not (self.finished or self._stopping):
                    self._train_epoch()
                    if self.step == self.num_steps:
                        self._end_epoch()
                        self._end_where_signalled(self._orders(at_once=True))
                    else:  # a callback has stopped it
                        self._check_finite()
                        self.save()
        finally:
            for callback in self.callbacks:
                callback.on_fit_end(self)
        if self.early_stopping.should_stop:
            log.info("stopped early: no better validation loss for %d epochs", self.early_stopping.patience)
        self.early_stopping.restore(self.model)
        if best := self.early_stopping.best:
            log.info(
                f"{BEST_MODEL} is epoch {best['epoch']}: validation accuracy {best['val_accuracy']:.2%}, "
                f"loss {best['val_loss']:.3f}"
            )
        barrier()  # what process 0 has written, all may now read
        return self.history

    def _train_epoch(self) -> None:
        """Train to the end of the epoch, or to where a callback stops it."""
        self.model.train()
        for callback in self.callbacks:
            callback.on_epoch_start(self)
        started = time.perf_counter() - self.epoch_seconds
        # Each process has its own dropout.
        seed = self.config.seed if rank() == 0 else address(self.config.seed, "process", rank())
        for step, (images, labels) in fetch_steps(self.train_loader, seed, self.epoch, self.step):
            part = self.train_loader.part_of(step) if isinstance(self.train_loader, Divisible) else 1.0
            images, labels = move(images, self.device), move(labels, self.device)
            self.own_stats[step] = torch.stack(self.train_step(images, labels, part))
            self.step = step + 1
            self.epoch_seconds = time.perf_counter() - started
            for callback in self.callbacks:
                callback.on_step_end(self)
            orders = self._orders()
            if orders.report:
                self._report()
            self._end_where_signalled(orders)
            if orders.save:
                self._check_finite()
                self.save()
            if self._stopping:
                return

    def train_step(self, images: Tensor, labels: Tensor, part: float = 1.0) -> StepStats:
        """One update of the weights; what it returns lies on the device, and nothing here waits for the device.

        part : of the step's images, these are; the other processes have the others.
        """
        self.optimizer.zero_grad()
        with self._autocast():
            logits = self._train_forward(images)
            # A process without images must still take part in averaging the gradients: with zeros.
            loss = self.criterion(logits, labels) * part if len(labels) else logits.sum()
        # The mean over the processes of these gradients is the gradient of the whole batch's mean loss.
        self.scaler.scale(loss * world_size()).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step_rate = self.learning_rate
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        correct = (logits.argmax(1) == labels).sum()
        # All processes have the same norm: one counts it.
        return StepStats(loss.detach(), correct, correct.new_full((), len(labels)), norm * (rank() == 0))

    def _train_forward(self, images: Tensor) -> Tensor:
        try:
            return self._classify(self.parallel_model, images)
        except ValueError as error:  # which batch norm over nothing but channels raises
            if len(images) != 1 or "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(
                "a batch of one image tells the network's batch norm no variance; choose larger batches, and let your "
                "own DataLoader leave out the last by drop_last=True"
            ) from None

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def _classify(self, model: nn.Module, images: Tensor) -> Tensor:
        logits: Tensor = model(as_floats(images))
        if logits.shape != (len(images), len(self.class_names)):
            raise ConfigError(
                f"the model answers {len(images)} images with {list(logits.shape)} numbers; it needs one for each of "
                f"the {len(self.class_names)} classes"
            )
        return logits

    def _end_epoch(self) -> dict[str, float]:
        """Validate, write the checkpoints, and return the epoch's row of the history."""
        self._check_finite()
        validation = self.validate()
        loss, accuracy, images = self.step_stats().summary()
        row = {
            "epoch": self.epoch + 1,
            "train_loss": loss,
            "train_accuracy": accuracy,
            **validation,
            "learning_rate": self.step_rate,
            "images_per_second": images / self.epoch_seconds,
            "seconds": self.epoch_seconds,
        }
        self.history.append(row)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(validation["val_loss"])
        best = self.early_stopping.update(
            validation["val_loss"], self.model, validation["val_accuracy"], self.val_images, epoch=row["epoch"]
        )
        self.epoch += 1
        self.step = 0
        self.epoch_seconds = 0.0
        if best:
            self._write_best()
        for callback in self.callbacks:
            callback.on_epoch_end(self, row)
        # Last: were the run killed before this, it would do the epoch's end again, with the same result.
        self.save()
        return row

    def validate(self) -> dict[str, float]:
        """`val_loss` (cross-entropy without label smoothing), `val_accuracy` and the caller's metrics on the validation
        images.

        With a uniform class prior the first two are means over the classes, each of which counts alike.
        """
        spread_buffers(self.model)
        self.model.eval()
        # For a user's own loader that draws at random: a resumed run must see the same images.
        seed_everything(address(self.config.seed, "validation", self.epoch))
        totals = torch.zeros(3, len(self.class_names), dtype=sums_dtype(self.device), device=self.device)  # by class
        seen: list[tuple[Tensor, Tensor]] = []
        batches = start_anew(self.val_loader)
        batches = progress(
            batches, total=len(self.val_loader), seconds=60, desc="validating", unit="batch", leave=False
        )
        for _, labels, output in run_model(self._infer, batches, self.device):
            losses = F.cross_entropy(output, labels, reduction="none")
            correct = output.argmax(1) == labels
            totals.index_add_(1, labels, torch.stack([losses, correct, torch.ones_like(losses)]).to(totals.dtype))
            if self.metrics:
                seen.append((output, labels))
            self._end_where_signalled(self._orders())
        totals = total(totals.cpu().double())
        self.val_images = float(totals[2].sum())
        if self.config.class_prior == "uniform":
            totals = totals[:, totals[2] > 0]
            # A mean over classes is as uncertain as one over this many images: a rare class makes it so.
            self.val_images = float(totals.shape[1] ** 2 / (1 / totals[2]).sum())
            totals = totals / totals[2]
        loss_sum, correct_sum, count = totals.sum(1).tolist()
        if not math.isfinite(loss_sum):
            raise TrainingError(
                f"epoch {self.epoch + 1}, step {self.num_steps}: the validation loss is {loss_sum} at learning rate "
                f"{self.learning_rate:.3g}; lower --learning-rate"
            )
        return {"val_loss": loss_sum / count, "val_accuracy": correct_sum / count, **self._measure(seen)}

    def _infer(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self._classify(self.model, images).float()

    def _measure(self, seen: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """The caller's metrics, from the logits and labels of this process's validation batches."""
        if not self.metrics:
            return {}
        logits, labels = (torch.cat(parts).cpu() for parts in zip(*seen, strict=True))
        if isinstance(self.val_loader, Divisible) and world_size() > 1:
            count = int(total(torch.tensor(len(labels))))
            logits, labels = (merge_rows(rows, self.val_loader.places, count) for rows in (logits, labels))
        return {name: float(metric(logits, labels)) for name, metric in self.metrics.items()}

    def _write_best(self) -> None:
        """Write best_model.pth from the weights that the model holds."""
        if rank() == 0:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            metrics = {key: self.early_stopping.best[key] for key in ("epoch", "val_loss", "val_accuracy")}
            path = self.output_dir / BEST_MODEL
            save_checkpoint(path, self.model, self.config, self.class_names, metrics=metrics, ancestors=self.ancestors)

    def save(self) -> None:
        """Write latest_checkpoint.pth: everything that a resumed run needs."""
        training = {
            "epoch": self.epoch,
            "step": self.step,
            "num_steps": self.num_steps,
            "epoch_seconds": self.epoch_seconds,
            "step_stats": torch.stack(self.step_stats(), dim=1),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "early_stopping": self.early_stopping.state_dict(),
            "step_rate": self.step_rate,
            "history": self.history,
            "fingerprint": self._fingerprint[0],
            "val_fingerprint": self._fingerprint[1],
        }
        path = self.output_dir / LATEST_CHECKPOINT
        metrics = {key: self.history[-1][key] for key in ("epoch", "val_loss", "val_accuracy") if self.history}
        if rank() == 0:
            save_checkpoint(
                path,
                self.model,
                self.config,
                self.class_names,
                metrics=metrics,
                training=training,
                ancestors=self.ancestors,
            )
        self._saved_at = time.monotonic()

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        """Take up the state of a loaded latest_checkpoint.pth; `fit` then goes on from that step.

        Raises
        ------
        CheckpointError : it holds no training state, or comes from other data, classes or another architecture.
        """
        training = training_state(checkpoint, self.class_names, self.num_steps, self._fingerprint)
        self.ancestors = ancestors_of(checkpoint)
        stopping = dict(training["early_stopping"])
        if "best" not in stopping and training["history"]:  # of the version that kept the weights of the lowest loss
            stopping["best"] = min(training["history"], key=lambda row: row["val_loss"])
            stopping["best_accuracy"] = max(row["val_accuracy"] for row in training["history"])
        self.early_stopping.load_state_dict(stopping)
        try:
            if self.early_stopping.best and not (self.output_dir / BEST_MODEL).exists():
                self.early_stopping.restore(self.model)
                self._write_best()
                log.info("%s was missing: it is written again, from the checkpoint", self.output_dir / BEST_MODEL)
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(training["optimizer"])
            self.scheduler.load_state_dict(training["scheduler"])
            if training["scaler"]:  # empty where the run so far needed no scaler: this one then begins as in a new run
                self.scaler.load_state_dict(training["scaler"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint is of another architecture ({first_line(error)}); resume with the settings that it "
                "began with"
            ) from None
        self.epoch, self.step = training["epoch"], training["step"]
        self.epoch_seconds = training["epoch_seconds"]
        if rank() == 0:
            self.own_stats[: self.step] = training["step_stats"].to(self.own_stats.dtype).to(self.device)
        self.step_rate = training.get("step_rate", self.learning_rate)
        self.history = training["history"]

    @functools.cached_property
    def _fingerprint(self) -> tuple[int | None, int | None]:
        """Of the training and of the validation images, where their loaders can tell."""
        train, val = (getattr(loader, "fingerprint", lambda: None)() for loader in (self.train_loader, self.val_loader))
        return train, val

    def step_stats(self) -> StepStats:
        """What happened at the steps done of this epoch, over all processes, which must call this together."""
        return StepStats(*total(self.own_stats[: self.step].cpu().double()).unbind(1))

    def _check_finite(self) -> None:
        stats = self.step_stats()
        step = stats.first_bad(is_scaled=self.scaler.is_enabled())
        if step is None:
            return
        rate = self.learning_rate
        if isinstance(self.scheduler, LambdaLR):
            done = self.epoch * self.num_steps + step
            rate = float(self.scheduler.base_lrs[0] * self.scheduler.lr_lambdas[0](done))
        raise TrainingError(
            f"epoch {self.epoch + 1}, step {step + 1} of {self.num_steps}: the loss is {float(stats.loss[step])} and "
            f"the gradient norm {float(stats.gradient_norm[step])} at learning rate {rate:.3g}; lower --learning-rate. "
            "An earlier checkpoint, where there is one, is untouched"
        )

    def _report(self) -> None:
        self._check_finite()
        loss, accuracy, images = self.step_stats().summary()
        so_far = {
            "loss": loss,
            "accuracy": accuracy,
            "learning_rate": self.learning_rate,
            "images_per_second": images / self.epoch_seconds,
        }
        for callback in self.callbacks:
            callback.on_report(self, so_far)

    def _orders(self, *, at_once: bool = False) -> Orders:
        due = time.monotonic() - self._saved_at > self.config.checkpoint_every
        orders = self._exchange.orders(self.signals.received, due, self._stop_asked, at_once=at_once)
        self._stopping |= orders.stop
        return orders

    def _end_where_signalled(self, orders: Orders) -> None:
        """If a signal came, save and raise Interrupted."""
        if orders.signum is None:
            return
        self._check_finite()
        self.save()
        path = self.output_dir / LATEST_CHECKPOINT
        log.info(
            "saved after epoch %d, step %d of %d; go on with --resume %s", self.epoch, self.step, self.num_steps, path
        )
        raise Interrupted(orders.signum)
