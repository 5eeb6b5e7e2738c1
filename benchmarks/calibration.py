"""Whether answers at 0.9 are right nine times of ten, however few validation pictures there are.

    python benchmarks/calibration.py DATA_DIR

DATA_DIR is where EMNIST/raw/ is.  "Folders" of 100, 500 and 5,000 pictures of ten classes, drawn from EMNIST-Balanced,
train small networks, as many as --networks says.  From pictures that a network was not trained on, validation parts of
10, 50 and 500 are drawn, as many as --draws says; each chooses the epoch and the temperature, and the others tell what
these are worth.  A line for each way to choose the temperature: its median, and what four fifths of the draws lie
between; the share of the other pictures that is answered at 0.9 or more; how many of these answers are right, over all
draws and in the draw that nine of ten are better than; the calibration error on the other pictures; in how many draws
that on the validation part itself became worse.  Before them stands what the epoch that a validation part chooses has
right of the others, beside the first epoch that has the highest accuracy, and the last.  `prior` says how far from 1
the temperatures lie that networks need, measured on all pictures that they were not trained on: the root mean square of
their logarithms.

Then the recipe of docs/TRAINING.md is asked about classes that it does not know: the weights in the box are fine-tuned
with 130 pictures of ten classes, 13 of them for validation, and read 60 pictures of each of nine other classes.
Told is how many of these 540 are answered at 0.9, 0.99 and 0.999999, as a mean over draws of 13 validation pictures.
"""

import argparse
import logging
import math
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from glyphs.core.config import Config
from glyphs.core.files import pretrained_folder
from glyphs.core.randomness import address, seed_everything
from glyphs.data.emnist import CLASS_NAMES, Part, load_emnist
from glyphs.data.loaders import Augmentation, TensorLoader
from glyphs.evaluation.calibration import fit_temperature
from glyphs.evaluation.metrics import calibration_error
from glyphs.models.checkpoint import start_from
from glyphs.models.network import EnhancedGlyphCNN, as_floats
from glyphs.training.callbacks import Callback, Run
from glyphs.training.early_stopping import EarlyStopping
from glyphs.training.trainer import Trainer

SPLIT = "balanced"
KNOWN, UNKNOWN = 10, 9  # classes
SIZES = {10: (100, 30, 16), 50: (500, 30, 16), 500: (5000, 12, 64)}  # validation pictures: all, epochs, batch
SURE = 0.9
BATCH = 250  # of inference
COLDEST, HOTTEST = 0.05, 20.0  # where the temperature of the highest likelihood was sought
FINE_TUNED = (130, 13)  # pictures, of these for validation
LEVELS = (0.9, 0.99, 0.999999)
WAYS = ("none", "likelihood", "ours")


class Pictures(NamedTuple):
    """Pictures of some classes: uint8 [N, 1, 28, 28], int64 [N]."""

    images: Tensor
    labels: Tensor


class Kept(Callback):
    """Keeps the logits of some images after each epoch."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.logits: list[Tensor] = []

    def on_epoch_end(self, trainer: Run, row: dict[str, float]) -> None:
        self.logits.append(classify(trainer.model, self.images))


def classify(model: nn.Module, images: Tensor) -> Tensor:
    """float64 [N, C]: logits."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(as_floats(some)) for some in torch.split(images, BATCH)]).double()


def draw_classes(data_dir: Path, part: Part, classes: list[int], each: int, seed: int) -> Pictures:
    """So many pictures of each of these classes, at most, in random order, with the classes' places as labels."""
    images, labels = load_emnist(data_dir, SPLIT, part)
    generator = torch.Generator().manual_seed(seed)
    rows, new = [], []
    for place, label in enumerate(classes):
        there = (labels == label).nonzero()[:, 0]
        rows.append(there[torch.randperm(len(there), generator=generator)[:each]])
        new.append(torch.full((len(rows[-1]),), place))
    order = torch.randperm(sum(map(len, rows)), generator=generator)
    return Pictures(images[torch.cat(rows)[order]], torch.cat(new)[order])


def choose_classes(seed: int) -> tuple[list[int], list[int]]:
    """Classes that a network knows, and others that it does not."""
    order = torch.randperm(len(CLASS_NAMES[SPLIT]), generator=torch.Generator().manual_seed(seed)).tolist()
    return order[:KNOWN], order[KNOWN : KNOWN + UNKNOWN]


def train(model: nn.Module, train: Pictures, val: Pictures, config: Config, names: list[str], kept: Kept) -> None:
    distortion = Augmentation(config.rotation_degree, config.affine_degree, config.translate)
    loader = TensorLoader(*train, config.batch_size, shuffle_seed=config.seed, augmentation=distortion)
    Trainer(model, loader, TensorLoader(*val, BATCH), config, names, callbacks=[kept]).fit()


