"""Clocks, turns, and peaks of memory."""

from __future__ import annotations

import multiprocessing
import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from threadpoolctl import threadpool_limits

Result = TypeVar("Result")
GIB = 2**30


def synchronise() -> None:
    """Wait for the GPU, if one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Clock:
    """Seconds of calls. `unit`: "s", or "CPU s" of this process with all its threads."""

    unit: str
    now: Callable[[], float]

    def __call__(self, function: Callable[[], object]) -> float:
        """Seconds of a call."""
        start = self.now()
        function()
        return self.now() - start


def _wall() -> float:
    synchronise()
    return time.perf_counter()


WALL = Clock("s", _wall)
CPU_TIME = Clock("CPU s", time.process_time)


def clock_on(device: torch.device) -> Clock:
    """Wall time on a GPU. On a CPU, CPU time, because other work on the machine affects it little."""
    return CPU_TIME if device.type == "cpu" else WALL


def take_turns(jobs: Mapping[str, Callable[[], object]], turns: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of every job in every turn, after a warm-up turn; in a turn the jobs run one after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(turns):
        for name, job in jobs.items():
            seconds[name].append(clock(job))
    return seconds


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Use this many threads in torch and in the libraries of numpy and scikit-learn inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


def run_silent(command: Sequence[object]) -> None:
    """Run a command; its output is shown only if it fails. Raises: RuntimeError with the end of the output."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        shown = " ".join(map(str, command))[:300]
        raise RuntimeError(f"exit code {done.returncode} of {shown}\n{(done.stdout + done.stderr).strip()[-2000:]}")


class Measured(NamedTuple):
    """Result of a child process, and its memory at the start and at the peak in GiB."""

    result: Any
    before: float
    peak: float


def in_child(function: Callable[..., Any], *arguments: Any) -> Measured:
    """Call a function of a module in a fresh process, so that its peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measured, function, torch.get_num_threads(), *arguments).result()


def _measured(function: Callable[..., Any], num_threads: int, *arguments: Any) -> Measured:
    with threads(num_threads):
        before = resident_gib()
        return Measured(function(*arguments), before, peak_gib())


def peak_gib() -> float:
    """Highest resident memory of this process so far, GiB."""
    # VmHWM counts this program only; ru_maxrss of a child starts at its parent's memory.
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
