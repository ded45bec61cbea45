"""People, sessions and clips of a corpus, and the names of their files; nothing is rendered here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from avspk.data.demo_corpus.settings import CorpusSettings, generator

TRAINING_FOLDER, TEST_FOLDER = "voxceleb2/mp4", "voxceleb1/wav"
FIRST_TEST_PERSON = 10_000  # test identities are called id1XXXX, as in VoxCeleb1, training identities id0XXXX
NAME_LETTERS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"))

GOOD = "good"
# Of these only two_faces can be used: the larger face speaks.
BAD_KINDS = ("no_face", "silence", "truncated", "two_faces", "empty")


@dataclass(frozen=True)
class Session:
    """One video of one person: its clips share channel, mood and set."""

    person: int
    number: int  # 0, 1, ... of this person's sessions
    video: str  # 11 characters, as in VoxCeleb
    num_clips: int  # good ones
    bad_kinds: tuple[str, ...]  # of the clips that follow the good ones

    @property
    def is_test(self) -> bool:
        """Whether the person belongs to the test set."""
        return self.person >= FIRST_TEST_PERSON

    @property
    def male(self) -> bool:
        """Sex of the person, in voice and face; alternates."""
        return self.person % 2 == 0

    @property
    def identity(self) -> str:
        """Folder name of the person."""
        return f"id{self.person:05d}"

    def clips(self) -> Iterator[tuple[str, str]]:
        """Path below the corpus folder, and kind: GOOD or one of BAD_KINDS."""
        folder, suffix = (TEST_FOLDER, "wav") if self.is_test else (TRAINING_FOLDER, "mp4")
        for number, kind in enumerate((GOOD,) * self.num_clips + self.bad_kinds, start=1):
            yield f"{folder}/{self.identity}/{self.video}/{number:05d}.{suffix}", kind


def plan_sessions(settings: CorpusSettings) -> list[Session]:
    """Every session of the corpus, training first; bad clips are dealt out to training sessions at random."""
    training = list(product(range(1, settings.training_identities + 1), range(settings.training_sessions)))
    test_people = range(FIRST_TEST_PERSON + 1, FIRST_TEST_PERSON + settings.test_identities + 1)
    test = list(product(test_people, range(settings.test_sessions)))
    bad_kinds = BAD_KINDS * settings.bad_clips
    hosts = generator(settings.seed, "bad clips").integers(len(training), size=len(bad_kinds))
    return [
        Session(
            person,
            number,
            video=_video_name(settings.seed, person, number),
            num_clips=settings.test_clips if person >= FIRST_TEST_PERSON else settings.training_clips,
            bad_kinds=tuple(kind for host, kind in zip(hosts, bad_kinds, strict=True) if host == index),
        )
        for index, (person, number) in enumerate(training + test)
    ]


def _video_name(seed: int, person: int, number: int) -> str:
    return "".join(generator(seed, "video", person, number).choice(NAME_LETTERS, 11))
