"""Damage and sudden death: what the programs promise of files that are damaged, and of work that is killed.

    python benchmarks/torture.py --mutations 1000 --kills 100

Writes a valid file of each kind that the programs read, changes it at random and reads it, so many times, and prints
how many were read in spite of the change, how many were refused, and how many ended in anything but a GlyphError or
brought a warning to the terminal: that many faults were found.

Then kills (SIGKILL) a download, the preparation of pictures, batch prediction, an export and a training at random
moments, so many times each, and starts the same command again (training: with --resume where there is something to
resume).  Whatever had its name by then must be whole, and what lies there in the end the same, to the bit, as after a
run that nobody disturbed.

What is tried follows from --seed, but for the moment at which a kill meets the program.  The exit status is 1 where
there was a fault.
"""

import argparse
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import onnx
import torch
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parent.parent))

from glyphs.core.config import Config, read_config
from glyphs.core.errors import GlyphError
from glyphs.core.randomness import address
from glyphs.data.folder import INDEX, PIXELS, load_folders
from glyphs.data.idx import read_idx
from glyphs.evaluation.analyzer import describe_onnx
from glyphs.forms.forms import read_form
from glyphs.models.checkpoint import BEST_MODEL, LATEST_CHECKPOINT, load_checkpoint, load_model, save_checkpoint
from glyphs.models.export import export_model
from glyphs.models.network import EnhancedGlyphCNN
from glyphs.models.runtime import load_onnx
from glyphs.output.results import json_row, open_results
from glyphs.output.rows import Prediction, RowKind
from glyphs.pictures.decode import open_picture, to_colour
from glyphs.pictures.glyph import preprocess
from glyphs.pictures.lines import find_lines
from glyphs.pictures.plain import EMNIST_FORM
from glyphs.reading.reader import read_words

ROOT = Path(__file__).resolve().parent.parent

PICTURES = {
    "png": "PNG",
    "jpg": "JPEG",
    "gif": "GIF",
    "bmp": "BMP",
    "ppm": "PPM",
    "tif": "TIFF",
    "webp": "WEBP",
    "ico": "ICO",
    "tga": "TGA",
    "jp2": "JPEG2000",
}


class Kind(NamedTuple):
    """A kind of file: a valid one, and what reads it.  A mutated one goes in its place."""

    path: Path
    content: bytes
    read: Callable[[Path], object]


class Fault(NamedTuple):
    """A file that ended in something else than an answer or a GlyphError."""

    kind: str
    number: int
    problem: str


def draw() -> Image.Image:
    picture = Image.new("RGB", (48, 48), "white")
    ImageDraw.Draw(picture).line([(12, 10), (12, 38), (34, 24)], fill="black", width=4)
    return picture


def write_kinds(folder: Path, checkpoint: Path, exported: Path) -> dict[str, Kind]:
    """A valid file of each kind, in folders of their own within the folder; a checkpoint and its export are given."""
    kinds: dict[str, Kind] = {}

    def add(name: str, file: str, content: bytes, read: Callable[[Path], object]) -> Path:
        path = folder / name.replace(" ", "-") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        kinds[name] = Kind(path, content, read)
        return path

    for suffix, format in PICTURES.items():
        buffer = io.BytesIO()
        draw().save(buffer, format)
        add(f"picture {suffix}", f"picture.{suffix}", buffer.getvalue(), look_at)

    add("checkpoint", "model.pth", checkpoint.read_bytes(), load_model)
    add("export", "model.onnx", exported.read_bytes(), read_onnx)
    older = onnx.load(exported)
    del older.metadata_props[-1]  # the seal, which would refuse them all
    add("export without a seal", "model.onnx", older.SerializeToString(), read_onnx)

    head = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (3, 28, 28))
    add("IDX", "images-idx3-ubyte", head + bytes(3 * 784), lambda path: read_idx(path, 3))
    add(
        "IDX, gzipped",
        "images-idx3-ubyte.gz",
        gzip.compress(head + bytes(3 * 784), mtime=0),
        lambda path: read_idx(path, 3),
    )
    add("config.json", "config.json", json.dumps(Config().to_dict(), indent=2).encode(), read_config)
    rows = b"".join(json_row(Prediction(f"{i}.png", "ok", "A", 0.5)) + b"\n" for i in range(5))
    add("results to go on with", "results.jsonl", rows, resume)
    fields = [{"name": name, "box": [9, 9, 90, 30], "pattern": "[0-9]{5}"} for name in ("one", "two")]
    corners = [[5, 5], [95, 5], [95, 45], [5, 45]]
    form = {"size": [100, 50], "marks": corners, "form": None, "fields": fields}
    add("form", "fields.json", json.dumps(form, indent=2).encode(), read_form)
    add("word list", "words.txt", "one\ntwo\nzwölf\n".encode(), read_words)

    data, cache = folder / "data", folder / "cache"
    for name in ("A", "B"):
        (data / name).mkdir(parents=True)
        for number in range(4):
            draw().rotate(9 * number).save(data / name / f"{number}.png")
    load_folders(data, cache, EMNIST_FORM, 0)
    for file in (INDEX, PIXELS):
        content = (cache / file).read_bytes()
        kinds[f"cache {file}"] = Kind(cache / file, content, lambda path: load_folders(data, cache, EMNIST_FORM, 0))
    return kinds


