"""`inference.py --serve`: a page to draw on, and an HTTP service that answers with the rows of `--output x.json`.

    event loop: checks and reads requests -> threads: prepare pictures -> threads: run the network on what waits

Text is read on other threads, which wait for those.
Pictures of requests that arrive while the networks compute are their next batch: no request waits for others to come.
Everything is bounded (`Limits`), and nothing that a request says becomes the path of a file.
"""

import base64
import concurrent.futures
import contextlib
import copy
import functools
import hashlib
import io
import json
import queue
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from asyncio import Future, TimerHandle, gather, get_running_loop
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import anyio
import h11
import numpy as np
import prometheus_client
import uvicorn
from numpy.typing import NDArray
from PIL import Image
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from glyphs.arrays import Bytes, Probabilities
from glyphs.cpus import usable_cpus
from glyphs.errors import ConfigError, PictureError
from glyphs.files import pretrained_folder, replace_file
from glyphs.inference.networks import Network, describe_training
from glyphs.inference.predictor import CHUNK, GlyphPredictor, Prepared
from glyphs.inference.results import json_row, relative_names
from glyphs.inference.rows import Prediction, Reading
from glyphs.pictures.decode import MAX_PIXELS, open_picture
from glyphs.process import SIGNALS
from glyphs.text import one_line

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PAGE = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFETY = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
TOLD_SETTINGS = ("dataset", "emnist_split", "class_prior", "preprocess", "num_epochs", "use_residual", "seed")
AT_ONCE = 32  # images that a network sees at once: on one thread, each costs as little as of 128
HEAD_BYTES = 16 << 10  # of a request; h11 refuses more, too, but where they come all at once
HEAD_TOO_LONG = "the head of the request has more than 16 KB"
DRAIN_SECONDS = 1.0  # for which a refused upload is still read, so that its sender comes to read the answer
RETRY_SECONDS = "1"


@dataclass(frozen=True)
class Limits:
    """What the service takes from its clients.

    Attributes
    ----------
    body_bytes : of one request; more is answered with 413.
    pictures : of one request; more is answered with 413.
    requests : that are read and answered at once; more are answered with 503, as are those above `bytes_at_once`.
    bytes_at_once : of all bodies that are read and answered at once.
    connections : open at once; requests on more are answered with 503.
    collected_pictures, collected_bytes : that the folder of corrected pictures holds; more are answered with 507.
    head_seconds, body_seconds : in which the head and the body of a request must arrive, else 408.
    stop_seconds : for which a service that was told to stop waits for answers under way.
    """

    body_bytes: int = 16 << 20
    pictures: int = 64
    requests: int = 128
    bytes_at_once: int = 256 << 20
    connections: int = 1000
    collected_pictures: int = 10_000
    collected_bytes: int = 1 << 30
    head_seconds: float = 10.0
    body_seconds: float = 20.0
    stop_seconds: float = 30.0


@dataclass
class Job:
    """Some pictures of one request: `future` gets a prediction and what the network saw for each, in order."""

    predictor: GlyphPredictor
    top_k: int
    pictures: Sequence[tuple[str | None, bytes]]
    future: "Future[list[Answer]]"
    prepared: list[Prepared] = field(default_factory=list)


Answer = tuple[Prediction, NDArray[np.uint8] | None]
Outcome = Probabilities | Exception  # of a network: probabilities [N, C], or what went wrong


class Work(NamedTuple):
    """Images, uint8 [N, 1, 28, 28], for a network; `done` takes its outcome, and returns what is to be settled."""

    network: Network
    images: Bytes
    done: "Callable[[Outcome], Settled | None]"


