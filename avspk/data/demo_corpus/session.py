"""Render the clips of one session: speaker, recording conditions and scene, and from these the bytes of each file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avspk.common.files import whole_or_absent
from avspk.data.demo_corpus.channel import draw_channel, record
from avspk.data.demo_corpus.clips import mp4_bytes, through_aac, wav_bytes
from avspk.data.demo_corpus.face import draw_face, draw_scene, vary_scene
from avspk.data.demo_corpus.plan import Session
from avspk.data.demo_corpus.rendering import TalkingHead, add_grain, film, paint_background
from avspk.data.demo_corpus.settings import FRAME_RATE, SAMPLES_PER_FRAME, CorpusSettings, generator
from avspk.data.demo_corpus.voice import articulate, draw_mood, draw_speaker, mouth_opening, synthesise

Array = NDArray[np.float32]
TRUNCATED_SHARE = 0.6  # of the file remains


class SessionRenderer:
    """One session. Every draw has its own random stream, so a clip does not depend on the others or on their order."""

    def __init__(self, settings: CorpusSettings, session: Session) -> None:
        seed, nuisance, person = settings.seed, settings.nuisance, session.person
        self.settings, self.session = settings, session
        self.speaker = draw_speaker(generator(seed, "speaker", person), session.male)
        self.face = draw_face(generator(seed, "face", person), session.male)
        self.mood = draw_mood(generator(seed, "mood", person, session.number), nuisance)
        self.channel = draw_channel(generator(seed, "channel", person, session.number), nuisance)
        self.scene = draw_scene(generator(seed, "scene", person, session.number), nuisance)

    def clip(self, path: str, kind: str) -> bytes:
        """The bytes of the clip at `path`, of this kind (see `plan.BAD_KINDS`)."""
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
        return data[: int(len(data) * TRUNCATED_SHARE)] if kind == "truncated" else data

    def speak(self, num_frames: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """A recorded utterance (num_frames * 640,) and the mouth opening of each video frame (num_frames,)."""
        num_samples = num_frames * SAMPLES_PER_FRAME
        tracks = articulate(self.speaker, self.mood, num_samples, rng)
        speech = synthesise(self.speaker, self.mood, tracks, num_samples, rng)
        return record(speech, self.channel, self.settings.nuisance, rng), mouth_opening(tracks, num_frames)

    def pictures(self, opening: Array, kind: str, rng: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
        """Frames of the clip: the talking head alone, with a smaller second person, or no head."""
        size = self.settings.image_size
        scene = vary_scene(self.scene, rng, self.settings.nuisance)
        background = paint_background(scene, size)
        if kind == "no_face":
            return add_grain((np.asarray(background) for _ in opening), size, scene.grain, rng)
        if kind == "two_faces":
            beside = replace(scene, scale=0.45, shift_x=0.62, shift_y=0.1, roll=0.0, yaw=0.0)
            background = TalkingHead(draw_face(rng, not self.face.male), beside, background).frame(0.0)
            scene = replace(scene, scale=0.85, shift_x=-0.35, shift_y=0.0)
        return film(TalkingHead(self.face, scene, background), opening, scene.grain, rng)


def render_session(root: Path, settings: CorpusSettings, session: Session) -> int:
    """Write the missing clips of the session; returns the number of all its clips."""
    clips = list(session.clips())
    missing = [(path, kind) for path, kind in clips if not (root / path).exists()]
    if missing:
        renderer = SessionRenderer(settings, session)
        for path, kind in missing:
            with whole_or_absent(root / path) as part:
                part.write_bytes(renderer.clip(path, kind))
    return len(clips)
