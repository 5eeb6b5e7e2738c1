"""The machine and randomness: devices, threads, addressed seeds, epochs that can be entered at any step."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import glyphs.core.devices
from glyphs.core.devices import (
    autocast_dtype,
    choose_device,
    describe_device,
    explain_out_of_memory,
    limit_threads,
    sums_dtype,
    use_deterministic_algorithms,
)
from glyphs.core.errors import ConfigError, TrainingError
from glyphs.core.protocols import Batch, fetch_steps
from glyphs.core.randomness import address, seed_everything
from glyphs.models.network import EnhancedGlyphCNN
from tests.conftest import refused

CPU = torch.device("cpu")


class Handwriting(Dataset[tuple[Tensor, int]]):
    """A dataset as a user would write it: PIL images and torchvision transforms."""

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        generator = np.random.default_rng(0)
        self.images = [Image.fromarray(pixels) for pixels in generator.integers(0, 256, (20, 28, 28), np.uint8)]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), index % 5


@pytest.fixture
def user_loader() -> "DataLoader[tuple[Tensor, int]]":
    train_transform = transforms.Compose(
        [
            transforms.Pad(2),
            transforms.RandomRotation(20),
            transforms.RandomAffine(degrees=15, translate=(0.1, 0.1)),
            transforms.ColorJitter(brightness=0.2),
            transforms.ToTensor(),
        ]
    )
    return DataLoader(Handwriting(train_transform), batch_size=6, shuffle=True)


def epoch_of(loader: "DataLoader[tuple[Tensor, int]]", epoch: int, first_step: int = 0) -> list[tuple[int, Batch]]:
    return list(fetch_steps(loader, 1, epoch, first_step))


def same(a: list[tuple[int, Batch]], b: list[tuple[int, Batch]]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(i == j and torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) for (i, x), (j, y) in pairs)


def test_users_own_dataset_with_torchvision_transforms_feeds_the_model(
    user_loader: "DataLoader[tuple[Tensor, int]]",
) -> None:
    model = EnhancedGlyphCNN(5, use_residual=False)
    sizes = []
    for _, (images, labels) in epoch_of(user_loader, 0):
        assert images.shape[1:] == (1, 32, 32)
        assert 0 <= images.min() < images.max() <= 1
        torch.autograd.backward(torch.nn.functional.cross_entropy(model(images), labels))
        sizes.append(len(labels))
    assert sizes == [6, 6, 6, 2]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("first_step", [1, 3, 4])
def test_epoch_entered_late_gives_the_batches_of_the_full_one(
    user_loader: "DataLoader[tuple[Tensor, int]]", first_step: int
) -> None:
    full = epoch_of(user_loader, 0)
    seed_everything(99)  # what was drawn before does not matter
    assert [step for step, _ in full] == [0, 1, 2, 3]
    assert same(epoch_of(user_loader, 0, first_step), full[first_step:])


def test_epochs_differ_in_order_and_in_distortion(user_loader: "DataLoader[tuple[Tensor, int]]") -> None:
    first, second = epoch_of(user_loader, 0), epoch_of(user_loader, 1)
    assert not torch.equal(first[0][1][0], second[0][1][0])
    in_order = DataLoader(user_loader.dataset, batch_size=6)
    assert not torch.equal(epoch_of(in_order, 0)[0][1][0], epoch_of(in_order, 1)[0][1][0])


def test_worker_processes_do_not_change_what_a_late_entry_gives(user_loader: "DataLoader[tuple[Tensor, int]]") -> None:
    loader = DataLoader(user_loader.dataset, batch_size=6, shuffle=True, num_workers=1)
    assert same(epoch_of(loader, 0, 2), epoch_of(loader, 0)[2:])


class Counter:
    """A loader that can seek, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.at = (0, 0)
        self.made = 0

    def __len__(self) -> int:
        return 5

    def seek(self, epoch: int, first_step: int) -> None:
        self.at = epoch, first_step

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.at[1], 5):
            self.made += 1
            yield torch.rand(1), torch.tensor([step])


def test_loader_that_can_seek_makes_no_batch_in_vain() -> None:
    loader = Counter()
    steps = [(step, labels.item()) for step, (_, labels) in fetch_steps(loader, 1, epoch=7, first_step=3)]
    assert loader.at == (7, 3)
    assert loader.made == 2
    assert steps == [(3, 3), (4, 4)]


def test_what_is_drawn_at_a_step_such_as_dropout_follows_from_seed_epoch_and_step() -> None:
    def draws(seed: int, epoch: int, first_step: int) -> dict[int, tuple[float, float, float]]:
        steps = fetch_steps(Counter(), seed, epoch, first_step)
        return {step: (torch.rand(()).item(), np.random.rand(), random.random()) for step, _ in steps}

    full = draws(1, 0, 0)
    assert draws(1, 0, 2) == {step: full[step] for step in (2, 3, 4)}
    everything = [*full.values(), *draws(1, 1, 0).values(), *draws(2, 0, 0).values()]
    for kind in zip(*everything, strict=True):
        assert len(set(kind)) == 15