class Engine:
    """Prepares pictures on threads, and runs the networks on others, each on all that is ready.

    A network on each core, with one thread, takes less processor time for the small batches that come together than one
    network on all cores, whose threads wait for each other at each layer, and for the threads that prepare.

    Parameters
    ----------
    batches : counts the images that a network sees at once.
    networks : that run at once.
    """

    def __init__(self, batches: prometheus_client.Histogram, networks: int) -> None:
        self.batches = batches
        self.ready: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self.pool = concurrent.futures.ThreadPoolExecutor(usable_cpus(), "prepare")
        self.readers = concurrent.futures.ThreadPoolExecutor(usable_cpus(), "text")  # a page takes its time
        self.networks = [threading.Thread(target=self.compute, name="network", daemon=True) for _ in range(networks)]
        for thread in self.networks:
            thread.start()

    def close(self) -> None:
        for pool in (self.pool, self.readers):
            pool.shutdown(cancel_futures=True)
        for _ in self.networks:
            self.ready.put(None)
        for thread in self.networks:
            thread.join()

    async def predict(
        self, predictor: GlyphPredictor, top_k: int, pictures: Sequence[tuple[str | None, bytes]]
    ) -> list[Answer]:
        """The answer to each picture, in their order."""
        loop = get_running_loop()
        chunks = [pictures[start : start + CHUNK] for start in range(0, len(pictures), CHUNK)]
        jobs = [Job(predictor, top_k, chunk, loop.create_future()) for chunk in chunks]
        for job in jobs:
            self.pool.submit(self.prepare, job)
        return [answer for answers in await gather(*(job.future for job in jobs)) for answer in answers]

    async def read(
        self, predictor: GlyphPredictor, top_k: int, pictures: Sequence[tuple[str | None, bytes]]
    ) -> list[Reading]:
        """The text of each picture, in their order."""
        reader = copy.copy(predictor)
        reader.network = functools.partial(self.run, predictor.network)

        def read(name: str | None, content: bytes) -> Reading:
            return reader.read_page(*reader.find_page(name, io.BytesIO(content)), top_k)

        loop = get_running_loop()
        return await gather(*(loop.run_in_executor(self.readers, read, *picture) for picture in pictures))

    def run(self, network: Network, images: Bytes) -> Probabilities:
        """A network's probabilities, for a thread that can wait for them."""
        futures = []

        def done(future: "concurrent.futures.Future[Probabilities]", outcome: Outcome) -> None:
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        for start in range(0, len(images), AT_ONCE):
            futures.append(concurrent.futures.Future[Probabilities]())
            part = images[start : start + AT_ONCE]
            self.ready.put(Work(network, part, functools.partial(done, futures[-1])))
        return np.concatenate([future.result() for future in futures])

    def prepare(self, job: Job) -> None:
        done = functools.partial(self.answer, job)
        try:
            job.prepared = [job.predictor.prepare(name, io.BytesIO(content)) for name, content in job.pictures]
            seen = [prepared.pixels for prepared in job.prepared if prepared.pixels is not None]
            work = Work(job.predictor.network, np.stack(seen)[:, None], done) if seen else None
        except Exception as error:
            settle([done(error)])
        else:
            if work:
                self.ready.put(work)
            else:  # nothing for the network to see
                settle([(job, list(job.predictor.answers(job.prepared, NO_SHARES, job.top_k)))])

    def compute(self) -> None:
        while (work := self.ready.get()) is not None:
            batch: list[Work] = [work]
            count = len(work.images)
            last: Work | None = work
            with contextlib.suppress(queue.Empty):
                while count < AT_ONCE and (last := self.ready.get_nowait()) is not None:
                    batch.append(last)
                    count += len(last.images)
            for network in {id(each.network): each.network for each in batch}.values():
                self.run_together(network, [each for each in batch if each.network is network])
            if last is None:
                return

    def run_together(self, network: Network, works: Sequence[Work]) -> None:
        outcomes: Sequence[Outcome]
        try:
            images = np.concatenate([work.images for work in works])
            self.batches.observe(len(images))
            outcomes = np.split(network(images), np.cumsum([len(work.images) for work in works[:-1]]))
        except Exception as error:
            outcomes = [error] * len(works)
        settled = [work.done(outcome) for work, outcome in zip(works, outcomes, strict=True)]
        settle([each for each in settled if each])

    def answer(self, job: Job, outcome: Outcome) -> "Settled":
        """Rank the probabilities of a job's images in its own alphabet."""
        if isinstance(outcome, Exception):
            return job, outcome
        predictor = job.predictor
        try:
            return job, list(predictor.answers(job.prepared, predictor.of_alphabet(outcome), job.top_k))
        except Exception as error:
            return job, error


