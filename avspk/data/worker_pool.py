"""Tasks on worker processes that may die in native code: the file that killed one is skipped; the work continues."""

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

# Native code that fails dies of one of these. Any other death may have an outside cause (out of memory, a person), so
# only a second one on the same item counts against the item. So does only a second hang: the first may be the
# machine's.
FAULTS = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL}
PATIENCE = 15.0  # seconds without a report in which any decoder finishes a packet, a picture, a small file
_DISK_PATIENCE = 600.0  # for a process that waits for a disk: network storage may stall for minutes
_SECONDS_BETWEEN_WORDS = 1.0

Work = Callable[["Task", "Reporter"], None]


def decoder_fails(kind: str) -> str:
    """The reason of every command for a file whose "sound" or "picture" killed the processes that read it."""
    return f"the decoder crashes or hangs on its {kind}"


class Reporter(Protocol):
    """Reports of a task to its supervisor."""

    def entering(self, item: str | None, patience: float = PATIENCE) -> None:
        """Native code works on this item from now on; None: on no item.

        The item counts as hanging if no report arrives for `patience` seconds.
        """

    def alive(self) -> None:
        """Work on the item continues; may be called any number of times."""

    def advance(self, count: int) -> None:
        """`count` more units of work are done."""


class WorkerError(RuntimeError):
    """A task failed or its worker died and no file is the cause; the message is the worker's."""


@dataclass
class Task:
    """`content` is defined by the caller; `avoid` are its items that killed a worker."""

    content: Any
    avoid: frozenset[str] = frozenset()


class _PipeReporter:
    """Reports through the pipe to the supervising process."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._spoke = 0.0

    def entering(self, item: str | None, patience: float = PATIENCE) -> None:
        self._connection.send(("entering", (item, patience)))

    def alive(self) -> None:
        if time.monotonic() - self._spoke > _SECONDS_BETWEEN_WORDS:
            self._spoke = time.monotonic()
            self._connection.send(("alive", None))

    def advance(self, count: int) -> None:
        self._connection.send(("advance", count))


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    task: Task | None = None
    item: str | None = None
    patience: float = PATIENCE
    heard: float = field(default_factory=time.monotonic)


def run_tasks(work: Work, contents: Iterable[Any], num_workers: int, advance: Callable[[int], None]) -> None:
    """Run `work(task, reporter)` for every content on `num_workers` spawned processes; returns when all are done.

    `work` must be importable by name (it is pickled). If a worker dies, it is called again for the same task, with the
    fatal item in `task.avoid` if an item is the cause, so it must resume or repeat its work.

    Raises: WorkerError if `work` raises, or if workers keep dying outside of any item.
    """
    pending = deque(Task(content) for content in contents)
    deaths: Counter[tuple[int, str | None]] = Counter()
    workers = [_start(work) for _ in range(min(num_workers, len(pending)))]
    try:
        while pending or any(worker.task for worker in workers):
            for number, worker in enumerate(workers):
                if worker.task is None and pending:
                    _assign(worker, pending.popleft())
                if worker.task and not _listen(worker, advance):
                    pending.appendleft(_after_death(worker, deaths))
                    workers[number] = _start(work)
            _wait(workers)
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _start(work: Work) -> _Worker:
    # Spawned, not forked: decoders and torch hold threads, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _serve(work: Work, connection: Connection) -> None:
    """Main function of a worker process: ends when the supervisor is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor
    reporter = _PipeReporter(connection)
    try:
        while True:
            task = connection.recv()
            try:
                work(task, reporter)
                connection.send(("done", None))
            except ConnectionError:
                raise
            except OSError as error:
                connection.send(("failed", str(error)))
            except Exception:
                connection.send(("failed", traceback.format_exc()))
    except (EOFError, ConnectionError):
        os._exit(0)


def _assign(worker: _Worker, task: Task) -> None:
    worker.task, worker.item, worker.heard = task, None, time.monotonic()
    with contextlib.suppress(OSError):  # it died while idle: `_listen` will notice
        worker.connection.send(task)


def _wait(workers: Collection[_Worker]) -> None:
    wait([worker.connection for worker in workers if worker.task], timeout=1.0)


def _listen(worker: _Worker, advance: Callable[[int], None]) -> bool:
    """Process a worker's reports; False if it is dead, or was ended because it hangs in an item."""
    try:
        while worker.task and worker.connection.poll():
            kind, value = worker.connection.recv()
            worker.heard = time.monotonic()
            if kind == "entering":
                worker.item, worker.patience = value
            elif kind == "advance":
                advance(value)
            elif kind == "failed":
                raise WorkerError(value)
            elif kind == "done":
                worker.task = worker.item = None
    except (EOFError, ConnectionError):
        worker.process.join()
        return False
    if _hangs(worker):
        worker.process.kill()
        worker.process.join()
        return False
    return True


def _hangs(worker: _Worker) -> bool:
    silence = time.monotonic() - worker.heard
    return worker.item is not None and silent_too_long(worker.process, silence, worker.patience)


def silent_too_long(process: BaseProcess, silence: float, patience: float) -> bool:
    """Whether a process has been silent for more than `patience` seconds, and longer if it waits for a disk."""
    return silence > patience and (silence > _DISK_PATIENCE or not waits_for_disk(process))


def waits_for_disk(process: BaseProcess) -> bool:
    """Whether the kernel says that it does (Linux: state D, of local disks and of network file systems)."""
    try:
        with open(f"/proc/{process.pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] == b"D"
    except OSError:
        return False


def _after_death(worker: _Worker, deaths: "Counter[tuple[int, str | None]]") -> Task:
    """The dead worker's task for the next attempt."""
    assert worker.task is not None
    task, item = worker.task, worker.item
    worker.connection.close()
    key = (id(task.content), item)
    deaths[key] += 1
    faulty = item is not None and worker.process.exitcode in FAULTS
    if deaths[key] == 1 and not faulty:
        return task
    if item is None:
        raise WorkerError(
            f"a worker process died twice outside of any file (exit code {worker.process.exitcode}); "
            "the usual cause is too little memory: use fewer workers"
        )
    return Task(task.content, task.avoid | {item})
