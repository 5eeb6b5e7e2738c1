"""`inference.py --serve`: a page to draw on, and an HTTP service that answers with the rows of `--output x.json`.

    event loop: checks (gate.py) and reads requests -> threads: prepare pictures, run the networks (engine.py)

Everything is bounded (`Limits`), and nothing that a request says becomes the path of a file.
"""

import asyncio
import base64
import contextlib
import functools
import hashlib
import io
import json
import secrets
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
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
from starlette.types import ASGIApp

from glyphs.core.ahead import Result
from glyphs.core.arrays import Bytes
from glyphs.core.cpus import usable_cpus
from glyphs.core.errors import ConfigError, PictureError
from glyphs.core.files import explain_write_error, pretrained_folder, replace_file
from glyphs.core.text import one_line
from glyphs.models.runtime import describe_training
from glyphs.output.results import json_row, relative_names
from glyphs.output.rows import Prediction, Reading
from glyphs.pictures.decode import MAX_PIXELS, open_picture, plain_copy, to_grey
from glyphs.reading.predictor import GlyphPredictor
from glyphs.serving.engine import Engine
from glyphs.serving.gate import RETRY_SECONDS, Guard, Limits, Metrics, Protocol, Server

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PAGE = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}
CLIENT_LEFT = 499  # as nginx calls it in its log
MOST_CHANGE = 2 / 255  # of brightness, by rounding, between a picture and what is kept of it
TOLD_SETTINGS = ("dataset", "emnist_split", "class_prior", "preprocess", "num_epochs", "use_residual", "seed")


class InMemoryParser(MultiPartParser):
    """Starlette's parser, without its temporary files: the whole body is in memory already, and bounded."""

    spool_max_size = sys.maxsize


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
        self.engine = Engine(self.metrics.batches, usable_cpus() if on_cpu else 1, self.limits.text_seconds)
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
        view = functools.partial(self.model(query).view, query.get("alphabet"), least, query.get("pattern"))
        try:
            # A large pattern takes a fifth of a second to compile: not here, where all requests are read.
            chosen = await self.engine.compile(view) if "pattern" in query else view()
        except ConfigError as error:
            raise HTTPException(400, str(error)) from None
        if text and chosen.mode != "glyph":
            raise HTTPException(400, "text: this model does not find characters in pictures")
        answers: Sequence[tuple[Prediction | Reading, Bytes | None]]
        async with self.pictures(request) as pictures:
            if text:
                readings = await while_connected(request, self.engine.read(chosen, top_k, pictures))
                answers = [(reading, None) for reading in readings]
            else:
                answers = await while_connected(request, self.engine.predict(chosen, top_k, pictures))
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
                # With the engine's threads: no more pictures are decoded at once than there are cores.
                kept = await self.engine.do(functools.partial(self.collection.keep, content, name))
            except PictureError as error:
                raise HTTPException(422, str(error)) from None
        return JSONResponse({"kept": kept}, 201)

    @contextlib.asynccontextmanager
    async def pictures(self, request: Request) -> AsyncGenerator[list[tuple[str | None, bytes]], None]:
        """A request's pictures and their names, which keep their place among those under way until the context ends.

        What is no form is a picture, whatever its type is said to be: curl calls any body a form's, unasked.

        Raises HTTPException for what is too large, too slow, or too much at once.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        several = kind == "multipart/form-data"
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
                "image_size": predictor.form.size,
                "color": predictor.form.color,
                "min_confidence": predictor.min_confidence,
                "text": self.text,
                "collect": self.collection is not None,
                "limits": asdict(self.limits) | {"pixels": MAX_PIXELS},
            }
        )

    async def show_metrics(self, request: Request) -> Response:
        content = prometheus_client.generate_latest(self.metrics.registry)
        return Response(content, headers={"content-type": CONTENT_TYPE_LATEST})


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What some work gives, which is cancelled when the client leaves; then it raises an HTTPException for the log."""
    answer = asyncio.ensure_future(work)

    async def watch() -> None:
        # The body is read: whatever else comes, comes once, when the client leaves.
        if (await request.receive())["type"] != "http.disconnect":
            await asyncio.Event().wait()

    leaving = asyncio.ensure_future(watch())
    try:
        await asyncio.wait({answer, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise HTTPException(CLIENT_LEFT, "the client has left")
        return answer.result()
    finally:
        for task in (answer, leaving):
            task.cancel()


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

        One that was kept under another name moves: the last correction is the one that holds.

        Raises PictureError; HTTPException where the folder is full; GlyphError where it cannot be written.
        """
        kept = f"{name}/{hashlib.sha256(content).hexdigest()[:16]}.png"
        path = self.folder / kept
        file = write_anew(open_picture(io.BytesIO(content)))
        with self.lock, explain_write_error(path):
            if path.exists():
                return kept
            earlier = next(self.folder.glob(f"*/{path.name}"), None)
            if earlier is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                earlier.replace(path)
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
    """A PNG file of a picture's pixels alone, which is read as the picture is.

    Raises PictureError where it is not: what is kept is trained on.
    """
    file = io.BytesIO()
    plain_copy(picture).save(file, "PNG")
    kept = open_picture(file.getvalue())
    if np.abs(to_grey(kept) - to_grey(picture)).max() > MOST_CHANGE:
        raise PictureError(f"a picture of the kind {picture.mode} would be kept otherwise than it is read: not kept")
    return file.getvalue()


def png(pixels: NDArray[np.uint8] | None) -> str | None:
    """What the network saw, uint8 [H, W] or [H, W, 3], as a PNG file in base64."""
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
