"""How pretrained/glyphs47.pth was trained on EMNIST and on pictures together, before `last_layer.py`.

    python recipes/glyphs47.py --data-dir DIR --start OLD.pth --teacher TEACHER.pth --output NEW.pth --minutes 77

DIR holds EMNIST/raw (ByMerge) and, as `benchmarks/pictures.py` takes them, photos, drawings and user_singles, whose
held-out parts are left alone. Three sources make up each batch: EMNIST's images; EMNIST's images made into what people
bring (drawn with a thin pen, cut from forms, scanned) and brought back by preprocessing; and preprocessed pictures. On
EMNIST's the targets are mostly the teacher's probabilities, averaged over views, which soften wrong labels. What is
written is a mean of the old weights and of a moving average of the new ones, to be calibrated. The learning rate falls
with the clock, so that a run takes as long as it is told to, and gives other weights on a faster machine.
"""

import argparse
import io
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.pictures import list_pictures, make_picture, true_class
from glyphs.core.arrays import Bytes, Floats
from glyphs.data.augment import augment
from glyphs.data.loaders import get_data_loaders
from glyphs.models.checkpoint import load_checkpoint, load_model, write_checkpoint
from glyphs.models.network import EnhancedGlyphCNN, ViewAverage
from glyphs.pictures.decode import open_picture, to_grey
from glyphs.pictures.glyph import preprocess

Rng = np.random.Generator

IN_BATCH = {"emnist": 128, "made": 56, "photos": 44, "drawings": 18, "user_singles": 10}
MADE = 14_323  # EMNIST images made into pictures
VIEWS = {"photos": 10, "drawings": 8, "user_singles": 16}  # of each picture, besides the picture as it is
PLAIN = 0.34  # share of the pictures of a batch that are taken as they are
TEACHER = 0.6  # share of the target that is the teacher's
LEARNING_RATE, WEIGHT_DECAY, WARMUP = 1e-3, 0.05, 150
AVERAGE = 0.999  # of the weights, kept at each step
NEW = 0.8  # share of the trained weights in what is written, the rest the old ones: better on EMNIST than either
THINNING = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))  # neighbours, clockwise


# ---- EMNIST images made into what people bring ----


