"""Seconds of training until the test files are read with a given accuracy: mean and spread over several seeds.

    python benchmarks/time_to_accuracy.py --data-dir DIR

Trains the default model on all training images with the default settings but for the recipe below.  After each epoch
the clock stops and the test files are read.  It does not run either while the data load, nor during the first steps of
a throwaway model, in which kernels are chosen and compiled.  Nothing is chosen by these test files but the moment to
stop the clock: a learning rate that is tried here must be confirmed on other images.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.throughput import WARM_UP_STEPS, best_matrix_product, wait_for
from glyphs.core.config import DATASETS, SPLITS, Config
from glyphs.core.devices import choose_device, describe_device, limit_threads, use_deterministic_algorithms
from glyphs.core.process import run
from glyphs.core.protocols import fetch_steps
from glyphs.core.randomness import address, seed_everything
from glyphs.data.division import stratified_split
from glyphs.data.loaders import Augmentation, GlyphSet, TensorLoader, load_set, make_test_loader
from glyphs.models.network import EnhancedGlyphCNN
from glyphs.training.trainer import Trainer


def make_trainer(config: Config, train: GlyphSet, test: GlyphSet, device: torch.device) -> Trainer:
    augmentation = Augmentation(config.rotation_degree, config.affine_degree, config.translate)
    loader = TensorLoader(
        train.images,
        train.labels,
        config.batch_size,
        index=train.chosen,
        shuffle_seed=config.seed,
        augmentation=augmentation,
    )
    seed_everything(address(config.seed, "weights"))
    model = EnhancedGlyphCNN(len(train.class_names), config.dropout_rate)
    return Trainer(model, loader, make_test_loader(test, config, device), config, train.class_names)


def train_epoch(trainer: Trainer, steps: int | None = None) -> float:
    """Train for an epoch, or the first steps of one; returns its seconds."""
    trainer.model.train()
    started = wait_for(trainer.device)
    for _, batch in islice(fetch_steps(trainer.train_loader, trainer.config.seed, trainer.epoch), steps):
        trainer.train_step(*batch)
    trainer.epoch += 1
    return wait_for(trainer.device) - started


def load(config: Config, device: torch.device, max_train_images: int | None) -> tuple[GlyphSet, GlyphSet]:
    """The training images, all or so many, and the test images, on the device."""
    train, test = load_set(config, "train", device), load_set(config, "test", device)
    if max_train_images is not None:
        chosen, _ = stratified_split(train.labels, train.chosen, max_train_images, config.seed)
        train = train._replace(chosen=chosen)
    return train, test


def warm_up(config: Config, train: GlyphSet, test: GlyphSet, device: torch.device) -> None:
    train_epoch(make_trainer(config, train, test, device), WARM_UP_STEPS)


def race(
    config: Config, train: GlyphSet, test: GlyphSet, device: torch.device, seeds: int, targets: Sequence[float]
) -> tuple[dict[float, list[float]], list[float], list[float]]:
    """Train with each seed; returns seconds to each target for the runs that reached it, accuracies, epochs' seconds.

    targets, accuracies : on the test images, in percent.
    """
    reached: dict[float, list[float]] = {target: [] for target in targets}
    accuracies, epochs = [], []
    for seed in range(seeds):
        trainer = make_trainer(Config.from_dict({**config.to_dict(), "seed": seed}), train, test, device)
        seconds, left = 0.0, sorted(reached)
        for epoch in range(config.num_epochs):
            epochs.append(train_epoch(trainer))
            seconds += epochs[-1]
            accuracy = 100 * trainer.validate()["val_accuracy"]
            print(f"seed {seed}, epoch {epoch + 1}: {seconds:.2f} s, {accuracy:.2f} %", file=sys.stderr)
            while left and accuracy >= left[0]:
                reached[left.pop(0)].append(seconds)
        accuracies.append(accuracy)
    return reached, accuracies, epochs


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """--data-dir and --dataset, as the training script has them, but for folders of one's own pictures."""
    defaults = Config()
    parser.add_argument(
        "--data-dir", default=defaults.data_dir, help=f"holds EMNIST/raw (default: {defaults.data_dir})"
    )
    parser.add_argument("--dataset", default=defaults.dataset, choices=sorted(set(DATASETS) - {"folder"}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--split", default=Config().emnist_split, choices=SPLITS)
    parser.add_argument("--max-train-images", type=int, metavar="N", help="train on only so many images")
    parser.add_argument("--batch-size", type=int, default=512, help="images a step (default: 512)")
    parser.add_argument("--learning-rate", type=float, default=0.003, help="the highest of the run (default: 0.003)")
    parser.add_argument("--epochs", type=int, default=8, help="the length of the cosine schedule (default: 8)")
    parser.add_argument("--seeds", type=int, default=10, help="runs, each with a seed of its own (default: 10)")
    parser.add_argument("--targets", type=float, nargs="+", default=[88, 89, 90], help="in percent (default: 88 89 90)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    arguments = parser.parse_args()

    limit_threads()
    use_deterministic_algorithms(False)  # as the training script does: on CUDA, cuDNN tries which kernel is fastest
    device = choose_device(arguments.device)
    config = Config(
        data_dir=arguments.data_dir,
        dataset=arguments.dataset,
        emnist_split=arguments.split,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        num_epochs=arguments.epochs,
        device=device.type,
        output_dir=tempfile.gettempdir(),
    )
    train, test = load(config, device, arguments.max_train_images)
    warm_up(config, train, test, device)
    product = best_matrix_product(device, torch.float32) / 1e9

    print(f"{describe_device(device)}, torch {torch.__version__}, float32 matrix product {product:,.0f} GFLOP/s")
    print(
        f"{len(train.chosen):,} training and {len(test.chosen):,} test images, batch {config.batch_size}, learning "
        f"rate {config.learning_rate:g}, {config.num_epochs} epochs"
    )
    reached, accuracies, epochs = race(config, train, test, device, arguments.seeds, arguments.targets)
    print(f"{'':26}{'runs':>8}{'mean':>10}{'deviation':>10}{'lowest':>10}{'highest':>10}")
    rows = {f"seconds to {target:g} %": values for target, values in sorted(reached.items())}
    rows |= {"accuracy at the end, %": accuracies, "seconds an epoch": epochs}
    for name, values in rows.items():
        figures = (
            [statistics.mean(values), statistics.stdev(values), min(values), max(values)] if values[1:] else values
        )
        print(f"{name:26}{len(values):8}{''.join(f'{figure:10.2f}' for figure in figures)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
