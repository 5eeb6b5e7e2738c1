"""How well pictures of characters, of other things, and of several characters are read.

    python benchmarks/pictures.py --model CHECKPOINT.pth --data-dir DIR

Prints four tables: accuracy on photographs, drawings and single characters of users (those that pretrained/glyphs47.pth
was not trained on; --sheets draws those that are not read), how often an EMNIST image that was made into a picture
keeps its prediction, how often something that is not one character is answered, and what preprocessing costs.
Everything random comes from --seed.
"""

import argparse
import csv
import io
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from glyphs.core.arrays import Bytes, Floats
from glyphs.core.text import PRIORS
from glyphs.data.idx import read_idx
from glyphs.evaluation.metrics import calibration_error
from glyphs.models.checkpoint import load_model
from glyphs.output.plots import plot_misclassified
from glyphs.pictures.decode import open_picture, to_grey
from glyphs.pictures.glyph import Glyph, preprocess, to_bytes

Rng = np.random.Generator

BATCH = 256
JPEG_QUALITY = 50
HELD_OUT_USERS = {
    "PikachuNemo/Handwritten_character_recognition",
    "Prince001194/Handwritten-character-recognizer",
    "ZzYyPp47/EMNIST_Recognition_with_CNN",
    "ahmedsaad123456/Handwritten_Alphabets_Predictions",
    "bmitt/emnist_ocr",
    "yashveersinghsohi/OCR_HandWritten_Form",
}
NOISE = 0.06  # standard deviation of the noise that the degraded round trip adds, of full brightness 1
PAGE = 256  # pixels a side of what is not a character
LOOK_ALIKES = ("0O", "1IL", "5S", "2Z", "9GQ", "6GB", "4Y")  # without a word around them, in capitals: 9 and g, b and 6
SIDE, GAP = 84, 4  # pixels of a contact sheet: each half of a tile, between the halves


class Answers(NamedTuple):
    """The likeliest class of each glyph, int64 [N], and its probability, float [N]; -1 and 0 where it was refused."""

    classes: NDArray[np.int64]
    probabilities: Floats


def predict(model: torch.nn.Module, glyphs: list[Glyph], shifts: torch.Tensor | None = None) -> Answers:
    """What the model answers; the shifts, [2, C], are added to the logits of drawings of MNIST's size and of others."""
    answers = Answers(np.full(len(glyphs), -1), np.zeros(len(glyphs), np.float32))
    found = [(index, glyph.pixels) for index, glyph in enumerate(glyphs) if glyph.pixels is not None]
    with torch.inference_mode():
        for start in range(0, len(found), BATCH):
            places, images = zip(*found[start : start + BATCH], strict=True)
            logits = model(torch.from_numpy(np.stack(images))[:, None])
            if shifts is not None:
                logits = logits + shifts[[0 if glyphs[place].mnist_sized else 1 for place in places]]
            best = logits.softmax(1).max(1)
            answers.classes[list(places)] = best.indices.numpy()
            answers.probabilities[list(places)] = best.values.numpy()
    return answers


def share(hits: NDArray[np.bool_]) -> str:
    """A share in per cent with its standard error."""
    rate = float(hits.mean())
    return f"{rate * 100:6.2f} ± {math.sqrt(rate * (1 - rate) / len(hits)) * 100:4.2f} %"


# ---- Photographs, drawings and users' pictures ----


class Picture(NamedTuple):
    """A picture of one character."""

    path: Path
    kind: str  # of the users' pictures, how they were made
    held_out: bool  # from the training of the weights in the box