def thin(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Strokes a pixel wide (Zhang and Suen, Communications of the ACM 27 (3), 1984), bool [H, W]."""
    ink = np.pad(mask, 1).astype(np.uint8)
    changed = True
    while changed:
        changed = False
        for first in (True, False):
            around = [np.roll(ink, shift, (0, 1)) for shift in THINNING]
            count = np.sum(around, axis=0)
            climbs = np.sum([(around[i] == 0) & (around[(i + 1) % 8] == 1) for i in range(8)], axis=0)
            north, east, south, west = around[0::2]
            if first:
                free = (north * east * south == 0) & (east * south * west == 0)
            else:
                free = (north * east * west == 0) & (north * south * west == 0)
            drop = (ink == 1) & (count >= 2) & (count <= 6) & (climbs == 1) & free
            changed |= bool(drop.any())
            ink[drop] = 0
    return ink[1:-1, 1:-1] > 0


def turn(grey: Floats, rng: Rng, degrees: float, slant: float, scale: tuple[float, float]) -> Floats:
    """Rotate, slant and scale at random about the centre, float32 [H, W]; the edge goes on outside."""
    angle, shear = math.radians(rng.uniform(-degrees, degrees)), rng.uniform(-slant, slant)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ [[1, 0], [shear, 1]] @ np.diag(rng.uniform(*scale, 2))
    centre = (np.array(grey.shape) - 1) / 2
    return np.asarray(ndimage.affine_transform(grey, matrix, centre - matrix @ centre, order=1, mode="nearest"))


def box_of(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def draw(image: Bytes, side: float, pen: float) -> Floats:
    """The strokes of an EMNIST image drawn with a pen of `pen` pixels, `side` pixels long; ink from 0 to 1, cropped."""
    large = np.asarray(Image.fromarray(image).resize((84, 84), Image.Resampling.BICUBIC)) > 110
    strokes = thin(np.pad(large[box_of(large)], 2))
    scale = side / max(strokes.shape)
    far = ndimage.distance_transform_edt(~np.pad(strokes, 12))
    ink = Image.fromarray((np.clip(max(0.6, pen / scale / 2) + 0.5 - far, 0, 1) * 255).astype(np.uint8))
    size = (max(3, round(ink.width * scale)), max(3, round(ink.height * scale)))
    small = ink.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR)
    grey: Floats = np.asarray(small, np.float32) / np.float32(255)
    return grey[box_of(grey > 0.25)]


def turned(image: Bytes, rng: Rng) -> Bytes:
    return np.clip(turn(image.astype(np.float32), rng, 12, 0.2, (0.9, 1.25)), 0, 255).astype(np.uint8)


def paint(image: Bytes, rng: Rng) -> Floats:
    """A drawing on a square of 28 pixels, hard or soft, dark or light, of pens from thin to fat."""
    ink = draw(turned(image, rng), rng.uniform(15, 26), rng.choice([1, 1, 1.5, 2, 3, 4]))[:28, :28]
    if rng.random() < 0.5:
        ink = (ink > rng.uniform(0.3, 0.5)).astype(np.float32)
    elif rng.random() < 0.4:
        ink = ndimage.gaussian_filter(ink, rng.uniform(0.3, 0.7))
    page = np.zeros((28, 28), np.float32)
    top, left = (int(rng.integers(28 - length + 1)) for length in ink.shape)
    page[top : top + ink.shape[0], left : left + ink.shape[1]] = ink * rng.choice([1, 1, 0.8, 0.5])
    if rng.random() < 0.4:
        page = 1 - page
    if rng.random() < 0.3:
        side = 28 * int(rng.integers(2, 11))
        how = Image.Resampling.NEAREST if rng.random() < 0.5 else Image.Resampling.BICUBIC
        page = np.asarray(Image.fromarray(page).resize((side, side), how))
    return page


def cell(image: Bytes, rng: Rng) -> Floats:
    """A cell of a form, about 25 pixels a side, with remains of the lines of its box."""
    if rng.random() < 0.6:
        ink = draw(turned(image, rng), rng.uniform(9, 19), rng.uniform(1, 2.6))
    else:
        side = int(rng.uniform(12, 24))
        small = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX), np.float32) / 255
        ink = small[box_of(small > 0.25)].astype(np.float32)
    height, width = ink.shape
    page = np.zeros((height + int(rng.integers(3, 10)), width + int(rng.integers(3, 12))), np.float32)
    top, left = int(rng.integers(1, page.shape[0] - height)), int(rng.integers(1, page.shape[1] - width))
    page[top : top + height, left : left + width] = ink * rng.uniform(0.6, 1)
    line = rng.uniform(0.15, 0.7)
    for edge in range(4):
        if rng.random() < 0.55:
            row = np.rot90(page, edge)[int(rng.integers(2))]
            row[:] = np.maximum(row, line * rng.uniform(0.7, 1, len(row)))
    if rng.random() < 0.7:
        page = ndimage.gaussian_filter(page, rng.uniform(0.25, 0.6))
    paper = rng.uniform(0.75, 1)
    page = paper - (paper - rng.uniform(0.05, 0.45)) * page
    return np.asarray(page + rng.normal(0, rng.uniform(0, 0.02), page.shape), np.float32)


def scan(image: Bytes, rng: Rng) -> Image.Image | Floats:
    """A pen on paper, scanned or photographed."""
    if rng.random() < 0.5:
        degraded = dict(zip(("shade", "noise", "jpeg"), rng.random(3) < 0.5, strict=True))
        return make_picture(turned(image, rng), rng, **degraded)
    size = rng.uniform(0.7, 6)
    ink = draw(turned(image, rng), 24 * size, max(1, rng.uniform(1.2, 5) * size))
    ink = np.pad(ink, [tuple(rng.integers(0, max(2, int(8 * size)), 2)) for _ in range(2)])
    grain = 1 - rng.uniform(0, 0.3) * ndimage.gaussian_filter(rng.random(ink.shape), 1.2)
    paper = rng.uniform(0.6, 1)
    page = paper - (paper - rng.uniform(0.05, 0.4)) * ink * grain
    page = ndimage.gaussian_filter(page, rng.uniform(0.3, 0.9) * max(1, size / 2))
    page += rng.normal(0, rng.uniform(0, 0.03), page.shape)
    buffer = io.BytesIO()
    to_picture(page).save(buffer, "JPEG", quality=int(rng.integers(40, 90)))
    return Image.open(buffer)


def to_picture(page: Floats) -> Image.Image:
    return Image.fromarray((np.clip(page, 0, 1) * 255).astype(np.uint8))


def make_pictures(images: Bytes, rng: Rng) -> tuple[Bytes, NDArray[np.int64]]:
    """Each image made into a picture and brought back: uint8 [M, 28, 28], and from which image each comes."""
    makers: list[Callable[[Bytes, Rng], Image.Image | Floats]] = [paint, cell, scan]
    pixels, sources = [], []
    for source, image in enumerate(images):
        page = makers[int(rng.choice(3, p=[0.4, 0.2, 0.4]))](image, rng)
        glyph = preprocess(to_picture(page) if isinstance(page, np.ndarray) else page)
        if glyph.pixels is not None:
            pixels.append(glyph.pixels)
            sources.append(source)
    return np.stack(pixels), np.array(sources)


# ---- Pictures ----


def view(grey: Floats, kind: str, rng: Rng) -> Floats:
    """A picture at another size, slightly turned, blurred and noisy, as another photograph of it would be."""
    low, high = (0.12, 0.4) if kind == "drawings" else (1, 4) if max(grey.shape) <= 32 else (0.5, 2.5)
    scale = rng.uniform(low, high)
    size = [max(10, round(length * scale)) for length in grey.shape[::-1]]
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    page = np.asarray(Image.fromarray(grey).resize((size[0], size[1]), how))
    page = turn(page, rng, 9, 0.15, (0.88, 1.14))
    if rng.random() < 0.3:
        page = ndimage.gaussian_filter(page, rng.uniform(0.3, 1.2) * max(page.shape) / 60)
    if rng.random() < 0.3:
        page = page + rng.normal(0, rng.uniform(0.005, 0.03), page.shape)
    return np.clip(page, 0, 1).astype(np.float32)


class Prepared(NamedTuple):
    """One picture as preprocessing gives it, with its views."""

    plain: Bytes | None
    views: list[Bytes]
    label: int


def prepare_pictures(data_dir: Path, kind: str, names: list[str], rng: Rng, count: int) -> list[Prepared]:
    """The pictures of a kind that are not held out, and of which something was found, with `count` views each."""
    found = []
    for picture in list_pictures(data_dir, kind):
        if picture.held_out:
            continue
        grey = to_grey(open_picture(picture.path))
        views = [preprocess(view(grey, kind, rng)).pixels for _ in range(count)]
        plain = preprocess(picture.path).pixels
        kept = [pixels for pixels in views if pixels is not None]
        if plain is not None or kept:
            found.append(Prepared(plain, kept, true_class(picture.path, names)))
    return found


def draw_picture(prepared: Prepared, rng: Rng) -> Bytes:
    if prepared.plain is not None and (not prepared.views or rng.random() < PLAIN):
        return prepared.plain
    return prepared.views[int(rng.integers(len(prepared.views)))]


# ---- Training ----


def distort(images: Tensor, share: Tensor, generator: torch.Generator) -> Tensor:
    """Affine distortion of all images, uint8 [N, 1, 28, 28]; of a share of them, pens, softness and contrast as well.

    `share` is float [N], the probability of each of the four: a fatter pen, a thinner one, softness, contrast.
    """
    images = augment(images, generator, rotation=10, shear=10, translate=0.04)
    draws = torch.rand(len(images), 5, generator=generator)
    pen, strength = draws[:, 0], draws[:, 1].view(-1, 1, 1, 1) * 0.5
    fat, thin_pen = pen < share, (pen >= share) & (pen < 2 * share)
    images[fat] = torch.lerp(images[fat], F.max_pool2d(images[fat], 3, 1, 1), strength[fat])
    images[thin_pen] = torch.lerp(images[thin_pen], -F.max_pool2d(-images[thin_pen], 3, 1, 1), strength[thin_pen])
    soft = draws[:, 2] < share
    side = int(torch.randint(14, 24, (1,), generator=generator))
    small = F.interpolate(images[soft], size=(side, side), mode="bilinear", antialias=True)
    images[soft] = F.interpolate(small, size=(28, 28), mode="bilinear")
    faded = draws[:, 3] < share
    power = torch.exp(draws[faded, 4].view(-1, 1, 1, 1) - 0.5)
    images[faded] = images[faded].clamp(0, 1) ** power
    return images


def smooth(labels: Tensor, share: float, classes: int) -> Tensor:
    """Targets, float [N, C]: all but a share on the label, the share spread over all classes."""
    return F.one_hot(labels, classes).float() * (1 - share) + share / classes


@torch.inference_mode()
def teach(teacher: EnhancedGlyphCNN, images: Tensor, labels: Tensor) -> Tensor:
    """Targets, float [N, C], for EMNIST's images, uint8 [N, 1, 28, 28]: the teacher's, and the label."""
    several = ViewAverage(teacher)
    probabilities = torch.cat([several(batch).softmax(1) for batch in torch.split(images, 256)])
    return TEACHER * probabilities + (1 - TEACHER) * smooth(labels, 0.03, probabilities.shape[1])


def train(
    model: EnhancedGlyphCNN, draw_batch: Callable[[], tuple[Tensor, Tensor]], seconds: float
) -> dict[str, Tensor]:
    """Train for so many seconds, and return the moving average of the weights."""
    matrices = [weights for weights in model.parameters() if weights.ndim > 1]
    vectors = [weights for weights in model.parameters() if weights.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    average = {name: weights.clone() for name, weights in model.state_dict().items()}
    model.train()
    start = time.monotonic()
    step = 0
    while (done := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * done)) / 2
        images, targets = draw_batch()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), targets)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        kept = min(AVERAGE, (1 + step) / (10 + step))
        for name, weights in model.state_dict().items():
            if weights.is_floating_point():
                average[name].lerp_(weights, 1 - kept)
            else:
                average[name].copy_(weights)
        if step % 100 == 0:
            print(f"step {step}, {done:.0%}: loss {float(loss.detach()):.4f}", flush=True)
    return average


def load_network(path: Path) -> tuple[EnhancedGlyphCNN, list[str]]:
    model, _, names = load_model(path)
    if not isinstance(model, EnhancedGlyphCNN):
        raise SystemExit(f"{path}: is another network than this project's own")
    return model, names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with EMNIST/raw, photos, drawings")
    parser.add_argument("--start", type=Path, required=True, help="checkpoint of a 47-class model to go on from")
    parser.add_argument("--teacher", type=Path, required=True, help="checkpoint whose probabilities are the targets")
    parser.add_argument("--output", type=Path, required=True, help="the checkpoint to write")
    parser.add_argument("--minutes", type=float, default=77)
    parser.add_argument("--made", type=int, default=MADE, metavar="N", help="EMNIST images made into pictures")
    parser.add_argument("--max-train-images", type=int, metavar="N", help="use only this many images of EMNIST")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    model, names = load_network(arguments.start)
    # From here on the temperature is in the weights.
    for weights in model.classifier.parameters():
        weights.data /= model.temperature
    model.temperature.fill_(1)

    settings = {"emnist_split": "bymerge", "val_split": 0.03, "max_train_images": arguments.max_train_images}
    data = get_data_loaders({"data_dir": str(arguments.data_dir), **settings})
    images, labels = data.train.images[data.train.index], data.train.labels[data.train.index]
    of_class = [np.flatnonzero(labels.numpy() == label) for label in range(len(names))]
    targets = teach(load_network(arguments.teacher)[0], images, labels)
    sources = np.array([rng.choice(of_class[place % len(names)]) for place in range(arguments.made)])
    made, kept = make_pictures(images[sources, 0].numpy(), rng)
    made_from = sources[kept]
    kinds = ("photos", "drawings", "user_singles")
    prepared = {kind: prepare_pictures(arguments.data_dir, kind, names, rng, VIEWS[kind]) for kind in kinds}
    share = torch.full((sum(IN_BATCH.values()),), 0.2)
    share[: IN_BATCH["emnist"]] = 0.12

    def draw_batch() -> tuple[Tensor, Tensor]:
        # Every class alike, as far as the number of images allows.
        classes = rng.permutation(len(names) * -(-IN_BATCH["emnist"] // len(names)))[: IN_BATCH["emnist"]] % len(names)
        rows = torch.from_numpy(np.array([rng.choice(of_class[label]) for label in classes]))
        chosen = rng.integers(len(made), size=IN_BATCH["made"])
        pixels = [images[rows], torch.from_numpy(made[chosen])[:, None]]
        goals = [targets[rows], targets[made_from[chosen]]]
        for kind, found in prepared.items():
            if not found:
                continue
            several = [found[place] for place in rng.integers(len(found), size=IN_BATCH[kind])]
            pixels.append(torch.from_numpy(np.stack([draw_picture(picture, rng) for picture in several]))[:, None])
            goals.append(smooth(torch.tensor([picture.label for picture in several]), 0.05, len(names)))
        together = torch.cat(pixels)
        return distort(together, share[: len(together)], generator), torch.cat(goals)

    content = load_checkpoint(arguments.start)
    old = {name: weights.clone() for name, weights in model.state_dict().items()}
    content["model"] = train(model, draw_batch, arguments.minutes * 60)
    for name, weights in content["model"].items():
        if weights.is_floating_point():
            weights.copy_(torch.lerp(old[name], weights, NEW))
    write_checkpoint(arguments.output, content)


if __name__ == "__main__":
    main()
