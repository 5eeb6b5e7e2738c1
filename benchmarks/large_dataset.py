"""Whether training on a folder of pictures needs memory for their number, and what reading them from disk costs.

    python benchmarks/large_dataset.py

Writes a cache of random glyphs, as `--dataset folder` keeps it, into a temporary folder (784 MB a million), opens it,
and shows the resident memory: what the process itself holds (anonymous), and the pages of the file that the system
lends to it, which lie in its page cache anyway and which it takes back when memory is short.  Then the speed of batches
(gather, augment) over whole epochs and of training steps, on the mapped file and on a copy in memory, in turns.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch

from benchmarks.throughput import CLASSES, best_copy, make_trainer, wait_for
from glyphs.core.devices import choose_device, describe_device, limit_threads
from glyphs.core.process import run
from glyphs.core.protocols import fetch_steps
from glyphs.data.folder import INDEX, PIXELS, Store, index_line
from glyphs.pictures.plain import EMNIST_FORM
from glyphs.training.trainer import Trainer

CHUNK = 100_000  # glyphs written at a time
SAMPLE_EVERY = 100  # steps


def resident() -> tuple[float, float]:
    """Megabytes of this process in memory: anonymous, and pages of files."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    anonymous, mapped = (int(fields[name].split()[0]) / 1e3 for name in ("RssAnon", "RssFile"))
    return anonymous, mapped


def write_cache(folder: Path, root: Path, count: int) -> None:
    """What Store.add leaves after preparing that many pictures."""
    image_bytes = Store(folder, root, EMNIST_FORM).image_bytes
    rng = np.random.default_rng(0)
    with (folder / PIXELS).open("ab") as pixels, (folder / INDEX).open("ab") as index:
        for start in range(0, count, CHUNK):
            numbers = range(start, min(start + CHUNK, count))
            images = rng.bytes(len(numbers) * image_bytes)
            pixels.write(images)
            for place, number in enumerate(numbers):
                key = f"{number % CLASSES:02}/{number:08}.png", 1000, 1_700_000_000_000_000_000 + number
                image = images[place * image_bytes : (place + 1) * image_bytes]
                index.write(index_line([*key, number, None], image))  # its content: another for each


def show_memory(moment: str) -> None:
    anonymous, mapped = resident()
    print(f"{moment:42}{anonymous:14,.0f}{mapped:14,.0f}")


def gather_epoch(trainer: Trainer) -> float:
    """Make the batches of a whole epoch; returns the highest anonymous memory meanwhile."""
    return max(resident()[0] for step, _ in fetch_steps(trainer.train_loader, 0, 0) if step % SAMPLE_EVERY == 0)


def rates(trainers: tuple[Trainer, ...], epoch: int, steps: int, train: bool) -> list[float]:
    """Images/s of each trainer, from the median step; they take turns at every step, so that noise meets all alike."""
    loops = [fetch_steps(trainer.train_loader, 0, epoch) for trainer in trainers]
    seconds: list[list[float]] = [[] for _ in trainers]
    for _ in range(steps):
        for trainer, loop, times in zip(trainers, loops, seconds, strict=True):
            started = wait_for(trainer.device)
            _, batch = next(loop)
            if train:
                trainer.train_step(*batch)
            times.append(wait_for(trainer.device) - started)
    return [t.config.batch_size / statistics.median(times) for t, times in zip(trainers, seconds, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glyphs", type=int, default=1_000_000, help="how many (default: 1000000)")
    parser.add_argument("--batch-size", type=int, default=128, help="images a step (default: 128)")
    parser.add_argument("--steps", type=int, default=20, help="training steps a round (default: 20)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the median is reported (default: 5)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    arguments = parser.parse_args()

    limit_threads()
    device, count, batch_size = choose_device(arguments.device), arguments.glyphs, arguments.batch_size
    print(f"{describe_device(device)}, torch {torch.__version__}, {count:,} glyphs, batch {batch_size}")
    with tempfile.TemporaryDirectory() as temporary:
        folder, root = Path(temporary, "cache"), Path(temporary, "pictures")
        write_cache(folder, root, count)
        print(f"{'resident memory, MB':42}{'anonymous':>14}{'of files':>14}")
        show_memory("before the cache is opened")
        started = time.perf_counter()
        store = Store(folder, root, EMNIST_FORM)
        seconds = time.perf_counter() - started
        assert store.count == count
        show_memory(f"its index read, in {seconds:.1f} s")
        images = store.images()
        del store
        labels = torch.randint(CLASSES, (count,))
        mapped = make_trainer(images, labels, batch_size, device)
        show_memory("index let go, pixels mapped, model made")
        highest = gather_epoch(mapped)
        show_memory("after an epoch of batches")
        print(f"{'highest during that epoch':42}{highest:14,.0f}")

        memory = make_trainer(images.clone(), labels, batch_size, device)
        show_memory("with a copy of the pixels in memory")
        table: dict[str, list[float]] = defaultdict(list)
        for number in range(1, arguments.rounds + 1):
            for name, steps in (("batches", mapped.num_steps), ("training", arguments.steps)):
                of_file, of_memory = rates((mapped, memory), number, steps, name == "training")
                table[f"{name}, mapped, images/s"].append(of_file)
                table[f"{name}, in memory, images/s"].append(of_memory)
                table[f"{name}, mapped to in memory, %"].append(100 * of_file / of_memory)
            table["memory copy, GB/s"].append(best_copy(torch.device("cpu")) / 1e9)
    print(f"{'':42}{'median':>14}{'lowest':>14}{'highest':>14}")
    for name, values in table.items():
        print(f"{name:42}{statistics.median(values):14,.1f}{min(values):14,.1f}{max(values):14,.1f}")


if __name__ == "__main__":
    sys.exit(run(main))
