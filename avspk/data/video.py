"""Video files to RGB frames by presentation time, with PyAV. Every failure is a MediaError."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avspk.data.joined_files import require_single
from avspk.data.media import MediaError, decoder_errors, require_file
from avspk.data.video_picture import PictureMaker
from avspk.data.video_source import VideoSource
from avspk.data.video_timeline import Picture, Run, Timeline, timeline

# In order of preference.
VIDEO_SUFFIXES = (
    *(".mp4", ".mkv", ".mov", ".m4v", ".avi", ".webm", ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".mpv", ".vob", ".flv"),
    *(".f4v", ".wmv", ".asf", ".ts", ".mts", ".m2ts", ".m2t", ".3gp", ".3gpp", ".3g2", ".ogv", ".ogm", ".dv", ".mxf"),
    *(".rm", ".rmvb", ".qt", ".divx", ".mjpg", ".mjpeg", ".nut", ".y4m"),
)
# Packets are kept in memory up to this size, so that a clip is read from the disk once; a longer video is read again.
_KEPT_BYTES = 64 << 20
# If the decoder does not give a picture (a hidden reference, a second field), the one before it is used.
_NEAR = 2


def read_frames(path: str | Path, numbers: Sequence[int] | np.ndarray, max_side: int | None = None) -> np.ndarray:
    """Frames of a video by number in the order of showing, as `VideoReader.read` gives them.

    Raises: MediaError if the file cannot be decoded; IndexError for numbers that are not in the video.
    """
    with VideoReader(path, max_side) as video:
        return video.read(numbers)


class _DisorderError(Exception):
    """Frames arrived in another order than their time stamps: the container does not know when they are shown."""


class Looks(NamedTuple):
    """Frames uint8 (n, H, W, 3) RGB, and when each of them is looked at (n,), ascending."""

    frames: np.ndarray
    times: np.ndarray


class VideoReader:
    """The pictures of a file's best video stream, in the order and at the times at which a player shows them.

    Pictures that edit lists hide do not count. The packets are read once without decoding, then only the packets for
    the wanted frames are decoded: memory does not grow with the length. `alive` is called for every packet, so a
    supervisor can distinguish long work from a decoder that hangs. A context manager: it keeps the file open.
    """

    def __init__(self, path: str | Path, max_side: int | None = None, alive: Callable[[], None] = lambda: None):
        """Raises: MediaError if there is no video, or nothing to show."""
        self._max_side, self._alive = max_side, alive
        self._decoded_times: list[int] = []  # of the last run
        self._damaged = 0  # packets that the decoder refused
        require_file(Path(path))
        with decoder_errors():
            require_single(Path(path))
            self._source = VideoSource(Path(path))
            self._pictures, self._packets = self._scan()
            self.joined = self._source.joined  # seconds that were added to the last frames to repair jumps
            self._timeline = self._laid_out(self._source.reorders_without_times)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    @property
    def num_frames(self) -> int:
        """Number of frames shown."""
        return len(self._timeline.times)

    @property
    def seconds(self) -> np.ndarray:
        """When each frame is shown, ascending, float64 (num_frames,), on the time line of the file."""
        return np.array(self._timeline.times) * float(self._source.time_base)

    @property
    def is_timed(self) -> bool:
        """Whether the container tells when frames are shown; `seconds` of others begin at any time."""
        return not self._timeline.counted

    @property
    def span(self) -> tuple[float, float]:
        """Seconds at which the first frame appears and the last one disappears, on the time line of the file."""
        tick = float(self._source.time_base)
        return self._timeline.times[0] * tick, self._timeline.end * tick

    def sample(self, count: int) -> np.ndarray:
        """At most `count` different frames, shown in the middles of as many equal parts of the time.

        Returns and raises the same as `read`.
        """
        return self.looks(count).frames

    def looks(self, count: int, begin: float | None = None, end: float | None = None) -> Looks:
        """`sample` of the time from `begin` to `end`, by default of all, with times in seconds as in `seconds`.

        The time of a frame that is met in several parts is the mean of their middles. Raises the same as `read`.
        """
        tick = float(self._source.time_base)
        looked = np.zeros(0), np.zeros(0)

        def numbers() -> np.ndarray:
            nonlocal looked
            line = self._timeline
            first = line.times[0] if begin is None else begin / tick
            last = line.end if end is None else end / tick
            looked = line.at_even_times(count, first, last)
            return np.unique(looked[0])

        frames = self._read_as_is(numbers)
        chosen, times = looked
        return Looks(frames, np.array([times[chosen == number].mean() for number in np.unique(chosen)]) * tick)

    def read_at(self, seconds: np.ndarray) -> np.ndarray:
        """The frame on the screen at each of these times (n,), in seconds as in `seconds`.

        Before the first frame it is the first, after the last the last. Returns and raises the same as `read`.
        """
        return self._read_as_is(lambda: (np.searchsorted(self.seconds, seconds, side="right") - 1).clip(0))

    def _read_as_is(self, numbers: Callable[[], np.ndarray]) -> np.ndarray:
        """The frames that `numbers` selects from those that can be decoded."""
        try:
            return self.read(numbers())
        except MediaError:
            if not self._narrowed():
                raise
            return self.read(numbers())

    def _narrowed(self) -> bool:
        """Remove frames that the packets announced but the decoder did not give; False if that explains no failure.

        A recording that starts inside a group of pictures shows nothing until the next group. If frames are counted, a
        packet may mean "no change".
        """
        line, decoded = self._timeline, self._decoded_times
        if not decoded:
            return False
        if line.counted:
            shown = line.times[: len(decoded)] if not self._damaged else line.times
        else:
            shown = [time for time in line.times if time >= decoded[0]]
        if not shown:
            return False
        end = line.end if shown[-1] == line.times[-1] else shown[-1] + line.step
        self._timeline = replace(line, times=shown, end=end)
        return len(shown) < len(line.times)

    def read(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames by number, uint8 (n, H, W, 3) RGB, upright, in square pixels, no side longer than `max_side`.

        Raises: MediaError if one cannot be decoded; IndexError for numbers that are not in the video.
        """
        asked = self._checked(numbers)
        with decoder_errors():
            found = self._found(sorted(set(asked)))
            return np.stack([found[number] for number in asked])

    def _checked(self, numbers: Sequence[int] | np.ndarray) -> list[int]:
        asked = [int(number) for number in numbers]
        outside = [number for number in asked if not 0 <= number < self.num_frames]
        if outside or not asked:
            raise IndexError(f"frames {outside or 'none'} requested, the video has 0 to {self.num_frames - 1}")
        return asked

    def _scan(self) -> tuple[list[Picture], list[Any] | None]:
        """All packets as the container describes them, and the packets themselves if they are few."""
        pictures: list[Picture] = []
        kept: list[Any] | None = []
        size = 0
        for packet in self._source.packets():
            self._alive()
            shown, duration = not packet.is_discard, packet.duration or 0
            pictures.append(Picture(packet.pts, packet.dts, duration, packet.is_keyframe, shown))
            size += packet.size
            if size > _KEPT_BYTES:
                kept = None
            if kept is not None:
                kept.append(packet)
        return pictures, kept

    def _laid_out(self, counted: bool) -> Timeline:
        laid_out = timeline(self._pictures, counted)
        if laid_out is None:
            raise MediaError("the video stream shows no frames")
        if laid_out.counted:
            frame = next(self._decoded(laid_out.begin, None), None)
            return laid_out.delayed(frame and frame.dts)
        return laid_out

    def _found(self, wanted: list[int]) -> dict[int, np.ndarray]:
        """Pictures by number; if a key frame does not give its run, or is none, that is decoded from the beginning."""
        make = PictureMaker(self._source.pixel_aspect, self._max_side)
        found: dict[int, np.ndarray] = {}
        try:
            for run in self._timeline.runs(wanted):
                found |= self._decode(run, make, exact=True)
            missing = [number for number in wanted if number not in found]
            if missing:
                found |= self._decode(Run(self._timeline.begin, missing), make, exact=False)
        except _DisorderError:
            self._timeline = self._laid_out(counted=True)
            found = self._decode(Run(self._timeline.begin, wanted), make, exact=False)
        missing = [number for number in wanted if number not in found]
        if missing:
            begin, time = self._timeline.times[0], self._timeline.times[missing[0]]
            seconds = float((time - begin) * self._source.time_base)
            raise MediaError(f"damaged: frame {missing[0]} of {self.num_frames}, at {seconds:.2f} s, cannot be decoded")
        return found

    def _decode(self, run: Run, make: PictureMaker, exact: bool) -> dict[int, np.ndarray]:
        """Pictures of a run: those at exactly the wanted times, or (not `exact`) those on the screen then."""
        times = self._timeline.times
        found: dict[int, np.ndarray] = {}
        left = list(reversed(run.numbers))
        lean = exact and not self._timeline.counted and self._source.every_packet_is_a_picture
        before: tuple[int, Any] | None = None
        for time, frame in self._frames(run, {times[number] for number in run.numbers} if lean else None):
            if exact and not before and not frame.key_frame and not self._timeline.counted:
                return found  # not a key frame that stands alone: intra refresh, or an index that lists all as keys
            while left and times[left[-1]] <= time:
                number = left.pop()
                if times[number] == time:
                    found[number] = make(frame)
                elif not exact and before and before[0] >= times[max(0, number - _NEAR)]:
                    found[number] = make(before[1])
            before = time, frame
            if not left:
                return found
        for number in left:
            if not exact and before and before[0] >= times[max(0, number - _NEAR)]:
                found[number] = make(before[1])
        return found

    def _frames(self, run: Run, needed: set[int] | None) -> Iterator[tuple[int, Any]]:
        """Decoded frames with their times, ascending, from the run's first packet on.

        `needed`: times of the only wanted frames; others that no frame refers to may be left out.
        """
        line = self._timeline
        decoded: list[int] = []
        self._decoded_times = decoded
        begin = line.times[0] if line.counted else self._pictures[run.first].pts
        for frame in self._decoded(run.first, needed):
            if line.counted:
                if len(decoded) == len(line.times):
                    return
                time = line.times[len(decoded)]
            elif frame.pts is not None:
                time = frame.pts
            else:
                time = decoded[-1] + line.step if decoded else line.times[0]
            if decoded and time < decoded[-1]:
                raise _DisorderError
            if begin is None or time >= begin:  # an earlier one needs the group before, or belongs to it
                decoded.append(time)
                yield time, frame

    def _decoded(self, first: int, needed: set[int] | None) -> Iterator[Any]:
        import av

        packets: Iterator[Any]
        if self._packets is not None:
            self._source.forget()
            packets = iter(self._packets[first:])
        else:
            packets = self._source.packets_from(first, self._pictures)
        for packet in packets:
            self._alive()
            codec = self._source.codec  # a new object after a seek
            codec.skip_frame = "DEFAULT" if needed is None or packet.pts in needed else "NONREF"
            try:
                frames = codec.decode(packet)
            except av.InvalidDataError:  # missing frames show its effect
                self._damaged += 1
                continue
            yield from frames
        yield from self._source.codec.decode(None)
