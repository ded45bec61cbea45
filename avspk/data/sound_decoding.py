"""Sound files decoded piece by piece to mono 16 kHz: content selects the decoder, its errors become MediaError.

libsndfile reads the formats it knows. PyAV reads the rest: other formats, MPEG audio, whose length libsndfile gets
wrong, and files whose header gives no length.
"""

import io
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from avspk.data.containers import Patch, is_mpeg_audio, true_lengths
from avspk.data.joined_files import require_single
from avspk.data.media import SAMPLE_RATE, AudioWarning, MediaError, decoder_errors, reason, require_file
from avspk.data.opening import open_media
from avspk.data.resampling import require_rate, resampled
from avspk.data.sound_check import ChannelSum, too_few
from avspk.data.sound_clock import SoundClock

READING = 2
"""Raise it when a file gives other samples than before: embeddings that were kept are then computed again.

2: the mean of the channels in every container (1: FFmpeg's mixture in those that it reads).
"""
# Codings without memory, or (FLAC) with an index: any sample can be read directly, and the header's count is exact.
_EXACT_CODINGS = frozenset(
    {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
)  # fmt: skip
# libsndfile takes headers between the blocks of a VOC file, and chunks after the sound of a W64 file, for sound; raw
# samples do not give their rate.
_NOT_FOR_LIBSNDFILE = frozenset({"VOC", "W64", "RAW", "MP3"})
# The header of 44 bytes without its lengths: PCM, one channel, 16 bits.
_PLAIN_WAV = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16) + b"data"
# Bare streams by FFmpeg's names, and how each of their frames begins; other data at the end is not sound.
_FRAME_STARTS = {"mp3": b"\xff", "aac": b"\xff", "ac3": b"\x0b\x77", "eac3": b"\x0b\x77"}
FIRST_WRONG_PLANES = 8  # channels from which PyAV 18.1 miscounts the planes of a frame; reading these ends the process
_PIECE = 1 << 20  # samples of all channels read at once
_SMALL_PIECE = 1 << 12
_UNKNOWN = 1 << 31  # frames; headers of streams have such counts, or larger ones


def sound_pieces(path: Path, first_channel: bool = False, clock: SoundClock | None = None) -> Iterator[np.ndarray]:
    """The sound of a file as mono float32 pieces (n,) at 16 kHz, decoded from the start; no more is held in memory.

    Mono is the mean of the channels, or the first channel. With a `clock`, silence fills gaps of the time stamps.

    Raises: MediaError if the file cannot be decoded to its end, is truncated, or its averaged channels cancel.
    """
    require_file(path)
    with decoder_errors():
        require_single(path)
        file = _open_with_libsndfile(path)
        if file is None:
            yield from _av_pieces(path, first_channel, clock)
            return
        with file:
            channels = ChannelSum()
            mix = _first_channel if first_channel else channels.mix
            yield from resampled(map(mix, _libsndfile_pieces(file, path)), file.samplerate)
            channels.finish()


def _first_channel(samples: np.ndarray) -> np.ndarray:
    return samples[:, 0]


def read_segment(path: Path, start: int, num_samples: int, total: int = 0) -> np.ndarray | None:
    """A segment (n,) of a file of exact coding at 16 kHz, read directly; None for any other file.

    The fast path of training. It checks only that the file can be read; the slow path finds the reason if not.

    Raises: MediaError if the file holds fewer than `total` samples.
    """
    try:
        if (segment := _plain_segment(path, start, num_samples, total)) is not None:
            return segment
        with soundfile.SoundFile(str(path)) as file:
            if file.samplerate != SAMPLE_RATE or not is_exact(file):
                return None
            if start:
                file.seek(min(start, file.frames))
            samples = file.read(num_samples, dtype="float32", always_2d=True)
    except Exception:
        return None
    if file.frames < total:
        raise MediaError(too_few(file.frames, total))
    return ChannelSum().mix(samples)


def _plain_segment(path: Path, start: int, num_samples: int, total: int) -> np.ndarray | None:
    """Same as libsndfile in a third of the time; None if the file is not a complete wav file as preparation writes it.

    Raises: OSError.
    """
    with open(path, "rb", buffering=0) as file:
        head = file.read(44)
        frames = int.from_bytes(head[40:], "little") // 2
        whole = len(head) + 2 * frames <= os.fstat(file.fileno()).st_size
        if head[:4] != b"RIFF" or head[8:40] != _PLAIN_WAV or frames < max(1, total) or not whole:
            return None
        samples = np.empty(max(0, min(num_samples, frames - start)), "<i2")
        file.seek(len(head) + 2 * start)
        complete = file.readinto(samples.data) == samples.nbytes
    return samples / np.float32(32768) if complete else None


