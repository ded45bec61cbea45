"""Times at which the pictures of a video are shown, from its packets alone: nothing is decoded here."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np


class Picture(NamedTuple):
    """The container's description of one packet; times in ticks of the stream's time base, None if not given.

    `shown` is False for a picture that an edit list hides: it is decoded because others need it.
    """

    pts: int | None
    dts: int | None
    duration: int
    key: bool
    shown: bool


class Run(NamedTuple):
    """A stretch of decoding: from the packet number `first`, a key frame, until the shown `numbers` are found."""

    first: int
    numbers: list[int]


@dataclass(frozen=True)
class Timeline:
    """The shown pictures in order: number i is on the screen from times[i] to times[i + 1], the last one to `end`.

    `step` is the usual duration of a picture, in ticks. `counted`: time stamps do not give the order of showing, so a
    decoded frame is identified by its position in the decoder's output, which begins at the packet number `begin`.
    """

    times: list[int]
    end: int
    step: int
    counted: bool
    begin: int
    _places: dict[int, int]  # time -> packet number
    _keys: list[int]
    _key_times: list[int]

    def delayed(self, first: int | None) -> Timeline:
        """The same pictures, the first one at `first`: a decoder that reorders gives each some packets later.

        Only gaps make a difference: the picture before a gap is not the one that is stored before it.
        """
        if first not in self.times:
            return self
        late = self.times.index(first)
        times = self.times[late:] + [self.times[-1] + self.step * (n + 1) for n in range(late)]
        return replace(self, times=times, end=self.end + late * self.step)

    def at_even_times(self, count: int, begin: float, end: float) -> tuple[np.ndarray, np.ndarray]:
        """Middles of `count` equal parts of the time from `begin` to `end`: the pictures on the screen, and when.

        Numbers (count,) and times (count,), in ticks. Outside of the pictures' time it is the first or the last one.
        Exact: over all n pictures of a video of constant rate it is the picture floor((k + 1/2) n / count).
        """
        scaled = [2 * count * time for time in self.times]
        middles = [2 * count * begin + (2 * k + 1) * (end - begin) for k in range(count)]
        numbers = [max(0, bisect_right(scaled, middle) - 1) for middle in middles]
        return np.array(numbers), np.array(middles) / (2 * count)

    def runs(self, numbers: Sequence[int]) -> list[Run]:
        """The least decoding that gives the pictures `numbers` (ascending): each from the last key frame before it."""
        if self.counted:
            return [Run(self.begin, list(numbers))]
        runs: list[Run] = []
        reached = -1
        for number in numbers:
            place = self._places[self.times[number]]
            first = self._key_before(place, self.times[number])
            if not runs or first > reached:
                runs.append(Run(first, []))
            runs[-1].numbers.append(number)
            reached = max(reached, place)
        return runs

    def _key_before(self, place: int, time: int) -> int:
        """The last key frame that is decoded before packet number `place` and shown no later than `time`.

        A picture that is decoded after a key and shown before it may need the group before.
        """
        last = bisect_right(self._keys, place) - 1
        while last >= 0 and self._key_times[last] > time:
            last -= 1
        return self._keys[last] if last >= 0 else self.begin


def timeline(pictures: Sequence[Picture], counted: bool) -> Timeline | None:
    """The timeline of all packets of a stream in the order of the file; None if nothing is shown.

    Pictures before the first key frame, in the file or on the screen, cannot be decoded and do not count. If most
    pictures have no time stamp, they are counted; half may lack one, because two fields may be two packets.
    """
    if not pictures:
        return None
    stamps = {picture.pts for picture in pictures} - {None}
    counted = counted or 2 * len(stamps) < len(pictures)
    begin = next((place for place, picture in enumerate(pictures) if picture.key), 0)
    if counted:
        shown = _shown_by_count([picture for picture in pictures[begin:] if picture.shown])
        places: dict[int, int] = {}
    else:
        places = _shown_by_time(pictures, begin)
        shown = {time: pictures[place].duration for time, place in places.items()}
    if not shown:
        return None
    times = sorted(shown)
    step = int(np.median(np.diff(times))) if len(times) > 1 else max(1, shown[times[0]])
    end = times[-1] + (shown[times[-1]] or step)
    keys = [place for place, picture in enumerate(pictures) if picture.key and picture.pts is not None]
    key_times = [pictures[place].pts or 0 for place in keys]
    return Timeline(times, end, step, counted, begin, places, keys, key_times)


def _shown_by_time(pictures: Sequence[Picture], begin: int) -> dict[int, int]:
    """Presentation time -> packet number."""
    earliest = pictures[begin].pts if pictures[begin].key else None
    return {
        picture.pts: place
        for place, picture in enumerate(pictures[begin:], begin)
        if picture.shown and picture.pts is not None and (earliest is None or picture.pts >= earliest)
    }


def _shown_by_count(pictures: Sequence[Picture]) -> dict[int, int]:
    """Time -> duration: decoding times if they ascend steadily where presentation times do not; else the position."""
    durations = {picture.dts: picture.duration for picture in pictures if picture.dts is not None}
    steadily = len(durations) == len(pictures) and list(durations) == sorted(durations)
    return durations if steadily else dict.fromkeys(range(len(pictures)), 1)


class Clock:
    """Repairs the time line of broadcast streams: after a jump of the time stamps, time continues where it was.

    The limits are common ones for telling a jump from a pause: 10 s ahead, 0.1 s back.
    """

    def __init__(self, ticks_per_second: float):
        self._ahead, self._back = 10 * ticks_per_second, 0.1 * ticks_per_second
        self._last: int | None = None
        self.offset = 0
        self.jumps = 0

    def correct(self, dts: int | None, duration: int) -> int:
        """Correction of the time stamps of the next packet of the file, which was decoded at `dts`."""
        if dts is None:
            return self.offset
        if self._last is not None and not -self._back <= dts + self.offset - self._last <= self._ahead:
            self.offset = self._last + duration - dts
            self.jumps += 1
        self._last = dts + self.offset
        return self.offset