Settled = tuple[Job, list[Answer] | Exception]
NO_SHARES: Probabilities = np.empty((0, 0))


def settle(results: Sequence[Settled]) -> None:
    """Hand results to their requests, from another thread, with one call a loop."""

    def deliver() -> None:
        for job, result in results:
            if job.future.done():  # its request was cancelled
                continue
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)

    if results:
        results[0][0].future.get_loop().call_soon_threadsafe(deliver)


class InMemoryParser(MultiPartParser):
    """Starlette's parser, without its temporary files: the whole body is in memory already, and bounded."""

    spool_max_size = sys.maxsize


class Metrics:
    """What `GET /metrics` tells, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        self.requests = prometheus_client.Counter(
            "glyphs_requests", "Requests answered", ["path", "status"], registry=self.registry
        )
        self.pictures = prometheus_client.Counter(
            "glyphs_pictures", "Pictures answered", ["status"], registry=self.registry
        )
        self.seconds = prometheus_client.Histogram(
            "glyphs_request_seconds",
            "From a request's head to its answer",
            ["path"],
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20),
            registry=self.registry,
        )
        self.batches = prometheus_client.Histogram(
            "glyphs_batch_images",
            "Images that the network saw at once",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.under_way = prometheus_client.Gauge(
            "glyphs_requests_under_way", "Requests with pictures being read or answered", registry=self.registry
        )


class Service:
    """The handlers of all paths; `app` is the ASGI application.

    Parameters
    ----------
    models : by the names that requests choose them by; the first answers where none is chosen.
    text : whether a request that does not say reads text, not one character.
    top_k : likeliest classes of a request that does not say how many.
    hosts : what a Host header may name; None lets any pass, where a token guards the service.
    token : what every request but those for the page and `/health` must bring; None asks for none.
    collection : of corrected pictures; None keeps none.
    """

    def __init__(
        self,
        models: Mapping[str, GlyphPredictor],
        *,
        text: bool = False,
        top_k: int = 5,
        hosts: Sequence[str] | None = LOOPBACK,
        token: str | None = None,
        collection: "Collection | None" = None,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.models = models
        self.text = text
        self.top_k = top_k
        self.collection = collection
        self.metrics = Metrics()
        on_cpu = all(predictor.on_cpu for predictor in models.values())
        self.engine = Engine(self.metrics.batches, usable_cpus() if on_cpu else 1)
        self.under_way = 0
        self.bytes_at_once = 0
        routes = [
            Route("/predict", self.predict, methods=["POST"]),
            Route("/collect", self.collect, methods=["POST"]),
            Route("/health", self.health),
            Route("/model", self.describe),
            Route("/metrics", self.show_metrics),
        ]
        pages = {"/" if path.name == "index.html" else f"/{path.name}": path for path in sorted(PAGE.iterdir())}
        routes += [Route(name, fixed(path)) for name, path in pages.items()]
        handlers = {HTTPException: refuse, Exception: fail}
        starlette = Starlette(routes=routes, exception_handlers=handlers)
        starlette.router.redirect_slashes = False
        self.app: ASGIApp = Guard(
            starlette,
            self.metrics,
            paths=[route.path for route in routes],
            open_paths={"/health", *pages},
            hosts=hosts,
            token=token,
            drain_bytes=4 * self.limits.body_bytes,
        )

    async def predict(self, request: Request) -> Response:
        """`POST /predict`: the rows of the pictures; 422 where not one of them could be read."""
        query = request.query_params
        top_k = number(query, "top_k", int, 1, 1000) or self.top_k
        text, saw = flag(query, "text", self.text), flag(query, "saw", False)
        if text and saw:
            raise HTTPException(400, "saw: is for single characters, not for text")
        if "pattern" in query and not text:
            raise HTTPException(400, "pattern: is for text, not for single characters")
        least = number(query, "min_confidence", float, 0, 1)
        try:
            chosen = self.model(query).view(query.get("alphabet"), least, query.get("pattern"))
        except ConfigError as error:
            raise HTTPException(400, str(error)) from None
        if text and chosen.mode == "plain":
            raise HTTPException(400, "text: this model does not find characters in pictures")
        answers: Sequence[tuple[Prediction | Reading, Bytes | None]]
        async with self.pictures(request) as pictures:
            if text:
                answers = [(reading, None) for reading in await self.engine.read(chosen, top_k, pictures)]
            else:
                answers = await self.engine.predict(chosen, top_k, pictures)
        for prediction, _ in answers:
            self.metrics.pictures.labels(prediction.status).inc()
        if saw:
            rows = [json.dumps(prediction.to_dict() | {"saw": png(pixels)}).encode() for prediction, pixels in answers]
        else:
            rows = [json_row(prediction) for prediction, _ in answers]
        status = 422 if all(prediction.status == "failed" for prediction, _ in answers) else 200
        return Response(b"[\n" + b",\n".join(rows) + b"\n]\n", status, media_type="application/json")

    def model(self, query: Mapping[str, str]) -> GlyphPredictor:
        """The model that a request chooses.  Raises HTTPException."""
        name = query.get("model", next(iter(self.models)))
        if name not in self.models:
            raise HTTPException(400, f"model: there is no {name}; choose one of {', '.join(self.models)}")
        return self.models[name]

    async def collect(self, request: Request) -> Response:
        """`POST /collect?label=A`: keep a picture, as PNG, in the folder of its class."""
        if self.collection is None:
            raise HTTPException(404, "pictures are kept only with --collect")
        names = self.model(request.query_params).class_names
        label = request.query_params.get("label", "")
        name = next((name for name in (label, label.swapcase()) if name in names), None)
        if name is None or Path(name).name != name or name == "..":
            raise HTTPException(400, f"label: the model knows {' '.join(names)}")
        async with self.pictures(request) as pictures:
            [content] = [content for _, content in pictures[:1]]
            try:
                kept = await anyio.to_thread.run_sync(self.collection.keep, content, name)
            except PictureError as error:
                raise HTTPException(422, str(error)) from None
        return JSONResponse({"kept": kept}, 201)

    @contextlib.asynccontextmanager
    async def pictures(self, request: Request) -> AsyncGenerator[list[tuple[str | None, bytes]], None]:
        """A request's pictures and their names, which keep their place among those under way until the context ends.

        Raises HTTPException for what is too large, too slow, too much at once, or no picture by its type.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        several = kind == "multipart/form-data"
        if not several and kind != "application/octet-stream" and not kind.startswith("image/"):
            said = f"{kind}: " if kind else ""
            raise HTTPException(415, f"{said}send image/*, application/octet-stream or multipart/form-data")
        limits = self.limits
        announced = request.headers.get("content-length", "")
        size = int(announced) if announced.isdecimal() else limits.body_bytes
        if size > limits.body_bytes:
            raise HTTPException(413, f"the body has more than {limits.body_bytes:,} bytes")
        if self.under_way >= limits.requests or self.bytes_at_once + size > limits.bytes_at_once:
            raise HTTPException(503, "too many requests at once; try again", {"retry-after": RETRY_SECONDS})
        self.under_way += 1
        self.bytes_at_once += size
        self.metrics.under_way.set(self.under_way)
        try:
            body = await self.read(request)
            yield await split(body, request, limits.pictures) if several else [(None, body)]
        finally:
            self.under_way -= 1
            self.bytes_at_once -= size
            self.metrics.under_way.set(self.under_way)

    async def read(self, request: Request) -> bytes:
        chunks, size = [], 0
        with anyio.move_on_after(self.limits.body_seconds) as scope:
            try:
                async for chunk in request.stream():
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > self.limits.body_bytes:
                        raise HTTPException(413, f"the body has more than {self.limits.body_bytes:,} bytes")
            except ClientDisconnect:
                raise HTTPException(400, "the body was cut off") from None
        if scope.cancelled_caught:
            raise HTTPException(408, f"the body did not arrive within {self.limits.body_seconds:g} seconds")
        return b"".join(chunks)

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def describe(self, request: Request) -> Response:
        predictor = self.model(request.query_params)
        name = next(name for name, each in self.models.items() if each is predictor)
        return JSONResponse(
            {
                "model": name,
                "models": list(self.models),
                **card(predictor),
                "alphabet": predictor.class_names,
                "preprocess": predictor.mode,
                "min_confidence": predictor.min_confidence,
                "text": self.text,
                "collect": self.collection is not None,
                "limits": asdict(self.limits) | {"pixels": MAX_PIXELS},
            }
        )

    async def show_metrics(self, request: Request) -> Response:
        content = prometheus_client.generate_latest(self.metrics.registry)
        return Response(content, headers={"content-type": CONTENT_TYPE_LATEST})


