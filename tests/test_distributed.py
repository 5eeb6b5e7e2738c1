"""Several processes train one model: two real ones, which torchrun starts and which talk by gloo.

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.test_distributed TASK FOLDER

runs one of the tasks below on them; the tests compare what they leave in the folder with what one process does.
"""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.scaling import ring_seconds, step_time
from glyphs.core.config import Config
from glyphs.core.distributed import average_gradients, barrier, in_turn, process_group, rank, world_size
from glyphs.core.errors import ConfigError, DataError
from glyphs.core.process import Interrupted
from glyphs.core.protocols import fetch_steps, own_share
from glyphs.core.randomness import seed_everything
from glyphs.data.loaders import Augmentation, TensorLoader
from glyphs.evaluation.evaluator import Evaluator
from glyphs.evaluation.metrics import Evaluation
from glyphs.models.checkpoint import BEST_MODEL, LATEST_CHECKPOINT, load_checkpoint
from glyphs.models.network import EnhancedGlyphCNN
from glyphs.training.trainer import Trainer
from tests.conftest import ROOT, finish, refused, torchrun
from tests.small import CLASSES, Frozen, StopAt, distance, make_images

pytestmark = pytest.mark.slow  # most of it: torchrun starts two processes, several times

# 81 images in batches of 16: the last batch has one image, and the second of two processes none.
IMAGES, BATCH = 81, 16


def loaders() -> tuple[TensorLoader, TensorLoader]:
    return (
        TensorLoader(*make_images(IMAGES, 1), BATCH, shuffle_seed=7, augmentation=Augmentation(10, 5, 0.05)),
        TensorLoader(*make_images(29, 2), BATCH),
    )


def trainer_of(folder: Path) -> Trainer:
    """A run of the residual network.

    Nearly all gradients of the light one are below AdamW's epsilon on these images, so that the rounding of one step,
    which differs from machine to machine, grows to percents.
    """
    torch.set_num_threads(1)
    seed_everything(0)
    config = Config(
        dropout_rate=0.0,
        batch_size=BATCH,
        num_epochs=3,
        learning_rate=0.003,
        device="cpu",
        output_dir=str(folder),
    )
    return Trainer(Frozen(len(CLASSES), 0.0), *loaders(), config, CLASSES)


def gradients(folder: Path) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """What each step of the first epoch reports, over all processes, and its gradients, always at the same weights."""
    trainer = trainer_of(folder)
    trainer.scheduler.base_lrs = [0.0, 0.0]
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    trainer.model.train()
    steps = []
    for step, (images, labels) in fetch_steps(trainer.train_loader, 0, 0):
        part = trainer.train_loader.part_of(step)  # type: ignore[attr-defined]
        trainer.own_stats[step] = torch.stack(trainer.train_step(images, labels, part))
        trainer.step = step + 1
        named = trainer.model.named_parameters()
        stats = torch.stack([column[step] for column in trainer.step_stats()])
        steps.append((stats, {n: p.grad.clone() for n, p in named if p.grad is not None}))
    return steps


def evaluation() -> Evaluation:
    seed_everything(0)
    model = EnhancedGlyphCNN(len(CLASSES), use_residual=False)
    model.temperature.fill_(0.8)
    return Evaluator(model, CLASSES).evaluate(TensorLoader(*make_images(37, 3), 7))


def take_turn(path: Path) -> None:
    with path.open("a") as file:
        file.write(f"{rank()}\n")


