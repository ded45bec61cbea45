"""Preparing talking-head clips against a plain loop, memory over many clips, reads of the crop store.

First the readers alone: ten frames of a clip with ours and with decord, after a check that both give the same pixels.

The plain loop opens a clip with decord, takes the same ten frames one by one, runs MTCNN on each, cuts the largest face
and saves it as a JPEG file, and writes the sound as wav. Ours is `prepare_unit`, the work of one process of
tools/prepare_voxceleb.py, in the face-tracked mode and with detection on every sampled frame. Clips are procedural
talking heads of 224 x 224, as long as VoxCeleb2's on average, or those of `raw`. On a CPU, one thread each and CPU
seconds, because other work on the machine affects them little. Then the same in wall time: the loop with its default
threads, and `prepare` with one process per core, its start included. On a GPU both detectors run there, in wall time.

decord is optional (`pip install 'avspk[bench]'`, x86-64 only): without it, only our figures are given.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from facenet_pytorch import MTCNN
from PIL import Image

from avspk.common.machine import num_cores
from avspk.data.clips import Clip, find_clips
from avspk.data.crop_store import CropStore, CropWriter, encode_jpeg
from avspk.data.demo_corpus.build import build_demo_corpus
from avspk.data.demo_corpus.settings import CorpusSettings
from avspk.data.preparation import PreparationSettings, prepare
from avspk.data.preparation_settings import FaceSettings, FaceTracked
from avspk.data.preparation_unit import Unit, prepare_unit
from avspk.data.sound import read_audio, write_wav
from avspk.data.video import VideoReader
from avspk.data.worker_pool import Task
from benchmarks.corpus import VOXCELEB2_SECONDS, VOXCELEB2_UTTERANCES
from benchmarks.figures import Figure, rate
from benchmarks.measure import WALL, clock_on, in_child, peak_gib, take_turns, threads
from benchmarks.peers import compare_rate, missing, named, require_close

COUNT = FaceSettings().crops_per_clip
LOOP = "decord + MTCNN frame by frame, same frames, min_face_size 40"


@dataclass(frozen=True)
class Sizes:
    """`raw`: a tree of clips to use; `memory_clips`: number of clips for the memory test, 0: none."""

    clips: int = 32
    clip_seconds: float = round(VOXCELEB2_SECONDS, 1)
    raw: str = ""
    turns: int = 3
    store_crops: int = 20_000
    store_reads: int = 4_000
    memory_clips: int = 0


class Silent:
    """A reporter without a supervisor."""

    def entering(self, item: str | None, patience: float = 0.0) -> None:
        """Nothing."""

    def alive(self) -> None:
        """Nothing."""

    def advance(self, count: int) -> None:
        """Nothing."""


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Clips a second, core hours of VoxCeleb2, reads of the store, memory."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        raw = Path(sizes.raw) if sizes.raw else make_clips(folder, sizes.clips, sizes.clip_seconds)
        clips = [clip for clip in find_clips(raw)[0] if clip.video][: sizes.clips]
        yield compare_readers([raw / str(clip.video) for clip in clips], device, sizes.turns)
        yield from compare_modes(raw, clips, folder, device, sizes.turns)
        if device.type == "cpu":
            yield compare_wall(raw, clips, folder)
        yield from compare_store(folder, sizes)
        if sizes.memory_clips:
            yield watch_memory(raw, clips, folder, sizes.memory_clips)


def make_clips(folder: Path, count: int, seconds: float) -> Path:
    """Procedural talking heads in VoxCeleb2's layout."""
    settings = CorpusSettings(
        training_identities=4,
        training_sessions=2,
        training_clips=-(-count // 8),
        bad_clips=0,
        test_identities=2,
        test_sessions=2,
        test_clips=1,
        clip_seconds=(seconds, seconds + 0.1),
    )
    build_demo_corpus(folder / "corpus", settings, workers=num_cores())
    return folder / "corpus" / "voxceleb2"


def ours_sampled(video: Path) -> np.ndarray:
    """Ten frames by time with our reader."""
    with VideoReader(video, FaceSettings().max_side) as reader:
        return reader.sample(COUNT)


def decord_sampled(video: Path) -> np.ndarray:
    """The same frames of a clip of constant rate with decord."""
    import decord

    reader = decord.VideoReader(str(video), num_threads=1)
    return np.asarray(reader.get_batch(middles(len(reader))).asnumpy())


def middles(num_frames: int) -> np.ndarray:
    """Numbers of the frames in the middles of equal parts."""
    return np.unique(((np.arange(COUNT) + 0.5) * num_frames / COUNT).astype(np.int64))


def each(read: Callable[[Path], np.ndarray], videos: list[Path]) -> None:
    """Read the videos one after the other."""
    for video in videos:
        read(video)


def compare_readers(videos: list[Path], device: torch.device, turns: int) -> Figure:
    """Clips a second, opened and ten frames decoded, after a check that both give the same pixels."""
    clock = clock_on(device)
    baseline = missing(["decord"])
    if baseline is None:
        apart = max(float(np.abs(ours_sampled(one) - decord_sampled(one).astype(float)).max()) for one in videos)
        require_close("frames", apart, 0)
    ours, theirs = (partial(each, read, videos) for read in (ours_sampled, decord_sampled))
    name = "preparation: ten frames of a clip"
    with threads(1):
        said = baseline or named(["decord"], "the same frames in one call, one thread")
        return compare_rate(name, len(videos), "clips", clock, turns, ours, None if baseline else theirs, said)


def plain_loop(videos: list[Path], out: Path, detector: MTCNN) -> None:
    """The usual loop: clip by clip, frame by frame, one file per crop."""
    import decord

    for video, number in zip(videos, itertools.count()):
        folder = out / str(number)
        folder.mkdir(parents=True)
        write_wav(folder / "sound.wav", read_audio(video))
        reader = decord.VideoReader(str(video))
        for index in middles(len(reader)):
            frame = Image.fromarray(reader[int(index)].asnumpy())
            boxes, _ = detector.detect(frame)
            if boxes is not None:
                frame.crop(tuple(boxes[0])).resize((112, 112)).save(folder / f"{index}.jpg", quality=90)


def compare_modes(raw: Path, clips: list[Clip], folder: Path, device: torch.device, turns: int) -> Iterator[Figure]:
    """Clips a second, ours in both modes and the loop, in turns; and the extrapolation to VoxCeleb2."""
    detector = MTCNN(keep_all=True, min_face_size=FaceSettings().min_face, device=device)
    videos = [raw / str(clip.video) for clip in clips]
    jobs: dict[str, Callable[[Path], None]] = {
        "face-tracked": lambda out: run_unit(raw, out, clips, "yes", device),
        "detection on every frame": lambda out: run_unit(raw, out, clips, "no", device),
    }
    baseline_is = missing(["decord"]) or LOOP
    if baseline_is == LOOP:
        jobs["plain"] = lambda out: plain_loop(videos, out, detector)
    turn = {name: lambda job=job: in_folder(job, folder / "turn") for name, job in jobs.items()}
    clock = clock_on(device)
    with threads(1):
        taken = take_turns(turn, turns, clock)
    second, hour = clock.unit, "core hours" if device.type == "cpu" else "hours"
    plain = taken.pop("plain", [])
    whole = VOXCELEB2_UTTERANCES / len(clips) / 3600
    for name, seconds in taken.items():
        yield rate(f"preparation: {name}", len(clips), f"clips/{second}", seconds, plain, baseline_is)
        yield rate(f"preparation: {name}, frames", len(clips) * COUNT, f"frames/{second}", seconds, plain, baseline_is)
        ours, baseline = float(np.median(seconds)) * whole, float(np.median(plain)) * whole if plain else None
        yield Figure(f"preparation: {name}, VoxCeleb2, extrapolated", ours, hour, baseline, baseline_is)


def in_folder(job: Callable[[Path], None], out: Path) -> None:
    """Run a job in a folder that is removed afterwards."""
    job(out)
    shutil.rmtree(out)


def run_unit(raw: Path, out: Path, clips: list[Clip], face_tracked: FaceTracked, device: torch.device) -> None:
    """The work of one process on a unit of clips."""
    (out / "journal").mkdir(parents=True)
    settings = PreparationSettings(raw, out, FaceSettings(face_tracked=face_tracked))
    prepare_unit(
        settings.recipe(voxceleb=True), out / "journal", str(device), 1, Task(Unit("00000", tuple(clips))), Silent()
    )


def compare_wall(raw: Path, clips: list[Clip], folder: Path) -> Figure:
    """Clips a second in wall time, all cores: `prepare`, and the loop with its default threads."""
    absent = missing(["decord"])
    plain = [] if absent else [plain_on_the_wall(raw, clips, folder)]
    settings = PreparationSettings(raw, folder / "prepared", FaceSettings(face_tracked="yes"))
    ours = WALL(lambda: prepare(settings))
    name = f"preparation: face-tracked, {num_cores()} cores, start included"
    return rate(name, len(clips), "clips/s", [ours], plain, absent or "the loop with its default threads")


def plain_on_the_wall(raw: Path, clips: list[Clip], folder: Path) -> float:
    """Seconds of the plain loop."""
    with threads(num_cores()):
        detector = MTCNN(keep_all=True, min_face_size=FaceSettings().min_face)
        videos = [raw / str(clip.video) for clip in clips]
        return WALL(lambda: plain_loop(videos, folder / "plain", detector))


def compare_store(folder: Path, sizes: Sizes) -> Iterator[Figure]:
    """Random crops a second from a store and from one file per crop, from a warm page cache, by one process and two."""
    rng = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(rng.integers(0, 255, (64, 28, 28, 3), dtype=np.uint8), 4, 1), 4, 2)
    with CropWriter(folder / "store") as writer:
        for start in range(0, sizes.store_crops, 64):
            count = min(64, sizes.store_crops - start)
            writer.append(smooth[:count], np.zeros((count, 5, 2)))
    (folder / "files").mkdir()
    for number in range(sizes.store_crops):
        (folder / "files" / f"{number}.jpg").write_bytes(encode_jpeg(smooth[number % 64]))
    for processes in (1, 2):
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            store, files = (
                sum(pool.starmap(reads, [(folder / name, sizes.store_crops, sizes.store_reads)] * processes))
                for name, reads in (("store", store_reads_per_second), ("files", file_reads_per_second))
            )
        name = f"crop store: random reads, {processes} {'process' if processes == 1 else 'processes'}"
        yield Figure(name, store, "crops/CPU s", files, "one JPEG file per crop", more_is_better=True)


