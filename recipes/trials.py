"""Short trainings that differ from a reference in one thing each: augmentation, loss, optimiser, averages, size.

    python recipes/trials.py --data-dir DIR                    # all of them, one after the other
    python recipes/trials.py --data-dir DIR reference mixup    # these

DIR holds EMNIST/raw; each trains the light network with the settings of `recipes/fast.json`, but for --epochs, on the
nine tenths of EMNIST-Balanced's training images that `--split balanced` trains on, and prints the accuracy and the
cross-entropy, every class alike, of the others, after a temperature was fitted to them. The figures are in
docs/EXPERIMENTS.md.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from glyphs.core.config import Config
from glyphs.data.augment import augment
from glyphs.data.loaders import get_data_loaders
from glyphs.evaluation.calibration import fit_temperature
from glyphs.models.checkpoint import load_model
from glyphs.models.network import EnhancedGlyphCNN
from glyphs.training.schedule import cosine_with_warmup
from glyphs.training.trainer import MAX_GRADIENT_NORM

FAST = Path(__file__).resolve().parent / "fast.json"
BATCH = 128
WARMUP = 0.1  # of the run
MUON_RATE = 0.02
TEACHER = Path(__file__).resolve().parent.parent / "pretrained" / "glyphs47.pth"

Batch = tuple[Tensor, Tensor]  # images, float [N, 1, 28, 28], and targets, float [N, C]


class Trial(NamedTuple):
    """What one training does otherwise than the reference."""

    change: Callable[[Batch, torch.Generator], Batch] = lambda batch, _: batch
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy  # of logits and targets, float [N, C]
    muon: bool = False
    average_from: float = 1.0  # from this share of the run on, the weights of all steps are averaged
    constant_from: float = 1.0  # from this share of the run on, the rate stays what it is
    teacher: float = 0.0  # share of the target that is the teacher's
    widths: tuple[int, int, int] = (32, 96, 320)
    blocks: int = 2


# ---- Augmentation ----


def mixup(batch: Batch, generator: torch.Generator) -> Batch:
    """Each image mixed with another, and the targets alike (arXiv 1710.09412), alpha 0.2."""
    images, targets = batch
    order = torch.randperm(len(images), generator=generator)
    share = np.random.default_rng(int(order[0]) * 1000 + int(order[1])).beta(0.2, 0.2)
    return images.lerp(images[order], share), targets.lerp(targets[order], share)


def cutmix(batch: Batch, generator: torch.Generator) -> Batch:
    """Half of the batches: a rectangle of each image from another, and so much of its target (arXiv 1905.04899)."""
    images, targets = batch
    if torch.rand(1, generator=generator) < 0.5:
        return batch
    rows, columns = rectangle(images, float(torch.rand(1, generator=generator)), generator)
    order = torch.randperm(len(images), generator=generator)
    images = images.clone()
    images[:, :, rows, columns] = images[order][:, :, rows, columns]
    share = (rows.stop - rows.start) * (columns.stop - columns.start) / images[0, 0].numel()
    return images, targets.lerp(targets[order], share)


def rectangle(images: Tensor, area: float, generator: torch.Generator) -> tuple[slice, slice]:
    """A place for a rectangle of about so large a share of the images."""
    sides = [max(1, round(length * area**0.5)) for length in images.shape[2:]]
    starts = [
        int(torch.randint(length - side + 1, (1,), generator=generator))
        for length, side in zip(images.shape[2:], sides, strict=True)
    ]
    rows, columns = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    return rows, columns


def erase(batch: Batch, generator: torch.Generator) -> Batch:
    """A quarter of the images lose a square of 2 to 15 % of them (arXiv 1708.04896)."""
    images = batch[0].clone()
    for place in torch.nonzero(torch.rand(len(images), generator=generator) < 0.25)[:, 0].tolist():
        area = 0.02 + 0.13 * float(torch.rand(1, generator=generator))
        rows, columns = rectangle(images, area, generator)
        images[place, :, rows, columns] = 0
    return images, batch[1]


def elastic(deviation: float) -> Callable[[Batch, torch.Generator], Batch]:
    """Shifts drawn for a 5x5 grid of places, smooth between them, with so large a standard deviation in pixels."""

    def change(batch: Batch, generator: torch.Generator) -> Batch:
        images, targets = batch
        side = images.shape[2]
        coarse = torch.randn(len(images), 2, 5, 5, generator=generator) * deviation * 2 / side
        shifts = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
        still = F.affine_grid(torch.eye(2, 3).expand(len(images), 2, 3), list(images.shape), align_corners=False)
        grid = still + shifts.permute(0, 2, 3, 1)
        return F.grid_sample(images, grid, mode="bilinear", align_corners=False), targets

    return change


def pens(batch: Batch, generator: torch.Generator) -> Batch:
    """A fifth of the images with fatter strokes and a fifth with thinner ones, up to half of a pixel on each side."""
    images, targets = batch[0].clone(), batch[1]
    draw = torch.rand(len(images), 2, generator=generator)
    for chosen, sign in ((draw[:, 0] < 0.2, 1), (draw[:, 0] > 0.8, -1)):
        strength = draw[chosen, 1].view(-1, 1, 1, 1) * 0.5
        images[chosen] = torch.lerp(images[chosen], sign * F.max_pool2d(sign * images[chosen], 3, 1, 1), strength)
    return images, targets


# ---- Losses, optimisers ----


def generalised_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(1 - p^q) / q of the label's probability p, at q = 0.3: wrong labels weigh less (arXiv 1805.07836)."""
    of_label = logits.softmax(1).gather(1, targets.argmax(1, keepdim=True))
    return ((1 - of_label**0.3) / 0.3).mean()


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal (K. Jordan and others, kellerjordan.github.io/posts/muon, 2024)."""

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weights in group["params"]:
                momentum = self.state[weights].setdefault("momentum", torch.zeros_like(weights))
                momentum.lerp_(weights.grad, 0.05)
                update = orthogonal(weights.grad.lerp(momentum, 0.95).flatten(1)).view_as(weights)
                fan_out, fan_in = weights.flatten(1).shape
                weights.mul_(1 - group["lr"] * group["weight_decay"])
                weights.sub_(update * group["lr"] * max(1, fan_out / fan_in) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """The orthogonal matrix nearest to one, about, by five steps of Newton and Schulz."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    found = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        square = found @ found.T
        found = 3.4445 * found + (-4.7750 * square + 2.0315 * square @ square) @ found
    nearest: Tensor = found if matrix.shape[0] <= matrix.shape[1] else found.T
    return nearest


