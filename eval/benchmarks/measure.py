"""Clocks, turns, and peaks of memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch

Result = TypeVar("Result")
GIB = 2**30


def wall_seconds(function: Callable[[], object]) -> float:
    """How long a call takes on the wall, the GPU's part included."""
    synchronise()
    start = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - start


def cpu_seconds(function: Callable[[], object]) -> float:
    """The CPU time of a call in this process, all its threads: other work on the machine matters little to it."""
    start = time.process_time()
    function()
    return time.process_time() - start


def synchronise() -> None:
    """Wait for the GPU, if one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def take_turns(
    jobs: Mapping[str, Callable[[], object]],
    turns: int,
    clock: Callable[[Callable[[], object]], float] = wall_seconds,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Seconds of every job in every turn; within a turn the jobs run one after the other, in this order."""
    for job in jobs.values() if warm_up else ():
        job()
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(turns):
        for name, job in jobs.items():
            seconds[name].append(clock(job))
    return seconds


@contextmanager
def threads(count: int) -> Iterator[None]:
    """This many threads of torch, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Measured(NamedTuple):
    """What a child process did: its result, seconds, and its memory at the start and at the peak in GiB."""

    result: Any
    seconds: float
    before: float
    peak: float


def in_child(function: Callable[..., Any], *arguments: Any) -> Measured:
    """Call a function of a module in a fresh process, whose peak of memory is nobody else's."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measured, function, torch.get_num_threads(), *arguments).result()


def _measured(function: Callable[..., Any], num_threads: int, *arguments: Any) -> Measured:
    torch.set_num_threads(num_threads)
    before, start = resident_gib(), time.perf_counter()
    result = function(*arguments)
    return Measured(result, time.perf_counter() - start, before, peak_gib())


def peak_gib() -> float:
    """Highest resident memory of this process so far, GiB."""
    # VmHWM is this program's own; ru_maxrss of a child starts at what its parent held.
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def resident_gib() -> float:
    """Resident memory of this process now, GiB."""
    return _status("VmRSS") or peak_gib()


def _status(key: str) -> float | None:
    """A memory line of Linux's /proc/self/status in GiB; None elsewhere."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines[key].split()[0]) / 2**20
    except (OSError, KeyError):
        return None
