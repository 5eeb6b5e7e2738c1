"""The Trainer and EarlyStopping, on a few hundred synthetic images."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

from glyphs.core.config import Config
from glyphs.core.devices import use_deterministic_algorithms
from glyphs.core.errors import CheckpointError, ConfigError, DataError, GlyphError, TrainingError
from glyphs.core.process import Interrupted
from glyphs.core.protocols import Batch, Loader, fetch_steps
from glyphs.core.randomness import seed_everything
from glyphs.data.loaders import TensorLoader
from glyphs.models.checkpoint import BEST_MODEL, LATEST_CHECKPOINT, load_checkpoint
from glyphs.models.network import EnhancedGlyphCNN
from glyphs.training import trainer as trainer_module
from glyphs.training.callbacks import Callback, Run
from glyphs.training.early_stopping import EarlyStopping
from glyphs.training.loss import make_criterion
from glyphs.training.schedule import cosine_with_warmup
from glyphs.training.step_stats import StepStats
from glyphs.training.trainer import Trainer, make_optimizer
from tests.small import CLASSES, StopAt, all_state, assert_identical, make_config, make_images, make_loaders


def make_trainer(folder: Path, loaders: tuple[Loader, Loader] | None = None, **settings: Any) -> Trainer:
    config = make_config(folder, **settings)
    seed_everything(0)
    model = EnhancedGlyphCNN(len(CLASSES), config.dropout_rate, config.use_residual)
    train, val = loaders or make_loaders()
    return Trainer(model, train, val, config, CLASSES)


def script_validation(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, results: list[tuple[float, float]]) -> None:
    """Let the trainer's validations give these losses and accuracies."""
    left = (dict(zip(("val_loss", "val_accuracy"), result, strict=True)) for result in results)
    monkeypatch.setattr(trainer, "validate", lambda: next(left))


def test_it_learns_and_writes_what_it_promises(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, num_epochs=14)
    history = trainer.fit()
    assert history[-1]["val_accuracy"] > 0.9
    assert [row["epoch"] for row in history] == list(range(1, 15))
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert [float(row["val_loss"]) for row in rows] == [row["val_loss"] for row in history]
    assert json.loads((tmp_path / "config.json").read_text()) == trainer.config.to_dict()
    best = load_checkpoint(tmp_path / BEST_MODEL)
    assert best["class_names"] == CLASSES
    assert "training" not in best


@pytest.mark.slow
def test_it_learns_in_bfloat16_too(tmp_path: Path) -> None:
    [exact] = make_trainer(tmp_path / "exact", num_epochs=1, use_residual=True).fit()
    [row] = make_trainer(tmp_path / "fast", num_epochs=1, use_residual=True, precision="bfloat16").fit()
    assert row["train_loss"] != exact["train_loss"]
    assert row["train_loss"] == pytest.approx(exact["train_loss"], rel=0.02)


@pytest.mark.parametrize(
    ("results", "best"),
    [
        ([(1.0, 0.5), (0.5, 0.6), (0.9, 0.8)], 3),  # the highest accuracy
        ([(0.97, 1.0), (0.13, 1.0), (0.2, 1.0)], 2),  # a tie: the lower loss, not the first
        ([(0.5, 0.9), (0.5, 0.9), (0.5, 0.9)], 1),
    ],
)
def test_one_rule_for_the_best_model_which_the_file_and_the_trainer_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: list[tuple[float, float]], best: int
) -> None:
    trainer = make_trainer(tmp_path)
    weights_after: list[Tensor] = []
    left = iter(results)

    def validate() -> dict[str, float]:
        weights_after.append(trainer.model.get_parameter("classifier.weight").detach().clone())
        loss, accuracy = next(left)
        return {"val_loss": loss, "val_accuracy": accuracy}

    monkeypatch.setattr(trainer, "validate", validate)
    trainer.fit()
    content = load_checkpoint(tmp_path / BEST_MODEL)
    loss, accuracy = results[best - 1]
    assert content["metrics"] == {"epoch": best, "val_loss": loss, "val_accuracy": accuracy}
    assert torch.equal(content["model"]["classifier.weight"], weights_after[best - 1])
    assert_identical(dict(trainer.model.state_dict()), dict(content["model"]))


def test_it_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, num_epochs=9, early_stopping_patience=2)
    script_validation(trainer, monkeypatch, [(1.0, 0.5), (0.8, 0.5), (0.9, 0.5), (0.85, 0.5)])
    assert len(trainer.fit()) == 4


