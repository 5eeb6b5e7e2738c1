"""How many pictures the service reads beside `inference.py --batch`, and how soon it answers at half of its load.

    python benchmarks/service.py MODEL [--side 28]

The same pictures, PNG files of 28x28 in EMNIST's form or of --side as ink on paper, go in turns, so that a noisy
machine slows all of it: from a folder to rows in a .jsonl file, as `--batch` does; to a service of its own process over
loopback, one a request and a form of them a request, each client sending its next request when it has its answer; then
one a request at random times, at half of the rate that the round gave, where a delay counts from the time that the
request was due.  The clients run beside the service on the same cores; the processor time is the service's alone.
"""

import argparse
import contextlib
import math
import re
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from PIL import Image, ImageOps

from benchmarks.prediction import end_to_end_rate, show, write_pictures
from benchmarks.startup import ROOT
from glyphs.core.cpus import usable_cpus
from glyphs.core.timing import time_networks
from glyphs.reading.predictor import GlyphPredictor

FORM = 64  # pictures of a form, the most that the service takes


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A service of its own process, and its port, until the context ends."""
    command = [sys.executable, "inference.py", "--serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        said = process.stderr.readline()
        found = re.search(r"serving on http://[^:]+:(\d+)/", said)
        if not found:
            raise SystemExit(said + process.stderr.read())
        yield process, int(found[1])
    finally:
        process.terminate()
        process.communicate()


def post(body: bytes, kind: str) -> bytes:
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def form(pictures: Sequence[bytes]) -> bytes:
    head = b'--limit\r\nContent-Disposition: form-data; name="a"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    body = b"".join(head + picture + b"\r\n" for picture in pictures) + b"--limit--\r\n"
    return post(body, "multipart/form-data; boundary=limit")


@dataclass
class Client:
    """A connection, what of an answer has come, and when its request was due."""

    connection: socket.socket
    due: float = 0.0
    answer: bytearray = field(default_factory=bytearray)

    def receive(self) -> bool:
        """Read what is there; whether the answer is whole, which must be one of status 200."""
        self.answer += self.connection.recv(1 << 18)
        head, found, body = self.answer.partition(b"\r\n\r\n")
        if not found:
            return False
        length = re.search(rb"content-length: (\d+)", head)
        assert head.startswith(b"HTTP/1.1 200 "), bytes(head)
        assert length
        if len(body) < int(length[1]):
            return False
        self.answer.clear()
        return True


def load(port: int, requests: Sequence[bytes], clients: int, due: Sequence[float] | None = None) -> list[float]:
    """Send all requests; returns the seconds that each took, from when it was due or, where none says, was sent.

    Parameters
    ----------
    due : seconds from the start at which to send each, ascending; None sends one when a client has nothing to do.
    """
    waiting = deque(enumerate(requests))
    taken: list[float] = []
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        idle: deque[Client] = deque()  # used in turns: the service closes a connection that says nothing for long
        for _ in range(clients):
            client = Client(stack.enter_context(socket.create_connection(("127.0.0.1", port))))
            client.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(client.connection, selectors.EVENT_READ, client)
            idle.append(client)
        started = time.perf_counter()
        while len(taken) < len(requests):
            now = time.perf_counter() - started
            while idle and waiting and (due is None or due[waiting[0][0]] <= now):
                number, request = waiting.popleft()
                client = idle.popleft()
                client.due = time.perf_counter() if due is None else started + due[number]
                client.connection.sendall(request)
            pause = max(0.0, due[waiting[0][0]] - now) if due is not None and idle and waiting else None
            for key, _ in selector.select(pause):
                if key.data.receive():
                    taken.append(time.perf_counter() - key.data.due)
                    idle.append(key.data)
    return taken


def used(port: int) -> float:
    """The seconds of processor time that the service has taken so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        found = re.search(rb"^process_cpu_seconds_total (\S+)$", answer.read(), re.MULTILINE)
    assert found
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a .pth or .onnx file")
    parser.add_argument("--images", type=int, default=4000, help="pictures a round (default: 4000)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; the median is reported (default: 7)")
    parser.add_argument("--clients", type=int, default=64, help="connections that send at once (default: 64)")
    parser.add_argument("--side", type=int, default=28, help="height and width of the pictures (default: 28)")
    arguments = parser.parse_args()

    side = arguments.side
    print(f"CPU, {usable_cpus()} threads, {arguments.images:,} files of {side}x{side}, {arguments.clients} clients")
    print(f"{'':44}{'median':>10}{'lowest':>10}{'highest':>10}")
    rng = np.random.default_rng(0)
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> float:
        figures.setdefault(name, []).append(value)
        return value

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "pictures")
        write_pictures(folder, arguments.images)
        paths = sorted(folder.rglob("*.png"))
        if side != 28:
            for path in paths:
                ImageOps.invert(Image.open(path)).resize((side, side)).save(path)
        pictures = [path.read_bytes() for path in paths]
        single = [post(picture, "image/png") for picture in pictures]
        forms = [form(pictures[start : start + FORM]) for start in range(0, len(pictures), FORM)]
        predictor = GlyphPredictor(arguments.model)
        model = str(Path(arguments.model).resolve())
        with serving("--model", model) as (_, port):
            end_to_end_rate(predictor, folder, Path(temporary, "results.jsonl"))  # warms up
            load(port, single[:500], arguments.clients)
            for _ in range(arguments.rounds):
                before = time.process_time()
                batch = note("--batch: pictures/s", end_to_end_rate(predictor, folder, Path(temporary, "r.jsonl")))
                cost = note("--batch: CPU ms a picture", 1e3 * (time.process_time() - before) / len(pictures))
                for name, requests in {"one a request": single, f"forms of {FORM}": forms}.items():
                    before, started, own_before = used(port), time.perf_counter(), time.process_time()
                    load(port, requests, min(arguments.clients, len(requests)))
                    note(f"{name}: CPU ms of the clients", 1e3 * (time.process_time() - own_before) / len(pictures))
                    rate = note(f"{name}: pictures/s", len(pictures) / (time.perf_counter() - started))
                    note(f"{name}: rate, % of --batch", 100 * rate / batch)
                    own = note(f"{name}: CPU ms a picture", 1e3 * (used(port) - before) / len(pictures))
                    note(f"{name}: rate by CPU time, % of --batch", 100 * cost / own)
                rate = figures["one a request: pictures/s"][-1]
                due = np.cumsum(rng.exponential(2 / rate, len(single) // 2)).tolist()
                taken = sorted(load(port, single[: len(due)], arguments.clients, due))
                note("at half of the load: p50, ms", 1e3 * statistics.median(taken))
                note("at half of the load: p99, ms", 1e3 * taken[math.ceil(0.99 * len(taken)) - 1])
                note("the network alone, one image, ms", 1e3 * time_networks([predictor.network], 1)[0].median)
    for name, values in figures.items():
        show(name, values)


if __name__ == "__main__":
    main()
