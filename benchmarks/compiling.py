"""What torch.compile gains in training, and what it costs: both networks, by batch size.

    python benchmarks/compiling.py

For each network and batch size two trainers take the same steps, one compiled, in turns at every step, so that a
noisy machine slows both.  The compilation is the time of the compiled one's first two steps less that of two later
ones; it is earned back after that many images whose saved time adds up to it.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.throughput import CLASSES, random_images, wait_for
from glyphs.core.config import Config
from glyphs.core.devices import choose_device, describe_device, limit_threads
from glyphs.core.process import run
from glyphs.core.protocols import Batch, fetch_steps
from glyphs.data.loaders import Augmentation, TensorLoader
from glyphs.models.network import EnhancedGlyphCNN
from glyphs.training.trainer import Trainer

WARM_UP = 2  # steps


def make_trainer(batch: int, steps: int, device: torch.device, *, residual: bool) -> Trainer:
    images, labels = (tensor.to(device) for tensor in random_images(batch * (steps + WARM_UP)))
    config = Config(batch_size=batch, use_residual=residual, device=device.type, output_dir=tempfile.gettempdir())
    augmentation = Augmentation(config.rotation_degree, config.affine_degree, config.translate)
    loader = TensorLoader(images, labels, batch, shuffle_seed=0, augmentation=augmentation)
    model = EnhancedGlyphCNN(CLASSES, use_residual=residual)
    trainer = Trainer(model, loader, loader, config, [str(number) for number in range(CLASSES)])
    trainer.model.train()
    return trainer


def seconds_of(trainer: Trainer, batch: Batch) -> float:
    started = wait_for(trainer.device)
    trainer.train_step(*batch)
    return wait_for(trainer.device) - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 256], help="images a step")
    parser.add_argument("--steps", type=int, default=20, help="steps of each, besides two to warm up (default: 20)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--backend", default="inductor", help="of torch.compile; eager, for tests, compiles nothing")
    arguments = parser.parse_args()

    limit_threads()
    device = choose_device(arguments.device)
    print(f"{describe_device(device)}, torch {torch.__version__}, median (lowest to highest)\n")
    print("| network | batch | as it is, images/s | compiled, images/s | gain | compilation, s | earned back after |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for residual in (False, True):
        for batch in arguments.batch_sizes:
            plain, compiled = (make_trainer(batch, arguments.steps, device, residual=residual) for _ in range(2))
            compiled.model.compile(backend=arguments.backend)
            times: dict[Trainer, list[float]] = {plain: [], compiled: []}
            for _, made in fetch_steps(plain.train_loader, 0, 0):
                for trainer, seconds in times.items():
                    seconds.append(seconds_of(trainer, made))
            steady = {trainer: seconds[WARM_UP:] for trainer, seconds in times.items()}
            rates = [[batch / each for each in seconds] for seconds in steady.values()]
            median, faster = (statistics.median(each) for each in steady.values())
            compilation = max(0.0, sum(times[compiled][:WARM_UP]) - WARM_UP * faster)
            earned = f"{batch * compilation / (median - faster):,.0f} images" if faster < median else "never"
            cells = [
                "residual" if residual else "light",
                str(batch),
                *(f"{statistics.median(each):,.0f} ({min(each):,.0f} to {max(each):,.0f})" for each in rates),
                f"{median / faster - 1:+.0%}",
                f"{compilation:.0f}",
                earned,
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(run(main))