def test_early_stopping_counts_from_the_lowest_loss() -> None:
    model = nn.Linear(1, 1)
    stopping = EarlyStopping(patience=2)
    for loss, stops in [(1.0, False), (1.1, False), (0.9, False), (0.9, False), (1.0, True)]:
        stopping.update(loss, model)
        assert stopping.should_stop is stops


@pytest.mark.parametrize(
    ("images", "best"),
    [
        (13, 3),  # 12 of 13 may be as good as 13 of 13
        (1300, 2),
    ],
)
def test_accuracies_that_the_images_cannot_tell_apart_are_a_tie(images: int, best: int) -> None:
    stopping, model = EarlyStopping(), nn.Linear(1, 1)
    for epoch, (loss, right) in enumerate([(0.9, 11), (0.8, 13), (0.1, 12), (0.05, 10)], 1):
        stopping.update(loss, model, right / 13, images, epoch=epoch)
    assert stopping.best["epoch"] == best


def test_under_a_uniform_prior_the_accuracy_is_as_uncertain_as_its_rarest_class(tmp_path: Path) -> None:
    loaders = skewed_loaders()  # of six, two and one image
    trainer = make_trainer(tmp_path, loaders, class_prior="uniform")
    trainer.validate()
    assert trainer.val_images == pytest.approx(9 / (1 / 6 + 1 / 2 + 1))
    by_image = make_trainer(tmp_path, loaders)
    by_image.validate()
    assert by_image.val_images == 9


def test_weight_decay_spares_biases_and_norms(tmp_path: Path) -> None:
    model = EnhancedGlyphCNN(3)
    optimizer = make_optimizer(model, make_config(tmp_path, weight_decay=0.5))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        convolution_or_matrix = name.endswith("weight") and parameter.ndim > 1
        assert decay[id(parameter)] == (0.5 if convolution_or_matrix else 0.0), name


def test_gradients_are_clipped_at_norm_one(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.model.get_parameter("classifier.weight").data.mul_(100)
    stats = trainer.train_step(*next(iter(trainer.train_loader)))
    norm = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
    assert stats.gradient_norm > 2  # or the test shows nothing
    assert norm == pytest.approx(1.0, abs=1e-3)


def test_labels_are_smoothed(tmp_path: Path) -> None:
    criterion = make_criterion(make_config(tmp_path, label_smoothing=0.3), [], 4)
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    target = torch.tensor([[0.8, 0.1, 0.1]])
    assert criterion(logits, torch.tensor([0])) == pytest.approx(float(-(target * logits.log_softmax(1)).sum()))


def skewed_loaders() -> tuple[TensorLoader, TensorLoader]:
    """Six images of a, two of b, one of c; no shuffling, one batch."""
    images, labels = torch.rand(9, 1, 28, 28), torch.tensor([0] * 6 + [1] * 2 + [2])
    return TensorLoader(images, labels, 9), TensorLoader(images, labels, 9)


def optimum(criterion: nn.Module, counts: Tensor) -> Tensor:
    """[C, C]: what a model answers to images of each class that has learned them perfectly, by minimising the loss."""
    logits = torch.zeros(len(counts), len(counts), requires_grad=True)
    minimiser = torch.optim.LBFGS([logits], max_iter=300, line_search_fn="strong_wolfe", tolerance_change=0)

    def losses() -> Tensor:
        minimiser.zero_grad()
        each = [criterion(row[None], torch.tensor([label])) for label, row in enumerate(logits)]
        loss: Tensor = torch.stack(each).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    minimiser.step(losses)  # type: ignore[no-untyped-call]
    return logits.detach().softmax(dim=1)


@pytest.mark.parametrize("smoothing", [0.03, 0.1, 0.5])
def test_under_a_uniform_prior_the_optimum_is_the_right_answer_however_rare_the_class(smoothing: float) -> None:
    counts = torch.tensor([2000, 50, 400])
    images = TensorLoader(torch.zeros(2450, 1, 1, 1), torch.arange(3).repeat_interleave(counts), 9)
    config = Config(class_prior="uniform", label_smoothing=smoothing)
    answers = optimum(make_criterion(config, images, 3), counts)
    assert answers.argmax(dim=1).tolist() == [0, 1, 2]
    # What smoothing leaves for the wrong answers does not favour any of them: the prior is uniform.
    for label, row in enumerate(answers):
        first, second = row[torch.arange(3) != label].tolist()
        assert first == pytest.approx(second, rel=0.01)


def test_without_smoothing_a_uniform_prior_is_that_of_the_adjusted_logits() -> None:
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])
    config = Config(class_prior="uniform", label_smoothing=0.0)
    loss = make_criterion(config, skewed_loaders()[0], 3)(logits, labels)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits + torch.tensor([6, 2, 1]).log(), labels))


