"""How fast training runs, and how far that is from the machine's own limit.

    python benchmarks/throughput.py

Trains the default model on random images (the arithmetic does not depend on what they show) and prints images/s of
the whole step (gather, augment, forward, backward, clip, update) beside the best matrix product measured in the same
run, in turns, so that a noisy machine slows both.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch.utils.flop_counter import FlopCounterMode

from glyphs.config import Config
from glyphs.data import Augmentation, TensorLoader
from glyphs.model import EnhancedGlyphCNN
from glyphs.runtime import choose_device, describe_device, fetch_steps, limit_threads
from glyphs.train import Trainer

CLASSES = 47
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
WARM_UP_STEPS = 5
BACKWARD_FACTOR = 3  # a training step costs the forward pass, and about twice that for both gradients


def best_matrix_product(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a square matrix product, the best of five."""
    size = MATRIX_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        product = a @ b
        product[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=128, help="images a step (default: 128)")
    parser.add_argument("--steps", type=int, default=20, help="steps a round (default: 20)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; the median is reported (default: 7)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    arguments = parser.parse_args()

    limit_threads()
    device = choose_device(arguments.device)
    count = arguments.batch_size * (arguments.steps + WARM_UP_STEPS)
    images = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, device=device)
    labels = torch.randint(CLASSES, (count,), device=device)
    config = Config(batch_size=arguments.batch_size, device=device.type, output_dir=tempfile.gettempdir())
    augmentation = Augmentation(config.rotation_degree, config.affine_degree, config.translate)
    loader = TensorLoader(images, labels, arguments.batch_size, shuffle_seed=0, augmentation=augmentation)
    model = EnhancedGlyphCNN(CLASSES)
    trainer = Trainer(model, loader, loader, config, [str(i) for i in range(CLASSES)])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(images[:1])
    model.train()
    operations = BACKWARD_FACTOR * counter.get_total_flops()  # for an image

    print(f"{describe_device(device)}, torch {torch.__version__}, {trainer.dtype}, batch {arguments.batch_size}")
    rates, ratios, ceilings = [], [], []
    for round_number in range(arguments.rounds):
        before = best_matrix_product(device, trainer.dtype)
        for step, batch in fetch_steps(loader, 0, round_number):
            if step == WARM_UP_STEPS:
                trainer.step_stats.sum().item()
                started = time.perf_counter()
            trainer.step_stats[step] = trainer._train_step(*batch)
        trainer.step_stats.sum().item()  # waits for the device
        rates.append(arguments.batch_size * arguments.steps / (time.perf_counter() - started))
        ceilings.append((before + best_matrix_product(device, trainer.dtype)) / 2)
        ratios.append(rates[-1] * operations / ceilings[-1])
    rows = (
        ("training, images/s", rates, 1.0),
        ("training, GFLOP/s", [rate * operations for rate in rates], 1e9),
        ("matrix product, GFLOP/s", ceilings, 1e9),
        ("ratio, %", ratios, 0.01),
    )
    print(f"{'':26}{'median':>10}{'lowest':>10}{'highest':>10}")
    for name, values, unit in rows:
        middle, low, high = statistics.median(values), min(values), max(values)
        print(f"{name:26}{middle / unit:10.1f}{low / unit:10.1f}{high / unit:10.1f}")


if __name__ == "__main__":
    main()
