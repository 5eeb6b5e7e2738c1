"""How fast pictures are recognised, beside the network alone and the machine's own limit, and how soon one is.

    python benchmarks/prediction.py MODEL.pth MODEL.onnx

Writes 28x28 PNG files in EMNIST's form into a temporary folder.  For each model, in turns so that a noisy machine
slows all of it: the network alone on one image and on a batch, also as a multiple of what its multiply-adds cost at the
rate of the best matrix product; the network alone on all images; end to end, from a folder of files to rows in a .jsonl
file.  Then, from command to answer: `inference.py` on one of the files, less the time that Python takes to start.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.throughput import best_copy, best_matrix_product
from glyphs.analysis.analyzer import ModelAnalyzer
from glyphs.cpus import usable_cpus
from glyphs.data.demo import render_demo
from glyphs.inference.predictor import GlyphPredictor, save_pixels
from glyphs.inference.rows import open_results
from glyphs.pictures.find import PictureFolder
from glyphs.pictures.glyph import preprocess
from glyphs.timing import time_networks

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
BATCHES = (1, 128)


def write_pictures(folder: Path, count: int) -> NDArray[np.uint8]:
    """Save that many pictures, in a sub-folder for each thousand; returns uint8 [count, 1, 28, 28]."""
    images, _ = render_demo("test")
    glyphs = [preprocess(image.numpy()).pixels for image in images[::8, 0]]
    usable = [pixels for pixels in glyphs if pixels is not None]
    chosen = [usable[number % len(usable)] for number in range(count)]
    for number, pixels in enumerate(chosen):
        save_pixels(pixels, folder / f"{number // 1000:03}" / f"{number:06}.png")
    return np.stack(chosen)[:, None]


def network_rate(predictor: GlyphPredictor, images: NDArray[np.uint8]) -> float:
    started = time.perf_counter()
    for start in range(0, len(images), predictor.batch_size):
        predictor.network(images[start : start + predictor.batch_size])
    return len(images) / (time.perf_counter() - started)


def end_to_end_rate(predictor: GlyphPredictor, folder: Path, output: Path) -> float:
    output.unlink(missing_ok=True)
    started = time.perf_counter()
    with open_results(output, top_k=5) as results:
        for prediction, _ in predictor.stream(PictureFolder(folder)):
            results.write(prediction)
            results.counts[prediction.status] += 1
    return results.counts.total() / (time.perf_counter() - started)


def seconds(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def digits(value: float) -> str:
    """Three digits, or all of a larger number: never 1.17e+03."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show(name: str, values: list[float]) -> None:
    print(f"{name:44}{digits(statistics.median(values)):>10}{digits(min(values)):>10}{digits(max(values)):>10}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help=".pth and .onnx files")
    parser.add_argument("--images", type=int, default=4000, help="pictures a round (default: 4000)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; the median is reported (default: 7)")
    arguments = parser.parse_args()

    print(f"CPU, {usable_cpus()} threads, torch {torch.__version__}, {arguments.images:,} files of 28x28 pixels")
    print(f"{'':44}{'median':>10}{'lowest':>10}{'highest':>10}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "pictures")
        images = write_pictures(folder, arguments.images)
        for model in arguments.models:
            predictor = GlyphPredictor(model, "cpu")
            network_rate(predictor, images[: 4 * predictor.batch_size])  # warms up
            alone, whole, ceilings, copies, starts = [], [], [], [], []
            times: dict[int, list[float]] = {batch: [] for batch in BATCHES}
            for _ in range(arguments.rounds):
                for batch in BATCHES:
                    times[batch].append(time_networks([predictor.network], batch)[0].median)
                alone.append(network_rate(predictor, images))
                whole.append(end_to_end_rate(predictor, folder, Path(temporary, "results.jsonl")))
                ceilings.append(best_matrix_product(CPU, torch.float32) / 1e9)
                copies.append(best_copy(CPU) / 1e9)
                answer = seconds(
                    "inference.py", "--model", str(Path(model).resolve()), "--image", str(folder / "000" / "000000.png")
                )
                starts.append(answer - seconds("-c", "pass"))
            name = Path(model).name
            operations = 2 * ModelAnalyzer(model, "cpu").count_multiply_adds() / 1e9
            for batch, values in times.items():
                show(f"{name}: {batch} at a time, ms", [1e3 * value for value in values])
                ideal = [batch * operations / ceiling for ceiling in ceilings]
                show(f"{name}: {batch}, times the products' cost", [v / i for v, i in zip(values, ideal, strict=True)])
            show(f"{name}: network alone, images/s", alone)
            show(f"{name}: end to end, pictures/s", whole)
            show(f"{name}: ratio, %", [100 * b / a for a, b in zip(alone, whole, strict=True)])
            show(f"{name}: one answer, s beyond Python's start", starts)
            show("matrix product meanwhile, GFLOP/s", ceilings)
            show("memory copy meanwhile, GB/s", copies)


if __name__ == "__main__":
    main()
