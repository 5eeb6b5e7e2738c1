"""What the service makes of thousands of requests of which a tenth are broken, and of a stop under load.

    python benchmarks/service_torture.py MODEL

Starts a service, sends it pictures in EMNIST's form and enlarged ones from many clients at once, and holds each answer
against `inference.py` on the same files; every tenth request is broken, in the ways of `BROKEN` in turns, and must get
the status that is written there.  Then threads and open files must be what they were, and memory must not
have grown since the first fifth; and a SIGTERM while all clients send must lose no request that the service took.  Ends
with status 1 where anything was not so.  Reads /proc, so it needs Linux.  Everything random comes from --seed.
"""

import argparse
import collections
import json
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from PIL import Image, ImageOps

from benchmarks.prediction import write_pictures
from benchmarks.startup import ROOT

SERVICE = """
import sys
from pathlib import Path
from glyphs.serving.gate import Limits
from glyphs.reading.predictor import GlyphPredictor
from glyphs.serving.service import serve
from glyphs.core.process import run
model, patience = Path(sys.argv[1]), float(sys.argv[2])
limits = Limits(head_seconds=patience, body_seconds=patience)
sys.exit(run(lambda: serve([GlyphPredictor(model)], port=0, limits=limits)))
"""
BAD_EVERY = 10  # requests, one is broken
BYTES = 40  # that a slow client sends, one after the other, in twice the time that the service waits
GROWTH = 32 << 20  # bytes that memory may differ by
SETTLE_SECONDS = 10.0  # in which the service must have put everything away


class Sending(NamedTuple):
    """What a client sends: parts with a pause after each, and whether it then says that nothing more comes."""

    parts: Sequence[bytes]
    end: bool = False
    slow: bool = False


def request(picture: bytes, length: int | str | None = None, line: str = "POST /predict", **headers: str) -> bytes:
    fields = {"Host": "localhost", "Content-Type": "image/png", "Connection": "close"}
    fields["Content-Length"] = str(len(picture) if length is None else length)
    lines = [f"{line} HTTP/1.1", *(f"{name}: {value}" for name, value in (fields | headers).items())]
    return "\r\n".join([*lines, "", ""]).encode() + picture


