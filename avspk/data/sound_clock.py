"""When the sound of a video is heard, on the time line that it shares with the picture."""

from __future__ import annotations

from typing import Any

from avspk.data.media import MediaError
from avspk.data.video_timeline import Clock

_ROUNDING = 0.05  # [C] s by which time stamps may be off: ticks of the container, frames of a coder
_LONGEST_GAP = 3600.0  # [C] s; a longer one is an error of the file rather than a pause, and would not fit into memory


class SoundClock:
    """Follows the decoded frames of a sound, which must last as long as its time stamps say.

    `begin`: time of the first frame in seconds, None if it has none.
    """

    def __init__(self) -> None:
        self.begin: float | None = None
        self._met = False
        self._heard = 0.0  # seconds from `begin` to the end of the last frame
        self._joined: Clock | None = None

    def join_jumps(self, time_base: float) -> None:
        """Stamps in ticks of `time_base` s may jump, as in broadcast streams; this is repaired as for pictures."""
        self._joined = Clock(1 / time_base)

    def missing(self, frame: Any) -> int:
        """Number of samples, at the frame's rate, without sound before the next frame.

        Raises: MediaError if they are too many.
        """
        time = self._time(frame)
        if not self._met:
            self.begin = time
        gap = 0.0 if time is None or self.begin is None else time - self.begin - self._heard
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
