"""How training scales over several devices: what is measured here, and what follows for 1 to 64.

    python benchmarks/scaling.py                                       two CPU processes
    torchrun --nproc-per-node 8 benchmarks/scaling.py                  the GPUs of a node; several nodes likewise

Measures the time of a training step for several local batches, the time to all-reduce the gradients of the default
model between all processes (gloo on CPUs, NCCL on GPUs) and tensors of other sizes, which gives latency and bandwidth,
and, in turns with them, a memory copy and a matrix product, the machine's own limits.  From these it derives, by the
formulas of docs/SCALING.md, how long an epoch takes on 1, 2, 4, 8 and 64 devices.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.distributed as dist

from benchmarks.throughput import best_copy, best_matrix_product, make_trainer, random_images, wait_for
from glyphs.core.devices import choose_device, describe_device, limit_threads
from glyphs.core.distributed import barrier, process_group, rank, world_size
from glyphs.core.process import launched
from glyphs.data.loaders import Augmentation, TensorLoader
from glyphs.training.trainer import Trainer

LOCAL_BATCHES = (4, 16, 32, 64, 128, 256)
SMALL = 1024  # floats: the time to all-reduce them is nearly all latency
DEVICES = (1, 2, 4, 8, 64)


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The time of one call, the mean over `repeats` of them."""
    started = wait_for(device)
    for _ in range(repeats):
        work()
    return (wait_for(device) - started) / repeats


def step_seconds(trainer: Trainer, batch: int, repeats: int) -> float:
    """A whole training step (gather, augment, forward, backward, clip, update) of this many images, on this device."""
    device = trainer.device
    images, labels = (tensor.to(device) for tensor in random_images(batch))
    settings = trainer.config
    distortion = Augmentation(settings.rotation_degree, settings.affine_degree, settings.translate)
    loader = TensorLoader(images, labels, batch, shuffle_seed=0, augmentation=distortion)
    return seconds(lambda: trainer.train_step(*next(iter(loader))), device, repeats)


def reduce_seconds(floats: int, device: torch.device, repeats: int) -> float:
    tensor = torch.zeros(floats, device=device)
    dist.all_reduce(tensor)  # the first call connects
    return seconds(lambda: dist.all_reduce(tensor), device, repeats)


def step_time(batch: float, steps: dict[int, float]) -> float:
    """Seconds for a batch of any size, along straight lines between those measured; none is faster than the least."""
    sizes = sorted(steps)
    if batch <= sizes[0]:
        return steps[sizes[0]]
    upper = next((size for size in sizes if size >= batch), sizes[-1])
    lower = sizes[sizes.index(upper) - 1]
    return steps[lower] + (steps[upper] - steps[lower]) * (batch - lower) / (upper - lower)


def ring_seconds(devices: int, size: float, bandwidth: float, latency: float) -> float:
    """Ring all-reduce: 2 (n - 1) messages one after the other, each a n-th of the data (see docs/SCALING.md)."""
    return 2 * (devices - 1) * (latency + size / devices / bandwidth) if devices > 1 else 0.0


def show(name: str, values: list[float], unit: float) -> None:
    print(f"{name:44}{statistics.median(values) / unit:10.4g}{min(values) / unit:10.4g}{max(values) / unit:10.4g}")