def compute(folder: Path) -> None:
    """Leave everything there that is compared with one process."""
    result: dict[str, Any] = {"world": world_size(), "gradients": gradients(folder / "gradients")}
    in_turn(lambda: take_turn(folder / "turns"))
    measured = evaluation()
    result |= {name: getattr(measured, name) for name in ("logits", "labels", "mistake_images", "temperature")}
    trainer_of(folder / "whole").fit()
    resumed = trainer_of(folder / "stopped")
    resumed.resume(load_checkpoint(folder / "stopped" / LATEST_CHECKPOINT))
    result["resumed_at"] = (resumed.epoch, resumed.step)
    resumed.fit()
    with refused(ConfigError, "CUDA", "--device cpu"):
        average_gradients(nn.Linear(1, 1), torch.device("cuda" if rank() == 0 else "cpu"))
    images, labels = make_images(8, 1)
    with refused(ConfigError, "2 processes", "DataLoader", "TensorLoader"):
        own_share(DataLoader(TensorDataset(images, labels)))
    # With batch norm of its own and dropout, each process has another model in between, but one in the end.
    config = Config(use_residual=False, batch_size=BATCH, num_epochs=1, device="cpu", output_dir=str(folder / "free"))
    free = Trainer(EnhancedGlyphCNN(len(CLASSES), use_residual=False), *loaders(), config, CLASSES)
    free.fit()
    torch.save(free.model.state_dict(), folder / f"free{rank()}.pt")
    torch.save(result, folder / f"result{rank()}.pt")


def fail(folder: Path) -> None:
    """One process finds something wrong while the other waits for it."""
    if rank() == 1:
        raise DataError("picture 7: is damaged; fetch it again")
    barrier()


def work(task: str, folder: Path) -> tuple[int, str, str]:
    return finish(torchrun("-m", "tests.test_distributed", task, str(folder)))


