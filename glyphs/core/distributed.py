"""Several processes that train one model together, started by torchrun: who is who, and what they do in common.

    torchrun --nproc-per-node 4 enhanced_glyph_recognition.py

Without torchrun there is one process, for which everything here is a matter of course and costs nothing.  Every
process calls these functions in the same order; what decides that order is the same number on all of them.
"""

import contextlib
import datetime
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from glyphs.core.errors import ConfigError
from glyphs.core.process import launched, run, silence

# One process may prepare pictures for hours while the others wait; that one is gone, torchrun notices by itself.
LONGEST_WAIT = datetime.timedelta(days=1)
EXCHANGE_EVERY = 1.0  # seconds
# The four largest kernels have 3.7 MB of gradients each.  With PyTorch's 25 MB all but the first would travel together,
# after the backward pass instead of during it.
BUCKET_MB = 4

T = TypeVar("T")


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, for as long as the context lasts; without torchrun, do nothing.

    CPU tensors travel by gloo, CUDA tensors by NCCL.  Only the first process talks.  The first one that fails says
    why on stderr, with the exit status that `glyphs.core.process.run` would give it; the others follow without a word.
    """
    if not launched():
        yield
        return
    store, rank, world = next(rendezvous("env://", timeout=LONGEST_WAIT))
    if rank > 0:
        silence()
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=LONGEST_WAIT)
        yield
    except BaseException as error:
        first = True
        with contextlib.suppress(RuntimeError):  # the store is torchrun's, which may be gone
            first = store.add("failures", 1) == 1
        end(error, first=first)
    dist.destroy_process_group()


def end(error: BaseException, *, first: bool) -> NoReturn:
    """End this process as `run` would; in silence where it only follows another that failed."""
    status = 1
    if first:
        sys.stderr = sys.__stderr__

        def fail() -> NoReturn:
            raise error

        try:
            status = run(fail)
        except BaseException:
            traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    # The usual way out would wait for operations under way, in which the others no longer take part.
    os._exit(status)


def world_size() -> int:
    """How many processes work together.

    Raises
    ------
    ConfigError : torchrun started several, but they have not joined.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    if launched():
        raise ConfigError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, which do not know of each other: put the program "
            "inside `with glyphs.core.distributed.process_group():`"
        )
    return 1


def rank() -> int:
    """The number of this process, from 0.  Process 0 alone writes files."""
    return dist.get_rank() if world_size() > 1 else 0


def total(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, which lie on the CPU; the same bits on each of them."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def barrier() -> None:
    """Wait until every process is here."""
    total(torch.zeros(1))


def in_turn(make: Callable[[], T]) -> T:
    """Call a function that leaves files behind: first in process 0, then once on each other node, then in the rest.

    What one has downloaded or prepared the next ones find, whether or not the nodes share a file system.
    """
    mine = 0 if rank() == 0 else 1 if os.environ["LOCAL_RANK"] == "0" else 2
    for turn in range(3):
        if turn == mine:
            made = make()
        barrier()
    return made


def merge_rows(rows: Tensor, places: Tensor, count: int) -> Tensor:
    """Put together the processes' rows, [n, ...], that belong at places, int64 [n]: [count, ...], on each of them."""
    whole = rows.new_zeros(count, *rows.shape[1:])
    whole[places] = rows
    return total(whole)  # exact, since all but one add 0


def average_gradients(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, to call in training: its backward pass averages the gradients over all processes, while it runs.

    Batch norm uses the statistics of the whole batch on CUDA (SyncBatchNorm, into which the model's layers are
    converted), those of each process's own images on CPUs, where PyTorch has no such layer.

    Raises
    ------
    ConfigError : some processes compute on CUDA and others on the CPU.
    """
    if world_size() == 1:
        return model
    cuda = device.type == "cuda"
    if int(total(torch.tensor(int(cuda)))) not in (0, world_size()):
        raise ConfigError("some of the processes have a CUDA device, others none; use --device cpu, or other nodes")
    return data_parallel(model, device)


def data_parallel(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The wrapper of `average_gradients`, for the process group that there is."""
    cuda = device.type == "cuda"
    if cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(
        model, device_ids=[device] if cuda else None, bucket_cap_mb=BUCKET_MB, gradient_as_bucket_view=True
    )


def spread_buffers(model: nn.Module) -> None:
    """Give every process the buffers of process 0, which are those that a checkpoint holds.

    Without SyncBatchNorm each process has updated the running statistics from its own images.  The wrapper does this
    before each step; what follows training must do it too.
    """
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


class Orders(NamedTuple):
    """What all processes do after a step."""

    signum: int | None  # save, and end as this signal asks
    save: bool
    report: bool  # how training goes
    stop: bool  # end the run


class Exchange:
    """Lets all processes stop, save and report after the same step.

    A signal reaches them at different steps, and their clocks differ.  So about once a second they exchange the
    signals that they have seen, and whether it is time to save by the clock of process 0.  After how many steps the
    next exchange comes is a part of it, so that no clock decides that either; the steps between cost nothing.
    """

    def __init__(self) -> None:
        self.steps = 1  # from one exchange to the next
        self.left = 1
        self.at = time.monotonic()

    def orders(self, signum: int | None, due: bool, stop: bool = False, *, at_once: bool = False) -> Orders:
        """To be called after every step, with what is known here: the signal seen, and whether to save and to stop.

        at_once : do not wait for the next exchange; the same on every process.
        """
        now = time.monotonic()
        if world_size() == 1:
            report = now - self.at > EXCHANGE_EVERY
            if report:
                self.at = now
            return Orders(signum, due, report, stop)
        self.left -= 1
        if self.left > 0 and not at_once:
            return Orders(None, False, False, False)
        steps = max(1, min(2 * self.steps, int(self.steps * EXCHANGE_EVERY / max(now - self.at, 1e-3))))
        known = torch.tensor([signum or 0, stop, due, steps] if rank() == 0 else [signum or 0, stop, 0, 0])
        dist.all_reduce(known, dist.ReduceOp.MAX)
        number, stopping, save, self.steps = known.tolist()
        self.left, self.at = self.steps, now
        return Orders(number or None, bool(save), True, bool(stopping))