def sound_header(path: Path) -> soundfile.SoundFile | None:
    """The closed file, with its rate, channels and number of frames, if its coding is exact; None for any other.

    Raises: MediaError for a missing or incomplete file.
    """
    require_file(path)
    file = _open_with_libsndfile(path)
    if file is None:
        return None
    file.close()
    return file if is_exact(file) else None


def is_exact(file: soundfile.SoundFile) -> bool:
    """Whether the samples of an open file can be read in any order, and its number of frames is right."""
    return file.subtype in _EXACT_CODINGS and 0 < file.frames < _UNKNOWN and file.format not in _NOT_FOR_LIBSNDFILE


def _open_with_libsndfile(path: Path) -> soundfile.SoundFile | None:
    """The open file, or None if PyAV must read it."""
    with open(path, "rb") as content:
        if is_mpeg_audio(content):
            return None  # libsndfile's own decoder would write warnings to the terminal
    try:
        file = soundfile.SoundFile(str(path))
    except Exception:
        return None
    known = file.format not in _NOT_FOR_LIBSNDFILE and not file.subtype.startswith("MPEG")
    if known and 0 < file.frames < _UNKNOWN:
        return file
    file.close()
    return None


def _libsndfile_pieces(file: soundfile.SoundFile, path: Path) -> Iterator[np.ndarray]:
    """Samples (n, channels) to the end; memory does not depend on the header's count."""
    size = max(1, _PIECE // file.channels)
    count = 0
    try:
        while len(samples := file.read(size, dtype="float32", always_2d=True)):
            count += len(samples)
            yield samples
    except soundfile.SoundFileError as error:
        if not is_exact(file):
            raise
        raise MediaError(_cut_off(file.frames, _count_decodable(path), reason(error))) from error
    if is_exact(file) and count < file.frames:
        raise MediaError(_cut_off(file.frames, count, "the file ends"))
    if file.format == "FLAC" and _goes_on(path, count):
        raise MediaError(f"the FLAC header announces {count} samples, more follow; repair the header")


def _goes_on(path: Path, count: int) -> bool:
    """Whether a FLAC file holds frames after so many samples. libsndfile stops at the number in the header."""
    with closing(_av_open(path)) as container:
        stream = sound_stream(container)
        return any((packet.pts or 0) >= count for packet in container.demux(stream))


def _cut_off(announced: int, count: int, why: str) -> str:
    return f"truncated or damaged: the header announces {announced} samples, {count} can be decoded ({why})"


def _count_decodable(path: Path) -> int:
    count = 0
    with soundfile.SoundFile(str(path)) as file:
        try:
            while number := len(file.read(_SMALL_PIECE, dtype="float32", always_2d=True)):
                count += number
        except soundfile.SoundFileError:
            return count
    return count


def _av_pieces(path: Path, first_channel: bool, clock: SoundClock | None) -> Iterator[np.ndarray]:
    """Mono 16 kHz from FFmpeg's decoders and resampler.

    FFmpeg's own mixture is not the mean of the channels: two have a gain of 3 dB, and more have weights. The channels
    are averaged here, so that the same sound is the same in every container.
    """
    import av
    from av.codec.context import Flags2
    from av.format import Flags

    channels = ChannelSum()
    mix = _first_channel if first_channel else channels.mix
    with closing(_av_open(path)) as container:
        stream = sound_stream(container)
        _warn_of_other_tracks(path, container.streams.audio, stream)
        if container.format.name == "caf" and stream.codec_context.name == "alac":
            # The last frame is as long as its sound. FFmpeg would cut off once more what it lacks of a full frame.
            stream.codec_context.flags2 |= Flags2.skip_manual
        if clock is not None and Flags.ts_discont in Flags(container.format.flags):
            clock.join_jumps(float(stream.time_base))
        resampler, rate = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE), 0
        for frame in _with_flush(_av_frames(container, stream)):
            if frame is not None:
                require_rate(frame.sample_rate)
                rate = rate or frame.sample_rate
                if frame.sample_rate != rate:
                    raise MediaError(f"the sampling rate changes from {rate} to {frame.sample_rate} Hz within the file")
                silent = clock.missing(frame) if clock else 0
                for start in range(0, silent, _PIECE):
                    silence = _mono_frame(np.zeros(min(_PIECE, silent - start), np.float32), frame)
                    yield from (_packed(part)[:, 0] for part in resampler.resample(silence))
                frame = _mono_frame(mix(_channels(frame)), frame)
            yield from (_packed(part)[:, 0] for part in resampler.resample(frame))
    channels.finish()


