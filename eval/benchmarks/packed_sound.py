"""Packed sound against one file per utterance: examples a second and opened files, with warm and empty caches.

Wavs of VoxCeleb2's mean length are packed by `pack_sound`, in both formats. `AudioViews` then cuts the same crops from
the files and from the packs, of stage 1 (2 x 3 s + 4 x 2 s of one utterance) and of a round (3 s), utterances in random
order. Warm: everything is in the page cache; one process in CPU time, two in wall time. Cold: the page cache, with
folders and inodes, is emptied before every turn. This needs root and `cold=true`, because it slows down all other
work on the machine; wall time. The kernel (inotify) counts openings, because decoders open files without Python.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from avspk.common.machine import num_cores
from avspk.data.augmentation import AudioPolicy
from avspk.data.manifest import read_utterances
from avspk.data.noise import read_noise_pack
from avspk.data.preparation_settings import PackFormat
from avspk.data.sound_packing import PackSettings, pack_sound
from avspk.data.views import AudioGroup, AudioViews, generator
from benchmarks.corpus import small_noise_pack, write_corpus
from benchmarks.figures import Figure, rate
from benchmarks.measure import CPU_TIME, WALL, Clock, take_turns

EXAMPLES = {
    "stage 1": {"global": AudioGroup(2, 3.0, AudioPolicy()), "local": AudioGroup(4, 2.0, AudioPolicy())},
    "a round": {"refine": AudioGroup(1, 3.0, AudioPolicy())},
}
NAMED = "one wav file per utterance"
CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Sizes:
    """Each turn reads every utterance once. `cold`: also with the machine's caches emptied."""

    files: int = 2000
    turns: int = 3
    cold: bool = False


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Packing, then reading, for both formats."""
    del device  # loaders use none
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        plain = write_corpus(folder, sizes.files, sizes.files)
        small_noise_pack(folder / "noise")
        manifests = {"files": plain}
        for packed in get_args(PackFormat):
            settings = PackSettings(plain, folder / packed, packed, num_cores())
            seconds = WALL(lambda: manifests.update({packed: pack_sound(settings)}))  # noqa: B023 (called at once)
            yield rate(f"packed sound: packing as {packed}, {num_cores()} processes", sizes.files, "files/s", [seconds])
        rows = np.random.default_rng(0).permutation(sizes.files).tolist()
        for kind in EXAMPLES:
            require_equal(kind, folder, manifests, rows[:50])
            yield from openings(kind, folder, manifests, rows)
            yield from rates(kind, folder, manifests, rows, sizes)


def cut_all(kind: str, folder: Path, manifest: Path, rows: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """The crops of these examples."""
    views = AudioViews(read_utterances(manifest), EXAMPLES[kind], read_noise_pack(folder / "noise"))
    drawn = (views([row], generator(0, row)) for row in rows)
    return [{name: group.signal for name, group in example.items()} for example in drawn]


def require_equal(kind: str, folder: Path, manifests: Mapping[str, Path], rows: Sequence[int]) -> None:
    """Raise RuntimeError unless all give the same crops."""
    plain = cut_all(kind, folder, manifests["files"], rows)
    for packed in get_args(PackFormat):
        for one, other in zip(plain, cut_all(kind, folder, manifests[packed], rows), strict=True):
            if any(not np.array_equal(one[name], other[name]) for name in one):
                raise RuntimeError(f"{kind}: crops from a pack ({packed}) differ from those of the files")


def openings(kind: str, folder: Path, manifests: Mapping[str, Path], rows: Sequence[int]) -> Iterator[Figure]:
    """Files opened per example, by a process whose shards are already open."""
    rows = rows[:1000]  # the kernel keeps 16,384 events until they are read
    counts = {}
    for name, manifest in manifests.items():
        views = AudioViews(read_utterances(manifest), EXAMPLES[kind], read_noise_pack(folder / "noise"))
        for row in rows:
            views([row], generator(0, row))
        with counted_opens(folder / "audio" if name == "files" else manifest.parent / "sound") as count:
            for row in rows:
                views([row], generator(0, row))
        counts[name] = count[0] / len(rows)
    for packed in get_args(PackFormat):
        name = f"packed sound: {kind}, {packed}, files opened per example"
        yield Figure(name, counts[packed], "openings", None, f"{counts['files']:g}: {NAMED}")


def rates(
    kind: str, folder: Path, manifests: Mapping[str, Path], rows: Sequence[int], sizes: Sizes
) -> Iterator[Figure]:
    """Examples a second: warm, one process and two; cold, one and two."""
    cases: list[tuple[str, int, Clock, bool]] = [
        ("warm, one process", 1, CPU_TIME, False),
        ("warm, two processes", 2, WALL, False),
    ]
    if sizes.cold:
        cases += [("cold, one process", 1, WALL, True), ("cold, two processes", 2, WALL, True)]
    for case, processes, clock, cold in cases:
        with readers(kind, folder, manifests, processes) as read:
            jobs = {name: lambda name=name: read(name, rows) for name in manifests}
            taken = cold_turns(jobs, sizes.turns) if cold else take_turns(jobs, sizes.turns, clock)
        for packed in get_args(PackFormat):
            name, unit = f"packed sound: {kind}, {packed}, {case}", f"examples/{clock.unit}"
            yield rate(name, len(rows), unit, taken[packed], taken["files"], NAMED)


def cold_turns(jobs: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """As `take_turns`, with an empty page cache at the start of each job."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(turns):
        for name, job in jobs.items():
            os.sync()
            CACHES.write_text("3")
            seconds[name].append(WALL(job))
    return seconds


