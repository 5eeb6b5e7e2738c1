"""Symbols and photographs as their user has them: folders trained on with no option but the folder.

    pip install resvg-py && npm install --prefix packages @phosphor-icons/core @twemoji/svg flag-icons simple-icons
    python benchmarks/symbols.py --packages packages/node_modules --data-dir DIR
    python benchmarks/symbols.py --packages packages/node_modules --data-dir DIR --look

DIR, which is optional, holds `symbols/set_cards/train` and `test`, a folder for each class in both,
`symbols/mahjong/labels.csv` with its pictures, and for `--look` characters in `photos` and `drawings`.

Of each package 50 drawings become classes of 32 pictures to train on and 8 to test, 48 to 128 pixels, turned, of varied
size, on paper of one colour, of several or with noise; icons and logos in one ink that stands out.  How such pictures
are trained on was chosen on CHOSEN_ON, and asked of HELD_OUT once it stood.  Seconds are of the whole program on the
clock, memory is its largest.  `--look` trains nothing, and says what the pictures are like.
"""

import argparse
import csv
import io
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image, ImageFilter

from glyphs.core.process import run
from glyphs.data.survey import LOOKED_AT, in_threads, look_at, spread, training_pictures

PACKAGES = {
    "icons": "@phosphor-icons/core/assets/regular",
    "emoji": "@twemoji/svg",
    "flags": "flag-icons/flags/4x3",
    "logos": "simple-icons/icons",
}
CHOSEN_ON = ("icons", "emoji")
CHARACTERS = ("photos", "drawings")
HELD_OUT = ("flags", "logos", "set_cards", "mahjong")
ONE_INK = ("icons", "logos")
CLASSES, SIDES = 50, (48, 128)
COUNTS = {"train": 32, "test": 8}
LEAST_CONTRAST = 90  # of brightness, between an icon's ink and its paper
TEST_OF_MAHJONG = 4  # every fourth picture of a class is tested on

Colour = tuple[int, int, int]


def any_colour(rng: random.Random) -> Colour:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def brightness_of(colour: Colour) -> float:
    return float(np.dot(colour, (0.3, 0.59, 0.11)))


def make_paper(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """White, of a colour, of colours that run into each other, or these with noise."""
    kind = rng.randrange(4)
    if kind == 0:
        return Image.new("RGB", size, "white")
    if kind == 1:
        return Image.new("RGB", size, any_colour(rng))
    few = np.array([[any_colour(rng) for _ in range(3)] for _ in range(3)], np.uint8)
    paper = Image.fromarray(few).resize(size, Image.Resampling.BICUBIC)
    if kind == 2:
        return paper
    noise = np.random.default_rng(rng.randrange(2**30)).normal(0, 20, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(paper) + noise).clip(0, 255).astype(np.uint8))


def make_symbol(drawing: Image.Image, rng: random.Random, *, one_ink: bool) -> Image.Image:
    """A picture of a drawing, RGBA, whole, somewhere on a paper."""
    side = rng.randint(*SIDES)
    drawing = drawing.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC, expand=True)
    scale = side * rng.uniform(0.6, 0.95) / max(drawing.size)
    width, height = (max(1, int(length * scale)) for length in drawing.size)
    drawing = drawing.resize((width, height), Image.Resampling.LANCZOS)
    paper = make_paper((side, max(height, int(side * rng.uniform(0.8, 1.2)))), rng)
    if one_ink:
        behind = np.asarray(paper).reshape(-1, 3).mean(0)
        inks = iter(lambda: any_colour(rng), None)
        ink = next(each for each in inks if abs(brightness_of(each) - brightness_of(tuple(behind))) > LEAST_CONTRAST)
        inked = Image.new("RGBA", drawing.size, (*ink, 255))
        inked.putalpha(drawing.getchannel("A"))
        drawing = inked
    at = rng.randint(0, paper.width - width), rng.randint(0, paper.height - height)
    paper.paste(drawing, at, drawing)
    return paper.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2))) if rng.random() < 0.3 else paper


