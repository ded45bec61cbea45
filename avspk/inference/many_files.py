"""Embeddings of many files: processes read ahead, sounds of one length share a batch, all cores compute."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from avspk.data.media import SAMPLE_RATE
from avspk.data.reader_pool import Again, End, Event, Part, ReaderPool
from avspk.data.sound_store import SoundStore
from avspk.inference.embed import equal_length_batches, heard_samples
from avspk.inference.speaker_model import MAX_SECONDS, CheckedSound, SpeakerModel, finite_mean

WINDOW_SECONDS = 640.0  # of sound that is sorted by length together: 41 MB, or the longest part and more
WINDOW_EVENTS = 256
CPU_BATCH_SECONDS = 20.0  # this fills one core's caches; cores share the work by batches
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Embedded:
    """Result for file number `index`: an embedding (D,) or the error, and warnings about its sound."""

    index: int
    embedding: Floats | None
    error: str | None
    warnings: tuple[str, ...]


def embed_many(
    model: SpeakerModel, paths: Sequence[Path], num_readers: int, num_threads: int, bfloat16: bool = False
) -> Iterator[list[Embedded]]:
    """Embed files of any kind; yield the results in their order, several at a time.

    The embeddings equal those of `model.embed`, up to rounding.

    Args:
        num_readers: processes that read and decode.
        num_threads: on a CPU, each computes a separate batch.
        bfloat16: compute in bfloat16 where autocast does.
    """
    results = _InOrder()
    in_work: deque[tuple[_Window, _Rows]] = deque()
    read = partial(CheckedSound, sounds=SoundStore())  # each process keeps its shards open
    with ReaderPool(read, paths, num_readers) as pool, _Engine(model, num_threads, bfloat16) as engine:
        files = _Files(paths)
        for window in _windows(pool):
            in_work.append((window, engine.start(window.parts)))
            if len(in_work) > 1:  # one is computed while the next is read
                yield results.add(files.finish(*in_work.popleft()))
        while in_work:
            yield results.add(files.finish(*in_work.popleft()))


@dataclass
class _Window:
    """Parts to compute, and files that end, or restart, after them."""

    parts: list[Part[Floats]] = field(default_factory=list)
    closing: list[End | Again] = field(default_factory=list)

    @property
    def full(self) -> bool:
        num_samples = sum(len(part.content) for part in self.parts)
        many = len(self.parts) + len(self.closing) >= WINDOW_EVENTS
        return many or num_samples >= WINDOW_SECONDS * SAMPLE_RATE


def _windows(events: Iterable[Event[Floats]]) -> Iterator[_Window]:
    window = _Window()
    for event in events:
        if isinstance(event, Part):
            window.parts.append(event)
        else:
            window.closing.append(event)
        if isinstance(event, Again) or window.full:
            yield window
            window = _Window()
    yield window


class _Rows:
    """Embeddings of a window's parts, computed by threads."""

    def __init__(self, batches: Sequence[tuple[NDArray[np.intp], Future[Floats]]]) -> None:
        self.batches = batches

    def wait(self) -> Iterator[tuple[int, Floats]]:
        """Position in the window and embedding (D,) of each part."""
        for positions, future in self.batches:
            yield from zip(positions.tolist(), future.result(), strict=True)


class _Engine:
    """Computes batches: on a CPU one per thread, on other devices one after the other.

    A batch-1 convolution over seconds of sound does not fill several cores; as many batches do.
    """

    def __init__(self, model: SpeakerModel, num_threads: int, bfloat16: bool) -> None:
        self.model, self.bfloat16 = model, bfloat16
        on_cpu = model.device.type == "cpu"
        self.batch_seconds = CPU_BATCH_SECONDS if on_cpu else MAX_SECONDS
        self.num_threads = num_threads if on_cpu else 1
        self.threads_before = torch.get_num_threads()

    def __enter__(self) -> _Engine:
        torch.set_num_threads(1)
        self.executor = ThreadPoolExecutor(self.num_threads, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown(cancel_futures=True)
        torch.set_num_threads(self.threads_before)

    def start(self, parts: Sequence[Part[Floats]]) -> _Rows:
        """Group parts of equal numbers of frames, and start computing."""
        if not parts:
            return _Rows([])
        sound_input = self.model.sound_input
        # Samples after the last whole frame are not used; without them, equal frames are equal lengths.
        lengths = [int(heard_samples(sound_input, len(part.content))) for part in parts]
        sounds = [np.resize(part.content, length) for part, length in zip(parts, lengths, strict=True)]
        num_frames = np.array([sound_input.num_frames(length) for length in lengths])
        max_frames = int(self.batch_seconds * SAMPLE_RATE / sound_input.hop_length)
        batches = []
        for positions in equal_length_batches(num_frames, max_frames):
            waveforms = np.stack([sounds[position] for position in positions])
            batches.append((positions, self.executor.submit(self._compute, waveforms)))
        return _Rows(batches)

    def _compute(self, waveforms: Floats) -> Floats:
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.model.embed_parts(waveforms)


class _Files:
    """Joins the parts of files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.rows: dict[int, list[Floats]] = defaultdict(list)

    def finish(self, window: _Window, rows: _Rows) -> Iterator[Embedded]:
        """Yield the files that end with this window."""
        for position, row in rows.wait():
            self.rows[window.parts[position].index].append(row)
        for event in window.closing:
            parts = self.rows.pop(event.index, [])
            if isinstance(event, End):
                yield self._joined(event, parts)

    def _joined(self, end: End, parts: Sequence[Floats]) -> Embedded:
        if end.error is not None:
            return Embedded(end.index, None, end.error, end.warnings)
        try:
            return Embedded(end.index, finite_mean(parts, str(self.paths[end.index])), None, end.warnings)
        except ValueError as error:
            return Embedded(end.index, None, str(error), end.warnings)


class _InOrder:
    """Yields results in the order of the files: early ones wait."""

    def __init__(self) -> None:
        self.early: dict[int, Embedded] = {}
        self.next = 0

    def add(self, results: Iterable[Embedded]) -> list[Embedded]:
        """Add results; returns those that can be given out now."""
        self.early |= {result.index: result for result in results}
        ready = []
        while self.next in self.early:
            ready.append(self.early.pop(self.next))
            self.next += 1
        return ready


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
