"""Speed of preparing talking-head clips against the loop people write, memory over many clips, reads of the crop store.

    python eval/bench_preparation.py [--raw TREE] [--clips 48] [--clip-seconds 8] [--memory-clips 0] [--out FILE.json]

The plain loop opens a clip with decord, takes the same ten frames one by one, runs MTCNN on each, cuts the largest face
and saves it as a JPEG file, and writes the sound as wav. Ours is `prepare_unit`, what one process of tools/
prepare_voxceleb.py runs, in the face-tracked mode and with detection on every sampled frame. Clips are procedural
talking heads of 224 x 224, as long as VoxCeleb2's on average, or those of --raw. One thread each; CPU seconds are
counted, so that other work on the machine does not matter much. Then the same on the wall: the loop with the threads it
takes by itself, and `prepare` with one process a core, its start included. Ratios above 1 are in our favour.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import decord
import numpy as np
import torch
from facenet_pytorch import MTCNN
from PIL import Image

from avspk.data.crop_store import CropStore, CropWriter, encode_jpeg
from avspk.data.demo_corpus import CorpusSettings, build_demo_corpus
from avspk.data.face_crops import FaceSettings, sample_frames
from avspk.data.media import read_audio, write_wav
from avspk.data.preparation import PreparationSettings, prepare
from avspk.data.preparation_unit import Unit, prepare_unit
from avspk.data.voxceleb import Clip, find_clips
from avspk.data.worker_pool import Task

Record = dict[str, Any]
VOXCELEB2_CLIPS = 1_092_009
VOXCELEB2_SECONDS = 2442 * 3600 / VOXCELEB2_CLIPS  # of a clip, on average
COUNT = FaceSettings().crops_per_clip
STORE_CROPS = 20_000
STORE_READS = 4_000


class Silent:
    """A reporter nobody listens to."""

    def entering(self, item: str | None) -> None:
        """Nothing."""

    def advance(self, count: int) -> None:
        """Nothing."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, help="tree of clips; default: procedural talking heads")
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--clip-seconds", type=float, default=round(VOXCELEB2_SECONDS, 1))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--memory-clips", type=int, default=0, help="watch the memory over so many clips")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        raw = args.raw or make_clips(folder, args.clips, args.clip_seconds)
        clips = [clip for clip in find_clips(raw)[0] if clip.video][: args.clips]
        records = compare_cpu(raw, clips, folder, args.turns)
        records.append(compare_wall(raw, clips, folder))
        records += compare_store(folder)
        if args.memory_clips:
            records.append(watch_memory(raw, clips, folder, args.memory_clips))
    for record in records:
        line = "{name:34s} ours {ours:9.2f}  baseline {baseline:9.2f} {unit}  ratio {ratio:5.2f}  ({baseline_is})"
        print(line.format(**record))
    if args.out:
        args.out.write_text(json.dumps(records, indent=1))