def store_reads_per_second(folder: Path, crops: int, reads: int) -> float:
    """Per second of this process's CPU time."""
    store, start = CropStore(folder), time.process_time()
    for number in np.random.default_rng(os.getpid()).integers(0, crops, reads):
        store.read(int(number))
    return reads / (time.process_time() - start)


def file_reads_per_second(folder: Path, crops: int, reads: int) -> float:
    """Per second of this process's CPU time."""
    start = time.process_time()
    for number in np.random.default_rng(os.getpid()).integers(0, crops, reads):
        with Image.open(folder / f"{number}.jpg") as image:
            np.asarray(image.convert("RGB"))
    return reads / (time.process_time() - start)


def watch_memory(raw: Path, clips: list[Clip], folder: Path, count: int) -> Figure:
    """Peak memory of one process after a tenth of `count` clips, and after all of them."""
    first, last, done = in_child(peaks_over, raw, clips, folder / "memory", count).result
    return Figure(f"preparation: peak memory, {done:,} clips", last, "GiB", first, "after a tenth of them")


def peaks_over(raw: Path, clips: list[Clip], out: Path, count: int) -> tuple[float, float, int]:
    """Peak GiB after a tenth of the clips and at the end, and their number; the clips are repeated."""
    torch.set_num_threads(1)
    peaks, done = [], 0
    while done < count:
        in_folder(lambda folder: run_unit(raw, folder, clips, "yes", torch.device("cpu")), out)
        done += len(clips)
        if done >= count / 10:
            peaks.append(peak_gib())
    return peaks[0], peaks[-1], done