@torch.no_grad()
def test_a_uniform_prior_lets_every_class_count_alike_in_validation(tmp_path: Path) -> None:
    loaders = skewed_loaders()
    by_image = make_trainer(tmp_path, loaders)
    by_class = make_trainer(tmp_path, loaders, class_prior="uniform")
    by_class.model.load_state_dict(by_image.model.state_dict())
    logits, labels = by_image.model.eval()(loaders[0].images), loaders[0].labels
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    right = (logits.argmax(1) == labels).float()
    assert 0 < right.sum() < 9  # so that the two means differ
    for trainer, weights in (
        (by_image, torch.full((9,), 1 / 9)),
        (by_class, torch.tensor([1 / 18] * 6 + [1 / 6] * 2 + [1 / 3])),
    ):
        expected = {"val_loss": float((losses * weights).sum()), "val_accuracy": float((right * weights).sum())}
        assert trainer.validate() == pytest.approx(expected)


def test_a_class_without_validation_images_does_not_count(tmp_path: Path) -> None:
    train, _ = skewed_loaders()
    val = TensorLoader(train.images, train.labels, 9, index=torch.arange(8))  # none of c
    validation = make_trainer(tmp_path, (train, val), class_prior="uniform").validate()
    assert math.isfinite(validation["val_loss"])
    assert 0 <= validation["val_accuracy"] <= 1


def test_a_uniform_prior_needs_a_loader_that_counts_its_classes(tmp_path: Path) -> None:
    loader = DataLoader(Noisy(), batch_size=4)
    with pytest.raises(ConfigError, match=r"class_prior 'uniform' needs .* class_counts"):
        make_trainer(tmp_path, (loader, loader), class_prior="uniform")


@pytest.mark.parametrize(
    ("progress", "share"), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.55, 0.5), (1.0, 0.0), (1.5, 0.0)]
)
def test_cosine_schedule(progress: float, share: float) -> None:
    assert cosine_with_warmup(progress, 0.1) == pytest.approx(share, abs=1e-12)


def test_cosine_schedule_in_a_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, num_epochs=10, warmup_epochs=2)
    rates = [row["learning_rate"] for row in trainer.fit()]
    assert max(rates) == rates[1] == pytest.approx(0.01, rel=0.02)
    assert rates[0] == pytest.approx(0.005, rel=0.1)  # the last of five steps, of ten of the warm-up
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert 1e-6 < rates[-1] < 1e-4  # of a step that was made


def test_a_row_of_the_history_has_the_rate_of_the_epochs_last_step(tmp_path: Path) -> None:
    class Rates(Callback):
        def __init__(self) -> None:
            self.seen = [0.01 / 16]

        def on_step_end(self, trainer: Run) -> None:
            self.seen.append(trainer.optimizer.param_groups[0]["lr"])  # of the next step

    trainer = make_trainer(tmp_path)
    trainer.callbacks.append(rates := Rates())
    steps = trainer.num_steps
    assert [row["learning_rate"] for row in trainer.fit()] == [rates.seen[n * steps - 1] for n in (1, 2, 3)]


def test_plateau_schedule_lowers_the_rate_where_the_loss_stalls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, scheduler="plateau", num_epochs=6)
    script_validation(trainer, monkeypatch, [(1.0, 0.5)] * 6)
    assert [row["learning_rate"] for row in trainer.fit()] == [0.01] * 5 + [pytest.approx(0.001)]


@pytest.mark.parametrize("scheduler", ["cosine", "plateau"])
@pytest.mark.parametrize("stop", [(0, 2), (1, 0), (1, 4)], ids=["first-epoch", "epoch-start", "epoch-end"])
def test_a_run_that_was_stopped_and_resumed_ends_the_same(
    tmp_path: Path, scheduler: str, stop: tuple[int, int]
) -> None:
    make_trainer(tmp_path / "whole", scheduler=scheduler).fit()
    stopping = StopAt(make_loaders()[0], *stop)
    trainer = make_trainer(tmp_path / "stopped", (stopping, make_loaders()[1]), scheduler=scheduler)
    stopping.trainer = trainer
    with pytest.raises(Interrupted):
        trainer.fit()
    resumed = make_trainer(tmp_path / "stopped", scheduler=scheduler)
    resumed.resume(load_checkpoint(tmp_path / "stopped" / LATEST_CHECKPOINT))
    assert (resumed.epoch, resumed.step) == (stop[0], stop[1] + 1)
    resumed.fit()
    assert_identical(all_state(tmp_path / "stopped"), all_state(tmp_path / "whole"))


