"""One unit of preparation: a fixed run of clips whose results depend on nothing outside it.

A unit owns a shard of the crop store and a journal, one line for each finished batch of clips. What the journal does
not vouch for is cut off and done again, so a unit ends with the same bytes however often it was interrupted.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from avspk.data.clips import Clip
from avspk.data.crop_store import CropWriter
from avspk.data.face_crops import FaceCrops, FaceDetector, FaceSettings, cut_faces
from avspk.data.files import sync, try_hold
from avspk.data.media import MediaError
from avspk.data.prepared_sound import PreparedSound, prepared_sound
from avspk.data.shards import MAX_SHARDS
from avspk.data.sound import read_sound
from avspk.data.sound_store import PackFormat
from avspk.data.tree import Rejected
from avspk.data.video import VideoReader
from avspk.data.worker_pool import PATIENCE, Reporter, Task

# Clips whose frames meet in the detector, and what an interruption costs at most.
BATCH_CLIPS = 16
_LOCK_SECONDS = 60.0
# Bytes a second that the slowest machine gets through: a sound is decoded in one go, pictures are reported one by one.
_SLOWEST = {"sound": 1e6, "picture": 20e6}


class UnitError(RuntimeError):
    """A unit cannot be worked on now."""


@dataclass(frozen=True)
class Recipe:
    """What is done to every clip: the part of the settings that the results depend on."""

    raw: Path
    out: Path
    min_seconds: float
    silence_db: float
    require_face: bool
    faces: FaceSettings
    pack: PackFormat | None = None

    @property
    def sound_kept(self) -> str:
        """What becomes of an utterance without a usable picture."""
        return "" if self.require_face else "; its sound is kept"


@dataclass(frozen=True)
class Unit:
    """Clips number `number` x size to the next unit's; `name` orders units as text."""

    name: str
    clips: tuple[Clip, ...]

    @property
    def batches(self) -> list[tuple[Clip, ...]]:
        """The clips in the batches they are always processed in."""
        return [self.clips[start : start + BATCH_CLIPS] for start in range(0, len(self.clips), BATCH_CLIPS)]


class Row(NamedTuple):
    """A manifest row but for its place in the crop store."""

    utterance: str
    audio: str
    num_samples: int
    num_crops: int
    speaker: str
    recording: str


@dataclass
class BatchResult:
    """What a batch of clips came to; `seconds` is its share of the whole run's time."""

    num_clips: int
    rows: list[Row] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> str:
        """One line."""
        rejected = [[one.path, one.reason] for one in self.rejected]
        return json.dumps([self.num_clips, [list(row) for row in self.rows], rejected, round(self.seconds, 4)])

    @classmethod
    def from_json(cls, line: str) -> "BatchResult":
        """Inverse of `to_json`."""
        num_clips, rows, rejected, seconds = json.loads(line)
        return cls(num_clips, [Row(*row) for row in rows], [Rejected(*one) for one in rejected], seconds)


def read_journal(path: Path) -> list[BatchResult]:
    """Results of a unit's finished batches; a torn last line is left out. Empty if there is no journal."""
    if not path.exists():
        return []
    whole_lines = path.read_bytes().split(b"\n")[:-1]
    return [BatchResult.from_json(line.decode()) for line in whole_lines]


def prepare_unit(recipe: Recipe, journals: Path, device: str, processes: int, task: Task, reporter: Reporter) -> None:
    """Work on the unit `task.content` from where its journal ends; what `task.avoid` names is not decoded.

    One of `processes` that share the work, whose time counts accordingly.

    Raises: OSError if results cannot be written; UnitError if another process holds the unit.
    """
    unit: Unit = task.content
    torch.set_num_threads(1)
    with _locked_journal(journals / f"{unit.name}.jsonl") as journal:
        done = read_journal(Path(journal.name))
        journal.truncate(Path(journal.name).read_bytes().rfind(b"\n") + 1)
        rows = [row for result in done for row in result.rows]
        sounds = prepared_sound(recipe.out, unit.name, recipe.pack, len(rows))
        writer = _shard_writer(recipe, unit, sum(row.num_crops for row in rows))
        if writer is not None:
            _detector(recipe.faces, device)  # before the clock runs: a process loads it once
        for batch in unit.batches[len(done) :]:
            start = time.monotonic()
            result, crops = _prepare_batch(recipe, batch, device, sounds, task.avoid, reporter)
            sounds.sync()
            if writer is not None:
                for one in crops:
                    writer.append(*one)
                writer.sync()
            result.seconds = (time.monotonic() - start) / processes
            journal.write(result.to_json().encode() + b"\n")
            journal.flush()
            sync(Path(journal.name))
            reporter.advance(len(batch))
        sounds.close()
        if writer is not None:
            writer.close()


