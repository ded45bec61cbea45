"""Views: the segment or face crop of an utterance, and the parameters of its augmentation.

All randomness comes from the given generator, so a view is a pure function of that generator's seed:
the same for any number of loader workers and ranks, and after any interruption.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from avspk.data.augmentation import AudioPolicy, ImagePolicy, draw_audio, draw_image
from avspk.data.batch import ExampleGroups, Views
from avspk.data.crop_store import CropStore
from avspk.data.manifest import Utterances
from avspk.data.media import SAMPLE_RATE
from avspk.data.noise import NoisePack
from avspk.data.sound_store import SoundStore

Segment = tuple[int, int, np.ndarray]
"""Utterance, first sample, and the array (T,) that its samples are written to."""


@dataclass(frozen=True)
class AudioGroup:
    """`count` crops of `seconds` each; `policy` None leaves them clean; `own`: from the example's first utterance."""

    count: int
    seconds: float
    policy: AudioPolicy | None
    own: bool = False


@dataclass(frozen=True)
class FaceGroup:
    """`count` face crops; `policy` None leaves them whole; `own`: from the example's first utterance."""

    count: int
    policy: ImagePolicy | None
    own: bool = False


class ViewGroup(Protocol):
    """Views of equal shape."""

    @property
    def count(self) -> int:
        """How many."""

    @property
    def own(self) -> bool:
        """Whether all come from the example's first utterance."""


@dataclass(frozen=True)
class PlainGroup:
    """A group without further settings."""

    count: int
    own: bool = False


class GroupedViews(Protocol):
    """A view sampler with named groups."""

    @property
    def groups(self) -> Mapping[str, ViewGroup]:
        """Name -> group."""

    def __call__(self, sources: Sequence[int], rng: np.random.Generator) -> ExampleGroups:
        """Views of an example's groups, cut from these utterances."""


def rows_of_views(groups: Mapping[str, ViewGroup], sources: Sequence[int]) -> dict[str, list[int]]:
    """Group -> utterance of each view: the sources in turn, across the groups; in an `own` group only the first."""
    rows, view = {}, 0
    for name, group in groups.items():
        if group.own:
            rows[name] = [sources[0]] * group.count
            continue
        rows[name] = [sources[(view + offset) % len(sources)] for offset in range(group.count)]
        view += group.count
    return rows


def generator(seed: int, *key: int | str) -> np.random.Generator:
    """Random numbers as a pure function of the seed and a key such as (stage, epoch, index, modality)."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return np.random.default_rng([seed, *words])


class AudioViews:
    """Cuts audio views: int16 segments and the parameters of their reverberation, noise and equaliser."""

    def __init__(self, utterances: Utterances, groups: dict[str, AudioGroup], noise: NoisePack) -> None:
        self.utterances = utterances
        self.sounds = SoundStore()
        self.groups = groups
        # The small part of the pack: loader workers draw parameters, the device holds the samples.
        self.recordings, self.num_rirs = noise.table, len(noise.rirs)
        self.num_samples = utterances.table["num_samples"].to_numpy()

    def __call__(self, sources: Sequence[int], rng: np.random.Generator) -> ExampleGroups:
        """Views of the groups, cut from the utterances that `rows_of_views` names."""
        views: dict[str, Views[np.ndarray]] = {}
        wanted: list[Segment] = []
        for name, rows in rows_of_views(self.groups, sources).items():
            group = self.groups[name]
            signal = np.empty((group.count, round(group.seconds * SAMPLE_RATE)), np.int16)
            wanted += zip(rows, self._starts(rows, signal.shape[1], rng), signal, strict=True)
            drawn = None
            if group.policy is not None:
                drawn = draw_audio(rng, group.policy, self.recordings, self.num_rirs, group.count)
            views[name] = Views(signal, drawn)
        self._fill(wanted)
        return views

    def _starts(self, rows: Sequence[int], length: int, rng: np.random.Generator) -> list[int]:
        """Start of the segment in each utterance; 0 in shorter ones."""
        slack = np.maximum(self.num_samples[list(rows)] - length, 0)
        return (rng.random(len(rows)) * (slack + 1)).astype(np.int64).tolist()

    def _fill(self, wanted: Sequence[Segment]) -> None:
        """Write the samples into the segments of all groups; one read per recording, over the span of its segments."""
        for row in dict.fromkeys(row for row, _, _ in wanted):
            mine = [(start, segment) for candidate, start, segment in wanted if candidate == row]
            first = min(start for start, _ in mine)
            length = max(start + len(segment) for start, segment in mine) - first
            path = self.utterances.audio_path(row)
            span = self.sounds.read(path, first, length, int(self.num_samples[row]))
            samples = np.round(np.clip(span, -1, 1) * 32767).astype(np.int16)
            for start, segment in mine:
                # np.resize repeats recordings that are shorter than the segment.
                segment[:] = np.resize(samples[start - first :][: len(segment)], len(segment))


class FaceViews:
    """Picks face crops, uint8 (112, 112, 3), and the parameters of their augmentation."""

    def __init__(self, utterances: Utterances, store: CropStore, groups: dict[str, FaceGroup]) -> None:
        self.groups = groups
        self.store = store
        self.first_crop = utterances.table["first_crop"].to_numpy()
        self.num_crops = utterances.table["num_crops"].to_numpy()

    def __call__(self, sources: Sequence[int], rng: np.random.Generator) -> ExampleGroups:
        """Random crops of the utterances that `rows_of_views` names; every source must have a face."""
        views: dict[str, Views[np.ndarray]] = {}
        for name, chosen in rows_of_views(self.groups, sources).items():
            group, rows = self.groups[name], np.array(chosen)
            picks = self.first_crop[rows] + (rng.random(group.count) * self.num_crops[rows]).astype(np.int64)
            images = np.stack([self.store.read(int(pick)) for pick in picks])
            drawn = None if group.policy is None else draw_image(rng, group.policy, group.count)
            views[name] = Views(images, drawn)
        return views