def test_a_run_stopped_in_its_validation_ends_the_same(tmp_path: Path) -> None:
    make_trainer(tmp_path / "whole").fit()
    trainer = make_trainer(tmp_path / "stopped")
    stopping = StopAt(make_loaders()[1], 0, 1)
    stopping.trainer = trainer
    trainer.val_loader = stopping
    with pytest.raises(Interrupted):
        trainer.fit()
    resumed = make_trainer(tmp_path / "stopped")
    resumed.resume(load_checkpoint(tmp_path / "stopped" / LATEST_CHECKPOINT))
    assert (resumed.epoch, resumed.step) == (0, resumed.num_steps)
    resumed.fit()
    assert_identical(all_state(tmp_path / "stopped"), all_state(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("float32", "float16"), ("bfloat16", "float16"), ("float16", "float32")])
def test_a_run_goes_on_in_another_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    """As on another device, where `auto` is another precision: float16 alone needs a gradient scaler."""
    monkeypatch.setattr("glyphs.training.trainer.autocast_dtype", lambda *_: getattr(torch, before))
    make_trainer(tmp_path, num_epochs=1).fit()
    monkeypatch.setattr("glyphs.training.trainer.autocast_dtype", lambda *_: getattr(torch, after))
    resumed = make_trainer(tmp_path, num_epochs=2)
    resumed.resume(load_checkpoint(tmp_path / LATEST_CHECKPOINT))
    assert resumed.scaler.is_enabled() is (after == "float16")
    assert len(resumed.fit()) == 2
    # The scaler's own state is kept for the next resumption, where there is one.
    assert bool(load_checkpoint(tmp_path / LATEST_CHECKPOINT)["training"]["scaler"]) is (after == "float16")


def test_the_trainer_itself_sees_to_determinism(tmp_path: Path) -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        make_trainer(tmp_path, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        make_trainer(tmp_path)  # does not switch off what is on
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        use_deterministic_algorithms(False)


def test_a_schedule_of_the_users_is_stepped_and_resumed(tmp_path: Path) -> None:
    def with_one_cycle(folder: Path, loader: Loader) -> Trainer:
        trainer = make_trainer(folder, (loader, make_loaders()[1]))
        trainer.scheduler = OneCycleLR(trainer.optimizer, max_lr=0.01, total_steps=3 * trainer.num_steps)
        return trainer

    whole = with_one_cycle(tmp_path / "whole", make_loaders()[0])
    rates = [row["learning_rate"] for row in whole.fit()]
    assert max(rates) == rates[0] == pytest.approx(0.01, rel=0.05)  # the peak of the cycle is at three tenths
    assert rates[-1] < 1e-4
    stopping = StopAt(make_loaders()[0], 1, 2)
    stopping.trainer = with_one_cycle(tmp_path / "stopped", stopping)
    with pytest.raises(Interrupted):
        stopping.trainer.fit()
    resumed = with_one_cycle(tmp_path / "stopped", make_loaders()[0])
    resumed.resume(load_checkpoint(tmp_path / "stopped" / LATEST_CHECKPOINT))
    resumed.fit()
    assert_identical(all_state(tmp_path / "stopped"), all_state(tmp_path / "whole"))


@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_loader_without_a_batch_is_refused(tmp_path: Path, part: str) -> None:
    full, _ = make_loaders()
    empty = DataLoader(Noisy(), batch_size=64, drop_last=True)  # of 48 images
    with pytest.raises(DataError, match=rf"the {part} loader has no batch"):
        make_trainer(tmp_path, (empty, full) if part == "training" else (full, empty))


def test_workers_that_persist_resume_the_same(tmp_path: Path) -> None:
    def loaders() -> tuple[Loader, Loader]:
        workers: dict[str, Any] = {"num_workers": 1, "persistent_workers": True}
        return (
            DataLoader(Noisy(), batch_size=24, shuffle=True, **workers),
            DataLoader(Noisy(), batch_size=24, **workers),
        )

    make_trainer(tmp_path / "whole", loaders(), num_epochs=2).fit()
    trainer = make_trainer(tmp_path / "stopped", loaders(), num_epochs=2)

    class StopAfterTheFirst(Callback):
        def on_epoch_end(self, run: Run, row: dict[str, float]) -> None:
            trainer.signals.received = 15

    trainer.callbacks.append(StopAfterTheFirst())
    with pytest.raises(Interrupted):
        trainer.fit()
    resumed = make_trainer(tmp_path / "stopped", loaders(), num_epochs=2)
    resumed.resume(load_checkpoint(tmp_path / "stopped" / LATEST_CHECKPOINT))
    assert resumed.epoch == 1
    resumed.fit()
    assert_identical(all_state(tmp_path / "stopped"), all_state(tmp_path / "whole"))


class Noisy(Dataset[tuple[Tensor, int]]):
    """A user's own dataset, with a random transform that draws from the global generator."""

    def __init__(self) -> None:
        self.images, self.labels = make_images(48, 3)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index].float() / 255
        return (image + 0.1 * torch.rand_like(image)).clamp(0, 1), int(self.labels[index])


