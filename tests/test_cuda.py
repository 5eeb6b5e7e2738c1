"""What only a GPU can prove: training, reading and exporting on CUDA, its memory, its waits, NCCL.

    pytest -m cuda

Where there is no CUDA device, all of it runs on the CPU with a light network and few images, so that nothing but what
only CUDA has is left to fail on the day that there is one.  Like tests/test_distributed.py it is also a program,

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.test_cuda TASK FOLDER

which runs one of the tasks below.
"""

import contextlib
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from glyphs.core.config import Config
from glyphs.core.devices import describe_device, explain_out_of_memory, use_deterministic_algorithms
from glyphs.core.distributed import data_parallel
from glyphs.core.errors import TrainingError
from glyphs.core.process import Interrupted
from glyphs.core.protocols import fetch_steps
from glyphs.core.randomness import seed_everything
from glyphs.data.demo import DEMO_CLASSES, render_demo
from glyphs.data.loaders import Augmentation, TensorLoader, get_data_loaders
from glyphs.evaluation.analyzer import ModelAnalyzer
from glyphs.evaluation.calibration import calibrate_checkpoint
from glyphs.evaluation.evaluator import Evaluator
from glyphs.models.checkpoint import BEST_MODEL, LATEST_CHECKPOINT, load_checkpoint, load_model
from glyphs.models.export import export_model
from glyphs.models.network import EnhancedGlyphCNN, ViewAverage
from glyphs.reading.predictor import GlyphPredictor
from glyphs.training import trainer as trainer_module
from glyphs.training.loss import make_criterion
from glyphs.training.lr_finder import LRFinder
from glyphs.training.trainer import Trainer, make_optimizer
from tests.conftest import finish, refused, torchrun, write_emnist
from tests.small import Frozen, StopAt, distance, make_images

# cuBLAS reads it when it first starts, which in one process of tests is long before the test that needs it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

pytestmark = [pytest.mark.cuda, pytest.mark.slow]
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
CPU = torch.device("cpu")
NAMES = list(DEMO_CLASSES)
BATCH = 128 if CUDA else 16
EPOCHS = 4 if CUDA else 2
# CUDA convolves float32 in TF32, with a mantissa of 10 bits.
RELATIVE, ABSOLUTE = (1e-2, 2e-2) if CUDA else (1e-4, 1e-5)


