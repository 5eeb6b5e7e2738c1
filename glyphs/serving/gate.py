"""What stands between the service and its clients: who may ask, for how long, and what every answer carries."""

import contextlib
import json
import secrets
import signal
import sys
import time
import traceback
from asyncio import TimerHandle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import anyio
import h11
import prometheus_client
import uvicorn
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from glyphs.core.process import SIGNALS

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
    text_seconds : for which the text of one picture is read; then its row is `failed`.
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
    text_seconds: float = 20.0
    head_seconds: float = 10.0
    body_seconds: float = 20.0
    stop_seconds: float = 30.0


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