@contextmanager
def readers(
    kind: str, folder: Path, manifests: Mapping[str, Path], processes: int
) -> Iterator[Callable[[str, Sequence[int]], object]]:
    """A call that cuts the examples of rows, shared between a number of processes that already run."""
    if processes == 1:
        prepare_reader(kind, folder, manifests)
        yield read_rows
        return
    with ProcessPoolExecutor(processes, get_context("fork"), prepare_reader, (kind, folder, manifests)) as pool:

        def read(name: str, rows: Sequence[int]) -> None:
            list(pool.map(read_rows, [name] * processes, [rows[k::processes] for k in range(processes)]))

        yield read


_VIEWS: dict[str, AudioViews] = {}


def prepare_reader(kind: str, folder: Path, manifests: Mapping[str, Path]) -> None:
    """Objects that a loader process has at its start."""
    noise = read_noise_pack(folder / "noise")
    for name, manifest in manifests.items():
        _VIEWS[name] = AudioViews(read_utterances(manifest), EXAMPLES[kind], noise)


def read_rows(name: str, rows: Sequence[int]) -> None:
    """Cut one example of each row."""
    for row in rows:
        _VIEWS[name]([row], generator(0, row))


@contextmanager
def counted_opens(folder: Path) -> Iterator[list[int]]:
    """How often any process opened files directly in this folder: a list that holds the number at the end."""
    libc, opened = ctypes.CDLL(None, use_errno=True), 0x20  # IN_OPEN
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    if descriptor < 0 or libc.inotify_add_watch(descriptor, os.fsencode(folder), opened) < 0:
        raise OSError(ctypes.get_errno(), "the kernel does not count openings", str(folder))
    count = [0]
    try:
        yield count
        while events := _read_events(descriptor):
            count[0] += events
    finally:
        os.close(descriptor)


def _read_events(descriptor: int) -> int:
    """Openings reported since the last call; 0 if there are none. Listing the folder itself does not count."""
    try:
        content = os.read(descriptor, 1 << 20)
    except BlockingIOError:
        return 0
    events, position = 0, 0
    while position < len(content):  # int watch, uint32 mask, cookie, length; a name of that length
        mask, length = (int.from_bytes(content[position + at : position + at + 4], "little") for at in (4, 12))
        events += not mask & 0x40000000  # IN_ISDIR
        position += 16 + length
    return events