@functools.cache
def demo(part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Images and labels of the demo set on the CPU; without CUDA, of three classes that are told apart at once."""
    return render_demo(part) if CUDA else make_images(*((160, 1) if part == "train" else (64, 2)))


def loaders(device: torch.device) -> tuple[TensorLoader, TensorLoader]:
    """Training and test images on the device."""
    train, test = ([tensor.to(device) for tensor in demo(part)] for part in ("train", "test"))
    augmentation = Augmentation(10, 5, 0.05)
    return (
        TensorLoader(train[0], train[1], BATCH, shuffle_seed=7, augmentation=augmentation),
        TensorLoader(test[0], test[1], BATCH),
    )


def trainer_on(device: torch.device, folder: Path, **settings: Any) -> Trainer:
    given = {"use_residual": CUDA, "batch_size": BATCH, "num_epochs": EPOCHS, "learning_rate": 0.003 if CUDA else 0.01}
    config = Config.from_dict(given | {"device": device.type, "output_dir": str(folder)} | settings)
    seed_everything(0)
    model = EnhancedGlyphCNN(len(NAMES), config.dropout_rate, config.use_residual)
    return Trainer(model, *loaders(device), config, NAMES)


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The history of the run in float32 on the CPU."""
    return trainer_on(CPU, tmp_path_factory.mktemp("cpu"), precision="float32").fit()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best model of a run on the device, as its default precision leaves it."""
    folder = tmp_path_factory.mktemp("trained")
    trainer_on(DEVICE, folder).fit()
    return folder / BEST_MODEL


@pytest.fixture
def test_images() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return demo("test")[0][::20].numpy()


@contextlib.contextmanager
def waits_forbidden() -> Iterator[None]:
    """An operation that waits for the GPU raises; on the CPU nothing waits."""
    if not CUDA:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- Training ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_training_learns_as_much_as_on_the_cpu(
    dtype: torch.dtype, on_cpu: list[dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # float16 is what `auto` gives on cards before Ampere.
    monkeypatch.setattr(trainer_module, "autocast_dtype", lambda device, precision: dtype)
    trainer = trainer_on(DEVICE, tmp_path)
    history = trainer.fit()
    assert trainer.dtype is dtype
    assert trainer.scaler.is_enabled() == (dtype is torch.float16)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert all(math.isfinite(value) for row in history for value in row.values())
    # In so few steps as on the CPU, batch norm's running statistics are still those of the start.
    measure, images = ("val_accuracy", demo("test")) if CUDA else ("train_accuracy", demo("train"))
    accuracy, expected = history[-1][measure], on_cpu[-1][measure]
    share = (accuracy + expected) / 2
    chance = math.sqrt(2 * share * (1 - share) / len(images[1]))
    assert accuracy == pytest.approx(expected, abs=0.02 + 4 * chance)
    assert expected > 0.8


@pytest.fixture
def deterministic() -> Iterator[None]:
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    use_deterministic_algorithms(before)
    torch.backends.cudnn.benchmark = benchmark


def stop(trainer: Trainer, epoch: int, step: int) -> None:
    """Train, and let a signal come while that step's batch is fetched."""
    loader = trainer.train_loader
    assert isinstance(loader, TensorLoader)
    trainer.train_loader = stopping = StopAt(loader, epoch, step)
    stopping.trainer = trainer
    with pytest.raises(Interrupted):
        trainer.fit()


@pytest.mark.usefixtures("deterministic")
def test_a_deterministic_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = trainer_on(DEVICE, tmp_path / "whole", deterministic=True)
    whole.fit()
    stop(trainer_on(DEVICE, tmp_path / "stopped", deterministic=True), 1, 2)
    resumed = trainer_on(DEVICE, tmp_path / "stopped", deterministic=True)
    resumed.resume(load_checkpoint(tmp_path / "stopped" / LATEST_CHECKPOINT))
    assert (resumed.epoch, resumed.step) == (1, 3)
    resumed.fit()
    expected = whole.model.state_dict()
    assert all(torch.equal(weights, expected[name]) for name, weights in resumed.model.state_dict().items())


@pytest.mark.parametrize(("first", "second"), [(CPU, DEVICE), (DEVICE, CPU)], ids=["to device", "to CPU"])
def test_a_run_goes_on_on_another_device(first: torch.device, second: torch.device, tmp_path: Path) -> None:
    settings = {"use_residual": False, "precision": "float32"}
    stop(trainer_on(first, tmp_path, **settings), 1, 2)
    trainer = trainer_on(second, tmp_path, **settings)
    trainer.resume(load_checkpoint(tmp_path / LATEST_CHECKPOINT))
    state = trainer.optimizer.state[next(trainer.model.parameters())]
    assert state["exp_avg"].device.type == second.type
    history = trainer.fit()
    assert len(history) == EPOCHS
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    model, _, _ = load_model(tmp_path / BEST_MODEL)
    assert {weights.device for weights in model.state_dict().values()} == {CPU}


# The last as of a folder of pictures, whose images stay in host memory.
@pytest.mark.parametrize(
    ("dtype", "where"),
    [(torch.bfloat16, DEVICE), (torch.float16, DEVICE), (torch.float32, DEVICE), (torch.float32, CPU)],
    ids=str,
)
def test_no_step_waits_for_the_device(
    dtype: torch.dtype, where: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "autocast_dtype", lambda device, precision: dtype)
    trainer = trainer_on(DEVICE, tmp_path)
    loader = loaders(where)[0]
    loader.device = DEVICE
    trainer.train_loader = loader
    trainer.model.train()
    steps = fetch_steps(trainer.train_loader, 0, 0)
    for step, batch in steps:  # kernels are chosen, and the epoch's order is copied
        trainer.own_stats[step] = torch.stack(trainer.train_step(*batch))
        if step == 1:
            break
    with waits_forbidden():
        for step, batch in steps:
            trainer.own_stats[step] = torch.stack(trainer.train_step(*batch))
    if CUDA:
        with pytest.raises(RuntimeError, match="synchronizing"), waits_forbidden():
            trainer.own_stats.sum().item()  # so it would have been noticed
    trainer.step = len(trainer.own_stats)
    assert trainer.step_stats().images.sum() == len(demo("train")[1])


def test_out_of_memory_names_the_next_batch_size_and_leaves_the_device_usable(tmp_path: Path) -> None:
    def exhaust() -> None:
        if CUDA:
            torch.empty(2**45, dtype=torch.uint8, device=DEVICE)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 32768.00 GiB.")  # as CUDA words it

    with refused(TrainingError, "CUDA ran out of memory", "try --batch-size 64"), explain_out_of_memory(128):
        exhaust()
    assert trainer_on(DEVICE, tmp_path, num_epochs=1, use_residual=False).fit()


@pytest.mark.skipif(not CUDA, reason="only CUDA's memory can be limited")
def test_a_batch_that_does_not_fit_is_refused_and_half_of_it_trains(tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 2**30) / total)
    try:
        images, labels = torch.zeros(20_000, 1, 28, 28, dtype=torch.uint8), torch.arange(20_000) % len(NAMES)
        for count, fits in ((20_000, False), (1_000, True)):
            loader = TensorLoader(images[:count].to(DEVICE), labels[:count].to(DEVICE), count)
            config = Config(batch_size=count, num_epochs=1, device="cuda", output_dir=str(tmp_path))
            trainer = Trainer(EnhancedGlyphCNN(len(NAMES)), loader, loader, config, NAMES)
            expected = contextlib.nullcontext() if fits else refused(TrainingError, "try --batch-size 10000")
            with expected, explain_out_of_memory(count):
                trainer.fit()
            del trainer
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_everything_lies_on_the_device(tmp_path: Path, tiny_config: Config) -> None:
    write_emnist(tmp_path / "data", "digits", images_per_class=10)
    config = dataclasses.replace(tiny_config, class_prior="uniform", device=DEVICE.type)
    data = get_data_loaders(config, DEVICE)
    model = EnhancedGlyphCNN(len(data.class_names), use_residual=False)
    trainer = Trainer(model, data.train, data.val, config, data.class_names)
    assert isinstance(trainer.criterion, nn.Module)
    on_device = [*trainer.model.state_dict().values(), *trainer.criterion.buffers(), trainer.own_stats]
    for loader in (data.train, data.val, data.test):
        on_device += [loader.images, loader.labels, *next(iter(loader))]
    assert len(on_device) > 20
    assert {tensor.device.type for tensor in on_device} == {DEVICE.type}
    # The order of an epoch is drawn on the CPU: the same images come in the same order everywhere.
    apart = get_data_loaders(config, CPU)
    for (_, labels), (_, others) in zip(data.train, apart.train, strict=True):
        assert torch.equal(labels.cpu(), others)
    assert describe_device(DEVICE) == (torch.cuda.get_device_name(DEVICE) if CUDA else describe_device(CPU))