def _warn_of_other_tracks(path: Path, tracks: Sequence[Any], used: Any) -> None:
    """Warn that a file has other sound, such as other languages."""
    if len(tracks) > 1:
        number = 1 + [one.index for one in tracks].index(used.index)
        warnings.warn(f"{path}: {len(tracks)} sound tracks, only track {number} is used", AudioWarning, stacklevel=2)


def _av_open(path: Path) -> Any:
    import av

    with open(path, "rb") as content:
        patches = true_lengths(content)
    try:
        return open_media(_Patched(path, patches) if patches else path)
    except av.FFmpegError as error:
        raise MediaError(f"not recognised as sound: {reason(error)}") from error


class _Patched(io.FileIO):
    """A file for reading in which some bytes of the header are others."""

    def __init__(self, path: Path, patches: Sequence[Patch]) -> None:
        super().__init__(path)
        self._patches = patches

    def read(self, size: int | None = -1) -> bytes:
        """See `io.FileIO`."""
        begin = self.tell()
        content = bytearray(super().read(size) or b"")
        for patch in self._patches:
            for place, byte in enumerate(patch.content, patch.place - begin):
                if 0 <= place < len(content):
                    content[place] = byte
        return bytes(content)


def _mono_frame(samples: np.ndarray, origin: Any) -> Any:
    """A frame of float samples (n,) with the rate and time of another frame."""
    import av

    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], format="flt", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = origin.sample_rate, origin.pts, origin.time_base
    return frame


def _channels(frame: Any) -> np.ndarray:
    """Samples (n, channels) of a decoded frame as float32; full scale is [-1, 1]."""
    import av

    if frame.format.is_planar and frame.layout.nb_channels >= FIRST_WRONG_PLANES:
        return np.concatenate([_packed(part) for part in av.AudioResampler(format="flt").resample(frame)])
    samples = frame.to_ndarray().T if frame.format.is_planar else _packed(frame)
    if samples.dtype == np.uint8:
        return (samples - np.float32(128)) / np.float32(128)
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float32) / np.float32(2.0 ** (8 * samples.itemsize - 1))
    return samples.astype(np.float32, copy=False)


def _packed(frame: Any) -> np.ndarray:
    """Samples (n, channels) of a frame whose channels are interleaved."""
    samples: np.ndarray = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
    return samples


def _av_frames(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames up to the end; a bare stream may end with something other than sound: tags, zeros."""
    import av

    seconds = 0.0
    failure: av.FFmpegError | None = None
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                if bytes(packet).startswith(_FRAME_STARTS.get(container.format.name, b"")):
                    raise
                failure = failure or error
                continue
            if failure and frames and packet.size:
                raise failure  # sound follows: some of it is lost
            for frame in frames:
                seconds += frame.samples / max(1, frame.sample_rate)
                yield frame
    except av.FFmpegError as error:
        raise MediaError(_undecodable(seconds, error)) from error
    if failure and not seconds:
        raise MediaError(_undecodable(seconds, failure)) from failure


def _undecodable(seconds: float, error: Exception) -> str:
    told = f"truncated or damaged: {seconds:.2f} s can be decoded ({reason(error)})"
    return told if seconds else f"cannot be decoded: {reason(error)}"


def _with_flush(frames: Iterator[Any]) -> Iterator[Any]:
    yield from frames
    yield None


def sound_stream(container: Any) -> Any:
    """The sound stream that a player plays: the default one, else the first. Raises: MediaError if there is none."""
    from av.stream import Disposition

    if not container.streams.audio:
        raise MediaError("no audio stream")
    return max(container.streams.audio, key=lambda one: bool(one.disposition & Disposition.default))