def make_clips(folder: Path, count: int, seconds: float) -> Path:
    """Procedural talking heads in VoxCeleb2's layout."""
    size = {"training_identities": 4, "training_sessions": 2, "training_clips": -(-count // 8), "bad_clips": 0}
    rest = {"test_identities": 2, "test_sessions": 2, "test_clips": 1, "clip_seconds": (seconds, seconds + 0.1)}
    build_demo_corpus(folder / "corpus", CorpusSettings(**size, **rest), workers=os.cpu_count() or 1)
    return folder / "corpus" / "voxceleb2"


def record(name: str, ours: float, baseline: float, unit: str, baseline_is: str, more_is_better: bool = True) -> Record:
    """One figure."""
    ratio = ours / baseline if more_is_better else baseline / ours
    return {
        "name": name, "ours": ours, "baseline": baseline, "ratio": ratio, "unit": unit, "baseline_is": baseline_is
    }  # fmt: skip


def plain_loop(videos: list[Path], out: Path, detector: MTCNN) -> int:
    """What people write: clip by clip, frame by frame, a file a crop. Returns the number of crops."""
    crops = 0
    for video, number in zip(videos, itertools.count()):
        folder = out / str(number)
        folder.mkdir(parents=True)
        write_wav(folder / "sound.wav", read_audio(video))
        reader = decord.VideoReader(str(video))
        for index in sample_frames(len(reader), COUNT):
            frame = Image.fromarray(reader[int(index)].asnumpy())
            boxes, _ = detector.detect(frame)
            if boxes is not None:
                frame.crop(tuple(boxes[0])).resize((112, 112)).save(folder / f"{index}.jpg", quality=90)
                crops += 1
    return crops


def compare_cpu(raw: Path, clips: list[Clip], folder: Path, turns: int) -> list[Record]:
    """Clips and frames per CPU second: ours in both modes, and the loop, in alternating turns."""
    torch.set_num_threads(1)
    detector = MTCNN(keep_all=True, min_face_size=FaceSettings().min_face)
    videos = [raw / str(clip.video) for clip in clips]
    seconds: dict[str, list[float]] = {"tracked": [], "every frame": [], "plain": []}
    for turn in range(-1, turns):  # the first one warms up
        for name, taken in seconds.items():
            out = folder / "turn"
            start = time.process_time()
            if name == "plain":
                plain_loop(videos, out, detector)
            else:
                run_unit(raw, out, clips, "yes" if name == "tracked" else "no")
            if turn >= 0:
                taken.append(time.process_time() - start)
            shutil.rmtree(out)
    rate = {name: len(clips) / statistics.median(taken) for name, taken in seconds.items()}
    loop = "decord + MTCNN frame by frame, same frames, min_face_size 40"
    hours = {name: VOXCELEB2_CLIPS / rate[name] / 3600 for name in rate}
    return [
        record("face-tracked", rate["tracked"], rate["plain"], "clips/CPU s", loop),
        record("detection on every frame", rate["every frame"], rate["plain"], "clips/CPU s", loop),
        record("face-tracked, frames", rate["tracked"] * COUNT, rate["plain"] * COUNT, "frames/CPU s", loop),
        record("VoxCeleb2 face-tracked", hours["tracked"], hours["plain"], "core hours", loop, more_is_better=False),
        record("VoxCeleb2 every frame", hours["every frame"], hours["plain"], "core hours", loop, more_is_better=False),
    ]


def run_unit(raw: Path, out: Path, clips: list[Clip], face_tracked: str) -> None:
    """What one process does with a unit of clips."""
    (out / "journal").mkdir(parents=True)
    settings = PreparationSettings(raw, out, FaceSettings(face_tracked=face_tracked))  # type: ignore[arg-type]
    prepare_unit(settings.recipe, out / "journal", "cpu", 1, Task(Unit("00000", tuple(clips))), Silent())


def compare_wall(raw: Path, clips: list[Clip], folder: Path) -> Record:
    """Clips per second on the wall, all cores: `prepare` at work, and the loop with the threads it takes by itself."""
    torch.set_num_threads(os.cpu_count() or 1)
    detector = MTCNN(keep_all=True, min_face_size=FaceSettings().min_face)
    start = time.monotonic()
    plain_loop([raw / str(clip.video) for clip in clips], folder / "plain", detector)
    plain = len(clips) / (time.monotonic() - start)
    summary = prepare(PreparationSettings(raw, folder / "prepared", FaceSettings(face_tracked="yes")))
    assert summary is not None
    name = f"face-tracked, {os.cpu_count()} cores"
    return record(name, summary.clips_per_second, plain, "clips/s", "the loop with its default threads")


def compare_store(folder: Path) -> list[Record]:
    """Random crops per second from a store and from one file a crop, from a warm page cache, by one process and two."""
    rng = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(rng.integers(0, 255, (64, 28, 28, 3), dtype=np.uint8), 4, 1), 4, 2)
    with CropWriter(folder / "store") as writer:
        for start in range(0, STORE_CROPS, 64):
            count = min(64, STORE_CROPS - start)
            writer.append(smooth[:count], np.zeros((count, 5, 2)))
    (folder / "files").mkdir()
    for number in range(STORE_CROPS):
        (folder / "files" / f"{number}.jpg").write_bytes(encode_jpeg(smooth[number % 64]))
    baseline = "one JPEG file a crop"
    records = []
    for processes in (1, 2):
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            store = sum(pool.map(store_reads_per_second, [folder / "store"] * processes))
            files = sum(pool.map(file_reads_per_second, [folder / "files"] * processes))
        records.append(record(f"random reads, {processes} processes", store, files, "crops/s", baseline))
    return records


def store_reads_per_second(folder: Path) -> float:
    """Of this process's CPU time."""
    store, start = CropStore(folder), time.process_time()
    for number in np.random.default_rng(os.getpid()).integers(0, STORE_CROPS, STORE_READS):
        store.read(int(number))
    return STORE_READS / (time.process_time() - start)


def file_reads_per_second(folder: Path) -> float:
    """Of this process's CPU time."""
    start = time.process_time()
    for number in np.random.default_rng(os.getpid()).integers(0, STORE_CROPS, STORE_READS):
        with Image.open(folder / f"{number}.jpg") as image:
            np.asarray(image.convert("RGB"))
    return STORE_READS / (time.process_time() - start)


def watch_memory(raw: Path, clips: list[Clip], folder: Path, count: int) -> Record:
    """Peak memory of one process after the first tenth of `count` clips, and after all of them."""
    torch.set_num_threads(1)
    peaks, done = [], 0
    while done < count:
        run_unit(raw, folder / "memory", clips, "yes")
        shutil.rmtree(folder / "memory")
        done += len(clips)
        if done >= count / 10:
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    name = f"peak memory, {done} clips"
    return record(name, peaks[-1], peaks[0], "MB", "after a tenth of them", more_is_better=False)


if __name__ == "__main__":
    main()