def test_the_learning_rate_finder_finds_and_restores() -> None:
    train, _ = loaders(DEVICE)
    config = Config(use_residual=False)
    torch.manual_seed(0)
    model = EnhancedGlyphCNN(len(NAMES), use_residual=False).to(DEVICE)
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    state = torch.cuda.get_rng_state(DEVICE) if CUDA else torch.get_rng_state()
    finder = LRFinder(model, make_optimizer(model, config), make_criterion(config, train, len(NAMES)).to(DEVICE))
    found = finder.range_test(train, num_steps=50)
    assert 1e-6 < found.suggestion < 10
    assert all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())
    assert torch.equal(state, torch.cuda.get_rng_state(DEVICE) if CUDA else torch.get_rng_state())


# ---- What a trained model does ----


def test_predictions_are_those_of_the_cpu(trained: Path, test_images: np.ndarray[Any, Any]) -> None:
    for views in (False, True):
        here = GlyphPredictor(trained, DEVICE.type, average_views=views)
        there = GlyphPredictor(trained, "cpu", average_views=views)
        np.testing.assert_allclose(
            here.probabilities(test_images), there.probabilities(test_images), rtol=RELATIVE, atol=ABSOLUTE
        )
    answers = [prediction.prediction for prediction in here.predict_batch(list(255 - test_images[:8, 0]))]
    assert answers == [prediction.prediction for prediction in there.predict_batch(list(255 - test_images[:8, 0]))]


def test_the_evaluation_is_that_of_the_cpu(trained: Path) -> None:
    for views in (False, True):
        results = []
        for device in (DEVICE, CPU):
            model, _, names = load_model(trained)
            classifier = ViewAverage(model) if views else model
            # Its images on the CPU too, as those of a folder are.
            results.append(Evaluator(classifier, names, device).evaluate(loaders(CPU)[1]))
        here, there = results
        torch.testing.assert_close(here.logits.softmax(1), there.logits.softmax(1), rtol=RELATIVE, atol=ABSOLUTE)
        assert torch.equal(here.labels, there.labels)
        assert here.logits.device == CPU


