"""Trial lists over the test clips, in VoxCeleb's format: `1 id10001/abc/00001.wav id10001/def/00002.wav`."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np


class TestClip(NamedTuple):
    """A test clip for trial lists."""

    path: str
    identity: str
    session: str
    male: bool


class Trial(NamedTuple):
    """Two clips, and whether the same person speaks in both."""

    target: bool
    enroll: str
    test: str


def draw_trials(
    clips: list[TestClip], same_sex: bool, nontargets_per_target: int, rng: np.random.Generator
) -> list[Trial]:
    """Every cross-session target pair, and non-target pairs drawn without replacement, uniformly over all pairs.

    With `same_sex`, sex alone cannot separate a non-target pair (VoxCeleb1-H does this with sex and nationality).
    """
    targets, others = [], []
    for pair in combinations(clips, 2):
        if pair[0].identity != pair[1].identity:
            if not same_sex or pair[0].male == pair[1].male:
                others.append(pair)
        elif pair[0].session != pair[1].session:
            targets.append(pair)
    chosen = rng.permutation(len(others))[: nontargets_per_target * len(targets)]
    pairs = [(True, pair) for pair in targets] + [(False, others[index]) for index in chosen]
    order, swap = rng.permutation(len(pairs)), rng.random(len(pairs)) < 0.5
    return [
        Trial(target, *(clip.path for clip in (pair[::-1] if swap[index] else pair)))
        for index in order
        for target, pair in [pairs[index]]
    ]


def format_trials(trials: list[Trial]) -> str:
    """The list as text, one trial a line."""
    return "".join(f"{int(trial.target)} {trial.enroll} {trial.test}\n" for trial in trials)
