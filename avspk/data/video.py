"""Video files to RGB frames: decord, and PyAV where decord refuses a file. Every failure is a MediaError."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from avspk.data.media import MediaError, first, reason, require_file
from avspk.extras import explained


@dataclass(frozen=True)
class VideoInfo:
    """What a file's header says. `num_frames` is 0 where the container does not tell; sizes are before rotation."""

    width: int
    height: int
    num_frames: int
    frames_per_second: float
    seconds: float
    codec: str
    has_audio: bool


def read_frames(path: str | Path, indices: Sequence[int] | np.ndarray, max_side: int | None = None) -> np.ndarray:
    """Frames of a video by number, uint8 (n, H, W, 3) RGB, upright; scaled so that no side exceeds `max_side`.

    Raises: MediaError if the file cannot be decoded; IndexError for numbers that are not in the video.
    """
    return open_video(path, max_side).read(indices)


def probe_video(path: str | Path) -> VideoInfo:
    """What the header of a video file says.

    Raises: MediaError if it cannot be opened or has no video stream.
    """
    import av

    path = Path(path)
    require_file(path)
    try:
        with av.open(str(path)) as container:
            stream = first(container.streams.video, "video")
            rate = float(stream.average_rate or 0)
            seconds = float(stream.duration * stream.time_base) if stream.duration else 0.0
            codec = stream.codec_context
            has_audio = bool(container.streams.audio)
            return VideoInfo(codec.width, codec.height, stream.frames, rate, seconds, codec.name, has_audio)
    except (av.FFmpegError, OSError) as error:
        raise MediaError(reason(error)) from error


class Video(Protocol):
    """An open video: how many frames it has, and frames by number as `read_frames` gives them."""

    num_frames: int

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames uint8 (n, H, W, 3) RGB. Raises: MediaError, IndexError."""


def open_video(path: str | Path, max_side: int | None = None) -> Video:
    """Open a video with decord, or with PyAV where decord refuses it.

    Raises: MediaError if neither can.
    """
    with explained():
        import decord

    path = Path(path)
    require_file(path)
    try:
        return _DecordVideo(path, max_side)
    except (decord.DECORDError, RuntimeError):
        return _AvVideo(path, max_side)


class _DecordVideo:
    def __init__(self, path: Path, max_side: int | None):
        import decord

        # One thread: the caller's processes are the parallelism, and more threads leak memory at every open.
        reader = decord.VideoReader(str(path), num_threads=1)
        self.num_frames = len(reader)
        if self.num_frames == 0:
            raise RuntimeError("decord sees no frames")
        height, width = reader[0].shape[:2] if max_side else (0, 0)
        if max_side and max(height, width) > max_side:
            scaled = _scaled(width, height, max_side)
            reader = decord.VideoReader(str(path), num_threads=1, width=scaled[0], height=scaled[1])
        self._path, self._max_side, self._reader = path, max_side, reader

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        import decord

        indices = _checked(indices, self.num_frames)
        try:
            return np.asarray(self._reader.get_batch(indices).asnumpy())
        except (decord.DECORDError, RuntimeError):
            return _AvVideo(self._path, self._max_side).read(indices)


class _AvVideo:
    def __init__(self, path: Path, max_side: int | None):
        import av

        self._path, self._max_side = path, max_side
        try:
            with av.open(str(path)) as container:
                stream = first(container.streams.video, "video")
                self.num_frames = stream.frames or sum(packet.pts is not None for packet in container.demux(stream))
        except (av.FFmpegError, OSError) as error:
            raise MediaError(reason(error)) from error
        if self.num_frames == 0:
            raise MediaError("the video stream holds no frames")

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        import av

        indices = _checked(indices, self.num_frames)
        wanted, found = set(indices), {}
        try:
            with av.open(str(self._path)) as container:
                for number, frame in enumerate(container.decode(container.streams.video[0])):
                    if number in wanted:
                        found[number] = _upright(frame, self._max_side)
                    if len(found) == len(wanted):
                        break
        except (av.FFmpegError, OSError) as error:
            raise MediaError(reason(error)) from error
        if len(found) < len(wanted):
            raise MediaError(f"truncated: frame {min(wanted - set(found))} of {self.num_frames} cannot be decoded")
        return np.stack([found[number] for number in indices])


def _checked(indices: Sequence[int] | np.ndarray, num_frames: int) -> list[int]:
    numbers = [int(index) for index in indices]
    outside = [number for number in numbers if not 0 <= number < num_frames]
    if outside or not numbers:
        raise IndexError(f"frames {outside or 'none'} asked for, the video has 0 to {num_frames - 1}")
    return numbers


def _upright(frame: Any, max_side: int | None) -> np.ndarray:
    width, height = _scaled(frame.width, frame.height, max_side) if max_side else (frame.width, frame.height)
    image = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.rot90(image, frame.rotation // 90)


def _scaled(width: int, height: int, max_side: int) -> tuple[int, int]:
    scale = min(1.0, max_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
