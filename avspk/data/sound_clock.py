"""When the sound of a video is heard, on the time line that it shares with the picture."""

from __future__ import annotations

from typing import Any, NamedTuple

from avspk.data.media import MediaError
from avspk.data.video_timeline import Clock

_ROUNDING = 0.05  # [C] s by which time stamps may be off: ticks of the container, frames of a coder
_LONGEST_GAP = 3600.0  # [C] s; a longer one is an error of the file rather than a pause, and would not fit into memory


class SoundTime(NamedTuple):
    """When a sound begins on the time line of its file, in seconds; None if unknown.

    `joined`: seconds that were added to its last time stamps to repair their jumps.
    """

    begin: float | None = None
    joined: float = 0.0


class SoundClock:
    """Follows the decoded frames of a sound, which must last as long as its time stamps say."""

    def __init__(self) -> None:
        self._begin: float | None = None
        self._met = False
        self._heard = 0.0  # seconds from the first frame to the end of the last frame
        self._tick = 0.0
        self._joined: Clock | None = None

    @property
    def time(self) -> SoundTime:
        """Of the frames so far."""
        return SoundTime(self._begin, self._joined.offset * self._tick if self._joined else 0.0)

    def join_jumps(self, time_base: float) -> None:
        """Stamps in ticks of `time_base` s may jump, as in broadcast streams; this is repaired as for pictures."""
        self._tick, self._joined = time_base, Clock(1 / time_base)

    def missing(self, frame: Any) -> int:
        """Number of samples, at the frame's rate, without sound before the next frame.

        Raises: MediaError if they are too many.
        """
        time = self._time(frame)
        if not self._met:
            self._begin = time
        gap = 0.0 if time is None or self._begin is None else time - self._begin - self._heard
        if gap > _LONGEST_GAP:
            raise MediaError(f"the time stamps of the sound jump by {gap:.0f} s")
        silent = round(gap * frame.sample_rate) if gap > _ROUNDING else 0
        self._met = True
        self._heard += (silent + frame.samples) / frame.sample_rate
        return silent

    def _time(self, frame: Any) -> float | None:
        if frame.pts is None:
            return None
        pts = frame.pts
        if self._joined is not None:
            pts += self._joined.correct(pts, round(frame.samples / frame.sample_rate / frame.time_base))
        return float(pts * frame.time_base)