@pytest.mark.parametrize(
    ("place", "seed"),
    [
        ((42, "order", 0), 993273450358985366),
        ((42, "step", 3, 1000), 745900649737771525),
        (("demo", "train"), 889556147932896485),
    ],
)
def test_addresses_never_change_or_old_runs_could_not_be_resumed(place: tuple[int | str, ...], seed: int) -> None:
    assert address(*place) == seed


def test_addresses_fit_every_generator_and_do_not_collide() -> None:
    places = [(a, name, b) for a in range(20) for name in ("order", "augment") for b in range(20)]
    seeds = {address(*place) for place in places} | {address(1, 23), address(12, 3), address("1", 23)}
    assert len(seeds) == len(places) + 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeding_covers_torch_numpy_and_python() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), np.random.rand(), random.random()

    seed_everything(2**62 + 5)  # more than NumPy takes
    first = draw()
    assert draw() != first
    seed_everything(2**62 + 5)
    assert draw() == first
    seed_everything(2**62 + 6)
    assert not set(draw()) & set(first)


@pytest.mark.parametrize(("available", "name", "kind"), [(False, "auto", "cpu"), (True, "auto", "cuda")])
def test_auto_takes_cuda_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, available: bool, name: str, kind: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device(name).type == kind
    assert choose_device("cpu") == CPU


def test_cuda_where_there_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refused(ConfigError, "--device cuda", "--device cpu"):
        choose_device("cuda")


@pytest.mark.parametrize(("mps", "autocast"), [(False, True), (True, False)])
def test_mps_where_there_is_none_or_pytorch_is_too_old_is_one_line(
    monkeypatch: pytest.MonkeyPatch, mps: bool, autocast: bool
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda device: autocast)
    with refused(ConfigError, "--device mps", "--device cpu"):
        choose_device("mps")


def test_mps_is_taken_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda device: True)
    device = choose_device("mps")
    assert choose_device("auto").type != "mps"  # nobody has tested it
    assert (device.type, describe_device(device)) == ("mps", "Apple GPU")
    assert autocast_dtype(device) is torch.float32
    assert (sums_dtype(device), sums_dtype(CPU)) == (torch.float32, torch.float64)
    monkeypatch.setattr(glyphs.core.devices, "world_size", lambda: 2)
    with refused(ConfigError, "--device mps: 2 processes", "--device cpu"):
        choose_device("mps")


def test_cpu_computes_in_float32_and_names_its_threads() -> None:
    assert autocast_dtype(CPU) is torch.float32
    assert autocast_dtype(CPU, "bfloat16") is torch.bfloat16
    assert describe_device(CPU) == f"CPU, {torch.get_num_threads()} threads"


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((12, 0), torch.bfloat16)]
)
def test_gpu_computes_in_bfloat16_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert autocast_dtype(torch.device("cuda")) is dtype
    assert autocast_dtype(torch.device("cuda"), "float32") is torch.float32


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("allowed", "threads"), [(1, 1), (64, 2)])
def test_no_more_threads_than_the_process_may_run(monkeypatch: pytest.MonkeyPatch, allowed: int, threads: int) -> None:
    monkeypatch.setattr(glyphs.core.devices, "usable_cpus", lambda: allowed)
    limit_threads()
    assert torch.get_num_threads() == threads


def test_deterministic_algorithms_go_on_and_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    use_deterministic_algorithms(True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    use_deterministic_algorithms(False)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("batch_size", "remedy"), [(128, "--batch-size 64"), (3, "--batch-size 1"), (1, "no smaller batch")]
)
def test_out_of_memory_names_the_batch_size_and_the_next_to_try(batch_size: int, remedy: str) -> None:
    with refused(TrainingError, f"--batch-size {batch_size};", remedy), explain_out_of_memory(batch_size):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 MiB")


@pytest.mark.parametrize(
    ("said", "who"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", "CUDA"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUDA"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "CUDA"),
        ("Unable to find a valid cuDNN algorithm to run convolution".replace("U", "u"), "CUDA"),
        ("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB)", "MPS"),
    ],
)
def test_out_of_memory_is_recognised_whoever_says_it(said: str, who: str) -> None:
    with refused(TrainingError, f"{who} ran out of memory", "--batch-size 4"), explain_out_of_memory(8):
        raise RuntimeError(said)


def test_other_errors_pass_out_of_memory_by(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"), explain_out_of_memory(8):
        raise RuntimeError("a bug")