def list_pictures(data_dir: Path, kind: str) -> list[Picture]:
    """All pictures of a kind: "photos", "drawings" or "user_singles", the last only where the folder is there.

    Held out are every fifth photograph of each character, the drawings of writers whose number ends in 4, and all
    pictures of the users in `HELD_OUT_USERS`.
    """
    folder = data_dir / kind
    if kind == "user_singles":
        if not folder.exists():
            return []
        with (folder / "sources.tsv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        return [Picture(folder / row["file"], row["kind"], row["source"] in HELD_OUT_USERS) for row in rows]
    found = []
    for character in sorted(path for path in folder.iterdir() if path.is_dir()):
        for place, path in enumerate(sorted(character.glob("*.png"))):
            held_out = place % 5 == 0 if kind == "photos" else path.stem.endswith("4")
            found.append(Picture(path, kind, held_out))
    return found


def true_class(path: Path, names: list[str]) -> int:
    """The class of a picture, from its folder `<code point>_<character>`; case merged as in EMNIST-Balanced."""
    character = chr(int(path.parent.name.split("_")[0]))
    return names.index(character if character in names else character.upper())


def accuracy(model: torch.nn.Module, names: list[str], data_dir: Path, prior: str, sheets: Path | None) -> None:
    """Print the first table; where there is a folder for them, show there what was not read."""
    print(
        f"\nAccuracy on pictures that the weights in the box were not trained on, {len(names)} classes, {prior} prior"
    )
    digit = torch.tensor([float(name.isdecimal()) for name in names])
    shifts = torch.tensor(PRIORS[prior]).log()[:, None] * digit
    confidences, correct = [], []
    for folder in ("photos", "drawings", "user_singles"):
        chosen = [picture for picture in list_pictures(data_dir, folder) if picture.held_out]
        glyphs = [preprocess(picture.path) for picture in chosen]
        truth = np.array([true_class(picture.path, names) for picture in chosen])
        answers = predict(model, glyphs, shifts)
        hits = answers.classes == truth
        confidences.append(torch.from_numpy(answers.probabilities[answers.classes >= 0]).double())
        correct.append(torch.from_numpy(hits[answers.classes >= 0]))
        refused = np.array([glyph.status != "ok" for glyph in glyphs])
        digits = np.array([names[true].isdecimal() for true in truth], dtype=bool)
        for name, of_group in groups(folder, chosen, digits).items():
            print(f"  {name:18}{share(hits[of_group])} of {of_group.sum():,}; refused {refused[of_group].sum()}")
        if sheets is not None and chosen:
            failures = [
                Failure(picture.path, glyph, names[true], names[answer] if answer >= 0 else None, float(probability))
                for picture, glyph, true, answer, probability in zip(chosen, glyphs, truth, *answers, strict=True)
                if answer != true
            ]
            show_failures(failures, sheets / folder)
    error = calibration_error(torch.cat(confidences), torch.cat(correct))
    print(f"  calibration error {error:.3f} over all {sum(map(len, correct)):,} answers")


def groups(folder: str, pictures: list[Picture], digits: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """Which pictures each row of the table is about, bool [N]: all of the folder, and of users those of each kind."""
    kinds = np.array([picture.kind for picture in pictures])
    rows = {folder: kinds != ""} | {kind: kinds == kind for kind in sorted({*kinds} - {folder})}
    if folder == "user_singles":
        uncut = kinds != "cell"
        rows |= {"all but cells": uncut, "  their digits": uncut & digits, "  their letters": uncut & ~digits}
    return {name: of_group for name, of_group in rows.items() if of_group.any()}


class Failure(NamedTuple):
    """A picture that was not read; `answer` is None where preprocessing refused it."""

    path: Path
    glyph: Glyph
    truth: str
    answer: str | None
    probability: float

    @property
    def cause(self) -> str:
        if self.answer is None:
            return self.glyph.status.replace("_", " ")
        pair = {self.truth.upper(), self.answer.upper()}
        if len(pair) == 1:
            return "case"
        return "look-alike" if any(pair <= set(group) for group in LOOK_ALIKES) else "shape"


def show_failures(failures: list[Failure], base: Path) -> None:
    """Write a contact sheet, the most confident mistakes first, as BASE.png, and the same as a table, BASE.tsv.

    Each picture stands beside what the network saw of it.
    """
    failures = sorted(failures, key=lambda failure: -failure.probability)
    answers = [f"{failure.answer or ''} ({failure.cause})".strip() for failure in failures]
    tiles = np.array([side_by_side(failure) for failure in failures], np.uint8)
    base.parent.mkdir(parents=True, exist_ok=True)
    plot_misclassified(
        tiles,
        [failure.truth for failure in failures],
        answers,
        [failure.probability for failure in failures],
        base.with_suffix(".png"),
    )
    rows = ["file\tlabel\tanswer\tprobability\tcause"]
    rows += [f"{f.path}\t{f.truth}\t{f.answer or ''}\t{f.probability:.3f}\t{f.cause}" for f in failures]
    base.with_suffix(".tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    causes = Counter(failure.cause for failure in failures)
    print(f"    {', '.join(f'{count} {cause}' for cause, count in causes.most_common())}: {base}.png, {base}.tsv")


def side_by_side(failure: Failure) -> Bytes:
    """The picture and what the network saw of it, uint8 [SIDE, 2 * SIDE]; grey where there is nothing."""
    tile = Image.new("L", (2 * SIDE, SIDE), 128)
    picture = Image.fromarray(to_bytes(to_grey(open_picture(failure.path))))
    tile.paste(ImageOps.contain(picture, (SIDE - GAP, SIDE)))
    if failure.glyph.pixels is not None:
        tile.paste(Image.fromarray(failure.glyph.pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST), (SIDE, 0))
    return np.asarray(tile)


# ---- EMNIST images made into pictures ----


def make_picture(
    image: Bytes, rng: Rng, *, shade: bool = False, noise: bool = False, jpeg: bool = False
) -> Image.Image:
    """An EMNIST image 4 to 20 times larger, off-centre on a larger light page, and, where asked, degraded."""
    side = round(image.shape[0] * rng.uniform(4, 20))
    ink = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
    height, width = (round(side * rng.uniform(1.2, 2.5)) for _ in range(2))
    page = np.zeros((height, width), np.float32)
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    page[top : top + side, left : left + side] = ink
    paper, dark = rng.uniform(0.75, 1), rng.uniform(0.05, 0.35)
    page = paper + (dark - paper) * page
    if shade:
        page *= _slope(height, width, rng, rng.uniform(0.3, 0.6))
    if noise:
        page += rng.normal(0, NOISE, page.shape).astype(np.float32)
    picture = _picture(page)
    if jpeg:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
        picture = Image.open(buffer)
    return picture


def _slope(height: int, width: int, rng: Rng, depth: float) -> Floats:
    """Light that falls off across the page in a random direction, from 1 to 1 - depth."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    way = np.cos(angle) * x + np.sin(angle) * y
    light: Floats = (1 - depth * (way - way.min()) / np.ptp(way)).astype(np.float32)
    return light


def _picture(page: NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(page, 0, 1) * 255).astype(np.uint8))


def round_trip(model: torch.nn.Module, images: Bytes, rng: Rng) -> None:
    print(f"\nEMNIST images made into pictures: the prediction stays what it was ({len(images):,} images)")
    before = predict(model, [Glyph("ok", image) for image in images]).classes
    kinds: dict[str, dict[str, bool]] = {
        "clean": {},
        "shaded": {"shade": True},
        "noisy": {"noise": True},
        f"JPEG quality {JPEG_QUALITY}": {"jpeg": True},
        "all three": {"shade": True, "noise": True, "jpeg": True},
    }
    for name, how in kinds.items():
        glyphs = [preprocess(make_picture(image, rng, **how)) for image in images]
        refused = sum(glyph.status != "ok" for glyph in glyphs)
        print(f"  {name:16}{share(predict(model, glyphs).classes == before)}; refused {refused}")


# ---- What is not one character ----


def blur_noise(rng: Rng, sigma: float, contrast: float = 0.2) -> Image.Image:
    noise = ndimage.gaussian_filter(rng.normal(size=(PAGE, PAGE)), sigma)
    return _picture((0.5 + contrast * noise / noise.std()).astype(np.float32))


def clouds(rng: Rng) -> Image.Image:
    """Noise whose power falls with the square of the frequency, as that of photographs of scenes does."""
    y, x = np.meshgrid(np.fft.fftfreq(PAGE), np.fft.fftfreq(PAGE), indexing="ij")
    spectrum = np.fft.fft2(rng.normal(size=(PAGE, PAGE))) / np.maximum(np.hypot(x, y), 1 / PAGE)
    scene = np.fft.ifft2(spectrum).real
    return _picture((0.5 + 0.2 * scene / scene.std()).astype(np.float32))


def blank(rng: Rng) -> Image.Image:
    page = rng.uniform(0.1, 1) * _slope(PAGE, PAGE, rng, rng.uniform(0, 0.6))
    return _picture(page + rng.normal(0, rng.choice([0, 0.01, 0.03]), page.shape).astype(np.float32))


def paper(rng: Rng) -> Image.Image:
    grain = sum(ndimage.gaussian_filter(rng.normal(size=(PAGE, PAGE)), sigma) * sigma for sigma in (0.7, 2, 5))
    return _picture((0.8 + 0.04 * grain) * _slope(PAGE, PAGE, rng, 0.3))


def ruled(rng: Rng) -> Image.Image:
    step, across = int(rng.integers(12, 60)), rng.random() < 0.5
    page = np.full((PAGE, PAGE), rng.uniform(0.8, 1), np.float32)
    for start in range(int(rng.integers(step)), PAGE, step):
        page[start : start + int(rng.integers(1, 4))] -= 0.35
    if across:
        page = np.minimum(page, page.T)
    return _picture(page * _slope(PAGE, PAGE, rng, 0.2))


def checks(rng: Rng) -> Image.Image:
    step = int(rng.integers(4, 64))
    y, x = np.indices((PAGE, PAGE)) // step
    return _picture((0.2 + 0.6 * ((x + y) % 2)).astype(np.float32))


def stripes(rng: Rng) -> Image.Image:
    angle, period = rng.uniform(0, math.pi), rng.uniform(6, 60)
    y, x = np.indices((PAGE, PAGE))
    wave = np.sin(2 * math.pi / period * (np.cos(angle) * x + np.sin(angle) * y))
    return _picture((0.5 + 0.35 * (np.sign(wave) if rng.random() < 0.5 else wave)).astype(np.float32))


def rings(rng: Rng) -> Image.Image:
    """Light that falls off from one place, as under a lamp."""
    y, x = np.indices((PAGE, PAGE)) - rng.uniform(0, PAGE, (2, 1, 1))
    return _picture((0.9 - 0.6 * np.hypot(x, y) / PAGE).astype(np.float32))


def word(rng: Rng, images: Bytes, gap: float) -> Image.Image:
    """2 to 8 EMNIST characters side by side, as high as each other, `gap` of their height apart."""
    letters = images[rng.choice(len(images), int(rng.integers(2, 9)), replace=False)]
    high = int(rng.integers(24, 65))
    tiles = []
    for letter in letters:
        rows, columns = (np.flatnonzero((letter > 127).any(axis)) for axis in (1, 0))
        tile = Image.fromarray(letter[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        tiles.append(np.asarray(tile.resize((max(4, tile.width * high // tile.height), high)), np.float32) / 255)
        tiles.append(np.zeros((high, max(1, round(gap * high))), np.float32))
    line = np.concatenate(tiles[:-1], axis=1)
    page = np.pad(line, [tuple(rng.integers(high // 4, 2 * high, 2)) for _ in range(2)])
    return _picture(rng.uniform(0.8, 1) - 0.6 * page)


def wrong_answers(images: Bytes, rng: Rng, count: int) -> None:
    makers: dict[str, Callable[[], Image.Image]] = {
        "white noise": lambda: blur_noise(rng, 0.01),
        "noise of 2 pixels": lambda: blur_noise(rng, 2),
        "noise of 8 pixels": lambda: blur_noise(rng, 8),
        "noise of 32 pixels": lambda: blur_noise(rng, 32),
        "clouds": lambda: clouds(rng),
        "blank pages": lambda: blank(rng),
        "paper": lambda: paper(rng),
        "ruled paper": lambda: ruled(rng),
        "checkerboards": lambda: checks(rng),
        "stripes": lambda: stripes(rng),
        "a lamp's light": lambda: rings(rng),
        "words, gap 0.40": lambda: word(rng, images, 0.4),
        "words, gap 0.15": lambda: word(rng, images, 0.15),
        "words, gap 0.05": lambda: word(rng, images, 0.05),
    }
    print(f"\nNot one character ({count} pictures of each): answered all the same; refused as")
    for name, make in makers.items():
        found = [preprocess(make()).status for _ in range(count)]
        answered = np.array([status == "ok" for status in found])
        print(
            f"  {name:20}{share(answered)}; no glyph {found.count('no_glyph')}, several {found.count('several_glyphs')}"
        )


# ---- Time ----


def speed(data_dir: Path, images: Bytes) -> None:
    print("\nPreprocessing of one decoded picture, median of 50")
    cases: dict[str, list[Image.Image]] = {"28x28 in EMNIST's form": [Image.fromarray(image) for image in images[:50]]}
    for kind in ("photos", "drawings"):
        opened = [Image.open(picture.path).convert("RGB") for picture in list_pictures(data_dir, kind)[5::20][:50]]
        cases[f"{kind}, {opened[0].width}x{opened[0].height} and alike"] = opened
    for name, pictures in cases.items():
        print(f"  {name:36}{np.median(list(_times(pictures))) * 1e3:8.3f} ms")


def _times(pictures: list[Image.Image]) -> Iterator[float]:
    for picture in pictures:
        start = time.perf_counter()
        preprocess(picture)
        yield time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint of a 47-class model")
    parser.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        help="folder with EMNIST/raw, photos, drawings and, where there are any, user_singles",
    )
    parser.add_argument("--prior", choices=PRIORS, default="auto", help="of the classes, for the first table")
    parser.add_argument("--sheets", type=Path, metavar="DIR", help="draw there what was not read")
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="EMNIST test images for the round trip")
    parser.add_argument("--count", type=int, default=200, metavar="N", help="pictures of each kind of non-character")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, _, names = load_model(arguments.model)
    path = arguments.data_dir / "EMNIST" / "raw" / "emnist-balanced-test-images-idx3-ubyte.gz"
    images = read_idx(path, 3).transpose(1, 2).numpy()
    rng = np.random.default_rng(arguments.seed)
    images = images[rng.permutation(len(images))]
    accuracy(model, names, arguments.data_dir, arguments.prior, arguments.sheets)
    round_trip(model, images[: arguments.images], rng)
    wrong_answers(images, rng, arguments.count)
    speed(arguments.data_dir, images)


if __name__ == "__main__":
    main()