def test_a_users_own_dataloader_trains_and_resumes_the_same(tmp_path: Path) -> None:
    def loaders() -> tuple[Loader, Loader]:
        return DataLoader(Noisy(), batch_size=8, shuffle=True), DataLoader(Noisy(), batch_size=8)

    make_trainer(tmp_path / "whole", loaders(), num_epochs=2).fit()
    trainer = make_trainer(tmp_path / "stopped", loaders(), num_epochs=2, checkpoint_every=1e-9)
    whole_step, taken = trainer.train_step, 0

    def fail_in_second_epoch(images: Tensor, labels: Tensor, part: float = 1.0) -> StepStats:
        nonlocal taken
        taken += 1
        if taken == 9:
            raise KeyboardInterrupt
        return whole_step(images, labels)

    trainer.train_step = fail_in_second_epoch  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    resumed = make_trainer(tmp_path / "stopped", loaders(), num_epochs=2)
    resumed.resume(load_checkpoint(tmp_path / "stopped" / LATEST_CHECKPOINT))
    assert (resumed.epoch, resumed.step) == (1, 2)
    resumed.fit()
    assert_identical(all_state(tmp_path / "stopped"), all_state(tmp_path / "whole"))


def test_a_finished_run_goes_on_with_more_epochs(tmp_path: Path) -> None:
    make_trainer(tmp_path, num_epochs=1).fit()
    longer = make_trainer(tmp_path, num_epochs=2)
    longer.resume(load_checkpoint(tmp_path / LATEST_CHECKPOINT))
    assert not longer.finished
    assert len(longer.fit()) == 2


def test_resuming_on_other_data_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, num_epochs=1).fit()
    train, val = make_loaders()
    train.images[0, 0, 0, 0] += 1
    with pytest.raises(CheckpointError, match="training images"):
        make_trainer(tmp_path, (train, val)).resume(load_checkpoint(tmp_path / LATEST_CHECKPOINT))


def test_resuming_on_another_validation_part_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, num_epochs=1).fit()
    train, val = make_loaders()
    val.images[0, 0, 0, 0] += 1
    with pytest.raises(CheckpointError, match="validation images are not those"):
        make_trainer(tmp_path, (train, val)).resume(load_checkpoint(tmp_path / LATEST_CHECKPOINT))


def test_a_best_model_that_is_missing_is_written_again_when_the_run_is_resumed(tmp_path: Path) -> None:
    make_trainer(tmp_path, num_epochs=2).fit()
    best = load_checkpoint(tmp_path / BEST_MODEL)
    (tmp_path / BEST_MODEL).unlink()
    trainer = make_trainer(tmp_path, num_epochs=3)
    trainer.resume(latest := load_checkpoint(tmp_path / LATEST_CHECKPOINT))
    again = load_checkpoint(tmp_path / BEST_MODEL)
    assert_identical(dict(again["model"]), dict(best["model"]))
    assert again["metrics"] == best["metrics"]
    assert_identical(dict(trainer.model.state_dict()), dict(latest["model"]))  # from which it goes on


def test_a_run_that_an_older_version_began_goes_on(tmp_path: Path) -> None:
    make_trainer(tmp_path, num_epochs=2).fit()
    latest = load_checkpoint(tmp_path / LATEST_CHECKPOINT)
    training = latest["training"]
    for name in ("best", "best_accuracy"):
        del training["early_stopping"][name]
    for name in ("step_rate", "val_fingerprint"):
        del training[name]
    trainer = make_trainer(tmp_path, num_epochs=3)
    trainer.resume(latest)
    lowest = min(training["history"], key=lambda row: row["val_loss"])
    assert trainer.early_stopping.best["epoch"] == lowest["epoch"]
    assert len(trainer.fit()) == 3


