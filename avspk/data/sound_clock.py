"""When the sound of a video is heard, on the time line that it shares with the picture."""

from __future__ import annotations

from typing import Any


class SoundClock:
    """Follows the decoded frames of a sound: `begin` is the time of the first one in seconds, None if it has none."""

    def __init__(self) -> None:
        self.begin: float | None = None
        self._met = False

    def see(self, frame: Any) -> None:
        """The next frame."""
        if not self._met and frame.pts is not None:
            self.begin = float(frame.pts * frame.time_base)
        self._met = True
