"""The Trainer with modules, criteria, optimizers, schedules, callbacks and metrics of the user's own."""

import csv
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from glyphs.core.errors import ConfigError, DataError
from glyphs.core.protocols import Batch
from glyphs.core.randomness import seed_everything
from glyphs.data.loaders import TensorLoader
from glyphs.models.checkpoint import BEST_MODEL, LATEST_CHECKPOINT, load_checkpoint
from glyphs.training.callbacks import Callback, Run
from glyphs.training.trainer import Trainer
from tests.small import CLASSES, all_state, assert_identical, make_config, make_images, make_loaders


def plain_module() -> nn.Sequential:
    """Neither our class, nor num_classes, nor a temperature, nor an answer to bytes."""
    seed_everything(0)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(49, len(CLASSES)))


def open_trainer(folder: Path, model: nn.Module | None = None, **arguments: Any) -> Trainer:
    settings = arguments.pop("settings", {})
    return Trainer(model or plain_module(), *make_loaders(), make_config(folder, **settings), CLASSES, **arguments)


class Normed(nn.Sequential):
    """With batch norm over features, which a batch of one image has no variance for."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(28 * 28, 8), nn.BatchNorm1d(8), nn.Linear(8, len(CLASSES)))


def test_an_image_that_is_left_over_does_not_stop_batch_norm(tmp_path: Path) -> None:
    train = TensorLoader(*make_images(33, 1), 16, shuffle_seed=1)
    [row] = Trainer(Normed(), train, make_loaders()[1], make_config(tmp_path, num_epochs=1), CLASSES).fit()
    assert math.isfinite(row["val_loss"])


def test_an_image_that_a_users_loader_leaves_over_is_told_with_the_remedy(tmp_path: Path) -> None:
    images, labels = make_images(33, 1)
    train = DataLoader(TensorDataset(images, labels), batch_size=16)
    with pytest.raises(ConfigError, match="drop_last=True"):
        Trainer(Normed(), train, make_loaders()[1], make_config(tmp_path, num_epochs=1), CLASSES).fit()


def test_a_loader_shorter_than_its_len_is_told(tmp_path: Path) -> None:
    class Short:
        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[Batch]:
            return iter(TensorLoader(*make_images(32, 1), 16))

    trainer = Trainer(plain_module(), Short(), make_loaders()[1], make_config(tmp_path), CLASSES)
    with pytest.raises(DataError, match=r"ended after 2 batches, but its len\(\) is 4"):
        trainer.fit()


class Noting(Callback):
    """Notes what it is told, and stops the run where it should."""

    def __init__(self, stop_after: tuple[int, int] | None = None) -> None:
        self.stop_after = stop_after
        self.steps: list[tuple[int, int]] = []
        self.rows: list[dict[str, float]] = []
        self.reports: list[Mapping[str, float]] = []
        self.ends = 0

    def on_step_end(self, trainer: Run) -> None:
        self.steps.append((trainer.epoch, trainer.step))
        if self.steps[-1] == self.stop_after:
            trainer.stop()

    def on_report(self, trainer: Run, so_far: Mapping[str, float]) -> None:
        self.reports.append(so_far)

    def on_epoch_end(self, trainer: Run, row: dict[str, float]) -> None:
        self.rows.append(row)
        if (trainer.epoch, 0) == self.stop_after:
            trainer.stop()

    def on_fit_end(self, trainer: Run) -> None:
        self.ends += 1


def test_a_plain_module_trains_and_resumes_the_same(tmp_path: Path) -> None:
    def trainer(folder: str, *callbacks: Callback) -> Trainer:
        return open_trainer(
            tmp_path / folder,
            optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9),
            scheduler=lambda optimizer: ExponentialLR(optimizer, 0.95),
            callbacks=callbacks,
        )

    history = trainer("whole").fit()
    assert len(history) == 3
    assert history[-1]["val_accuracy"] > 0.9
    assert history[-1]["learning_rate"] == pytest.approx(0.3 * 0.95**14)  # stepped after each of 3 * 5 steps
    trainer("stopped", Noting((1, 2))).fit()
    resumed = trainer("stopped")
    resumed.resume(load_checkpoint(tmp_path / "stopped" / LATEST_CHECKPOINT))
    assert (resumed.epoch, resumed.step) == (1, 2)
    resumed.fit()
    assert_identical(all_state(tmp_path / "stopped"), all_state(tmp_path / "whole"))


def test_a_criterion_of_the_users_is_what_is_minimised(tmp_path: Path) -> None:
    asked = 0

    def always_the_first(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return nn.functional.cross_entropy(logits, torch.zeros_like(labels))

    model = plain_module()
    open_trainer(tmp_path, model, criterion=always_the_first, settings={"learning_rate": 0.1}).fit()
    assert asked == 3 * 5
    assert (model(make_images(30, 2)[0].float() / 255).argmax(1) == 0).all()


def test_a_criterion_that_is_a_module_has_its_class_weights(tmp_path: Path) -> None:
    weights = torch.tensor([0.0, 1.0, 0.0])
    trainer = open_trainer(tmp_path, criterion=nn.CrossEntropyLoss(weights))
    images, labels = make_images(16, 4)
    loss = trainer.train_step(images, labels).loss
    seed_everything(0)
    logits = plain_module()(images.float() / 255)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, labels, weights).detach())


def test_an_optimizer_and_a_scheduler_that_are_there_already(tmp_path: Path) -> None:
    model = plain_module()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    trainer = open_trainer(tmp_path, model, optimizer=optimizer, scheduler=StepLR(optimizer, 5, 0.5))
    assert trainer.optimizer is optimizer
    assert [row["learning_rate"] for row in trainer.fit()] == [0.2, 0.1, 0.05]


def test_a_plateau_schedule_of_the_users_is_stepped_after_each_epoch(tmp_path: Path) -> None:
    class Counting(ReduceLROnPlateau):
        losses: list[float] = []  # noqa: RUF012

        def step(self, metrics: Any, epoch: int | None = None) -> None:  # type: ignore[override]
            self.losses.append(metrics)
            super().step(metrics)

    history = open_trainer(tmp_path, scheduler=Counting).fit()
    assert Counting.losses == [row["val_loss"] for row in history]


def test_a_schedule_over_another_optimizer_is_refused(tmp_path: Path) -> None:
    """Else the rate would stay as it is, without a word."""
    trainer = open_trainer(tmp_path)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="steps another optimizer"):
        trainer.fit()
    assert not list(tmp_path.iterdir())


def test_a_model_with_another_number_of_outputs_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, len(CLASSES) + 1))
    with pytest.raises(ConfigError, match=r"answers 16 images with \[16, 4\] numbers.* 3 classes"):
        open_trainer(tmp_path, model).fit()


def test_callbacks_are_told_of_every_step_and_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glyphs.core.distributed.EXCHANGE_EVERY", 0.0)
    noting = Noting()
    trainer = open_trainer(tmp_path, callbacks=[noting])
    assert trainer.fit() == noting.rows
    assert noting.steps == [(epoch, step) for epoch in range(3) for step in range(1, 6)]
    assert set(noting.reports[0]) == {"loss", "accuracy", "learning_rate", "images_per_second"}
    assert noting.ends == 1


def test_a_callback_stops_the_run_after_an_epoch(tmp_path: Path) -> None:
    trainer = open_trainer(tmp_path, callbacks=[Noting((2, 0))])
    assert len(trainer.fit()) == 2
    assert not trainer.finished
    assert load_checkpoint(tmp_path / LATEST_CHECKPOINT)["training"]["epoch"] == 2


def test_a_callback_that_stops_the_run_at_an_epochs_last_step_lets_it_validate(tmp_path: Path) -> None:
    assert len(open_trainer(tmp_path, callbacks=[Noting((0, 5))]).fit()) == 1
    assert (tmp_path / BEST_MODEL).exists()


def test_callbacks_end_where_the_run_fails(tmp_path: Path) -> None:
    class Failing(Callback):
        def on_step_end(self, trainer: Run) -> None:
            raise ZeroDivisionError

    noting = Noting()
    with pytest.raises(ZeroDivisionError):
        open_trainer(tmp_path, callbacks=[noting, Failing()]).fit()
    assert noting.ends == 1


def test_metrics_and_what_callbacks_add_are_columns_of_the_history(tmp_path: Path) -> None:
    class Adding(Callback):
        def on_epoch_end(self, trainer: Run, row: dict[str, float]) -> None:
            row["twice"] = 2 * row["epoch"]

    def second(logits: Tensor, labels: Tensor) -> Tensor:
        assert logits.shape == (30, len(CLASSES))
        return (logits.topk(2).indices[:, 1] == labels).float().mean()

    def train(epochs: int, **arguments: Any) -> Trainer:
        trainer = open_trainer(tmp_path, settings={"num_epochs": epochs}, **arguments)
        if epochs > 1:
            trainer.resume(load_checkpoint(tmp_path / LATEST_CHECKPOINT))
        trainer.fit()
        return trainer

    train(1)
    trainer = train(2, callbacks=[Adding()], metrics={"second": second, "images": lambda logits, _: len(logits)})
    first, row = csv.DictReader((tmp_path / "history.csv").read_text().splitlines())
    assert (row["images"], row["twice"]) == ("30.0", "4")
    with torch.inference_mode():
        logits = trainer.model.eval()(make_images(30, 2)[0].float() / 255)
    expected = float((logits.topk(2).indices[:, 1] == make_images(30, 2)[1]).float().mean())
    assert float(row["second"]) == pytest.approx(expected)  # the last epoch is the best here
    assert first["second"] == ""


def test_metrics_see_all_images_in_order_though_they_come_in_batches(tmp_path: Path) -> None:
    seen: list[Tensor] = []
    images, labels = make_images(30, 2)
    trainer = Trainer(
        plain_module(),
        make_loaders()[0],
        TensorLoader(images, labels, 7),
        make_config(tmp_path, num_epochs=1),
        CLASSES,
        metrics={"nothing": lambda _, truth: seen.append(truth) or 0.0},  # type: ignore[func-returns-value]
    )
    trainer.fit()
    assert torch.equal(seen[0], labels)


def test_what_a_run_says_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "glyphs")
    open_trainer(tmp_path).fit()
    lines = [record.getMessage() for record in caplog.records]
    assert [line[: len("epoch 1/3: loss ")] for line in lines[:-1]] == [f"epoch {n}/3: loss " for n in (1, 2, 3)]
    assert lines[-1].startswith("best_model.pth is epoch 3: validation accuracy 100.00%, loss 0.")