def look_at(path: Path) -> None:
    preprocess(path)
    find_lines(to_colour(open_picture(path)))


def read_onnx(path: Path) -> None:
    """Both readers, whatever the first thinks of it."""
    try:
        load_onnx(path, "cpu")
    finally:
        describe_onnx(path)


def resume(path: Path) -> None:
    with open_results(path, RowKind("prediction", 5)) as results:
        results.summary()


def mutate(content: bytes, rng: random.Random) -> bytes:
    """The bytes with one to three changes of the kinds that disks, networks, editors and enemies make."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(changed) + 1)
        length = min(rng.choice((1, 1, 2, 4, 8, 64, 512)), len(changed) - at)
        kind = rng.randrange(8)
        if kind == 0 and length:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            changed[at : at + length] = bytes(length)
        elif kind == 3:
            changed[at : at + length] = b"\xff" * length
        elif kind == 4:
            del changed[at : at + length]
        elif kind == 5:
            changed[at:at] = rng.choice((rng.randbytes(8), b"[" * 5000, b"9" * 5000, b"\n", changed[:64]))
        elif kind == 6:
            del changed[at:]
        else:
            other = rng.randrange(len(changed) + 1)
            changed[at : at + length] = changed[other : other + length]
    return bytes(changed)


def attack(name: str, kind: Kind, count: int, seed: int) -> tuple[Counter[str], list[Fault]]:
    """Read so many mutations of a file; returns how many were read and refused, and what else happened."""
    counts: Counter[str] = Counter()
    faults = []
    for number in range(count):
        mutated = mutate(kind.content, random.Random(address(seed, name, number)))
        kind.path.write_bytes(mutated)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # the notes of a mended cache
                warnings.simplefilter("error")
                kind.read(kind.path)
            counts["read"] += 1
        except GlyphError as error:
            counts["refused"] += 1
            if len(str(error)) > 1000:
                faults.append(Fault(name, number, "a message of many pages"))
        except Exception as error:
            faults.append(Fault(name, number, f"{type(error).__name__}: {error}"[:300]))
    kind.path.write_bytes(kind.content)
    return counts, faults


class Job(NamedTuple):
    """Work to be killed.

    command : run in an empty folder.  results : the files, below that folder, that must come out the same.
    """

    command: list[str]
    results: tuple[str, ...]


ARCHIVE = random.Random(0).randbytes(8 << 20)
BYTES_PER_SECOND = 4 << 20


class SlowServer(http.server.BaseHTTPRequestHandler):
    """Gives the archive at a network's rate, from the byte on that is asked for."""

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(ARCHIVE) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(ARCHIVE) - 1}/{len(ARCHIVE)}")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client was killed
            for at in range(start, len(ARCHIVE), 1 << 16):
                self.wfile.write(ARCHIVE[at : at + (1 << 16)])
                time.sleep((1 << 16) / BYTES_PER_SECOND)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serve() -> Iterator[str]:
    """A server for the time of the block; yields the address of the archive."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/archive"
        finally:
            server.shutdown()


DOWNLOAD = "import sys; from pathlib import Path; from glyphs.data.download import download; "
DOWNLOAD += "download(sys.argv[1], Path('archive'), sys.argv[2])"
PREPARE = "import sys; from pathlib import Path; from glyphs.data.folder import load_folders; "
PREPARE += "load_folders(Path(sys.argv[1]), Path('cache'), 'glyph', 0)"


def write_jobs(folder: Path, checkpoint: Path, url: str) -> dict[str, Job]:
    """The jobs, and the pictures that they work on, which are written into the folder."""
    for name in ("A", "B"):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(150):
            draw().rotate(number / 5).resize((700, 700)).save(folder / "pictures" / name / f"{number}.png")
    pictures, model = str(folder / "pictures"), str(checkpoint)
    training = ["--dataset", "demo", "--no-use-residual", "--max-train-images", "1200", "--epochs", "3", "--skip-eval"]
    training += ["--device", "cpu", "--checkpoint-every", "0.2"]
    batch = ["--model", model, "--device", "cpu", "--batch", pictures, "--output", "rows.jsonl"]
    md5 = hashlib.md5(ARCHIVE, usedforsecurity=False).hexdigest()
    return {
        "download": Job(["-c", DOWNLOAD, url, md5], ("archive",)),
        "preparing pictures": Job(["-c", PREPARE, pictures], (f"cache/{INDEX}", f"cache/{PIXELS}")),
        "batch prediction": Job([str(ROOT / "inference.py"), *batch], ("rows.jsonl",)),
        "export": Job([str(ROOT / "model_utils.py"), "--export", model, "--output", "model.onnx"], ("model.onnx",)),
        "training": Job([str(ROOT / "enhanced_glyph_recognition.py"), *training], (f"outputs/{BEST_MODEL}",)),
    }


def start(job: Job, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, *job.command]
    latest = folder / "outputs" / LATEST_CHECKPOINT
    if latest.exists():
        command.append("--resume")
    elif (latest.parent / BEST_MODEL).exists():
        command.append("--overwrite")  # killed at the end of the first epoch, between the two
    # One thread: with more, sums may come out in another order.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(job: Job, folder: Path) -> dict[str, bytes]:
    """Run a job to its end; what came out."""
    process = start(job, folder)
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(said[-1000:])
    return {name: (folder / name).read_bytes() for name in job.results}


def check_whole(folder: Path) -> None:
    """Raise GlyphError where a file that has its name already is not whole."""
    for path in folder.rglob("*.pth"):
        load_checkpoint(path)
    for path in folder.rglob("*.onnx"):
        load_onnx(path, "cpu")


def kill(name: str, job: Job, count: int, seed: int, folder: Path) -> tuple[int, list[Fault]]:
    """Kill a job so many times; returns how often it had not come to its end, and what went wrong."""
    folder.mkdir(parents=True)
    began = time.monotonic()
    expected = finish(job, folder)
    seconds = time.monotonic() - began
    met, faults = 0, []
    for number in range(count):
        shutil.rmtree(folder)
        folder.mkdir()
        with start(job, folder) as process:
            time.sleep(random.Random(address(seed, name, number)).uniform(0, seconds))
            process.kill()
        met += process.returncode != 0
        try:
            check_whole(folder)
            found = finish(job, folder)
        except (GlyphError, RuntimeError) as error:
            faults.append(Fault(name, number, str(error)))
            continue
        faults += [Fault(name, number, f"{each} differs") for each in job.results if found[each] != expected[each]]
    return met, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=1000, help="of a file of each kind (default: 1000)")
    parser.add_argument("--kills", type=int, default=0, help="of each kind of work (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    found: list[Fault] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = folder / "small.pth"
        model = EnhancedGlyphCNN(2, use_residual=False)
        save_checkpoint(checkpoint, model, Config(use_residual=False), ["A", "B"], metrics={})
        if arguments.mutations:
            print(f"{'mutations':26}{'read':>10}{'refused':>10}{'faults':>10}")
            for name, kind in write_kinds(folder, checkpoint, export_model(checkpoint).path).items():
                counts, faults = attack(name, kind, arguments.mutations, arguments.seed)
                print(f"{name:26}{counts['read']:10,}{counts['refused']:10,}{len(faults):10,}", flush=True)
                found += faults
        if arguments.kills:
            print(f"{'kills':26}{'at work':>10}{'too late':>10}{'faults':>10}")
            with serve() as url:
                for name, job in write_jobs(folder, checkpoint, url).items():
                    met, faults = kill(name, job, arguments.kills, arguments.seed, folder / "work" / name)
                    print(f"{name:26}{met:10,}{arguments.kills - met:10,}{len(faults):10,}", flush=True)
                    found += faults
    for fault in found:
        print(f"{fault.kind}, number {fault.number}: {fault.problem}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
