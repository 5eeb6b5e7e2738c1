"""How fast training runs, how far that is from the machine's own limit, and how much faster than the obvious way.

    python benchmarks/throughput.py

Trains the default model on random images (the arithmetic does not depend on what they show).  Each round measures, one
after the other, so that a noisy machine slows all of it: the best matrix product and memory copy; whole steps (gather,
augment, forward, backward, clip, update); the first and the last part of the step alone; and the obvious way
(torchvision's EMNIST, a transform for each image, a DataLoader with a worker for each core, a residual network of
64-128-256 channels at 32x32).  Percentages are of the matrix product of the same round.

    python benchmarks/throughput.py --busy 2

measures instead how training bears two other processes that never rest, with each of several ways in which OpenMP's
threads can wait for each other; quiet and busy, and the ways, take turns within each round.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import glyphs.models.network
from glyphs.core.config import PRECISIONS, Config
from glyphs.core.cpus import usable_cpus
from glyphs.core.devices import choose_device, describe_device, limit_threads, use_deterministic_algorithms
from glyphs.core.process import run
from glyphs.core.protocols import fetch_steps
from glyphs.data.loaders import Augmentation, TensorLoader
from glyphs.models.convolutions import WINOGRAD_FROM
from glyphs.models.network import EMNIST_MEAN, EMNIST_STD, EnhancedGlyphCNN
from glyphs.training.trainer import MAX_GRADIENT_NORM, Trainer

CLASSES = 47
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 2**28, "cuda": 2**32}  # more than the caches hold
WARM_UP_STEPS = 5
OBVIOUS_STEPS = 2  # a round: one takes seconds on a CPU
# GOMP_SPINCOUNT: how often a thread of GNU OpenMP looks for work before it sleeps.
SPIN_COUNTS = {"300000": "OpenMP's own", "20000": "ours", "0": "as OMP_WAIT_POLICY=PASSIVE"}
NETWORKS = {"residual": True, "light": False}


def best_seconds(work: Callable[[], Tensor]) -> float:
    """The shortest of five times, from a start with an idle device to the end of its work."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        work().view(-1)[0].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def best_matrix_product(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Floating-point operations a second of a square matrix product; size: numbers a side."""
    size = size or MATRIX_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: a @ b)


def best_copy(device: torch.device, size: int | None = None) -> float:
    """Bytes a second read and written by a copy of that many bytes within the device's memory."""
    size = size or COPY_BYTES[device.type]
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / best_seconds(lambda: target.copy_(source))


def random_images(count: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [count, 1, 28, 28] and their labels."""
    return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8), torch.randint(CLASSES, (count,))


def make_trainer(
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    device: torch.device,
    precision: str = "auto",
    *,
    residual: bool = True,
) -> Trainer:
    """A trainer of the default model, as the training script makes it; the images stay where they are."""
    config = Config(
        batch_size=batch_size,
        device=device.type,
        precision=precision,
        use_residual=residual,
        output_dir=tempfile.gettempdir(),
    )
    augmentation = Augmentation(config.rotation_degree, config.affine_degree, config.translate)
    loader = TensorLoader(images, labels, batch_size, shuffle_seed=0, augmentation=augmentation, device=device)
    trainer = Trainer(
        EnhancedGlyphCNN(CLASSES, use_residual=residual), loader, loader, config, [str(i) for i in range(CLASSES)]
    )
    trainer.model.train()
    return trainer


def operations(trainer: Trainer, count: int) -> float:
    """Floating-point operations for an image in convolutions and matrix products, of a step of that many images."""
    images, labels = (tensor.to(trainer.device) for tensor in random_images(count))
    with FlopCounterMode(display=False) as counter:
        trainer.train_step(images, labels)
    return float(counter.get_total_flops()) / count


def wait_for(device: torch.device) -> float:
    """The time at which the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def train_steps(trainer: Trainer, epoch: int) -> float:
    """Seconds of a step, all of it."""
    started = 0.0
    for step, batch in fetch_steps(trainer.train_loader, 0, epoch):
        if step == WARM_UP_STEPS:
            started = wait_for(trainer.device)
        trainer.own_stats[step] = torch.stack(trainer.train_step(*batch))
    return (wait_for(trainer.device) - started) / (trainer.num_steps - WARM_UP_STEPS)


def gather_steps(trainer: Trainer, epoch: int) -> float:
    """Seconds that a step takes to gather and augment its batch."""
    started = wait_for(trainer.device)
    for _ in fetch_steps(trainer.train_loader, 0, epoch):
        pass
    return (wait_for(trainer.device) - started) / trainer.num_steps


def update_steps(trainer: Trainer) -> float:
    """Seconds that a step takes to clip the gradient and to update the weights; there is a gradient already."""
    started = wait_for(trainer.device)
    for _ in range(trainer.num_steps):
        nn.utils.clip_grad_norm_(trainer.model.parameters(), MAX_GRADIENT_NORM)
        trainer.optimizer.step()
    return (wait_for(trainer.device) - started) / trainer.num_steps


def write_emnist(folder: Path, images: Tensor, labels: Tensor) -> None:
    """Write a training part of EMNIST-Balanced in the layout that torchvision reads."""
    raw = folder / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, tensor in (("images-idx3", images[:, 0]), ("labels-idx1", labels.to(torch.uint8))):
        head = bytes([0, 0, 8, tensor.ndim]) + struct.pack(f">{tensor.ndim}I", *tensor.shape)
        (raw / f"emnist-balanced-train-{name}-ubyte").write_bytes(head + tensor.numpy().tobytes())


def obvious_network() -> nn.Module:
    from torchvision.models.resnet import BasicBlock

    layers: list[nn.Module] = [nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    for width_in, width, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2)):
        shortcut = None
        if stride != 1:
            shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        layers += [BasicBlock(width_in, width, stride, shortcut), BasicBlock(width, width)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.4), nn.Linear(256, CLASSES))


