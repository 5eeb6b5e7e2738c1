"""How many threads this process may run at once."""

import contextlib
import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """The cores that affinity and a container's CPU quota leave to this process.

    Processes that torchrun started share them.  OMP_NUM_THREADS, where set, is the user's own choice and stands, but
    for the 1 that torchrun sets by itself.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if given.isdecimal() and int(given) > 0 and (given != "1" or processes == 1):
        return int(given)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cpus, quota())) // processes)


def quota() -> float:
    """The CPU time a second that the container may use, in seconds; infinite where nothing limits it."""
    with contextlib.suppress(OSError, ValueError):  # control groups, version 2
        most, period = (CGROUP / "cpu.max").read_text().split()
        return math.inf if most == "max" else int(most) / int(period)
    with contextlib.suppress(OSError, ValueError):  # version 1
        most, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(most) / int(period) if int(most) > 0 else math.inf
    return math.inf