def number(query: Mapping[str, str], name: str, kind: type[int] | type[float], low: float, high: float) -> Any:
    """A number among a request's parameters, None where it is not there.  Raises HTTPException."""
    if name not in query:
        return None
    with contextlib.suppress(ValueError):
        value = kind(query[name])
        if low <= value <= high:
            return value
    raise HTTPException(400, f"{name}: is not {'a whole' if kind is int else 'a'} number from {low} to {high}")


def flag(query: Mapping[str, str], name: str, otherwise: bool) -> bool:
    """A yes or no among a request's parameters.  Raises HTTPException."""
    said = query.get(name)
    if said not in (None, "true", "1", "false", "0"):
        raise HTTPException(400, f"{name}: is neither true nor false")
    return otherwise if said is None else said in ("true", "1")


async def split(body: bytes, request: Request, most: int) -> list[tuple[str | None, bytes]]:
    """The files in a multipart body, with their names.  Raises HTTPException."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await InMemoryParser(request.headers, stream(), max_files=most, max_fields=most).parse()
    except MultiPartException as error:
        status = 413 if error.message.startswith("Too many files") else 400
        raise HTTPException(status, error.message) from None
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files:
        raise HTTPException(400, "the form holds no file")
    return [(file.filename, await file.read()) for file in files]


class Collection:
    """The folder of corrected pictures, and what is in it already.  Raises ConfigError where it cannot be made."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder = folder
        self.limits = limits
        self.lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sizes = [path.stat().st_size for path in folder.rglob("*.png")]
        except OSError as error:
            raise ConfigError(f"--collect {folder}: cannot be made or read ({error.strerror})") from None
        self.pictures, self.bytes = len(sizes), sum(sizes)

    def keep(self, content: bytes, name: str) -> str:
        """Write a picture as PNG, which leaves out where and when it was taken; returns its path below the folder.

        Raises PictureError; HTTPException where the folder is full; GlyphError where it cannot be written.
        """
        kept = f"{name}/{hashlib.sha256(content).hexdigest()[:16]}.png"
        path = self.folder / kept
        file = write_anew(open_picture(io.BytesIO(content)))
        with self.lock:
            if path.exists():
                return kept
            size = self.bytes + len(file)
            if self.pictures >= self.limits.collected_pictures or size > self.limits.collected_bytes:
                raise HTTPException(507, "the folder of kept pictures is full")
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, file)
            self.pictures += 1
            self.bytes = size
        return kept


