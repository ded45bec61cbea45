"""Write a demo corpus: sessions are rendered in parallel, each clip a pure function of the settings and its own name."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from avspk.data.demo_corpus.channel import Channel, draw_channel, record
from avspk.data.demo_corpus.clips import mp4_bytes, through_aac, wav_bytes
from avspk.data.demo_corpus.contact_sheet import contact_sheet
from avspk.data.demo_corpus.face import Face, Scene, draw_face, draw_scene, vary_scene
from avspk.data.demo_corpus.rendering import TalkingHead, add_grain, film, paint_background
from avspk.data.demo_corpus.settings import FRAME_RATE, SAMPLES_PER_FRAME, CorpusSettings, generator
from avspk.data.demo_corpus.trials import TestClip, draw_trials, format_trials
from avspk.data.demo_corpus.voice import Mood, Speaker, articulate, draw_mood, draw_speaker, mouth_opening, synthesise

Array = NDArray[np.float32]

GENERATOR_VERSION = 1  # raise it when the same settings would give other bytes
FIRST_TEST_PERSON = 10_000  # test identities are called id1XXXX, as in VoxCeleb1, training identities id0XXXX
BAD_KINDS = ("no_face", "silence", "truncated", "two_faces", "empty")
NAME_LETTERS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"))


@dataclass(frozen=True)
class Session:
    """One video of one person: its clips share channel, mood and set."""

    person: int
    number: int
    video: str  # 11 characters, as VoxCeleb's
    num_clips: int
    bad_kinds: tuple[str, ...] = ()  # of the clips that follow the good ones

    @property
    def is_test(self) -> bool:
        """Whether the person belongs to the test set."""
        return self.person >= FIRST_TEST_PERSON

    @property
    def male(self) -> bool:
        """Sex of the person, for voice and face: every other one."""
        return self.person % 2 == 0

    @property
    def identity(self) -> str:
        """Folder name of the person."""
        return f"id{self.person:05d}"

    def clips(self) -> Iterator[tuple[str, str]]:
        """Path below the corpus folder, and kind: "good" or one of BAD_KINDS."""
        folder, suffix = ("voxceleb1/wav", "wav") if self.is_test else ("voxceleb2/mp4", "mp4")
        for number, kind in enumerate(("good",) * self.num_clips + self.bad_kinds, start=1):
            yield f"{folder}/{self.identity}/{self.video}/{number:05d}.{suffix}", kind


def plan_sessions(settings: CorpusSettings) -> list[Session]:
    """Every session of the corpus; bad clips are dealt out to training sessions drawn at random."""
    training = [(person + 1, number) for person in range(settings.training_identities)
                for number in range(settings.training_sessions)]  # fmt: skip
    test = [(FIRST_TEST_PERSON + person + 1, number) for person in range(settings.test_identities)
            for number in range(settings.test_sessions)]  # fmt: skip
    hosts = generator(settings.seed, "bad clips").integers(len(training), size=settings.bad_clips * len(BAD_KINDS))
    return [
        Session(
            person,
            number,
            video="".join(generator(settings.seed, "video", person, number).choice(NAME_LETTERS, 11)),
            num_clips=settings.test_clips if person >= FIRST_TEST_PERSON else settings.training_clips,
            bad_kinds=tuple(BAD_KINDS[deal % len(BAD_KINDS)] for deal in np.flatnonzero(hosts == index)),
        )
        for index, (person, number) in enumerate(training + test)
    ]


class SessionRenderer:
    """Renders the clips of one session. Everything drawn belongs to a key, so no clip depends on another's rendering."""

    def __init__(self, settings: CorpusSettings, session: Session) -> None:
        self.settings, self.session, nuisance = settings, session, settings.nuisance
        person, key = session.person, (session.person, session.number)
        self.speaker: Speaker = draw_speaker(generator(settings.seed, "speaker", person), session.male)
        self.mood: Mood = draw_mood(generator(settings.seed, "mood", *key), nuisance)
        self.channel: Channel = draw_channel(generator(settings.seed, "channel", *key), nuisance)
        self.face: Face = draw_face(generator(settings.seed, "face", person), session.male)
        self.scene: Scene = draw_scene(generator(settings.seed, "scene", *key), nuisance)

    def clip(self, path: str, kind: str) -> bytes:
        """The bytes of one clip file."""
        if kind == "empty":
            return b""
        rng = generator(self.settings.seed, "clip", path)
        num_frames = round(rng.uniform(*self.settings.clip_seconds) * FRAME_RATE)
        waveform, opening = self.speak(num_frames, rng)
        if self.session.is_test:
            return wav_bytes(through_aac(waveform))
        if kind == "silence":
            waveform, opening = np.zeros_like(waveform), np.zeros_like(opening)
        data = mp4_bytes(self.pictures(opening, kind, rng), waveform, self.settings.image_size)
        return data[: len(data) * 6 // 10] if kind == "truncated" else data

    def speak(self, num_frames: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """A recorded utterance (num_frames * 640,) and the mouth opening of each video frame (num_frames,)."""
        num_samples = num_frames * SAMPLES_PER_FRAME
        tracks = articulate(self.speaker, self.mood, num_samples, rng)
        speech = synthesise(self.speaker, self.mood, tracks, num_samples, rng)
        return record(speech, self.channel, self.settings.nuisance, rng), mouth_opening(tracks, num_frames)

    def pictures(self, opening: Array, kind: str, rng: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
        """Frames of the clip: the head talking, alone, beside a smaller second person, or gone."""
        size = self.settings.image_size
        scene = vary_scene(self.scene, rng, self.settings.nuisance)
        background = paint_background(scene, size)
        if kind == "no_face":
            return add_grain((np.asarray(background) for _ in opening), size, scene.grain, rng)
        if kind == "two_faces":
            other = replace(scene, scale=0.45, shift_x=0.62, shift_y=0.1, roll=0.0, yaw=0.0)
            background = TalkingHead(draw_face(rng, not self.face.male), other, background).frame(0.0)
            scene = replace(scene, scale=0.85, shift_x=-0.35, shift_y=0.0)
        return film(TalkingHead(self.face, scene, background), opening, scene.grain, rng)


def render_session(root: Path, settings: CorpusSettings, session: Session) -> int:
    """Write the session's clips that are not there yet; returns how many clips the session has."""
    clips = list(session.clips())
    missing = [(path, kind) for path, kind in clips if not (root / path).exists()]
    if missing:
        renderer = SessionRenderer(settings, session)
        (root / missing[0][0]).parent.mkdir(parents=True, exist_ok=True)
        for path, kind in missing:
            write_atomically(root / path, renderer.clip(path, kind))
    return len(clips)


def write_atomically(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename: a file under its own name is complete."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def build_demo_corpus(root: Path, settings: CorpusSettings, workers: int) -> None:
    """Make the corpus of `settings` under `root` with `workers` processes (0 or 1: in this one).

    The bytes written depend on the settings alone. A finished corpus is left as it is, an interrupted one continued.
    Raises FileExistsError if `root` holds a corpus of other settings.
    """
    sessions = plan_sessions(settings)
    if _begin(root, settings):
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn()
    ) as progress:
        bar = progress.add_task("demo corpus, clips", total=sum(len(list(session.clips())) for session in sessions))
        for num_clips in _render_all(root, settings, sessions, workers):
            progress.advance(bar, num_clips)
    _write_trials(root, settings, sessions)
    _write_samples(root, sessions)
    _write_description(root, settings, sessions, finished=True)


class _Rate(ProgressColumn):
    """Clips per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "-/s")


def _render_all(root: Path, settings: CorpusSettings, sessions: list[Session], workers: int) -> Iterator[int]:
    if workers <= 1:
        yield from (render_session(root, settings, session) for session in sessions)
        return
    # spawn: a forked child would inherit the threads and locks of whatever the parent has loaded.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(render_session, root, settings, session) for session in sessions]
        try:
            yield from (job.result() for job in as_completed(jobs))
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(root: Path, settings: CorpusSettings) -> bool:
    """Claim `root` for these settings; True if it already holds the finished corpus."""
    wanted = {"generator": GENERATOR_VERSION, "settings": json.loads(json.dumps(asdict(settings)))}
    description = root / "corpus.json"
    if description.exists():
        found = json.loads(description.read_text())
        if any(found.get(key) != wanted[key] for key in wanted):
            raise FileExistsError(
                f"{root} holds a demo corpus of other settings: {_differences(found, wanted)}. "
                "Delete the folder or choose another one."
            )
        return bool(found["finished"])
    root.mkdir(parents=True, exist_ok=True)
    _write_description(root, settings, [], finished=False)
    return False


def _differences(found: dict, wanted: dict) -> str:
    def flat(tree: dict, prefix: str = "") -> dict[str, object]:
        leaves: dict[str, object] = {}
        for key, value in tree.items():
            leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return leaves

    old, new = flat({key: found.get(key, {}) for key in wanted}), flat(wanted)
    return ", ".join(f"{key} is {old.get(key)}, not {new.get(key)}" for key in new if old.get(key) != new[key])


def _write_description(root: Path, settings: CorpusSettings, sessions: list[Session], finished: bool) -> None:
    kinds = Counter((session.is_test, kind) for session in sessions for _, kind in session.clips())
    description = {
        "generator": GENERATOR_VERSION,
        "finished": finished,
        "settings": asdict(settings),
        "counts": {
            "training_clips": kinds[False, "good"],
            "bad_clips": sum(number for (_, kind), number in kinds.items() if kind != "good"),
            "test_clips": kinds[True, "good"],
        },
        "bad_clips": {path: kind for session in sessions for path, kind in session.clips() if kind != "good"},
    }
    write_atomically(root / "corpus.json", (json.dumps(description, indent=2) + "\n").encode())


def _write_trials(root: Path, settings: CorpusSettings, sessions: list[Session]) -> None:
    clips = [
        TestClip(path.removeprefix("voxceleb1/wav/"), session.identity, session.video, session.male)
        for session in sessions
        if session.is_test
        for path, _ in session.clips()
    ]
    (root / "trials").mkdir(exist_ok=True)
    for name, same_sex in (("demo_O", False), ("demo_H", True)):
        rng = generator(settings.seed, "trials", name)
        trials = draw_trials(clips, same_sex, settings.nontargets_per_target, rng)
        write_atomically(root / "trials" / f"{name}.txt", format_trials(trials).encode())


def _write_samples(root: Path, sessions: list[Session], num_people: int = 12) -> None:
    """What a person looks at and listens to: a contact sheet, and two people of each sex in two sessions."""
    rows = [[root / next(session.clips())[0] for session in sessions if session.person == person]
            for person in range(1, num_people + 1)]  # fmt: skip
    sheet = contact_sheet([row for row in rows if row])
    Image.fromarray(sheet).save(root / "contact_sheet.png")
    (root / "listen").mkdir(exist_ok=True)
    for session in sessions:
        if session.is_test and session.person <= FIRST_TEST_PERSON + 4 and session.number < 2:
            name = f"{session.identity}_{'male' if session.male else 'female'}_session{session.number + 1}.wav"
            shutil.copyfile(root / next(session.clips())[0], root / "listen" / name)
