"""One unit of preparation: a fixed range of clips whose results depend on nothing outside it.

A unit owns a shard of the crop store and a journal, with one line per finished batch of clips. Data that the journal
does not confirm is cut off and made again, so a unit ends with the same bytes however often it was interrupted.
"""

import json
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from avspk.common.files import file_size, sync, try_hold
from avspk.data.clips import Clip
from avspk.data.crop_store import CropWriter
from avspk.data.cutting import Span, parts_of, shots_of
from avspk.data.face_crops import FaceCrops, FaceDetector, cut_faces
from avspk.data.film import Film
from avspk.data.media import SAMPLE_RATE, AudioWarning, MediaError, PictureWarning
from avspk.data.one_person import MainPerson, main_persons
from avspk.data.preparation_settings import FaceSettings, PackFormat
from avspk.data.prepared_sound import PreparedSound, prepared_sound
from avspk.data.shards import MAX_SHARDS
from avspk.data.sound import TimedSound, read_sound, read_sound_of_video
from avspk.data.sound_check import check_sound
from avspk.data.sound_clock import SoundTime
from avspk.data.tree import Rejected
from avspk.data.video import Looks, VideoReader
from avspk.data.worker_pool import PATIENCE, Reporter, Task, decoder_fails

# Clips that share batches of the detector; an interruption loses at most one such batch.
BATCH_CLIPS = 16
_LOCK_SECONDS = 60.0
# Bytes per second on the slowest machine: a sound is decoded in one call, pictures are reported one by one.
_SLOWEST = {"sound": 1e6, "picture": 20e6}


THUMBNAIL = 112  # longer side of the pictures that are searched for cuts


class UnitError(RuntimeError):
    """A unit cannot be worked on now."""


@dataclass(frozen=True)
class Recipe:
    """Processing of every clip: the settings that the results depend on."""

    raw: Path
    out: Path
    min_seconds: float
    silence_db: float
    require_face: bool
    faces: FaceSettings
    pack: PackFormat | None = None
    max_seconds: float = 0.0
    one_person: bool = False

    @property
    def sound_kept(self) -> str:
        """Added to the reason if an utterance has no usable picture."""
        return "" if self.require_face else "; its sound is kept"


@dataclass(frozen=True)
class Unit:
    """A range of consecutive clips; `name` orders units as text."""

    name: str
    clips: tuple[Clip, ...]

    @property
    def batches(self) -> list[tuple[Clip, ...]]:
        """The clips in the batches they are always processed in."""
        return [self.clips[start : start + BATCH_CLIPS] for start in range(0, len(self.clips), BATCH_CLIPS)]


class Row(NamedTuple):
    """A manifest row without its position in the crop store."""

    utterance: str
    audio: str
    num_samples: int
    num_crops: int
    speaker: str
    recording: str


@dataclass
class BatchResult:
    """Results of a batch of clips; `seconds` is its share of the whole run's time."""

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
    """Results of a unit's finished batches; an incomplete last line is left out. Empty if there is no journal."""
    if not path.exists():
        return []
    whole_lines = path.read_bytes().split(b"\n")[:-1]
    return [BatchResult.from_json(line.decode()) for line in whole_lines]