def write_anew(picture: Image.Image) -> bytes:
    """A PNG file of a picture's pixels alone."""
    if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        picture = picture.convert("RGB")
    file = io.BytesIO()
    plain = Image.new(picture.mode, picture.size)
    plain.paste(picture)
    if picture.mode == "P":
        plain.putpalette(picture.getpalette() or [])
    plain.save(file, "PNG")
    return file.getvalue()


def png(pixels: NDArray[np.uint8] | None) -> str | None:
    """What the network saw, uint8 [28, 28], as a PNG file in base64."""
    if pixels is None:
        return None
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def fixed(path: Path) -> Any:
    """A handler that answers with a file of the page, read once."""
    content = path.read_bytes()

    async def handler(request: Request) -> Response:
        return Response(content, headers={"content-type": TYPES[path.suffix]})

    return handler


async def refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": one_line(error.detail)}, error.status_code, error.headers)


async def fail(request: Request, error: Exception) -> Response:
    """A bug, or a disk that is full: told here, not to the client."""
    return JSONResponse({"error": "the service failed; its own output says why"}, 500)


class Guard:
    """Around the application: who may ask, what every answer carries, and what is counted."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        *,
        paths: Sequence[str],
        open_paths: set[str],
        hosts: Sequence[str] | None,
        token: str | None,
        drain_bytes: int,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.paths = frozenset(paths)
        self.open_paths = open_paths
        self.hosts = hosts
        self.token = token
        self.drain_bytes = drain_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "neither lifespan nor websockets are served"
        started = time.perf_counter()
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        all_read = "content-length" not in headers and "transfer-encoding" not in headers
        path = scope["path"] if scope["path"] in self.paths else "other"

        async def reading() -> Message:
            nonlocal all_read
            message = await receive()
            all_read = not message.get("more_body", False)
            return message

        async def answering(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                more = dict(SAFETY)
                if status >= 400:
                    # What is left of the body must not pass for the next request.
                    more["connection"] = "close"
                    # A client that waits for our `100 Continue` must not get it; others send before they read.
                    if not all_read and "expect" not in headers and status != 408:
                        await self.drain(reading)
                pairs = [(name.encode(), value.encode()) for name, value in more.items()]
                message["headers"] = [*message.get("headers", ()), *pairs]
                self.metrics.requests.labels(path, status).inc()
                self.metrics.seconds.labels(path).observe(time.perf_counter() - started)
            await send(message)

        refusal = self.refusal(scope, headers)
        try:
            if refusal:
                await refusal(scope, reading, answering)
            else:
                await self.app(scope, reading, answering)
        except Exception:  # the answer is out: Starlette raises after it has called `fail`
            traceback.print_exc()

    def refusal(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        """The answer to a request that is not looked at, if it is not."""
        if scope["state"]["crowded"]:
            return error_response(503, "too many connections at once; try again")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD_BYTES:
            return error_response(431, HEAD_TOO_LONG)
        host = headers.get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname
            origin = urlsplit(headers["origin"]).netloc if "origin" in headers else host
        except ValueError:
            name = origin = None
        if self.hosts is not None and name not in self.hosts:
            # A foreign page whose name was made to lead here (DNS rebinding) still sends that name.
            return error_response(403, "the Host header names another host than this one; use http://127.0.0.1")
        if origin != host or headers.get("sec-fetch-site") == "cross-site":
            if scope["method"] == "GET" and scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate":
                return None  # a link to the page
            return error_response(403, "pages of other sites may not use this service")
        if scope["method"] != "POST" and (headers.get("content-length", "0") != "0" or "transfer-encoding" in headers):
            return error_response(400, f"{scope['method']} takes no body")
        if self.token is not None and scope["path"] not in self.open_paths:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not secrets.compare_digest(given.encode(), self.token.encode()):
                return error_response(401, "send the header `Authorization: Bearer TOKEN`")
        return None

    async def drain(self, receive: Receive) -> None:
        size, more = 0, True
        with anyio.move_on_after(DRAIN_SECONDS):
            while more and size < self.drain_bytes:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)


def error_response(status: int, text: str) -> Response:
    headers = {401: {"www-authenticate": "Bearer"}, 503: {"retry-after": RETRY_SECONDS}}
    return JSONResponse({"error": text}, status, headers.get(status))


class Protocol(H11Protocol):
    """uvicorn's, which waits for ever for the head of a request, with an end to that and with our answers."""

    limits = Limits()
    timer: TimerHandle | None = None
    refused = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.watch()

    def data_received(self, data: bytes) -> None:
        if self.refused:
            return
        self.app_state["crowded"] = len(self.connections) > self.limits.connections  # each request gets a copy
        super().data_received(data)
        self.watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_timer()
        super().connection_lost(exc)

    def watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self.stop_timer()
        elif self.timer is None:
            self.timer = self.loop.call_later(self.limits.head_seconds, self.give_up)

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def give_up(self) -> None:
        self.timer = None
        if self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE and not self.transport.is_closing():
            self.refuse(408, "the head of the request did not arrive in time")

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether to keep the connection: who says that nothing more comes may still wait for an answer."""
        if self.conn.their_state is h11.SEND_BODY:
            self.refuse(400, "the body was cut off")
            return True
        if self.cycle is None or self.cycle.response_complete:
            return False
        self.cycle.keep_alive = False
        return True

    def send_400_response(self, msg: str) -> None:
        # h11 says which status its error deserves; uvicorn, which calls this while it handles that error, does not ask.
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        self.refuse(status, HEAD_TOO_LONG if status == 431 else "this is no HTTP")

    def refuse(self, status: int, text: str) -> None:
        """Answer where no request reached the application, or the one that did is not answered yet; then close.

        What the client still sends is read for a while, for else its system would throw our answer away.
        """
        self.refused = True
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            content = json.dumps({"error": text}).encode()
            headers = [("content-type", "application/json"), ("content-length", str(len(content)))]
            events = (h11.Response(status_code=status, headers=[*headers, ("connection", "close")]), h11.Data(content))
            for event in (*events, h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            if self.cycle is not None:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self.transport.write_eof()
        self.loop.call_later(DRAIN_SECONDS, self.transport.close)


class Server(uvicorn.Server):
    """uvicorn's, with our signals: the first ends the service when all is answered, then has its usual effect."""

    stopped_by: int | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        theirs = {
            signum: signal.signal(signum, self.handle_exit)
            for signum in SIGNALS
            if signal.getsignal(signum) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            for signum, handler in theirs.items():
                signal.signal(signum, handler)
        if self.stopped_by is not None:
            signal.raise_signal(self.stopped_by)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.stopped_by is None:
            self.stopped_by = sig
        super().handle_exit(sig, frame)


def serve(
    predictors: Sequence[GlyphPredictor],
    host: str = LOOPBACK[0],
    port: int = 8000,
    *,
    text: bool = False,
    top_k: int = 5,
    token: str | None = None,
    collect: Path | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve until a signal comes; prints the page's address on stderr.

    The first predictor answers where a request names no model.

    A host that others can reach is served only with a token, which is made up where none is given.

    Raises
    ------
    ConfigError : the address cannot be listened on, or the folder cannot be made.
    """
    limits = limits or Limits()
    open_to_others = host not in LOOPBACK
    if open_to_others and token is None:
        token = secrets.token_urlsafe(16)
    collection = Collection(collect, limits) if collect else None
    try:
        [(family, *_), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listener = socket.create_server((host, port), family=family, backlog=limits.connections)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host {host} --port {port}: cannot be listened on ({reason}); choose another") from None
    service = Service(
        dict(zip(relative_names([str(each.path) for each in predictors]).values(), predictors, strict=True)),
        text=text,
        top_k=top_k,
        hosts=None if open_to_others else LOOPBACK,
        token=token,
        collection=collection,
        limits=limits,
    )
    config = uvicorn.Config(
        service.app,
        http=type("LimitedProtocol", (Protocol,), {"limits": limits}),
        loop="asyncio",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=limits.connections,
        timeout_graceful_shutdown=int(limits.stop_seconds),
    )
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listener.getsockname()[1]}/" + (f"#token={token}" if token else "")
    print(f"serving on {address} until Ctrl-C", file=sys.stderr, flush=True)
    if open_to_others:
        print("others can reach this address: who knows the token can use the service, unencrypted", file=sys.stderr)
    try:
        Server(config).run(sockets=[listener])
    finally:
        service.engine.close()
        total = sum(
            sample.value
            for metric in service.metrics.requests.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        )
        print(f"answered {total:,.0f} requests", file=sys.stderr)


def card(predictor: GlyphPredictor) -> dict[str, Any]:
    """What a model's file says of itself, without the folders among its settings; the card of weights in the box."""
    facts = predictor.facts
    settings = {name: value for name, value in facts["settings"].items() if name in TOLD_SETTINGS}
    readme = predictor.path.parent / "README.md"
    in_the_box = predictor.path.parent.resolve() == pretrained_folder().resolve() and readme.exists()
    return {
        "description": describe_training(facts),
        "classes": facts["classes"],
        "metrics": facts["metrics"],
        "settings": settings,
        "card": readme.read_text(encoding="utf-8") if in_the_box else None,
    }