def test_resuming_another_architecture_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, num_epochs=1).fit()
    with pytest.raises(CheckpointError, match="architecture"):
        make_trainer(tmp_path, use_residual=True).resume(load_checkpoint(tmp_path / LATEST_CHECKPOINT))


def test_resuming_from_weights_alone_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, num_epochs=1).fit()
    with pytest.raises(CheckpointError, match=LATEST_CHECKPOINT):
        make_trainer(tmp_path).resume(load_checkpoint(tmp_path / BEST_MODEL))


class WithNan:
    """Gives one batch of NaN at the third step of the second epoch."""

    def __init__(self) -> None:
        self.loader = make_loaders()[0]

    def __len__(self) -> int:
        return len(self.loader)

    def seek(self, epoch: int, first_step: int) -> None:
        self.loader.seek(epoch, first_step)

    def __iter__(self) -> Iterator[Batch]:
        for step, (images, labels) in enumerate(self.loader):
            bad = (self.loader.epoch, step) == (1, 2)
            yield (torch.full_like(images, math.nan) if bad else images), labels


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_good_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, (WithNan(), make_loaders()[1]))
    with pytest.raises(TrainingError, match=r"epoch 2, step 3 of 5: the loss is nan .* at learning rate 0\.00\d+"):
        trainer.fit()
    kept = load_checkpoint(tmp_path / LATEST_CHECKPOINT)
    assert kept["training"]["epoch"] == 1
    assert all(weights.isfinite().all() for weights in kept["model"].values())


def test_a_checkpoint_is_never_written_from_weights_that_are_not_finite(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, (WithNan(), make_loaders()[1]), checkpoint_every=1e-9)
    with pytest.raises(TrainingError):
        trainer.fit()
    kept = load_checkpoint(tmp_path / LATEST_CHECKPOINT)
    assert (kept["training"]["epoch"], kept["training"]["step"]) == (1, 2)


def test_a_save_that_fails_leaves_the_checkpoint_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path)
    trainer.fit()
    before = (tmp_path / LATEST_CHECKPOINT).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(GlyphError, match=r"latest_checkpoint\.pth: cannot be written .*untouched; free some space"):
        trainer.save()
    assert (tmp_path / LATEST_CHECKPOINT).read_bytes() == before


@pytest.mark.slow
def test_tensorboard_writes_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    make_trainer(tmp_path, num_epochs=1, tensorboard=True).fit()
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_tensorboard_missing_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        make_trainer(tmp_path, tensorboard=True)


def test_sums_in_float32_are_as_good_for_devices_without_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_trainer(tmp_path / "double", class_prior="uniform", num_epochs=2).fit()
    monkeypatch.setattr(trainer_module, "sums_dtype", lambda device: torch.float32)
    trainer = make_trainer(tmp_path / "single", class_prior="uniform", num_epochs=2)
    found = trainer.fit()
    assert trainer.own_stats.dtype is torch.float32
    for row, other in zip(found, expected, strict=True):
        for name in row.keys() - {"seconds", "images_per_second"}:
            assert row[name] == pytest.approx(other[name], rel=1e-5), name
    resumed = make_trainer(tmp_path / "single", class_prior="uniform", num_epochs=3)
    resumed.resume(load_checkpoint(tmp_path / "double" / LATEST_CHECKPOINT))
    assert resumed.own_stats.dtype is torch.float32


# Operators whose result the CPU has to see: on a GPU, each waits until everything before it is done.
WAITING = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten.is_nonzero"}


class Operators(TorchDispatchMode):
    """Notes the names of all operators that run under it, the backward pass included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("use_residual", [False, True])
def test_no_step_waits_for_the_device(tmp_path: Path, use_residual: bool) -> None:
    trainer = make_trainer(tmp_path, use_residual=use_residual)
    with Operators() as operators:
        for step, batch in fetch_steps(trainer.train_loader, 0, 0):
            trainer.own_stats[step] = torch.stack(trainer.train_step(*batch))
    assert {"aten.index", "aten.convolution_backward", "aten._fused_adamw_"} <= operators.names
    assert not operators.names & WAITING
    with operators:
        trainer.own_stats.sum().item()
    assert operators.names & WAITING  # so it would have been noticed