def likeliest(logits: Tensor, labels: Tensor) -> float:
    """The temperature of the highest likelihood, without a prior (Guo et al., arXiv 1706.04599)."""
    bounds = (1 / HOTTEST, 1 / COLDEST)
    return 1 / float(minimize_scalar(lambda b: float(F.cross_entropy(logits * b, labels)), bounds=bounds).x)


def temperature_of(way: str, logits: Tensor, labels: Tensor) -> float:
    if way == "none":
        return 1.0
    return likeliest(logits, labels) if way == "likelihood" else fit_temperature(logits, labels).value


def best_epoch(logits: Tensor, labels: Tensor) -> int:
    """The epoch that the Trainer would choose, from logits [E, N, C] of the validation images."""
    stopping, model = EarlyStopping(), nn.Identity()
    for epoch, each in enumerate(logits):
        loss, right = float(F.cross_entropy(each, labels)), (each.argmax(1) == labels).double().mean()
        stopping.update(loss, model, float(right), len(labels), epoch=epoch)
    return int(stopping.best["epoch"])


def confidences(logits: Tensor, temperature: float) -> Tensor:
    return (logits / temperature).softmax(1).amax(1)


def judge_draws(logits: Tensor, labels: Tensor, count: int, draws: int, seed: int) -> dict[str, list[Tensor]]:
    """For each way and draw: temperature, share of sure answers, right of them, calibration error, own one worse."""
    found: dict[str, list[Tensor]] = {way: [] for way in WAYS}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        order = torch.randperm(len(labels), generator=generator)
        val, others = order[:count], order[count:]
        chosen = logits[best_epoch(logits[:, val], labels[val])]
        right = chosen.argmax(1) == labels
        plain = calibration_error(confidences(chosen[val], 1), right[val])
        for way in WAYS:
            temperature = temperature_of(way, chosen[val], labels[val])
            confidence = confidences(chosen[others], temperature)
            sure = confidence >= SURE
            own = calibration_error(confidences(chosen[val], temperature), right[val])
            error = calibration_error(confidence, right[others])
            hits = right[others][sure].double().mean()  # NaN where nothing is sure
            row = [temperature, float(sure.double().mean()), float(hits), error, float(own > plain + 1e-9)]
            found[way].append(torch.tensor(row, dtype=torch.float64))
    return found


def judge_epochs(logits: Tensor, labels: Tensor, count: int, draws: int, seed: int) -> list[float]:
    """What the epochs that validation parts choose have right of the other pictures, as means over the draws.

    Returns
    -------
    Of the first epoch with the highest accuracy, of the one that the Trainer chooses, and of the last.
    """
    generator = torch.Generator().manual_seed(seed)
    right = (logits.argmax(2) == labels).double()
    found = []
    for _ in range(draws):
        order = torch.randperm(len(labels), generator=generator)
        val, others = order[:count], order[count:]
        first = int(right[:, val].mean(1).argmax())
        found.append(right[:, others].mean(1)[[first, best_epoch(logits[:, val], labels[val]), -1]])
    accuracies: list[float] = torch.stack(found).mean(0).tolist()
    return accuracies