def stop_in_second_epoch(folder: Path) -> None:
    """Leave a run of one process there that a signal stopped."""
    trainer = trainer_of(folder)
    trainer.train_loader = stopping = StopAt(loaders()[0], 1, 2)
    stopping.trainer = trainer
    with pytest.raises(Interrupted):
        trainer.fit()


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have done `compute`."""
    folder = tmp_path_factory.mktemp("two")
    stop_in_second_epoch(folder / "stopped")
    status, _, stderr = work("compute", folder)
    assert status == 0, stderr
    assert "Warning" not in stderr
    return folder


@pytest.fixture(scope="module")
def results(computed: Path) -> list[dict[str, Any]]:
    return [torch.load(computed / f"result{number}.pt") for number in range(2)]


def weights(folder: Path, name: str = LATEST_CHECKPOINT) -> dict[str, Tensor]:
    state: dict[str, Tensor] = load_checkpoint(folder / name)["model"]
    return state


def test_the_gradients_are_those_of_one_process(results: list[dict[str, Any]], tmp_path: Path) -> None:
    expected = gradients(tmp_path)
    assert len(expected) == 5  # a single image that is left over joins the batch before it
    for result in results:
        assert result["world"] == 2
        for (stats, found), (own_stats, own) in zip(result["gradients"], expected, strict=True):
            # Loss, correct answers, images and the norm before it is clipped, which would hide a factor.
            torch.testing.assert_close(stats, own_stats, rtol=1e-5, atol=0)
            assert found.keys() == own.keys()
            for name, gradient in own.items():
                assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name


def test_every_image_is_evaluated_once_and_in_order(results: list[dict[str, Any]]) -> None:
    expected = evaluation()
    assert expected.mistake_images is not None
    assert 0 < len(expected.mistake_images) < 37
    for result in results:
        torch.testing.assert_close(result["logits"], expected.logits, rtol=1e-4, atol=1e-5)
        assert torch.equal(result["labels"], expected.labels)
        assert torch.equal(result["mistake_images"], expected.mistake_images)
        assert result["temperature"] == expected.temperature != 1


def test_a_run_ends_as_that_of_one_process(computed: Path, tmp_path: Path) -> None:
    one = trainer_of(tmp_path).fit()
    two = load_checkpoint(computed / "whole" / LATEST_CHECKPOINT)["training"]["history"]
    for row, other in zip(one, two, strict=True):
        for name in row.keys() - {"seconds", "images_per_second"}:
            assert other[name] == pytest.approx(row[name], rel=1e-3), name
    start = trainer_of(tmp_path).model.state_dict()
    # AdamW divides by the gradient's own size, so where that is next to nothing its rounding is seen.
    assert distance(weights(computed / "whole"), weights(tmp_path)) < 0.01 * distance(weights(tmp_path), start)


def test_a_run_that_one_process_began_goes_on_in_two(
    computed: Path, results: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert [result["resumed_at"] for result in results] == [(1, 3)] * 2
    whole, stopped = weights(computed / "whole"), weights(computed / "stopped")
    assert distance(stopped, whole) < 0.01 * distance(whole, trainer_of(tmp_path).model.state_dict())


def test_all_processes_end_with_the_model_that_is_saved(computed: Path) -> None:
    saved = weights(computed / "free", BEST_MODEL)
    assert not any(name.startswith("module.") for name in saved)
    for number in range(2):
        model = torch.load(computed / f"free{number}.pt")
        assert all(torch.equal(model[name], saved[name]) for name in saved)


def test_process_0_prepares_files_before_the_others(computed: Path) -> None:
    assert (computed / "turns").read_text() == "0\n1\n"


def test_the_error_of_one_process_ends_all_with_its_message(tmp_path: Path) -> None:
    started = time.monotonic()
    status, _, stderr = work("fail", tmp_path)
    assert time.monotonic() - started < 60  # torchrun would wait for 30 seconds before it kills
    assert status == 1  # torchrun's own
    assert stderr.count("error: picture 7: is damaged; fetch it again\n") == 1
    assert "exitcode  : 2 (" in stderr
    assert "Connection closed by peer" not in stderr


QUICK = ["--max-train-images", "600", "--no-use-residual", "--batch-size", "16", "--device", "cpu"]
SCRIPT = "enhanced_glyph_recognition.py"


def test_a_signal_saves_once_and_one_process_goes_on(tmp_path: Path, demo_files: Path) -> None:
    arguments = [*QUICK, "--data-dir", str(demo_files), "--skip-eval", "--output-dir", str(tmp_path)]
    process = torchrun(SCRIPT, *arguments, "--checkpoint-every", "0.05", "--epochs", "500")
    while not (tmp_path / LATEST_CHECKPOINT).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, _, stderr = finish(process)
    said = re.findall(r"^saved after epoch (\d+), step (\d+) of 34; go on with --resume", stderr, re.MULTILINE)
    assert len(said) == 1, stderr
    assert stderr.count("stopped by SIGTERM") == 1
    training = load_checkpoint(tmp_path / LATEST_CHECKPOINT)["training"]
    assert (training["epoch"], training["step"]) == tuple(map(int, said[0]))
    epochs = training["epoch"] + 1
    command = [sys.executable, SCRIPT, "--resume", *arguments, "--epochs", str(epochs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(tmp_path / LATEST_CHECKPOINT)["training"]["epoch"] == epochs


def test_what_all_processes_find_wrong_is_said_once(tmp_path: Path) -> None:
    data = ["--dataset", "folder", "--data-dir", str(tmp_path / "none"), "--output-dir", str(tmp_path / "out")]
    status, _, stderr = finish(torchrun(SCRIPT, *data))
    assert status == 1
    assert stderr.count("error: ") == 1, stderr
    assert f"error: {tmp_path / 'none'}: cannot be read" in stderr


def test_processes_that_did_not_join_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refused(ConfigError, "torchrun started 2 processes", "process_group"):
        trainer_of(tmp_path)


def test_what_scaling_is_derived_from() -> None:
    # Two devices exchange half of the data twice; eight send fourteen messages of an eighth each.
    assert ring_seconds(1, 8e6, 1e9, 1e-3) == 0
    assert ring_seconds(2, 8e6, 1e9, 1e-3) == pytest.approx(2e-3 + 8e-3)
    assert ring_seconds(8, 8e6, 1e9, 1e-3) == pytest.approx(14e-3 + 14e-3)
    measured = {4: 1.0, 16: 2.0, 32: 4.0}
    sizes = (1, 4, 10, 16, 24, 32, 64)
    assert [step_time(size, measured) for size in sizes] == pytest.approx([1.0, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0])


if __name__ == "__main__":
    with process_group():
        {"compute": compute, "fail": fail}[sys.argv[1]](Path(sys.argv[2]))
