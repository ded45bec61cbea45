"""The video stream of a file: its selection, the container's description, and its packets; read with PyAV."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from avspk.data.media import MediaError, PictureWarning
from avspk.data.opening import open_media
from avspk.data.video_timeline import Clock, Picture

MAX_PIXELS = 8192 * 4320
# Containers in which a packet is a whole picture with its presentation time: unreferenced pictures can be skipped.
_EXACT_CONTAINERS = ("mov,mp4", "matroska")


class VideoSource:
    """The best video stream of an open file: its description and its packets."""

    def __init__(self, path: Path):
        self._path = path
        self._can_jump = True
        self._open()
        _warn_of_other_tracks(path, self._container.streams.video, self._stream)
        codec = self.codec
        if codec.width * codec.height > MAX_PIXELS:
            raise MediaError(f"pictures of {codec.width} x {codec.height}, at most {MAX_PIXELS} pixels are read")

    def _open(self) -> None:
        from av.format import Flags

        self._container = open_media(self._path, {"max_pixels": str(MAX_PIXELS)})
        self._stream = _best(self._container.streams.video)
        self.codec = self._stream.codec_context
        self.codec.options = {"max_pixels": str(MAX_PIXELS)}
        self.codec.thread_count = 1  # the caller's processes are the parallelism
        self._name = self._container.format.name
        flags = Flags(self._container.format.flags)
        self._timeless = self._name == "avi" or Flags.no_timestamps in flags
        self._place: int | None = 0  # number of the next packet, None after a seek
        self._clock = Clock(float(1 / self._stream.time_base)) if Flags.ts_discont in flags else None
        self.time_base = self._stream.time_base
        self.pixel_aspect = self._stream.sample_aspect_ratio

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    @property
    def joined(self) -> float:
        """Seconds that were added to the last time stamps to repair their jumps."""
        return self._clock.offset * float(self.time_base) if self._clock else 0.0

    @property
    def reorders_without_times(self) -> bool:
        """Whether pictures are stored out of display order, and the container does not say which."""
        return self._timeless and bool(self.codec.has_b_frames)

    @property
    def every_packet_is_a_picture(self) -> bool:
        """Whether pictures that no other refers to can be skipped without affecting the rest."""
        return self.codec.name == "h264" and self._name.startswith(_EXACT_CONTAINERS)

    def forget(self) -> None:
        """Reset the decoder."""
        if self.codec.is_open:
            self.codec.flush_buffers()

    def packets(self) -> Iterator[Any]:
        """Packets from the current position, with continuous time stamps; damage at the end counts as the end."""
        import av

        met = False
        try:
            for packet in self._container.demux(self._stream):
                if packet.size == 0:  # the end, or a repeated picture
                    continue
                if self._clock is not None:
                    offset = self._clock.correct(packet.dts, packet.duration or 0)
                    packet.dts = None if packet.dts is None else packet.dts + offset
                    packet.pts = None if packet.pts is None else packet.pts + offset
                met = True
                if self._place is not None:
                    self._place += 1
                yield packet
        except av.InvalidDataError:
            if not met:
                raise

    def packets_from(self, first: int, pictures: Sequence[Picture]) -> Iterator[Any]:
        """Packets from number `first` on, read from the disk again: by a seek, or else through all before it."""
        joined = self._clock is not None and self._clock.jumps > 0
        self._can_jump &= not joined
        if first and self._can_jump:
            if begun := self._after_jump(pictures[first]):
                yield from begun
                return
            self._can_jump = False
            self._reopen()
        if self._place is None or self._place > first:
            self._reopen()
        self.forget()
        number = self._place or 0
        for packet in self.packets():
            number += 1
            if number > first:
                yield packet

    def _after_jump(self, key: Picture) -> Iterator[Any] | None:
        """Packets from a key frame on; None if a seek does not arrive at it."""
        import av

        self._reopen()
        stamp = key.pts if key.dts is None else key.dts
        if stamp is None:
            return None
        self._place = None
        try:
            self._container.seek(stamp, stream=self._stream, backward=True)
        except (av.FFmpegError, OSError):
            return None
        packets = self.packets()
        for packet in packets:
            if packet.is_keyframe and (packet.pts, packet.dts) == (key.pts, key.dts):
                return _chained(packet, packets)
            if packet.dts is not None and packet.dts > stamp:
                return None
        return None

    def _reopen(self) -> None:
        self.close()
        self._open()


def _chained(packet: Any, packets: Iterator[Any]) -> Iterator[Any]:
    yield packet
    yield from packets


def _best(streams: Sequence[Any]) -> Any:
    """The stream that a player shows: no cover picture, then by default flag, size, position."""
    from av.stream import Disposition

    moving = _moving(streams)
    if not moving:
        raise MediaError("no video stream, only a cover picture" if streams else "no video stream")
    known = [stream for stream in moving if stream.codec_context is not None]
    if not known:
        raise MediaError("no decoder for this video codec")
    return max(known, key=lambda one: (bool(one.disposition & Disposition.default), one.width * one.height))


def _moving(streams: Sequence[Any]) -> list[Any]:
    """The streams without cover pictures and previews."""
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    return [stream for stream in streams if not stream.disposition & pictures]


def _warn_of_other_tracks(path: Path, streams: Sequence[Any], used: Any) -> None:
    """Warn that a file has other pictures, such as other cameras."""
    tracks = [stream.index for stream in _moving(streams)]
    if len(tracks) > 1:
        number = 1 + tracks.index(used.index)
        text = f"{path}: {len(tracks)} picture tracks, only track {number} is used"
        warnings.warn(text, PictureWarning, stacklevel=2)
