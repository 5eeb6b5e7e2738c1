"""The service's engine: prepares the pictures of requests, and runs the networks on all that is ready.

    threads: prepare pictures -> threads: run the network on what waits

Text is read on other threads, which wait for those.
Pictures of requests that arrive while the networks compute are their next batch: no request waits for others to come.
"""

import concurrent.futures
import contextlib
import copy
import functools
import io
import queue
import threading
import time
from asyncio import Future, gather, get_running_loop
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import prometheus_client
from numpy.typing import NDArray

from glyphs.core.ahead import Result
from glyphs.core.arrays import Bytes, Probabilities
from glyphs.core.cpus import usable_cpus
from glyphs.core.errors import PictureError
from glyphs.models.runtime import Network
from glyphs.output.rows import Prediction, Reading
from glyphs.pictures.plain import to_planes
from glyphs.reading.predictor import CHUNK, NO_PROBABILITIES, GlyphPredictor, Prepared

NOBODY_WAITS = "nobody waits for this answer any more"
AT_ONCE = 32  # images that a network sees at once: on one thread, each costs as little as of 128


@dataclass
class Job:
    """Some pictures of one request: `future` gets a prediction and what the network saw for each, in order."""

    predictor: GlyphPredictor
    top_k: int
    pictures: Sequence[tuple[str | None, bytes]]
    future: "Future[list[Answer]]"
    left: threading.Event  # set when nobody waits any more
    prepared: list[Prepared] = field(default_factory=list)


Answer = tuple[Prediction, NDArray[np.uint8] | None]
Outcome = Probabilities | Exception  # of a network: probabilities [N, C], or what went wrong


class Work(NamedTuple):
    """Images, uint8 [N, channels, H, W], for a network.

    `done` takes its outcome, and returns what is to be settled; `left` is set when nobody waits for it any more.
    """

    network: Network
    images: Bytes
    done: "Callable[[Outcome], Settled | None]"
    left: threading.Event