def bomb() -> bytes:
    """The head of a PNG picture of 50,000 x 50,000 pixels, and a little of its data."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


def byte_by_byte(whole: bytes, start: int) -> Sending:
    return Sending([whole[:start], *(whole[place : place + 1] for place in range(start, start + BYTES))], slow=True)


# What is sent instead of a good request, from its picture, and the status that it must get.
BROKEN: dict[str, tuple[int, Callable[[bytes, random.Random], Sending]]] = {
    "cut off in the middle": (400, lambda picture, _: Sending([request(picture)[: -len(picture) // 2]], end=True)),
    "more announced than sent": (400, lambda picture, _: Sending([request(picture, len(picture) + 9)], end=True)),
    "less announced than sent": (422, lambda picture, _: Sending([request(picture, len(picture) // 2)])),
    "17 MiB announced": (413, lambda picture, _: Sending([request(picture, 17 << 20)])),
    "a length that is no number": (400, lambda picture, _: Sending([request(picture, "many")])),
    "a head of 64 KB": (431, lambda picture, _: Sending([request(picture, **{"X": "x" * 65536})])),
    "random bytes": (400, lambda _, rng: Sending([b"\xff" + rng.randbytes(2000) + b"\r\n\r\n"])),
    "a picture of random bytes": (422, lambda _, rng: Sending([request(b"\xff" + rng.randbytes(2000))])),
    "a picture of 50,000x50,000": (422, lambda *_: Sending([request(bomb())])),
    "a picture cut short": (422, lambda picture, _: Sending([request(picture[: len(picture) // 2])])),
    "text": (422, lambda *_: Sending([request(b"a", **{"Content-Type": "text/plain"})])),
    "a path that leads out": (404, lambda picture, _: Sending([request(picture, line="POST /../predict")])),
    "a method that is not": (405, lambda *_: Sending([request(b"", line="GET /predict")])),
    "another host": (403, lambda picture, _: Sending([request(picture, Host="example.org")])),
    "a head byte by byte": (408, lambda picture, _: byte_by_byte(request(picture), 0)),
    "a body byte by byte": (
        408,
        lambda picture, _: byte_by_byte(request(picture), len(request(picture)) - len(picture)),
    ),
}


@dataclass
class Target:
    """The service's process, where it listens, and how long it waits."""

    process: subprocess.Popen[str]
    port: int
    patience: float

    def send(self, sending: Sending) -> tuple[int, Any]:
        """Send on a connection of its own; returns the status (0: no answer) and the JSON of the first answer."""
        pause = 2 * self.patience / BYTES if sending.slow else 0
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            answer = bytearray()
            try:
                for part in sending.parts:
                    connection.sendall(part)
                    time.sleep(pause)
                if sending.end:
                    connection.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has answered already
            try:
                while chunk := connection.recv(1 << 16):
                    answer += chunk
            except ConnectionResetError:
                pass  # it had closed the connection while we still sent
        head, _, body = bytes(answer).partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.1 (\d+) ", head)
        length = re.search(rb"content-length: (\d+)", head)
        if not status or not length or len(body) < int(length[1]):
            return 0, None
        return int(status[1]), json.loads(body[: int(length[1])])

    def figures(self) -> dict[str, int]:
        folder = Path("/proc", str(self.process.pid))
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        return {
            "memory, MB": int(status["VmRSS"].split()[0]) // 1000,
            "threads": int(status["Threads"]),
            "open files": len(list((folder / "fd").iterdir())),
        }

    def answered(self) -> int:
        """The requests answered so far, the one for this among them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            counts = re.findall(r"^glyphs_requests_total\{.*\} (\S+)$", answer.read().decode(), re.MULTILINE)
        return 1 + round(sum(map(float, counts)))


@dataclass
class Tally:
    """What came of the requests, and what was not as it must be."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)

    def expect(self, name: str, fact: object, wanted: object) -> None:
        self.counts[name] += 1
        if fact != wanted:
            self.faults.append(f"{name}: {fact}, not {wanted}")