def obvious_steps(folder: Path, batch_size: int, device: torch.device) -> Iterator[float]:
    """Train the obvious way on the EMNIST files in the folder, a step at each `next`; yields the loss."""
    from torchvision import transforms
    from torchvision.datasets import EMNIST

    settings = Config()
    transform = transforms.Compose(
        [
            transforms.Pad(2),
            transforms.RandomRotation(settings.rotation_degree),
            transforms.RandomAffine(settings.affine_degree, (settings.translate, settings.translate)),
            transforms.ToTensor(),
            transforms.Normalize((EMNIST_MEAN,), (EMNIST_STD,)),
        ]
    )
    dataset = EMNIST(folder, "balanced", train=True, transform=transform)
    network = obvious_network().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
    criterion = nn.CrossEntropyLoss()
    for images, labels in torch.utils.data.DataLoader(dataset, batch_size, shuffle=True, num_workers=usable_cpus()):
        optimizer.zero_grad()
        loss = criterion(network(images.to(device)), labels.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        yield loss.item()


def seconds_of_next(steps: Iterator[Any], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        next(steps)
    return (time.perf_counter() - started) / count


def show_operators(trainer: Trainer) -> None:
    """Print which operators the time of the steps goes to."""
    with torch.profiler.profile() as profile:
        train_steps(trainer, 0)
    print(profile.key_averages().table(sort_by=f"self_{trainer.device.type}_time_total", row_limit=25))


@contextlib.contextmanager
def competing(count: int) -> Iterator[None]:
    """Let that many processes of one thread each want a core, all the time."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def train_when_told(told: Connection, batch_size: int, steps: int, threads: int | None) -> None:
    """In a process of its own: answer each network's name with the images a second that it trains on."""
    limit_threads()
    if threads:
        torch.set_num_threads(threads)
    images, labels = random_images(batch_size * (steps + WARM_UP_STEPS))
    trainers = {
        network: make_trainer(images, labels, batch_size, torch.device("cpu"), residual=residual)
        for network, residual in NETWORKS.items()
    }
    with contextlib.suppress(EOFError):  # the end of the benchmark
        while True:
            told.send(batch_size / train_steps(trainers[told.recv()], 0))


def compare_waiting(arguments: argparse.Namespace) -> None:
    """Measure training with and without competitors, in a process for each spin count."""
    context = multiprocessing.get_context("spawn")  # a process in which OpenMP starts anew, and reads its environment
    table: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    workers = {}
    for spins in SPIN_COUNTS:
        told, workers[spins] = context.Pipe()
        os.environ["GOMP_SPINCOUNT"] = spins
        given = (told, arguments.batch_size, arguments.steps, arguments.threads)
        context.Process(target=train_when_told, args=given, daemon=True).start()
    for number in range(1 + arguments.rounds):
        for network, (state, competitors) in itertools.product(NETWORKS, (("quiet", 0), ("busy", arguments.busy))):
            for spins, tell in workers.items():
                with competing(competitors):
                    tell.send(network)
                    rate = tell.recv()
                if number > 0:  # the first round warms up
                    table[network, state, spins].append(rate)
    threads = arguments.threads or min(torch.get_num_threads(), usable_cpus())
    share = min(1.0, usable_cpus() / (threads + arguments.busy))
    print(f"{threads} threads on {usable_cpus()} cores; busy: {arguments.busy} competing processes, ", end="")
    print(f"which leave training {share:.0%} of its time if all threads get alike; images/s:")
    print(f"{'':58}{'median':>10}{'lowest':>10}{'highest':>10}{'% of own':>10}")
    for (network, state, spins), rates in table.items():
        own = statistics.median(table[network, state, next(iter(SPIN_COUNTS))])
        name = f"{network}, {state}, GOMP_SPINCOUNT={spins} ({SPIN_COUNTS[spins]})"
        figures = (statistics.median(rates), min(rates), max(rates), 100 * statistics.median(rates) / own)
        print(f"{name:58}" + "".join(f"{figure:10.1f}" for figure in figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=128, help="images a step (default: 128)")
    parser.add_argument("--steps", type=int, default=10, help="steps a round (default: 10)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; the median is reported (default: 7)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS, help="as in training (default: auto)")
    parser.add_argument("--threads", type=int, help="threads on the CPU (default: as training chooses)")
    parser.add_argument("--direct", action="store_true", help="convolve 4x4 maps directly, not by Winograd's algorithm")
    parser.add_argument("--compile", action="store_true", help="compile the model with torch.compile")
    parser.add_argument("--no-reference", action="store_true", help="leave out the obvious way")
    parser.add_argument("--profile", action="store_true", help="show instead which operators the time goes to")
    busy = "measure instead how training on the CPU bears this many other processes that never rest"
    parser.add_argument("--busy", type=int, metavar="N", help=busy)
    arguments = parser.parse_args()

    if arguments.busy is not None:
        compare_waiting(arguments)
        return
    limit_threads()
    use_deterministic_algorithms(False)  # as the training script does: on CUDA, cuDNN tries which kernel is fastest
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device, batch_size = choose_device(arguments.device), arguments.batch_size
    images, labels = random_images(batch_size * (arguments.steps + WARM_UP_STEPS))
    trainer = make_trainer(images.to(device), labels.to(device), batch_size, device, arguments.precision)
    nominal, real = operations(trainer, WINOGRAD_FROM // 2), operations(trainer, WINOGRAD_FROM)
    if arguments.direct or trainer.dtype is not torch.float32:  # only float32 takes Winograd's algorithm
        glyphs.models.convolutions.WINOGRAD_FROM, real = sys.maxsize, nominal
    print(f"{describe_device(device)}, torch {torch.__version__}, {trainer.dtype}, batch {batch_size}")
    if arguments.compile:
        started = time.perf_counter()
        trainer.model.compile()
        train_steps(trainer, 0)
        print(f"compilation and a first round: {time.perf_counter() - started:.0f} s")
    if arguments.profile:
        show_operators(trainer)
        return

    table: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        if not arguments.no_reference:
            needed = batch_size * (1 + OBVIOUS_STEPS * arguments.rounds)
            write_emnist(Path(temporary), *random_images(needed))
            obvious = obvious_steps(Path(temporary), batch_size, device)
            next(obvious)
        for number in range(arguments.rounds):
            product, copy = best_matrix_product(device, trainer.dtype), best_copy(device)
            step = train_steps(trainer, number)
            gather, update = gather_steps(trainer, number), update_steps(trainer)
            product = (product + best_matrix_product(device, trainer.dtype)) / 2
            rate = batch_size / step
            table["training, images/s"].append(rate)
            table["gather and augment, ms a step"].append(gather * 1e3)
            table["forward and backward (the rest)"].append((step - gather - update) * 1e3)
            table["clip and update"].append(update * 1e3)
            table["matrix product, GFLOP/s"].append(product / 1e9)
            table["memory copy, GB/s"].append(copy / 1e9)
            table["training as direct convolutions, GFLOP/s"].append(rate * nominal / 1e9)
            table["  of the matrix product, %"].append(100 * rate * nominal / product)
            table["arithmetic really done, GFLOP/s"].append(rate * real / 1e9)
            table["  of the matrix product, % (really)"].append(100 * rate * real / product)
            if not arguments.no_reference:
                slow = batch_size / seconds_of_next(obvious, OBVIOUS_STEPS)
                table["the obvious way, images/s"].append(slow)
                table["  training is faster by a factor of"].append(rate / slow)
    print(f"{'':42}{'median':>10}{'lowest':>10}{'highest':>10}")
    for name, values in table.items():
        print(f"{name:42}{statistics.median(values):10.1f}{min(values):10.1f}{max(values):10.1f}")


if __name__ == "__main__":
    sys.exit(run(main))