def derive(
    images: int, batch: int, steps: dict[int, float], size: float, bandwidth: float, latency: float, weak: bool
) -> None:
    """Print the table for a batch that all devices share, or that each has for itself (weak)."""
    kind = f"batch {batch} on each device" if weak else f"batch {batch} in all"
    print(f"\n{kind}, {images:,} images an epoch")
    print(f"{'devices':>8}{'local':>8}{'step, ms':>10}{'reduce, ms':>12}{'epoch, s':>20}{'efficiency, %':>20}")
    alone = -(-images // batch) * step_time(batch, steps)
    for devices in DEVICES:
        local = batch if weak else batch / devices
        number = -(-images // (batch * devices if weak else batch))
        compute, reduce = step_time(local, steps), ring_seconds(devices, size, bandwidth, latency)
        # The all-reduce overlaps with the backward pass, but for what is ready last: somewhere between all and nothing.
        best, worst = (number * time for time in (max(compute, reduce), compute + reduce))
        print(
            f"{devices:8}{local:8.4g}{compute * 1e3:10.4g}{reduce * 1e3:12.4g}{f'{best:.4g} to {worst:.4g}':>20}"
            f"{f'{100 * alone / devices / worst:.0f} to {100 * alone / devices / best:.0f}':>20}"
        )


def measure(arguments: argparse.Namespace) -> None:
    limit_threads()
    device = choose_device(arguments.device)
    trainer = make_trainer(*random_images(512), 512, device)
    floats = sum(p.numel() for p in trainer.model.parameters())
    trainer.parallel_model = trainer.model  # without all-reduce: that is measured by itself
    steps: dict[int, list[float]] = {batch: [] for batch in LOCAL_BATCHES}
    small, whole, copies, products = [], [], [], []
    for batch in LOCAL_BATCHES:
        step_seconds(trainer, batch, 2)  # warms up
    for _ in range(arguments.rounds):
        products.append(best_matrix_product(device, trainer.dtype))
        copies.append(best_copy(device))
        for batch in LOCAL_BATCHES:
            barrier()
            steps[batch].append(step_seconds(trainer, batch, arguments.steps))
        barrier()
        small.append(reduce_seconds(SMALL, device, 100))
        whole.append(reduce_seconds(floats, device, 20))
    if rank() > 0:
        return
    n, size = world_size(), 4.0 * floats
    # Solve the ring's formula for its two parameters, from the times of a small and of the whole tensor.
    bandwidth = 2 * (n - 1) / n * (size - 4 * SMALL) / (statistics.median(whole) - statistics.median(small))
    latency = max(0.0, statistics.median(small) / (2 * (n - 1)) - 4 * SMALL / n / bandwidth)
    print(f"{describe_device(device)}, torch {torch.__version__}, {trainer.dtype}")
    print(f"{'':44}{'median':>10}{'lowest':>10}{'highest':>10}")
    for batch, times in steps.items():
        show(f"step of {batch} images, ms", times, 1e-3)
    show(f"all-reduce of {floats:,} float32, ms", whole, 1e-3)
    show(f"all-reduce of {SMALL:,} float32, ms", small, 1e-3)
    show("memory copy, GB/s read and written", copies, 1e9)
    show("matrix product, GFLOP/s", products, 1e9)
    print(f"\nring of {n}: {bandwidth / 1e9:.3g} GB/s a link, {latency * 1e6:.3g} us a message")
    if arguments.link is not None:
        bandwidth, latency = arguments.link * 1e9, arguments.latency * 1e-6
        print(f"ASSUMED instead below: {arguments.link:g} GB/s a link, {arguments.latency:g} us a message")
    medians = {batch: statistics.median(times) for batch, times in steps.items()}
    for weak in (False, True):
        derive(arguments.images, arguments.batch_size, medians, size, bandwidth, latency, weak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the median is reported (default: 5)")
    parser.add_argument("--steps", type=int, default=4, help="steps of each batch in a round (default: 4)")
    parser.add_argument("--images", type=int, default=86_819, help="images an epoch, for the tables (default: 86819)")
    parser.add_argument("--batch-size", type=int, default=256, help="of the tables, 4 to 256 (default: 256)")
    parser.add_argument("--link", type=float, metavar="GB/S", help="tables for this link, not for the one measured")
    parser.add_argument("--latency", type=float, default=20.0, metavar="US", help="of a message on it (default: 20)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    arguments = parser.parse_args()
    if not launched():  # two processes, so that there is something to measure
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        sys.exit(subprocess.run([sys.executable, *torchrun, *sys.argv, "--device", "cpu"]).returncode)
    with process_group():
        measure(arguments)


if __name__ == "__main__":
    main()