def prepare_unit(recipe: Recipe, journals: Path, device: str, processes: int, task: Task, reporter: Reporter) -> None:
    """Work on the unit `task.content` from where its journal ends; items in `task.avoid` are not decoded.

    This process is one of `processes` that share the work; its time counts accordingly.

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
            _detector(recipe.faces, device)  # before the clock starts: each process loads it once
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
    """The journal, open for appending and locked by this process; waits for a dying holder."""
    journal = open(path, "ab")  # noqa: SIM115 - the caller's `with` closes it
    deadline = time.monotonic() + _LOCK_SECONDS
    while not try_hold(journal):
        if time.monotonic() > deadline:
            journal.close()
            raise UnitError(f"another process works on part {path.stem}; two runs may have the same slice")
        time.sleep(0.2)
    return journal


def _shard_writer(recipe: Recipe, unit: Unit, num_crops: int) -> CropWriter | None:
    if not any(clip.video for clip in unit.clips):
        return None
    return CropWriter(recipe.out / "crops", unit.name, keep=num_crops)


@dataclass(frozen=True)
class _Part:
    """A possible utterance: a clip or, if that is long, part number `number` of it, from 1.

    `waveform` (n,) of the clip's file `source`; `looks` at its picture, with times in samples of `waveform`, None if
    there is no picture that can be decoded.
    """

    clip: Clip
    source: str
    waveform: np.ndarray
    looks: Looks | None
    number: int = 0

    @property
    def frames(self) -> list[np.ndarray]:
        """The frames in a list, which is empty if there are none."""
        return [] if self.looks is None or not len(self.looks.frames) else [self.looks.frames]

    @property
    def utterance(self) -> str:
        return self.clip.part(self.number) if self.number else self.clip.utterance


def _prepare_batch(
    recipe: Recipe,
    clips: tuple[Clip, ...],
    device: str,
    sounds: PreparedSound,
    avoid: frozenset[str],
    reporter: Reporter,
) -> tuple[BatchResult, list[FaceCrops]]:
    """Read sound and frames clip by clip, and detect faces of several clips together."""
    result = BatchResult(len(clips))
    opener = _Opener(recipe, avoid, reporter, result.rejected)
    crops: list[FaceCrops] = []
    for parts in batched((part for clip in clips for part in _parts(clip, opener)), BATCH_CLIPS):
        reporter.entering(None)
        persons = iter(_persons(recipe, [frames for part in parts for frames in part.frames], device))
        for part in parts:
            found = _take(part, next(persons) if part.frames else None, opener, sounds)
            if found is not None:
                result.rows.append(found[0])
                crops += found[1:]
    opener.sum_up(clips)
    return result, crops


def batched(parts: Iterator[_Part], count: int) -> Iterator[list[_Part]]:
    """Lists of `count` parts."""
    while batch := list(islice(parts, count)):
        yield batch


def _take(
    part: _Part, person: MainPerson | None, opener: "_Opener", sounds: PreparedSound
) -> tuple[Row, *tuple[FaceCrops, ...]] | None:
    """The row and, if there is a face, the crops of a usable part."""
    recipe, clip = opener.recipe, part.clip
    if person is not None and person.problem:
        opener.leave_out(part, person.problem)
        return None
    num_crops = len(person.crops.crops) if person else 0
    if part.looks is not None and not num_crops:
        opener.leave_out(part, ("no face found" if part.frames else "no picture at its time") + recipe.sound_kept)
    if not num_crops and recipe.require_face:
        return None
    begin, end = _kept(part, person)
    waveform, whole = part.waveform[begin:end], end - begin == len(part.waveform)
    if not whole and (problem := _problem(waveform, recipe)):
        opener.leave_out(part, f"several people, and alone {problem}")
        return None
    if not whole:
        seconds = "" if part.number else f", {begin / SAMPLE_RATE:.1f} to {end / SAMPLE_RATE:.1f} s"
        opener.leave_out(part, f"several people: one is kept{seconds}")
    audio = sounds.put(part.utterance, recipe.raw / part.source, waveform, whole and not part.number)
    row = Row(part.utterance, audio, len(waveform), num_crops, clip.speaker, clip.recording)
    return (row, person.crops) if person and num_crops else (row,)


def _kept(part: _Part, person: MainPerson | None) -> Span:
    """The samples of a part in which nobody else is seen."""
    num = len(part.waveform)
    if person is None or part.looks is None:
        return 0, num
    first, last = person.kept
    begin = 0 if first is None else _within(part.looks.times[first], num)
    return begin, num if last is None else _within(part.looks.times[last], num)


def _within(place: float, num_samples: int) -> int:
    return min(max(0, round(place)), num_samples)


def _parts(clip: Clip, opener: "_Opener") -> Iterator[_Part]:
    """The clip, or its parts if it is long."""
    found, recipe = _take_sound(clip, opener), opener.recipe
    if found is None:
        return
    source, sound = found
    waveform = sound.waveform
    if not recipe.max_seconds or len(waveform) <= recipe.max_seconds * SAMPLE_RATE:
        yield _Part(clip, source, waveform, _take_looks(clip, opener, sound))
        return
    spans = parts_of(waveform, recipe.max_seconds, _shots(clip, opener, sound))
    with _LongFilm(clip, opener, sound.time) as film:
        for number, (begin, end) in enumerate(spans, 1):
            part = _Part(clip, source, waveform[begin:end].copy(), None, number)
            if problem := _problem(part.waveform, recipe):
                opener.leave_out(part, problem.partition(":")[0])
            else:
                yield replace(part, looks=film.looks(begin, end))


def _problem(waveform: np.ndarray, recipe: Recipe) -> str:
    """Reason why a part of a usable sound cannot be used; "" if it can."""
    try:
        check_sound(waveform, recipe.min_seconds, recipe.silence_db)
    except MediaError as error:
        return str(error)
    return ""


def _shots(clip: Clip, opener: "_Opener", sound: TimedSound) -> list[Span] | None:
    """Spans between cuts of the picture; None without a picture that can be decoded."""

    def read(path: Path) -> list[Span]:
        with VideoReader(path, THUMBNAIL, opener.reporter.alive) as video:
            film = Film(video, sound.time)
            return shots_of(film.read_at, len(sound.waveform), film.span)

    if clip.video is None:
        return None
    shots: list[Span] | None = opener("picture", clip.video, read, opener.recipe.sound_kept)
    return shots


@dataclass
class _Opener:
    """Opens a batch's files, reports them to the supervisor, and records those that cannot be used."""

    recipe: Recipe
    avoid: frozenset[str]
    reporter: Reporter
    rejected: list[Rejected]
    left_out: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    notes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __call__(
        self, kind: Literal["sound", "picture"], path: str, read: Callable[[Path], Any], consequence: str = ""
    ) -> Any:
        """Result of `read` for a file, or None after recording the reason and its consequence.

        A file whose pictures kill the decoder is still opened for its sound.
        """
        item = f"{kind} of {path}"
        if item in self.avoid:
            self.reject(path, decoder_fails(kind), consequence)
            return None
        file = self.recipe.raw / path
        self.reporter.entering(item, PATIENCE + file_size(file) / _SLOWEST[kind])
        try:
            return self._read_and_note(file, path, read)
        except MediaError as error:
            self.reject(path, str(error), consequence)
            return None

    def _read_and_note(self, file: Path, path: str, read: Callable[[Path], Any]) -> Any:
        """Result of `read`; what it warns of is noted."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            for kind in (AudioWarning, PictureWarning):
                warnings.simplefilter("always", kind)
            content = read(file)
        notes = [str(warning.message).removeprefix(f"{file}: ") for warning in caught]
        self.notes[path] += [note for note in dict.fromkeys(notes) if note not in self.notes[path]]
        return content

    def leave_out(self, part: _Part, reason: str) -> None:
        """Record why a part, or some of its content, cannot be used."""
        if part.number:
            self.left_out[part.clip.utterance][reason] += 1
        else:
            self.reject(part.clip.video or part.source, reason)

    def sum_up(self, clips: Iterable[Clip]) -> None:
        """Name the clips with parts, and the files with tracks, that were left out."""
        for clip in clips:
            if reasons := self.left_out.get(clip.utterance):
                parts = "; ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
                self.reject(clip.video or clip.sounds[0], f"of its parts: {parts}")
        self._add_notes()

    def _add_notes(self) -> None:
        """Record the notes, behind the reason if a file has one."""
        noted = {path: notes for path, notes in self.notes.items() if notes}
        reasons = {one.path: [one.reason] for one in self.rejected}
        self.rejected[:] = [one for one in self.rejected if one.path not in noted]
        self.rejected += [Rejected(path, "; ".join(reasons.get(path, []) + notes)) for path, notes in noted.items()]

    def reject(self, path: str, reason: str, consequence: str = "") -> None:
        """Record why a file cannot be used; only the first reason is kept."""
        if all(one.path != path for one in self.rejected):
            self.rejected.append(Rejected(path, reason + consequence))


def _take_sound(clip: Clip, opener: _Opener) -> tuple[str, TimedSound] | None:
    """The first usable sound and its source; None if there is none. The time of one in a file of its own is unknown."""
    limits = opener.recipe.min_seconds, opener.recipe.silence_db

    def of_video(path: Path) -> TimedSound:
        return read_sound_of_video(path, *limits)

    def alone(path: Path) -> TimedSound:
        return TimedSound(read_sound(path, *limits))

    for source in clip.sounds:
        sound = opener("sound", source, of_video if source == clip.video else alone)
        if sound is not None:
            return source, sound
    return None


def _take_looks(clip: Clip, opener: _Opener, sound: TimedSound) -> Looks | None:
    """The frames for the face detector; None if the clip has no picture that can be decoded."""
    faces = opener.recipe.faces

    def read(path: Path) -> Looks:
        with VideoReader(path, faces.max_side, opener.reporter.alive) as video:
            return Film(video, sound.time).sample(faces.crops_per_clip, len(sound.waveform))

    if clip.video is None:
        return None
    looks: Looks | None = opener("picture", clip.video, read, opener.recipe.sound_kept)
    return looks


class _LongFilm:
    """The picture of a long clip, if it has one that can be decoded; its packets are read once."""

    def __init__(self, clip: Clip, opener: _Opener, sound: SoundTime) -> None:
        self._clip, self._opener, self._sound = clip, opener, sound
        self._video: VideoReader | None = None
        self._film: Film | None = None

    def __enter__(self) -> "_LongFilm":
        faces, alive = self._opener.recipe.faces, self._opener.reporter.alive
        if self._clip.video is not None:
            self._video = self._ask(lambda path: VideoReader(path, faces.max_side, alive))
        if (video := self._video) is not None:
            self._film = self._ask(lambda _: Film(video, self._sound))
        return self

    def __exit__(self, *_: object) -> None:
        if self._video is not None:
            self._video.__exit__()

    def looks(self, begin: int, end: int) -> Looks | None:
        """The frames for the face detector, in the middles of equal parts of a span."""
        if self._film is None:
            return None
        film, count = self._film, self._opener.recipe.faces.crops_per_clip
        looks: Looks | None = self._ask(lambda _: film.looks(count, begin, end))
        return looks

    def _ask(self, read: Callable[[Path], Any]) -> Any:
        return self._opener("picture", str(self._clip.video), read, self._opener.recipe.sound_kept)


def _persons(recipe: Recipe, frames: list[np.ndarray], device: str) -> list[MainPerson]:
    """The person of each clip or, if this is not checked, the main face."""
    if not frames:
        return []
    detector = _detector(recipe.faces, device)
    if recipe.one_person:
        return main_persons(frames, detector, recipe.faces)
    return [MainPerson(crops) for crops in cut_faces(frames, detector, recipe.faces)]


@lru_cache(1)
def _detector(faces: FaceSettings, device: str) -> FaceDetector:
    """The process's own detector, loaded at first use."""
    return FaceDetector(torch.device(device), faces.detection_scale, faces.min_probability, faces.batch_size)


def units_of(clips: list[Clip], max_units: int = MAX_SHARDS, min_clips: int = 2 * BATCH_CLIPS) -> Iterator[Unit]:
    """Divide the ordered clips of a corpus into units, by their number alone.

    At most `max_units`, because readers keep the shard of each open, and at least `min_clips` clips per unit.
    """
    size = max(min_clips, -(-len(clips) // max_units))
    for number, start in enumerate(range(0, len(clips), size)):
        yield Unit(f"{number:05d}", tuple(clips[start : start + size]))