def judge_small_folders(arguments: argparse.Namespace) -> None:
    needed: list[float] = []
    for count in arguments.validation:
        pictures, epochs, batch = SIZES[count]
        found: dict[str, list[Tensor]] = {way: [] for way in WAYS}
        accuracies = []
        epochs_chosen = []
        for number in range(arguments.networks):
            seed = address("calibration", count, number) % 2**31
            classes, _ = choose_classes(seed)
            pool = arguments.pool + count
            drawn = draw_classes(arguments.data_dir, "train", classes, -(-(pictures + pool) // KNOWN), seed)
            rest = Pictures(drawn.images[pictures - count :][:pool], drawn.labels[pictures - count :][:pool])
            start = Pictures(drawn.images[: pictures - count], drawn.labels[: pictures - count])
            kept = Kept(rest.images)
            seed_everything(seed)
            with tempfile.TemporaryDirectory() as folder:
                config = Config(
                    batch_size=batch, num_epochs=arguments.epochs or epochs, learning_rate=0.003, use_residual=False,
                    early_stopping_patience=epochs, output_dir=folder, device="cpu", seed=number,
                )  # fmt: skip
                model = EnhancedGlyphCNN(KNOWN, config.dropout_rate, config.use_residual)
                names = [CLASS_NAMES[SPLIT][label] for label in classes]
                train(model, start, Pictures(rest.images[:count], rest.labels[:count]), config, names, kept)
            logits = torch.stack(kept.logits)
            for way, rows in judge_draws(logits, rest.labels, count, arguments.draws, seed).items():
                found[way] += rows
            epochs_chosen.append(judge_epochs(logits, rest.labels, count, arguments.draws, seed))
            last = logits[best_epoch(logits, rest.labels)]
            needed.append(math.log(likeliest(last, rest.labels)))
            accuracies.append(float((last.argmax(1) == rest.labels).double().mean()))
        what = f"{count} validation pictures"
        print(f"{what}: {len(accuracies)} networks, accuracy {min(accuracies):.1%} to {max(accuracies):.1%}")
        first, ours, final = torch.tensor(epochs_chosen).mean(0).tolist()
        print(
            f"{what}: right of the others, by the first epoch of the highest accuracy {first:.1%}, by the one chosen "
            f"{ours:.1%}, by the last {final:.1%}"
        )
        for way, rows in found.items():
            temperature, share, right, error, worse = torch.stack(rows).T
            low, middle, high = temperature.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
            known = ~right.isnan()
            all_right = float((share * right)[known].sum() / share[known].sum())
            tenth = float(right.nanquantile(0.1))
            print(
                f"{what}, {way:10}  temperature {middle:.2f} ({low:.2f} to {high:.2f}); at {SURE} or more "
                f"{float(share.mean()):.1%}, right {all_right:.1%} (in the tenth draw {tenth:.1%}); calibration error "
                f"{float(error.mean()):.3f}; on its own part worse in {float(worse.mean()):.0%}",
                flush=True,
            )
    prior = math.sqrt(sum(each**2 for each in needed) / len(needed))
    extent = f"{min(needed):.2f} to {max(needed):.2f}"
    print(f"prior: log T of {len(needed)} networks {extent}, root mean square {prior:.2f}")


def judge_unknown_classes(arguments: argparse.Namespace) -> None:
    pictures, count = FINE_TUNED
    classes, others = choose_classes(1)
    drawn = draw_classes(arguments.data_dir, "test", classes, 60, 1)
    strangers = draw_classes(arguments.data_dir, "test", others, 60, 2).images
    names = [CLASS_NAMES[SPLIT][label] for label in classes]
    start = Pictures(drawn.images[: pictures - count], drawn.labels[: pictures - count])
    rest = Pictures(drawn.images[pictures - count :], drawn.labels[pictures - count :])
    val = Pictures(rest.images[:count], rest.labels[:count])
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            batch_size=16, num_epochs=arguments.epochs or 30, learning_rate=3e-4, output_dir=folder, device="cpu"
        )
        model, _ = start_from(arguments.model, config, names)
        train(model, start, val, config, names, Kept(val.images[:1]))
    logits, unknown = classify(model, rest.images), classify(model, strangers)
    right = logits.argmax(1) == rest.labels
    accuracy = float(right.double().mean())
    print(f"unknown classes: fine-tuned with {pictures - count} pictures, {accuracy:.1%} of {len(right)} others right")
    for way in WAYS:
        generator = torch.Generator().manual_seed(1)
        rows = []
        for _ in range(arguments.draws):
            drawn_for_validation = torch.randperm(len(right), generator=generator)[:count]
            temperature = temperature_of(way, logits[drawn_for_validation], rest.labels[drawn_for_validation])
            sure = confidences(logits, temperature) >= SURE
            above = [float((confidences(unknown, temperature) >= level).sum()) for level in LEVELS]
            rows.append(
                torch.tensor([temperature, *above, float(sure.double().mean()), float(right[sure].double().mean())])
            )
        low, middle, high = torch.stack(rows)[:, 0].quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
        _, *above, share, hits = torch.stack(rows).mean(0).tolist()
        levels = ", ".join(f"{number:.0f} at {level}" for number, level in zip(above, LEVELS, strict=True))
        print(
            f"unknown classes, {way:10}  temperature {middle:.2f} ({low:.2f} to {high:.2f}); of {len(unknown)} unknown "
            f"ones {levels} or more; of known ones {share:.1%} at {SURE} or more, right {hits:.1%}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("data_dir", type=Path)
    parser.add_argument(
        "--validation", type=int, nargs="+", choices=SIZES, default=list(SIZES), help="parts of so many"
    )
    parser.add_argument("--networks", type=int, default=3, help="of each size (default: 3)")
    parser.add_argument("--draws", type=int, default=100, help="validation parts for each network (default: 100)")
    parser.add_argument("--pool", type=int, default=1000, help="pictures that judge (default: 1000)")
    parser.add_argument("--epochs", type=int, help="of each training, for a quick look")
    parser.add_argument("--model", type=Path, default=pretrained_folder() / "glyphs47.pth", help="to fine-tune")
    arguments = parser.parse_args()
    logging.getLogger("glyphs").setLevel(logging.ERROR)
    if 10 in arguments.validation:
        judge_unknown_classes(arguments)
    judge_small_folders(arguments)


if __name__ == "__main__":
    main()