class Engine:
    """Prepares pictures on threads, and runs the networks on others, each on all that is ready.

    A network on each core, with one thread, takes less processor time for the small batches that come together than one
    network on all cores, whose threads wait for each other at each layer, and for the threads that prepare.

    Parameters
    ----------
    batches : counts the images that a network sees at once.
    networks : that run at once.
    text_seconds : for which one picture's text may be read.
    """

    def __init__(self, batches: prometheus_client.Histogram, networks: int, text_seconds: float) -> None:
        self.batches = batches
        self.text_seconds = text_seconds
        self.ready: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self.pool = concurrent.futures.ThreadPoolExecutor(usable_cpus(), "prepare")
        self.readers = concurrent.futures.ThreadPoolExecutor(usable_cpus(), "text")  # a page takes its time
        self.compiler = concurrent.futures.ThreadPoolExecutor(1, "pattern")  # one at a time: others need the cores
        self.networks = [threading.Thread(target=self.compute, name="network", daemon=True) for _ in range(networks)]
        for thread in self.networks:
            thread.start()

    def close(self) -> None:
        for pool in (self.pool, self.readers, self.compiler):
            pool.shutdown(cancel_futures=True)
        for _ in self.networks:
            self.ready.put(None)
        for thread in self.networks:
            thread.join()

    async def do(self, work: Callable[[], Result]) -> Result:
        """What a function returns, called on a thread that prepares pictures."""
        return await get_running_loop().run_in_executor(self.pool, work)

    async def predict(
        self, predictor: GlyphPredictor, top_k: int, pictures: Sequence[tuple[str | None, bytes]]
    ) -> list[Answer]:
        """The answer to each picture, in their order; where this is cancelled, what has not begun never does."""
        loop = get_running_loop()
        chunks = [pictures[start : start + CHUNK] for start in range(0, len(pictures), CHUNK)]
        left = threading.Event()
        jobs = [Job(predictor, top_k, chunk, loop.create_future(), left) for chunk in chunks]
        for job in jobs:
            self.pool.submit(self.prepare, job)
        try:
            return [answer for answers in await gather(*(job.future for job in jobs)) for answer in answers]
        finally:
            left.set()

    async def read(
        self, predictor: GlyphPredictor, top_k: int, pictures: Sequence[tuple[str | None, bytes]]
    ) -> list[Reading]:
        """The text of each picture, in their order; where this is cancelled, it is read no further."""
        left = threading.Event()

        def read(name: str | None, content: bytes) -> Reading:
            begun = time.monotonic()

            def network(images: Bytes) -> Probabilities:
                parts = []
                # Part by part, so that others' images come in between.
                for start in range(0, len(images), AT_ONCE * len(self.networks)):
                    if time.monotonic() - begun > self.text_seconds:
                        raise PictureError(
                            f"{name or 'the picture'}: its text was not read within {self.text_seconds:g} seconds; "
                            "send a part of it, or read it by inference.py --image --text"
                        )
                    part = images[start : start + AT_ONCE * len(self.networks)]
                    parts.append(self.run(predictor.network, part, left))
                return np.concatenate(parts)

            reader = copy.copy(predictor)
            reader.network = network
            if left.is_set():  # a thread was free too late
                return Reading(name, "failed")
            return reader.read_page(*reader.find_page(name, io.BytesIO(content)), top_k)

        loop = get_running_loop()
        try:
            return await gather(*(loop.run_in_executor(self.readers, read, *picture) for picture in pictures))
        finally:
            left.set()

    async def compile(self, view: Callable[[], GlyphPredictor]) -> GlyphPredictor:
        """The predictor that a function makes, which has a pattern to compile."""
        return await get_running_loop().run_in_executor(self.compiler, view)

    def run(self, network: Network, images: Bytes, left: threading.Event) -> Probabilities:
        """A network's probabilities, for a thread that can wait for them.  Raises PictureError once `left` is set."""
        futures = []

        def done(future: "concurrent.futures.Future[Probabilities]", outcome: Outcome) -> None:
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        for start in range(0, len(images), AT_ONCE):
            futures.append(concurrent.futures.Future[Probabilities]())
            part = images[start : start + AT_ONCE]
            self.ready.put(Work(network, part, functools.partial(done, futures[-1]), left))
        return np.concatenate([future.result() for future in futures])

    def prepare(self, job: Job) -> None:
        if job.left.is_set():
            return
        done = functools.partial(self.answer, job)
        try:
            job.prepared = [job.predictor.prepare(name, io.BytesIO(content)) for name, content in job.pictures]
            seen = [prepared.pixels for prepared in job.prepared if prepared.pixels is not None]
            work = Work(job.predictor.network, to_planes(np.stack(seen)), done, job.left) if seen else None
        except Exception as error:
            settle([done(error)])
        else:
            if work:
                self.ready.put(work)
            else:  # nothing for the network to see
                settle([done(NO_PROBABILITIES)])

    def compute(self) -> None:
        while (work := self.ready.get()) is not None:
            batch: list[Work] = [work]
            count = len(work.images)
            last: Work | None = work
            with contextlib.suppress(queue.Empty):
                while count < AT_ONCE and (last := self.ready.get_nowait()) is not None:
                    batch.append(last)
                    count += len(last.images)
            wanted = []
            for work in batch:
                if work.left.is_set():
                    work.done(PictureError(NOBODY_WAITS))
                else:
                    wanted.append(work)
            for network in {id(each.network): each.network for each in wanted}.values():
                self.run_together(network, [each for each in wanted if each.network is network])
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
            return job, list(predictor.answers(job.prepared, outcome, job.top_k))
        except Exception as error:
            return job, error


Settled = tuple[Job, list[Answer] | Exception]


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

    results = [(job, result) for job, result in results if not job.left.is_set()]
    if results:
        results[0][0].future.get_loop().call_soon_threadsafe(deliver)