def test_calibration_finds_the_temperature_of_the_cpu(trained: Path, tmp_path: Path) -> None:
    temperatures = []
    for number, device in enumerate((DEVICE, CPU)):
        copy = tmp_path / f"{number}.pth"
        copy.write_bytes(trained.read_bytes())
        temperatures.append(calibrate_checkpoint(copy, loaders(device)[1], device).value)
        assert load_checkpoint(copy)["metrics"]["temperature"] == temperatures[-1] != 1
    assert temperatures[0] == pytest.approx(temperatures[1], rel=0.02)


def test_the_analysis_times_the_device(trained: Path) -> None:
    report = ModelAnalyzer(trained, DEVICE.type, 16).analyze()
    assert {row["device"] for row in report["inference"]} == {DEVICE.type}
    assert all(row["seconds"] > 0 for row in report["inference"])
    assert {row["threads"] is None for row in report["inference"]} == {CUDA}


def test_an_export_of_a_model_from_the_device_agrees_with_it(
    trained: Path, tmp_path: Path, test_images: np.ndarray[Any, Any]
) -> None:
    path = export_model(trained, "onnx", tmp_path / "model.onnx").path
    expected = GlyphPredictor(trained, DEVICE.type).probabilities(test_images)
    on_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    for device in ("cpu", "cuda") if on_cuda else ("cpu",):
        np.testing.assert_allclose(
            GlyphPredictor(path, device).probabilities(test_images), expected, rtol=RELATIVE, atol=ABSOLUTE
        )


# ---- Several processes, and NCCL ----


def step_weights(folder: Path) -> dict[str, Tensor]:
    """The weights after an epoch without dropout, whose batches may be divided.

    SyncBatchNorm, which is CUDA's, takes its statistics from the whole batch; on CPUs they are fixed instead.
    """
    seed_everything(0)
    model = (EnhancedGlyphCNN if CUDA else Frozen)(len(NAMES), 0.0)
    config = Config(
        dropout_rate=0.0, batch_size=BATCH, num_epochs=1, precision="float32", device=DEVICE.type,
        output_dir=str(folder),
    )  # fmt: skip
    train, val = loaders(DEVICE)
    train.index = train.index[: 3 * BATCH]
    train.places = torch.arange(len(train.index))
    val.index = val.index[:BATCH]
    val.places = torch.arange(len(val.index))
    Trainer(model, train, val, config, NAMES).fit()
    return {name: weights.cpu() for name, weights in model.state_dict().items()}


def share_one_gpu(folder: Path) -> None:
    """Train in several processes on one GPU, which NCCL refuses: the gradients travel by gloo."""
    dist.init_process_group("gloo")
    os.environ["LOCAL_RANK"] = "0"  # the one device there is
    torch.save(step_weights(folder), folder / f"weights{dist.get_rank()}.pt")
    dist.destroy_process_group()


def test_two_processes_train_on_one_device(tmp_path: Path) -> None:
    status, _, stderr = finish(torchrun("-m", "tests.test_cuda", str(tmp_path)))
    assert status == 0, stderr
    alone = step_weights(tmp_path / "alone")
    seed_everything(0)
    start = EnhancedGlyphCNN(len(NAMES), 0.0).state_dict()
    learned = [name for name in alone if name.endswith(("weight", "bias"))]
    moved = distance({name: alone[name] for name in learned}, start)
    for number in range(2):
        weights = torch.load(tmp_path / f"weights{number}.pt")
        assert 0 < distance({name: weights[name] for name in learned}, alone) < 0.05 * moved


def test_one_process_by_nccl_has_the_gradients_of_none(tmp_path: Path) -> None:
    """NCCL wants a GPU for each process: with one, that everything is joined is all that can be seen."""
    images, labels = (tensor[:32].to(DEVICE) for tensor in demo("test"))
    seed_everything(0)
    model = EnhancedGlyphCNN(len(NAMES), 0.0, use_residual=False).to(DEVICE)
    torch.autograd.backward(torch.nn.functional.cross_entropy(model(images), labels))
    expected = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    backend = "cpu:gloo,cuda:nccl" if CUDA else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        if CUDA:
            sums = torch.ones(3, device=DEVICE)
            dist.all_reduce(sums)
            assert sums.tolist() == [1, 1, 1]
        logits = data_parallel(model, DEVICE)(images)
        torch.autograd.backward(torch.nn.functional.cross_entropy(logits, labels))
    finally:
        dist.destroy_process_group()
    names = {type(module).__name__ for module in model.modules()}
    assert ("SyncBatchNorm" in names, "BatchNorm2d" in names) == (CUDA, not CUDA)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=RELATIVE, atol=ABSOLUTE)


if __name__ == "__main__":
    share_one_gpu(Path(sys.argv[1]))
