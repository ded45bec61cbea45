"""Cuts long recordings into parts: at cuts of the picture, and at pauses of the sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from avspk.data.appearance import OTHER, appearances, differences
from avspk.data.media import SAMPLE_RATE

Span = tuple[int, int]
"""First sample, and one past the last."""
_FRAME = SAMPLE_RATE // 100  # samples
_PAUSE = 30  # consecutive quiet frames
_PICTURES_A_SECOND = 2
_WINDOW = 512  # pictures in memory at once
_SHORT = SAMPLE_RATE  # [C] samples without a picture, before or after it, that are no span of their own


def parts_of(waveform: np.ndarray, max_seconds: float, shots: Sequence[Span] | None = None) -> list[Span]:
    """Spans of at most `max_seconds` of a waveform (n,), in order; `shots` of the picture are not joined.

    A shot that is too long is cut where its sound is quietest, in the second half of the longest possible part, but not
    so near the end that less than a quarter is left.
    """
    levels = _levels(waveform)
    longest = int(max_seconds * SAMPLE_RATE)
    whole = [(0, len(waveform))] if shots is None else shots
    return [part for begin, end in whole for part in _cut_at_pauses(levels, begin, end, longest)]


def _levels(waveform: np.ndarray) -> np.ndarray:
    """Mean power of 0.3 s around each frame of 10 ms."""
    whole = len(waveform) // _FRAME
    powers = np.square(waveform[: whole * _FRAME]).reshape(whole, _FRAME).mean(axis=1, dtype=np.float64)
    sums = np.concatenate([[0.0], np.cumsum(powers)])
    begin = np.clip(np.arange(whole) - _PAUSE // 2, 0, max(0, whole - _PAUSE))
    means: np.ndarray = (sums[np.minimum(begin + _PAUSE, whole)] - sums[begin]) / _PAUSE
    return means


def _cut_at_pauses(levels: np.ndarray, begin: int, end: int, longest: int) -> Iterator[Span]:
    while end - begin > longest:
        first = (begin + longest // 2) // _FRAME
        last = min(begin + longest, end - longest // 4) // _FRAME
        cut = (first + int(levels[first : max(last, first + 1)].argmin())) * _FRAME
        yield begin, cut
        begin = cut
    yield begin, end


def shots_of(read_at: Callable[[np.ndarray], np.ndarray], num_samples: int, shown: Span) -> list[Span]:
    """Spans of the recording's samples without a cut in the picture; `read_at` gives the frames at samples (n,).

    Two pictures a second are compared. The time between two that differ belongs to neither shot. There is a picture
    during the samples `shown`: the sound before or after it is a span of its own, unless it is short.
    """
    first = shown[0] if shown[0] >= _SHORT else 0
    last = shown[1] if shown[1] <= num_samples - _SHORT else num_samples
    if first >= last:
        return [(0, num_samples)]
    before, after = [(0, first)] * (first > 0), [(last, num_samples)] * (last < num_samples)
    return [*before, *_shots_between(read_at, first, last), *after]


def _shots_between(read_at: Callable[[np.ndarray], np.ndarray], first: int, last: int) -> list[Span]:
    step = SAMPLE_RATE // _PICTURES_A_SECOND
    places = np.arange(first, last, step)
    cuts: list[int] = []
    before = None
    for start in range(0, len(places), _WINDOW):
        window = places[start : start + _WINDOW]
        found = appearances(read_at(window))
        previous = found[:1] if before is None else before
        changed = differences(found, np.concatenate([previous, found[:-1]])) >= OTHER
        cuts += window[changed].tolist()
        before = found[-1:]
    borders = [first, *(border for cut in cuts for border in (cut - step, cut)), last]
    return list(zip(borders[::2], borders[1::2], strict=True))