def pictures_and_rows(folder: Path, count: int, model: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Pictures, every other one enlarged to ink on paper, some blank, and the row of `inference.py` for each."""
    pictures, output = folder / "pictures", folder / "rows.json"
    write_pictures(pictures, count)
    paths = sorted(pictures.rglob("*.png"))
    for number, path in enumerate(paths[::2]):
        side = 40 + number % 120
        picture = ImageOps.invert(Image.open(path)).resize((side, side))
        (Image.new("L", (side, side), 255) if number % 25 == 0 else picture).save(path)
    command = ["inference.py", "--model", str(model), "--batch", str(pictures), "--output", str(output)]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    rows = {row["file"]: row for row in json.loads(output.read_text(encoding="utf-8"))}
    return [(path.read_bytes(), rows[path.relative_to(pictures).as_posix()]) for path in paths]


def same(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows say the same, but for the file's name and the last digits of probabilities."""

    def essence(row: dict[str, Any]) -> list[Any]:
        return [row["status"], row["prediction"], [each["label"] for each in row["top_k"][:1]], row["error"]]

    near = abs((row["confidence"] or 0) - (other["confidence"] or 0)) < 1e-4
    return list(row) == list(other) and essence(row) == essence(other) and near


def torture(target: Target, known: Sequence[tuple[bytes, dict[str, Any]]], tally: Tally, args: Any) -> None:
    """Send all requests, and watch what the service holds; the first fifth is for it to come to its size."""

    def one(number: int) -> None:
        rng = random.Random(args.seed * 1_000_003 + number)
        picture, row = known[number % len(known)]
        if number % BAD_EVERY == 0:
            name = list(BROKEN)[number // BAD_EVERY % len(BROKEN)]
            wanted, make = BROKEN[name]
            tally.expect(name, target.send(make(picture, rng))[0], wanted)
            return
        status, rows = target.send(Sending([request(picture)]))
        tally.expect("good: status", status, 200)
        if status == 200:
            tally.expect("good: the same as inference.py", same(rows[0], row) or rows[0], True)

    before: dict[str, int] = {}
    with ThreadPoolExecutor(args.clients) as clients:
        for start, stop in ((0, args.requests // 5), (args.requests // 5, args.requests)):
            for _ in clients.map(one, range(start, stop)):
                pass
            after = settled(target, before)
            print(", ".join(f"{name} {value}" for name, value in after.items()) + f" after {stop:,} requests")
            before = before or after
    for name, value in after.items():
        allowed = GROWTH / 1e6 if name == "memory, MB" else 0
        tally.expect(name, value - before[name] <= allowed or f"{before[name]}, later {value}", True)


def settled(target: Target, before: dict[str, int]) -> dict[str, int]:
    """The figures, when connections are put away."""
    deadline = time.monotonic() + SETTLE_SECONDS
    time.sleep(2)
    while (figures := target.figures())["open files"] > before.get("open files", 0) and time.monotonic() < deadline:
        if not before:
            return figures
        time.sleep(0.2)
    return figures


def stop_under_load(target: Target, known: Sequence[tuple[bytes, dict[str, Any]]], tally: Tally, args: Any) -> None:
    """SIGTERM while all clients send: the service must say that it answered as many as the clients got answers."""
    answered: list[int] = []
    enough = threading.Event()

    def client(number: int) -> None:
        while True:
            try:
                status, _ = target.send(Sending([request(known[number % len(known)][0])]))
            except OSError:
                return  # nobody listens any more
            if not status:
                return  # it was not taken
            answered.append(status)
            if len(answered) >= 5 * args.clients:
                enough.set()

    before = target.answered()
    with ThreadPoolExecutor(args.clients) as clients:
        for number in range(args.clients):
            clients.submit(client, number)
        enough.wait(120)
        target.process.send_signal(signal.SIGTERM)
    _, said = target.process.communicate(timeout=60)
    found = re.search(r"answered ([\d,]+) requests", said)
    total = int(found[1].replace(",", "")) if found else -1
    tally.expect("stop: requests answered", total - before, len(answered))
    tally.expect("stop: exit status", target.process.returncode, 128 + signal.SIGTERM)
    tally.expect("stop: all answers good", set(answered), {200})
    print(f"stopped by SIGTERM: of {total - before:,} requests that were taken, {len(answered):,} got their answer")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL", help="a .pth or .onnx file")
    parser.add_argument("--requests", type=int, default=10_000, help="in all (default: 10000)")
    parser.add_argument("--clients", type=int, default=64, help="that send at once (default: 64)")
    parser.add_argument("--images", type=int, default=1000, help="different pictures (default: 1000)")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds for a head and a body (default: 10)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    tally = Tally()
    with tempfile.TemporaryDirectory() as temporary:
        known = pictures_and_rows(Path(temporary), args.images, args.model)
        command = [sys.executable, "-c", SERVICE, str(args.model.resolve()), str(args.patience)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert process.stderr
        try:
            found = re.search(r"serving on http://[^:]+:(\d+)/", process.stderr.readline())
            if not found:
                raise SystemExit(process.stderr.read())
            target = Target(process, int(found[1]), args.patience)
            started = time.perf_counter()
            torture(target, known, tally, args)
            print(f"{args.requests:,} requests in {time.perf_counter() - started:,.0f} s")
            stop_under_load(target, known, tally, args)
        finally:
            process.kill()
            process.communicate()
    for name, count in tally.counts.items():
        print(f"{name:32}{count:>8,}")
    print(f"{'not as it must be':32}{len(tally.faults):>8,}")
    print("\n".join(tally.faults[:20]))
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
