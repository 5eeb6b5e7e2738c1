"""How soon a photographed page, a field and a whole form are read, and which part of that is the network's.

    python benchmarks/reading.py --model MODEL --data-dir DIR

Makes them of handwritten characters, EMNIST's training images, always the same ones: a page of 12 megapixels with 500
characters on paper in uneven light, a field of eight boxes with a character in each, and a form of 20 such fields with
marks in its corners, all as JPEG files in memory.  The form is read as with --fields, the others as with --text.
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
from glyphs.core.arrays import Bytes, Floats, Points, Probabilities
from glyphs.core.cpus import usable_cpus
from glyphs.data.emnist import load_emnist
from glyphs.forms.forms import Field, Form, FormReader
from glyphs.forms.marks import mark_squares
from glyphs.models.runtime import Network
from glyphs.reading.predictor import GlyphPredictor

PAGE, LINES, LETTERS, WORD = (4000, 3000), 25, 20, 5  # pixels; lines, characters on each, characters of a word
FIELD, BOXES = (480, 76), 8
FORM, COLUMNS, ROWS = (1240, 1754), 2, 10  # pixels, as A4 at 150 dots an inch; its fields
MARK = 60  # pixels: the side of a form's mark
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


def draw_field(images: Bytes) -> Floats:
    """The ink of a row of boxes with a character in each, float32 [H, W]; `images` as of a page."""
    width, height = FIELD
    ink = np.zeros((height, width), np.float32)
    edges = np.linspace(8, width - 8, BOXES + 1).round().astype(int)
    for left, image in zip(edges[:-1], images[:BOXES], strict=True):
        paste(ink, image, 16, left + 8, 44)
    ink[[8, 9, -10, -9], 8:-8] = 0.8
    for edge in edges:
        ink[8:-8, edge - 1 : edge + 1] = 0.8
    return ink


def corners() -> Points:
    """The middles of the form's marks, float [4, 2]."""
    right, bottom = FORM[0] - MARK, FORM[1] - MARK
    return np.array([[MARK, MARK], [right, MARK], [right, bottom], [MARK, bottom]], dtype=float)


def places() -> list[tuple[int, int]]:
    """Left and top of the form's fields."""
    across, down = FORM[0] // COLUMNS, (FORM[1] - 4 * MARK) // ROWS
    return [((across - FIELD[0]) // 2 + x * across, 2 * MARK + y * down) for y in range(ROWS) for x in range(COLUMNS)]


def make_form(images: Bytes) -> bytes:
    """A form whose fields are filled in; `images` as of a page."""
    ink = np.zeros(FORM[::-1], np.float32)
    for number, (x, y) in enumerate(corners().tolist()):
        for left, top, side, grey in mark_squares(x, y, MARK, first=number == 0):
            ink[round(top) : round(top + side), round(left) : round(left + side)] = 1 - grey
    for number, (left, top) in enumerate(places()):
        written = images[np.arange(number * BOXES, (number + 1) * BOXES) % len(images)]
        ink[top : top + FIELD[1], left : left + FIELD[0]] = draw_field(written)
    return photograph(ink, np.random.default_rng(0))


def make_pictures(data_dir: Path) -> dict[str, bytes]:
    """The page, the field and the form, by their names."""
    images = load_emnist(data_dir, "balanced", "train")[0][:, 0].numpy()
    chosen = images[np.random.default_rng(0).integers(0, len(images), LINES * LETTERS)]
    field = photograph(draw_field(chosen), np.random.default_rng(0))
    return {"page": make_page(chosen), "field": field, "form": make_form(chosen)}


class WatchedNetwork:
    """A network that counts its seconds and the images that it saw."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.seconds = 0.0
        self.images = 0

    def __call__(self, images: Bytes) -> Probabilities:
        begun = time.perf_counter()
        probabilities = self.network(images)
        self.seconds += time.perf_counter() - begun
        self.images += len(images)
        return probabilities


def read(predictor: GlyphPredictor, network: WatchedNetwork, picture: bytes, form: FormReader | None) -> Timed:
    """Read a picture with a predictor of this network; with `form`, as a scan of that."""
    network.seconds, network.images = 0.0, 0
    started = time.perf_counter()
    if form:
        scan = form.find_pages("form", picture)
        finding = time.perf_counter() - started
        texts = list(form.read(*scan).fields.values())
    else:
        page = predictor.find_page(None, picture)
        finding = time.perf_counter() - started
        texts = [predictor.read_page(*page, top_k=5)]
    whole = time.perf_counter() - started
    characters = sum(len(word.characters) for text in texts for line in text.lines for word in line.words)
    return Timed(whole, finding, network.seconds, network.images, characters)


def report(model: Path, pictures: dict[str, bytes], rounds: int) -> None:
    """Read pictures in turns, and print the figures of each."""
    predictor = GlyphPredictor(model, "cpu")
    predictor.network = network = WatchedNetwork(predictor.network)
    fields = [Field(f"{n}", (x, y, x + FIELD[0], y + FIELD[1])) for n, (x, y) in enumerate(places())]
    form = FormReader(predictor, Form(FORM, corners(), tuple(fields)))
    values: dict[str, list[float]] = defaultdict(list)
    peaks = []
    for number in range(rounds + 1):
        for name, picture in pictures.items():
            timed = read(predictor, network, picture, form if name == "form" else None)
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
            if name == "form":
                values["form: read, ms a field"].append(1e3 * timed.whole / len(fields))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(f"{model.name}, CPU, {usable_cpus()} threads")
    print(f"{'':{NAME_WIDTH}}{'median':>10}{'lowest':>10}{'highest':>10}")
    for name, figures in values.items():
        show(name, figures)
    show("most memory, MB", peaks[-1:])
    show("of it after the first round, MB", [peaks[-1] - peaks[0]])


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
