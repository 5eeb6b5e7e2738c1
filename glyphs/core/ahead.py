"""Work on threads, a little ahead of whoever takes the results."""

import concurrent.futures
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Result = TypeVar("Result")


def work_ahead(
    work: Callable[..., Result], items: Iterable[tuple[Any, ...]], workers: int, ahead: int = 1
) -> Iterator[Result]:
    """What a function makes of the arguments in each item, in order and in constant memory.

    Parameters
    ----------
    workers : threads, so that the work should let go of Python's lock, as Pillow, SciPy and the networks do.
    ahead : items that wait for a thread to be free.
    """
    items = iter(items)
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    waiting: deque[concurrent.futures.Future[Result]] = deque()
    try:
        while True:
            for item in itertools.islice(items, workers + ahead - len(waiting)):
                waiting.append(pool.submit(work, *item))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