def make_set(name: str, packages: Path, folder: Path) -> None:
    """Draw the pictures of a package into train and test folders."""
    import resvg_py  # optional

    rng = random.Random(name)
    for path in rng.sample(sorted((packages / PACKAGES[name]).glob("*.svg")), CLASSES):
        drawn = resvg_py.svg_to_bytes(svg_path=str(path), width=256, height=256)
        drawing = Image.open(io.BytesIO(bytes(drawn))).convert("RGBA")
        for part, count in COUNTS.items():
            (folder / part / path.stem).mkdir(parents=True)
            for number in range(count):
                make_symbol(drawing, rng, one_ink=name in ONE_INK).save(folder / part / path.stem / f"{number}.png")


def divide_mahjong(source: Path, folder: Path) -> None:
    """Put the pictures of the table into train and test folders of their classes."""
    seen: dict[str, int] = {}
    with (source / "labels.csv").open(newline="", encoding="utf-8") as table:
        for row in csv.DictReader(table):
            number = seen[row["label"]] = seen.get(row["label"], -1) + 1
            target = folder / ("train" if number % TEST_OF_MAHJONG else "test") / row["label"]
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / row["file"], target)


def sets_of(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """The sets that there are, by their names, each made as it is asked for."""
    for name in arguments.sets:
        if name in PACKAGES and arguments.packages:
            make_set(name, arguments.packages, folder / name)
            yield name, folder / name
        elif name == "mahjong" and arguments.data_dir:
            divide_mahjong(arguments.data_dir / "symbols" / name, folder / name)
            yield name, folder / name
        elif name == "set_cards" and arguments.data_dir:
            yield name, arguments.data_dir / "symbols" / name
        elif name in CHARACTERS and arguments.data_dir and arguments.look:
            yield name, arguments.data_dir / name


def describe(data: Path) -> str:
    """What the pictures are like, as the program sees them."""
    looks = [look for look in in_threads(look_at, spread(training_pictures(data), LOOKED_AT)) if look]
    glyphs = sum(look.is_glyph for look in looks) / len(looks)
    side, tint = (statistics.median(getattr(look, what) for look in looks) for what in ("side", "tint"))
    return f"{glyphs:>9.0%} {side:>10.0f} {tint:>10.1f}"


def train(data: Path, output: Path, options: list[str]) -> str:
    """Train on a folder with no option but those given, and say how good that is and what it took."""
    command = [sys.executable, "enhanced_glyph_recognition.py", "--dataset", "folder", "--data-dir", str(data)]
    command += ["--output-dir", str(output), *options]
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said, peak = process.communicate()[0], 0
    if sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # the largest of all so far
    if process.returncode:
        return said.splitlines()[-1]
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    form = f"{config['preprocess']} {config['image_size']} {'colour' if config['color'] == 'on' else 'grey'}"
    seconds = time.monotonic() - started
    return f"{100 * metrics['accuracy']:>9.1f} {metrics['n']:>6} {seconds:>8.0f} {peak / 1024:>8.0f}  {form}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, help="the node_modules folder of the packages")
    parser.add_argument("--data-dir", type=Path, help="the folder of photographs")
    names = [*CHARACTERS, *CHOSEN_ON, *HELD_OUT]
    parser.add_argument("--sets", nargs="+", choices=names, default=names, help="which (default: all there are)")
    parser.add_argument("--look", action="store_true", help="only say what the pictures are like")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="more for the training, at the end")
    arguments = parser.parse_args()
    heads = "one glyph     pixels       tint" if arguments.look else " accuracy     of  seconds       MB  form"
    print(f"{'set':<12} {'':<10} {heads}")
    with tempfile.TemporaryDirectory() as temporary:
        for name, data in sets_of(arguments, Path(temporary)):
            what = describe(data) if arguments.look else train(data, Path(temporary) / f"{name}-run", arguments.options)
            print(f"{name:<12} {'held out' if name in HELD_OUT else 'chosen on':<10} {what}", flush=True)


if __name__ == "__main__":
    sys.exit(run(main))
