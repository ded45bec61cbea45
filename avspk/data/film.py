"""The picture of a video on the time axis of its sound."""

from __future__ import annotations

import numpy as np

from avspk.data.cutting import Span
from avspk.data.media import SAMPLE_RATE, MediaError
from avspk.data.sound_clock import SoundTime
from avspk.data.video import Looks, VideoReader

_TOGETHER = 0.05  # [C] s between the first frame and the sound that count as none: about a frame, or a coder's delay
_APART = 0.5  # [C] s by which the repair of jumps may differ between sound and picture
_NEARLY = 0.5  # [C] s by which a picture may outlast the sound at either end and is still looked at as a whole
_NO_FRAMES = np.zeros((0, 1, 1, 3), np.uint8)


class Film:
    """The pictures of an open video; times are in samples of its sound.

    A sound of another file, or without times, begins with the first frame.

    Raises: MediaError if the time stamps of sound and picture jump differently.
    """

    def __init__(self, video: VideoReader, sound: SoundTime = SoundTime()) -> None:  # noqa: B008 - it is constant
        if sound.begin is not None and abs(sound.joined - video.joined) > _APART:
            raise MediaError(f"the time stamps of sound and picture jump apart, by {sound.joined - video.joined:.1f} s")
        self._video = video
        self._origin = first = video.span[0]
        if sound.begin is not None and video.is_timed and abs(sound.begin - first) > _TOGETHER:
            self._origin = sound.begin

    @property
    def span(self) -> Span:
        """The sound's samples during which there is a picture; they may lie outside of the sound."""
        begin, end = ((second - self._origin) * SAMPLE_RATE for second in self._video.span)
        return round(begin), round(end)

    def read_at(self, places: np.ndarray) -> np.ndarray:
        """The frame on the screen at each of these samples (n,), or the nearest one; raises as `VideoReader.read`."""
        return self._video.read_at(places / SAMPLE_RATE + self._origin)

    def sample(self, count: int, num_samples: int) -> Looks:
        """At most `count` different frames of a whole recording, while there is sound; none if there is none then.

        A picture that hardly outlasts the sound is looked at as a whole. Raises: MediaError.
        """
        begin, end = self.span
        nearly = round(_NEARLY * SAMPLE_RATE)
        if begin >= -nearly and end <= num_samples + nearly:
            found = self._video.looks(count)
        elif (first := max(0, begin)) < (last := min(end, num_samples)):
            found = self._video.looks(count, first / SAMPLE_RATE + self._origin, last / SAMPLE_RATE + self._origin)
        else:
            return Looks(_NO_FRAMES, np.zeros(0))
        return Looks(found.frames, (found.times - self._origin) * SAMPLE_RATE)

    def looks(self, count: int, begin: int, end: int) -> Looks:
        """The frames in the middles of `count` equal parts of a span, without the times at which there is no picture.

        Times count from `begin`. Raises: MediaError.
        """
        times = begin + (end - begin) * (np.arange(count) + 0.5) / count
        times = times[self._shows(times)]
        if not len(times):
            return Looks(_NO_FRAMES, times)
        frames = self.read_at(times)
        shown = self._shows(times)  # reading may have found that announced frames do not exist
        return Looks(frames[shown], times[shown] - begin)

    def _shows(self, places: np.ndarray) -> np.ndarray:
        begin, end = self.span
        return (places >= begin) & (places < end)
