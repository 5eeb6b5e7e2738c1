"""How soon a photographed page and a field of a form are read, and which part of that is the network's.

    python benchmarks/reading.py --model MODEL --data-dir DIR

Makes both of handwritten characters, EMNIST's training images, always the same ones: a page of 12 megapixels with 500
characters on paper in uneven light, and a field of eight boxes with a character in each, both as JPEG files in memory.
Reads them in turns, and prints milliseconds: of the whole, of finding the ink (opening the picture included), of the
network, of the rest (drawing the candidates for the network, the search for the best path).  The limit is the
network's time for all of these candidates in one batch, and how many times that the whole takes.  The memory is the
process's at its peak, Python and the model included.
"""

import argparse
import concurrent.futures
import io
import multiprocessing
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from benchmarks.prediction import NAME_WIDTH, show
from glyphs.arrays import Bytes, Floats, Probabilities
from glyphs.cpus import usable_cpus
from glyphs.data.emnist import load_emnist
from glyphs.inference.predictor import GlyphPredictor

PAGE, LINES, LETTERS, WORD = (4000, 3000), 25, 20, 5  # pixels; lines, characters on each, characters of a word
FIELD, BOXES = (480, 76), 8
PAPER, PEN, NOISE = 0.85, 0.7, 0.01  # brightness; share of it that ink takes; standard deviation


class Timed(NamedTuple):
    """One reading: seconds of the whole, of finding the ink and of the network; what the network saw; the answer."""

    whole: float
    finding: float
    network: float
    candidates: int
    characters: int


def paste(ink: Floats, image: Bytes, top: float, left: float, side: float) -> None:
    """Write a character, uint8 [28, 28], on a page's ink, float32 [H, W]."""
    size = round(side)
    glyph = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255
    there = ink[round(top) : round(top) + size, round(left) : round(left) + size]
    np.maximum(there, glyph, out=there)


def photograph(ink: Floats, random: np.random.Generator) -> bytes:
    """A JPEG file of a page whose ink is float32 [H, W]: darker towards the bottom right, with a sensor's noise."""
    y, x = np.ogrid[0 : 1 : ink.shape[0] * 1j, 0 : 1 : ink.shape[1] * 1j]
    grey = (PAPER - 0.15 * x - 0.1 * y**2) * (1 - PEN * ink) + random.normal(0, NOISE, ink.shape)
    file = io.BytesIO()
    Image.fromarray((255 * grey.clip(0, 1)).astype(np.uint8)).convert("RGB").save(file, "JPEG", quality=90)
    return file.getvalue()


def make_page(images: Bytes) -> bytes:
    """Words in lines; `images`, uint8 [N, 28, 28], are written in their order."""
    random = np.random.default_rng(0)
    ink = np.zeros(PAGE[::-1], np.float32)
    step, advance = PAGE[1] / (LINES + 1), PAGE[0] / (LETTERS + LETTERS // WORD)
    for number, image in enumerate(images[: LINES * LETTERS]):
        line, place = divmod(number, LETTERS)
        left = (place + 0.8 * (place // WORD) + 0.2) * advance
        paste(ink, image, (line + 0.5 + random.normal(0, 0.03)) * step, left, random.uniform(0.65, 0.8) * step)
    return photograph(ink, random)


def make_field(images: Bytes) -> bytes:
    """A row of boxes with a character in each; `images` as of a page."""
    width, height = FIELD
    ink = np.zeros((height, width), np.float32)
    edges = np.linspace(8, width - 8, BOXES + 1).round().astype(int)
    for left, image in zip(edges[:-1], images[:BOXES], strict=True):
        paste(ink, image, 16, left + 8, 44)
    ink[[8, 9, -10, -9], 8:-8] = 0.8
    for edge in edges:
        ink[8:-8, edge - 1 : edge + 1] = 0.8
    return photograph(ink, np.random.default_rng(0))


def make_pictures(data_dir: Path) -> dict[str, bytes]:
    """The page and the field, by their names."""
    images = load_emnist(data_dir, "balanced", "train")[0][:, 0].numpy()
    chosen = images[np.random.default_rng(0).integers(0, len(images), LINES * LETTERS)]
    return {"page": make_page(chosen), "field": make_field(chosen)}


def read(predictor: GlyphPredictor, picture: bytes) -> Timed:
    """Read a picture; the predictor's network is replaced by one that looks at the clock, and is put back."""
    network, spent, seen = predictor.network, 0.0, 0

    def timed(images: Bytes) -> Probabilities:
        nonlocal spent, seen
        begun = time.perf_counter()
        probabilities = network(images)
        spent += time.perf_counter() - begun
        seen += len(images)
        return probabilities

    predictor.network = timed
    started = time.perf_counter()
    file, page = predictor.find_page(None, picture)
    finding = time.perf_counter() - started
    reading = predictor.read_page(file, page, top_k=5)
    whole = time.perf_counter() - started
    predictor.network = network
    characters = sum(len(word.characters) for line in reading.lines for word in line.words)
    return Timed(whole, finding, spent, seen, characters)


def report(model: Path, pictures: dict[str, bytes], rounds: int) -> None:
    """Read pictures in turns, and print the figures of each."""
    predictor = GlyphPredictor(model, "cpu")
    values: dict[str, list[float]] = defaultdict(list)
    peaks = []
    for number in range(rounds + 1):
        for name, picture in pictures.items():
            timed = read(predictor, picture)
            batch = np.zeros((timed.candidates, 1, 28, 28), np.uint8)
            started = time.perf_counter()
            predictor.probabilities(batch)
            limit = time.perf_counter() - started
            if number == 0:  # it warms up
                continue
            values[f"{name}: characters"].append(timed.characters)
            values[f"{name}: candidates"].append(timed.candidates)
            values[f"{name}: read, ms"].append(1e3 * timed.whole)
            values[f"{name}: finding the ink, ms"].append(1e3 * timed.finding)
            values[f"{name}: network, ms"].append(1e3 * timed.network)
            values[f"{name}: the rest, ms"].append(1e3 * (timed.whole - timed.finding - timed.network))
            values[f"{name}: network in one batch, ms"].append(1e3 * limit)
            values[f"{name}: read, times that"].append(timed.whole / limit)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(f"{model.name}, CPU, {usable_cpus()} threads")
    print(f"{'':{NAME_WIDTH}}{'median':>10}{'lowest':>10}{'highest':>10}")
    for name, figures in values.items():
        show(name, figures)
    show("most memory, MB", peaks[-1:])
    show("of it after the first page and field, MB", [peaks[-1] - peaks[0]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint or an .onnx file")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="holds EMNIST/raw (default: data)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; the median is reported (default: 7)")
    arguments = parser.parse_args()
    # In a process of its own, whose memory is not this one's.
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pictures = pool.submit(make_pictures, arguments.data_dir).result()
    report(arguments.model, pictures, arguments.rounds)


if __name__ == "__main__":
    main()