TRIALS = {
    "reference": Trial(),
    "mixup": Trial(mixup),
    "cutmix": Trial(cutmix),
    "erasing": Trial(erase),
    "elastic 0.5": Trial(elastic(0.5)),
    "elastic 1": Trial(elastic(1.0)),
    "pens": Trial(pens),
    "generalised cross-entropy": Trial(loss=generalised_cross_entropy),
    "muon": Trial(muon=True),
    "swa": Trial(average_from=0.6, constant_from=0.6),
    "distilled": Trial(teacher=0.7),
    "wider": Trial(widths=(48, 144, 480)),
    "deeper": Trial(blocks=4),
}


# ---- Training ----


def orders(count: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Which of so many images each step sees: all of them once, in a new order, before any comes again."""
    every = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(every) < BATCH:
            every = torch.randperm(count, generator=generator)
        yield every[:BATCH]
        every = every[BATCH:]


@torch.inference_mode()
def of_teacher(images: Tensor) -> Tensor:
    """The probabilities of the weights in the box, float [N, C], for uint8 [N, 1, 28, 28]."""
    teacher = load_model(TEACHER)[0]
    return torch.cat([teacher(batch).softmax(1) for batch in torch.split(images, 256)]).clone()


def make_optimizers(model: nn.Module, config: Config, *, muon: bool) -> list[torch.optim.Optimizer]:
    """AdamW; with `muon`, of the vectors, the first convolution and the classifier only, and Muon of the others."""
    named = dict(model.named_parameters())
    vectors = [weights for weights in named.values() if weights.ndim == 1]
    matrices = {name: weights for name, weights in named.items() if weights.ndim > 1}
    inner = [w for name, w in matrices.items() if muon and name.startswith("stages") and w.shape[1] > 1]
    outer = [weights for weights in matrices.values() if all(weights is not other for other in inner)]
    groups = [{"params": outer, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=config.learning_rate)
    return [adam, Muon(inner, MUON_RATE, config.weight_decay)] if inner else [adam]


@torch.inference_mode()
def validate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy and cross-entropy in nats, means over the classes, after a temperature was fitted."""
    model.eval()
    logits = torch.cat([model(batch) for batch in torch.split(images, 256)])
    logits = logits / fit_temperature(logits, labels, class_prior="uniform").value
    right = (logits.argmax(1) == labels).double()
    losses = F.cross_entropy(logits, labels, reduction="none").double()
    counts = labels.bincount().double()
    accuracy, loss = (float((labels.bincount(each) / counts).mean()) for each in (right, losses))
    return accuracy, loss


def train(trial: Trial, data_dir: Path, epochs: int, seed: int, most: int | None) -> str:
    """Train once, and say in one line how good it is on the validation images and what it took."""
    settings = {**json.loads(FAST.read_text()), "data_dir": str(data_dir), "max_train_images": most}
    config = Config.from_dict(settings)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data = get_data_loaders(config)
    images, labels = data.train.images[data.train.index], data.train.labels[data.train.index]
    classes = len(data.class_names)
    prior = labels.bincount(minlength=classes).float() / len(labels)
    targets = (1 - config.label_smoothing) * F.one_hot(labels, classes) + config.label_smoothing * prior
    if trial.teacher:  # the loss adds the prior to the logits, so that the targets have it, too
        targets = targets.lerp(F.normalize(of_teacher(images) * prior, p=1, dim=1), trial.teacher)
    with patch.multiple("glyphs.models.network", STAGE_WIDTHS=trial.widths, BLOCKS_PER_STAGE=trial.blocks):
        model = EnhancedGlyphCNN(classes, config.dropout_rate, use_residual=False)
    average = AveragedModel(model, use_buffers=True)
    optimizers = make_optimizers(model, config, muon=trial.muon)
    steps = epochs * (len(images) // BATCH)
    schedules = [
        LambdaLR(each, lambda step: cosine_with_warmup(min((step + 1) / (steps + 1), trial.constant_from), WARMUP))
        for each in optimizers
    ]
    rotation, shear, translate = config.rotation_degree, config.affine_degree, config.translate
    start = time.process_time()
    model.train()
    for step, rows in enumerate(orders(len(images), steps, generator)):
        seen = augment(images[rows], generator, rotation=rotation, shear=shear, translate=translate)
        seen, wanted = trial.change((seen, targets[rows]), generator)
        loss = trial.loss(model(seen) + prior.log(), wanted)
        model.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step >= trial.average_from * steps:
            average.update_parameters(model)
    took = time.process_time() - start
    trained = average if trial.average_from < 1 else model
    accuracy, nats = validate(trained, data.val.images[data.val.index], data.val.labels[data.val.index])
    return f"{accuracy:.2%}  {nats:.4f}  {took:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("trials", nargs="*", choices=[*TRIALS, []], metavar="TRIAL", help=", ".join(TRIALS))
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with EMNIST/raw")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max-train-images", type=int, metavar="N", help="use only this many")
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    print("macro accuracy, macro cross-entropy, processor time")
    for name in arguments.trials or TRIALS:
        line = train(TRIALS[name], arguments.data_dir, arguments.epochs, arguments.seed, arguments.max_train_images)
        print(f"{name:26}{line}", flush=True)


if __name__ == "__main__":
    main()
