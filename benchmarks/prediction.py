"""How fast pictures are recognised, beside the network alone and the machine's own limit, and how soon one is.

    python benchmarks/prediction.py MODEL.pth MODEL.onnx

Writes 28x28 PNG files in EMNIST's form into a temporary folder.  For each model, in turns so that a noisy machine
slows all of it: the network alone on one image and on a batch, also as a multiple of what its multiply-adds cost at the
rate of the best matrix product; the network alone on all images; end to end, from a folder of files to rows in a .jsonl
file.  Then, from command to answer: `inference.py` on one of the files, less the time that Python takes to start.

    python benchmarks/prediction.py MODEL.onnx --busy 2

measures instead how exports bear two other processes that never rest, with each of several times for which
onnxruntime's threads wait in a busy loop; quiet and busy, and the times, take turns within each round.

    OMP_NUM_THREADS=1 python benchmarks/prediction.py --forms MODEL.pth MODEL.onnx

measures instead what each network costs in the forms that it could have, one call each in turns, as processor time,
which other programs on the machine disturb less: a checkpoint in float32 and in bfloat16, channels last or not.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from benchmarks.startup import command_seconds
from benchmarks.throughput import best_copy, best_matrix_product, competing
from glyphs.core.cpus import usable_cpus
from glyphs.core.timing import time_networks
from glyphs.data.demo import render_demo
from glyphs.evaluation.analyzer import ModelAnalyzer
from glyphs.models.checkpoint import load_model
from glyphs.models.runtime import Network, load_onnx
from glyphs.output.results import open_results, save_pixels
from glyphs.output.rows import RowKind
from glyphs.pictures.find import PictureFolder
from glyphs.pictures.glyph import preprocess
from glyphs.reading.predictor import GlyphPredictor

CPU = torch.device("cpu")
BATCHES = (1, 128)
# session.intra_op.spin_duration_us: how long a thread of onnxruntime (1.26 or newer) looks for work before it sleeps.
WAITING = {"-1": "onnxruntime's own", "1000": "1,000 µs", "100": "100 µs (ours)", "0": "0 µs"}
SECONDS_OF_CALLS = 0.5
NAME_WIDTH = 60


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
    with open_results(output, RowKind("prediction", 5)) as results:
        for prediction, _ in predictor.stream(PictureFolder(folder)):
            results.write(prediction)
            results.counts[prediction.status] += 1
    return results.counts.total() / (time.perf_counter() - started)


def forms_of(path: str) -> dict[str, Network]:
    """The forms that a model can have on a CPU, each a function of uint8 [N, 1, 28, 28]."""
    if path.endswith(".onnx"):
        return {Path(path).name: load_onnx(Path(path), "cpu")[0]}

    def form(dtype: torch.dtype, layout: torch.memory_format, *, autocast: bool = False) -> Network:
        model = load_model(Path(path))[0].to(dtype).to(memory_format=layout)

        def network(images: NDArray[np.uint8]) -> Any:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return model(torch.from_numpy(images)).float().softmax(dim=1).numpy()

        return network

    last, first = torch.channels_last, torch.contiguous_format
    return {
        "float32, channels last": form(torch.float32, last),
        "float32, channels first": form(torch.float32, first),
        "bfloat16": form(torch.bfloat16, last),
        "bfloat16 by autocast": form(torch.float32, last, autocast=True),
    }


def compare_forms(models: list[str], rounds: int) -> None:
    """Print the processor time of a call of each form, in ms."""
    forms = {name: network for path in models for name, network in forms_of(path).items()}
    for batch in BATCHES:
        images = np.random.default_rng(0).integers(0, 256, (batch, 1, 28, 28), np.uint8)
        taken: dict[str, list[float]] = {name: [] for name in forms}
        for number in range(rounds + 1):
            for name, network in forms.items():
                started = time.process_time()
                network(images)
                if number > 0:  # the first warms up
                    taken[name].append(1e3 * (time.process_time() - started))
        for name, values in taken.items():
            show(f"{name}: {batch} at a time, CPU ms", values)


def digits(value: float) -> str:
    """Three digits, or all of a larger number: never 1.17e+03."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show(name: str, values: list[float]) -> None:
    print(
        f"{name:{NAME_WIDTH}}{digits(statistics.median(values)):>10}{digits(min(values)):>10}{digits(max(values)):>10}"
    )


def call_rate(session: onnxruntime.InferenceSession, images: NDArray[np.float32]) -> float:
    """Images a second."""
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < SECONDS_OF_CALLS:
        session.run(None, {"images": images})
        calls += 1
    return calls * len(images) / elapsed


def compare_waiting(model: str, competitors: int, rounds: int) -> None:
    """Measure an export with and without competitors, for each way in which its threads can wait for each other."""
    sessions = {}
    for spinning in WAITING:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = usable_cpus()
        options.add_session_config_entry("session.intra_op.spin_duration_us", spinning)
        sessions[spinning] = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    table: dict[tuple[int, str, str], list[float]] = defaultdict(list)
    noise = {batch: np.random.default_rng(0).random((batch, 1, 28, 28), dtype=np.float32) for batch in BATCHES}
    for number in range(1 + rounds):
        for batch, (state, count) in itertools.product(BATCHES, (("quiet", 0), ("busy", competitors))):
            for spinning, session in sessions.items():
                with competing(count):
                    rate = call_rate(session, noise[batch])
                if number > 0:  # the first round warms up
                    table[batch, state, spinning].append(rate)
    for (batch, state, spinning), rates in table.items():
        show(f"{Path(model).name}: {batch}, {state}, {WAITING[spinning]}", rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help=".pth and .onnx files")
    parser.add_argument("--images", type=int, default=4000, help="pictures a round (default: 4000)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; the median is reported (default: 7)")
    busy = "measure instead how .onnx files bear this many other processes that never rest: images/s"
    parser.add_argument("--busy", type=int, metavar="N", help=busy)
    parser.add_argument("--forms", action="store_true", help="compare forms of the networks by processor time")
    arguments = parser.parse_args()

    if arguments.busy is not None:
        print(f"CPU, {usable_cpus()} threads, onnxruntime {onnxruntime.__version__}, images/s")
        print(f"{'':{NAME_WIDTH}}{'median':>10}{'lowest':>10}{'highest':>10}")
        for model in arguments.models:
            compare_waiting(model, arguments.busy, arguments.rounds)
        return
    print(f"CPU, {usable_cpus()} threads, torch {torch.__version__}, {arguments.images:,} files of 28x28 pixels")
    print(f"{'':{NAME_WIDTH}}{'median':>10}{'lowest':>10}{'highest':>10}")
    if arguments.forms:
        compare_forms(arguments.models, arguments.rounds)
        return
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
                answer = command_seconds(
                    "inference.py", "--model", str(Path(model).resolve()), "--image", str(folder / "000" / "000000.png")
                )
                starts.append(answer.beyond(command_seconds("-c", "pass")).clock)
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
