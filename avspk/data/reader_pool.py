"""Processes that read files ahead of their consumer. If one dies or hangs on a file, only that file is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

from avspk.common.files import file_size
from avspk.data.worker_pool import FAULTS, decoder_fails, silent_too_long

JOBS_AHEAD = 2  # per process, so that it need not wait for the next one
HANG_SECONDS = 60.0  # without a piece of sound; more for large files, whose first piece may take a whole pass
_SLOWEST = 1e5  # bytes per second
ATTEMPTS = 2  # another process may cause a kill (out of memory); the second time the file is at fault
_LOOK_SECONDS = 5.0  # between two checks for processes that hang

Content = TypeVar("Content")


@dataclass(frozen=True)
class Part(Generic[Content]):
    """A part of what was read from file number `index`, such as a piece of its sound."""

    index: int
    content: Content


@dataclass(frozen=True)
class End:
    """File number `index` is done; an `error`, if any, invalidates its parts."""

    index: int
    error: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Again:
    """File number `index` is read again from its beginning: discard the parts received so far."""

    index: int


Event = Part[Content] | Again | End


@dataclass
class _Reader:
    process: BaseProcess
    connection: Connection
    hung: bool = False
    jobs: deque[int] = field(default_factory=deque)
    heard: float = field(default_factory=time.monotonic)


class ReaderPool(Generic[Content]):
    """Reads files in other processes; a context manager that ends them.

    Args:
        read: path -> parts, which are pickled; its ValueError and OSError are the file's error, its UserWarnings the
            file's warnings.
        paths: the files.
        num_processes: number of readers, at least 1.
    """

    def __init__(self, read: Callable[[Path], Iterable[Content]], paths: Sequence[Path], num_processes: int) -> None:
        self.read, self.paths = read, paths
        self.waiting = deque(range(len(paths)))
        self.deaths: Counter[int] = Counter()
        self.readers = [self._start() for _ in range(min(num_processes, len(paths)))]

    def __enter__(self) -> ReaderPool[Content]:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self.readers:
            reader.process.kill()
            reader.process.join()
            reader.connection.close()

    def __iter__(self) -> Iterator[Event[Content]]:
        """Yield the parts of each file in order, then its end. Files start in order; their parts interleave."""
        for reader in self.readers:
            self._feed(reader)
        while any(reader.jobs for reader in self.readers):
            busy = {reader.connection: reader for reader in self.readers if reader.jobs}
            for connection in wait(list(busy), _LOOK_SECONDS):
                assert isinstance(connection, Connection)
                yield from self._receive(busy[connection])
            for reader in self.readers:
                if self._hangs(reader):
                    reader.hung = True
                    reader.process.kill()  # its connection then ends, which the next round sees

    def _hangs(self, reader: _Reader) -> bool:
        """Whether a reader is silent without a reason, such as a busy consumer or a disk that does not answer."""
        if not reader.jobs:
            return False
        patience = HANG_SECONDS + file_size(self.paths[reader.jobs[0]]) / _SLOWEST
        silence = time.monotonic() - reader.heard
        return silent_too_long(reader.process, silence, patience) and not reader.connection.poll()

    def _receive(self, reader: _Reader) -> Iterator[Event[Content]]:
        try:
            message: Event[Content] = reader.connection.recv()
        except (EOFError, OSError):
            yield from self._bury(reader)
            return
        reader.heard = time.monotonic()
        if isinstance(message, End):
            reader.jobs.popleft()
            self._feed(reader)
        yield message

    def _bury(self, reader: _Reader) -> Iterator[Event[Content]]:
        """Start a new process and retry the file that the old one died on; the second time, give it up."""
        reader.process.join()
        reader.connection.close()
        self.readers[self.readers.index(reader)] = fresh = self._start()
        index = reader.jobs[0]
        self.deaths[index] += 1
        if self.deaths[index] >= ATTEMPTS:
            reader.jobs.popleft()
            yield End(index, f"{self.paths[index]}: {_cause(reader)}")
        else:
            yield Again(index)
        self.waiting.extendleft(reversed(reader.jobs))
        self._feed(fresh)

    def _feed(self, reader: _Reader) -> None:
        while self.waiting and len(reader.jobs) < JOBS_AHEAD:
            index = self.waiting.popleft()
            if not reader.jobs:
                reader.heard = time.monotonic()  # it was idle
            reader.jobs.append(index)
            try:
                reader.connection.send((index, self.paths[index]))
            except OSError:
                return  # it is dead; the next read of its answer shows that

    def _start(self) -> _Reader:
        # Forked, because imports take longer than many jobs; readers use no library that has threads.
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(self.read, theirs, ours), daemon=True)
        process.start()
        theirs.close()
        return _Reader(process, ours)


def _serve(read: Callable[[Path], Iterable[Any]], connection: Connection, parents_end: Connection) -> None:
    """Read the requested files until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends its readers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parents_end.close()
    try:
        while True:
            index, path = connection.recv()
            _serve_one(read, connection, index, path)
    except (EOFError, OSError):
        os._exit(0)


def _serve_one(read: Callable[[Path], Iterable[Any]], connection: Connection, index: int, path: Path) -> None:
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        parts = iter(read(path))
        while True:
            try:
                content = next(parts, None)
            except (ValueError, OSError) as problem:
                error = str(problem)
                break
            except Exception as problem:  # from a decoder
                error = f"{path}: {type(problem).__name__}: {problem}"
                break
            if content is None:
                break
            connection.send(Part(index, content))
    connection.send(End(index, error, tuple(str(warning.message) for warning in caught)))


def _cause(reader: _Reader) -> str:
    """The words of preparation. Another end than a fault or a hang may have another cause, so it is added."""
    status = reader.process.exitcode
    told = decoder_fails("sound")
    if reader.hung or status in FAULTS:
        return told
    if status is not None and status < 0:
        known = -status in signal.Signals.__members__.values()
        name = signal.Signals(-status).name if known else f"signal {-status}"
        return f"{told}, or takes too much memory: the process that read it died twice ({name})"
    return f"{told}: the process that read it ended twice (status {status})"
