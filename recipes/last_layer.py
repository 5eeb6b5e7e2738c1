"""How the last layer of pretrained/glyphs47.pth learned which pictures are likelier to show digits.

    python recipes/last_layer.py --data-dir DIR --start OLD.pth --teacher OLD.pth OLDER.pth --output NEW.pth

In training every class is as frequent as any other; among the characters that people draw and cut out, digits are more
frequent than letters. EMNIST images are made into such pictures (as in `glyphs47.py`), digits more often than letters,
and the last layer is fitted to these, to EMNIST's images, and to the pictures that are not held out, so that the prior
goes with the look of a picture. The other layers stay as they are, which makes this a matter of minutes: what they make
of each image is computed once, and the rest is a convex problem. What is written is to be calibrated.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from glyphs.core.arrays import Bytes, Floats
from glyphs.data.loaders import get_data_loaders
from glyphs.models.checkpoint import load_checkpoint, write_checkpoint
from glyphs.models.network import EnhancedGlyphCNN, as_floats
from glyphs.pictures.glyph import preprocess
from recipes.glyphs47 import (
    Rng,
    box_of,
    cell,
    draw,
    load_network,
    prepare_pictures,
    scan,
    smooth,
    to_picture,
    turned,
)

OF_CLASS = 510  # EMNIST images of each class
MADE = 9000  # EMNIST images made into pictures; of a tenth nothing is found again
VIEWS = {"photos": 1, "drawings": 1, "user_singles": 6}  # of each picture, besides the picture as it is
SHARES = {"emnist": 0.5, "made": 0.25, "photos": 0.12, "drawings": 0.06, "user_singles": 0.07}  # of the loss
TEACHERS = 0.6  # share of the targets on EMNIST's images that is the teachers'
FIDELITY = 3e-3  # what the loss gains with each squared change of a weight
LESS_DIGITS = 0.35  # taken from the logits of the digits afterwards: EMNIST's macro accuracy is then what it was
DIGITS = 10  # the first classes


def wobble(image: Bytes, rng: Rng) -> Bytes:
    """An image drawn with a less steady hand: each place shifted by about a pixel, neighbours alike."""
    shifts = [ndimage.gaussian_filter(rng.normal(0, 14, image.shape), 5, mode="constant") for _ in range(2)]
    return np.asarray(ndimage.map_coordinates(image, np.indices(image.shape) + shifts, order=1))


def add_stroke(image: Bytes, label: int, rng: Rng) -> Bytes:
    """A zero with a slash, a one with a foot, a seven or Z with a bar: frequent on screens and rare in EMNIST."""
    names = {0: "0", 1: "1", 7: "7", DIGITS + 25: "Z"}
    name = names.get(label)
    if name is None or rng.random() > 0.15:
        return image
    rows, columns = box_of(image > 100)
    top, bottom, left, right = rows.start, rows.stop - 1, columns.start, columns.stop - 1
    middle, high, wide = (left + right) / 2, bottom - top, right - left
    if name == "0":
        out, less = rng.uniform(-1, 2, 2), rng.uniform(0, 4, 2)
        line = (right - out[0], top + less[0], left + out[1], bottom - less[1])
    elif name == "1":
        half = rng.uniform(0.2, 0.4) * high
        line = (middle - half, bottom, middle + half, bottom)
    else:
        half, level = rng.uniform(0.3, 0.5) * wide, top + rng.uniform(0.4, 0.6) * high
        line = (middle - half, level + rng.uniform(-1, 2), middle + half, level)
    picture = Image.fromarray(image)
    ImageDraw.Draw(picture).line(line, fill=255, width=int(rng.integers(2, 4)))
    return np.asarray(picture)


def paint_by_hand(image: Bytes, rng: Rng) -> Floats:
    """A drawing on a square of 28 pixels, hard or soft, dark or light, of pens from thin to fat; some are cut off."""
    pen = float(rng.choice([1, 1, 1.5, 2, 3, 4]))
    ink = draw(wobble(turned(image, rng), rng), rng.uniform(15, 26), pen)[:28, :28]
    if rng.random() < 0.5:
        ink = (ink > rng.uniform(0.3, 0.5)).astype(np.float32)
    elif rng.random() < 0.4:
        ink = ndimage.gaussian_filter(ink, rng.uniform(0.3, 0.7))
    if rng.random() < 0.15:
        ink = ink[int(rng.integers(3)) : len(ink) - int(rng.integers(3))]
    page = np.zeros((28, 28), np.float32)
    top, left = (int(rng.integers(28 - length + 1)) for length in ink.shape)
    page[top : top + ink.shape[0], left : left + ink.shape[1]] = ink * rng.choice([1, 1, 0.8, 0.5])
    if rng.random() < 0.2:  # only the ink, from edge to edge
        page = page[box_of(page > 0.25)]
    if rng.random() < 0.4:
        page = 1 - page
    if rng.random() < 0.3:
        times = int(rng.integers(2, 11))
        how = Image.Resampling.NEAREST if rng.random() < 0.5 else Image.Resampling.BICUBIC
        page = np.asarray(Image.fromarray(page).resize((times * page.shape[1], times * page.shape[0]), how))
    return page


class Maker(NamedTuple):
    """A way to make pictures of images."""

    make: Callable[[Bytes, Rng], Image.Image | Floats]
    share: float  # of the pictures made
    digits: float  # how much more frequent a digit is than a letter


MAKERS = (Maker(paint_by_hand, 0.45, 6.0), Maker(cell, 0.25, 4.0), Maker(scan, 0.3, 3.0))


def make_pictures(
    images: Bytes, labels: NDArray[np.int64], count: int, rng: Rng
) -> tuple[Bytes, NDArray[np.int64], NDArray[np.int64]]:
    """Images made into pictures and brought back: uint8 [M, 28, 28], and from which image, by which maker each comes.

    images : uint8 [N, 28, 28].  labels : int [N], of which the first are digits.
    """
    of_class = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    pixels, sources, by = [], [], []
    for number in rng.choice(len(MAKERS), count, p=[maker.share for maker in MAKERS]).tolist():
        maker = MAKERS[number]
        prior = np.where(np.arange(len(of_class)) < DIGITS, maker.digits, 1) * [len(rows) > 0 for rows in of_class]
        label = int(rng.choice(len(of_class), p=prior / prior.sum()))
        source = int(rng.choice(of_class[label]))
        page = maker.make(add_stroke(images[source], label, rng), rng)
        glyph = preprocess(to_picture(page) if isinstance(page, np.ndarray) else page)
        if glyph.pixels is not None:
            pixels.append(glyph.pixels)
            sources.append(source)
            by.append(number)
    return np.stack(pixels), np.array(sources), np.array(by)


def lean(targets: Tensor, digits: Tensor) -> Tensor:
    """Targets, float [N, C], where a digit is more frequent than a letter, by factors of float [N]."""
    factors = torch.ones_like(targets)
    factors[:, :DIGITS] = digits[:, None]
    return F.normalize(targets * factors, p=1, dim=1)


@torch.inference_mode()
def features(model: EnhancedGlyphCNN, images: Tensor) -> Tensor:
    """What the last layer sees of images, uint8 [N, 1, 28, 28]: float [N, F]."""
    model.eval()
    batches = [(as_floats(batch) - model.mean) / model.std for batch in torch.split(images, 256)]
    return torch.cat([model.pool(model.stages(model.stem(batch))).flatten(1) for batch in batches]).clone()


@torch.inference_mode()
def teach(teachers: list[EnhancedGlyphCNN], images: Tensor, labels: Tensor) -> Tensor:
    """Targets, float [N, C], for EMNIST's images, uint8 [N, 1, 28, 28]: the teachers' mean, and the label."""
    means = [torch.stack([model(batch).softmax(1) for model in teachers]).mean(0) for batch in torch.split(images, 256)]
    probabilities = torch.cat(means)
    return (TEACHERS * probabilities + (1 - TEACHERS) * smooth(labels, 0.03, probabilities.shape[1])).clone()


def fit(layer: torch.nn.Linear, parts: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Fit a layer to parts of features, float [N, F], and targets, float [N, C], not far from what it is.

    The loss is the cross-entropy, of which each part has its share, plus `FIDELITY` times the squared changes.
    """
    inputs, targets = (torch.cat([part[place] for part in parts.values()]) for place in (0, 1))
    weights = torch.cat([torch.full((len(part[0]),), SHARES[name] / len(part[0])) for name, part in parts.items()])
    before = layer.weight.detach().clone()
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = F.cross_entropy(layer(inputs), targets, reduction="none")
        loss = (weights * losses).sum() + FIDELITY * ((layer.weight - before) ** 2).sum()
        torch.autograd.backward(loss)
        return loss.detach()

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with EMNIST/raw, photos, drawings")
    parser.add_argument("--start", type=Path, required=True, help="checkpoint of a 47-class model")
    parser.add_argument(
        "--teacher", type=Path, nargs="+", required=True, help="checkpoints whose mean probabilities are the targets"
    )
    parser.add_argument("--output", type=Path, required=True, help="the checkpoint to write")
    parser.add_argument("--of-class", type=int, default=OF_CLASS, metavar="N", help="EMNIST images of each class")
    parser.add_argument("--made", type=int, default=MADE, metavar="N", help="EMNIST images made into pictures")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    model, names = load_network(arguments.start)
    teachers = [load_network(path)[0] for path in arguments.teacher]
    # From here on the temperature is in the weights.
    for weights in model.classifier.parameters():
        weights.data /= model.temperature
    model.temperature.fill_(1)

    data = get_data_loaders({"data_dir": str(arguments.data_dir), "emnist_split": "bymerge", "val_split": 0.03})
    images, labels = data.train.images[data.train.index], data.train.labels[data.train.index]
    chosen = [rng.permutation(np.flatnonzero(labels.numpy() == place)) for place in range(len(names))]
    used = np.concatenate([rows[: arguments.of_class] for rows in chosen])
    images, labels = images[used], labels[used]
    targets = teach(teachers, images, labels)
    made, sources, by = make_pictures(images[:, 0].numpy(), labels.numpy(), arguments.made, rng)
    leaning = lean(targets[sources], torch.tensor([maker.digits for maker in MAKERS])[by])
    parts = {
        "emnist": (features(model, images), targets),
        "made": (features(model, torch.from_numpy(made)[:, None]), leaning),
    }
    for kind, count in VIEWS.items():
        pixels, truth = [], []
        for picture in prepare_pictures(arguments.data_dir, kind, names, rng, count):
            several = [*picture.views, *([] if picture.plain is None else [picture.plain])]
            pixels += several
            truth += [picture.label] * len(several)
        if pixels:
            seen = features(model, torch.from_numpy(np.stack(pixels))[:, None])
            parts[kind] = (seen, smooth(torch.tensor(truth), 0.05, len(names)))
    fit(model.classifier, parts)
    model.classifier.bias.data[:DIGITS] -= LESS_DIGITS
    write_checkpoint(arguments.output, {**load_checkpoint(arguments.start), "model": model.state_dict()})


if __name__ == "__main__":
    main()