def _locked_journal(path: Path) -> Any:
    """The journal, open for appending and held by this process alone; a dying holder is waited for."""
    journal = open(path, "ab")  # noqa: SIM115 - the caller's `with` closes it
    deadline = time.monotonic() + _LOCK_SECONDS
    while not try_hold(journal):
        if time.monotonic() > deadline:
            journal.close()
            raise UnitError(f"another process works on part {path.stem}: do two runs have the same slice?")
        time.sleep(0.2)
    return journal


def _shard_writer(recipe: Recipe, unit: Unit, num_crops: int) -> CropWriter | None:
    if not any(clip.video for clip in unit.clips):
        return None
    return CropWriter(recipe.out / "crops", unit.name, keep=num_crops)


def _prepare_batch(
    recipe: Recipe,
    clips: tuple[Clip, ...],
    device: str,
    sounds: PreparedSound,
    avoid: frozenset[str],
    reporter: Reporter,
) -> tuple[BatchResult, list[FaceCrops]]:
    """Sound and frames clip by clip, faces of all clips together."""
    result = BatchResult(len(clips))
    opener = _Opener(recipe, avoid, reporter, result.rejected)
    heard = [(clip, *sound) for clip in clips if (sound := _take_sound(clip, opener))]
    frames = [_take_frames(clip, opener) for clip, _, _ in heard]
    reporter.entering(None)
    faces = iter(_cut(recipe, [one for one in frames if one is not None], device))
    crops = []
    for (clip, source, waveform), shown in zip(heard, frames, strict=True):
        found = next(faces) if shown is not None else None
        num_crops = len(found.crops) if found else 0
        if clip.video and found and not num_crops:
            opener.reject(clip.video, "no face found", recipe.sound_kept)
        if num_crops or not recipe.require_face:
            audio = sounds.put(clip.utterance, recipe.raw / source, waveform)
            origin = clip.speaker, clip.recording
            result.rows.append(Row(clip.utterance, audio, len(waveform), num_crops, *origin))
            crops += [found] if found and num_crops else []
    return result, crops


@dataclass
class _Opener:
    """Opens a batch's files, telling the supervisor which, and keeps account of those that cannot be used."""

    recipe: Recipe
    avoid: frozenset[str]
    reporter: Reporter
    rejected: list[Rejected]

    def __call__(
        self, kind: Literal["sound", "picture"], path: str, read: Callable[[Path], Any], consequence: str = ""
    ) -> Any:
        """What `read` makes of a file, or None after noting why it cannot, and what that means.

        A file that the decoder of its pictures dies on is still opened for its sound.
        """
        item = f"{kind} of {path}"
        if item in self.avoid:
            self.reject(path, f"the decoder crashes or hangs on its {kind}", consequence)
            return None
        file = self.recipe.raw / path
        self.reporter.entering(item, PATIENCE + _size(file) / _SLOWEST[kind])
        try:
            return read(file)
        except MediaError as error:
            self.reject(path, str(error), consequence)
            return None

    def reject(self, path: str, reason: str, consequence: str = "") -> None:
        """Note why a file cannot be used, the first reason only."""
        if all(one.path != path for one in self.rejected):
            self.rejected.append(Rejected(path, reason + consequence))


def _take_sound(clip: Clip, opener: _Opener) -> tuple[str, np.ndarray] | None:
    """The first usable sound's source and waveform; None if there is none."""
    for source in clip.sounds:
        waveform = opener(
            "sound", source, lambda path: read_sound(path, opener.recipe.min_seconds, opener.recipe.silence_db)
        )
        if waveform is not None:
            return source, waveform
    return None


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _take_frames(clip: Clip, opener: _Opener) -> np.ndarray | None:
    """The frames to look for faces in; None if the clip has no picture that can be decoded."""
    faces = opener.recipe.faces

    def read(path: Path) -> np.ndarray:
        with VideoReader(path, faces.max_side, opener.reporter.alive) as video:
            return video.sample(faces.crops_per_clip)

    if clip.video is None:
        return None
    frames: np.ndarray | None = opener("picture", clip.video, read, opener.recipe.sound_kept)
    return frames


def _cut(recipe: Recipe, frames: list[np.ndarray], device: str) -> list[FaceCrops]:
    return cut_faces(frames, _detector(recipe.faces, device), recipe.faces) if frames else []


@lru_cache(1)
def _detector(faces: FaceSettings, device: str) -> FaceDetector:
    """The process's own detector, loaded with the first frames it gets."""
    return FaceDetector(torch.device(device), faces.detection_scale, faces.min_probability, faces.batch_size)


def units_of(clips: list[Clip], max_units: int = MAX_SHARDS, min_clips: int = 2 * BATCH_CLIPS) -> Iterator[Unit]:
    """Cut the ordered clips of a corpus into units, by their number alone.

    At most `max_units`, because each is a shard that readers keep open, and of at least `min_clips`.
    """
    size = max(min_clips, -(-len(clips) // max_units))
    for number, start in enumerate(range(0, len(clips), size)):
        yield Unit(f"{number:05d}", tuple(clips[start : start + size]))
