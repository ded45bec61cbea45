"""Media files to arrays: sound as 16 kHz mono waveforms, video as RGB frames. Every failure is a MediaError.

Sound: soundfile for wav, flac, ogg and what else it knows, PyAV for the rest. Frames: decord, PyAV where decord
refuses a file.
"""

import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import soundfile

SAMPLE_RATE = 16_000
# What libsndfile knows, but MP3, which only its newer versions do, and raw samples, which do not tell their rate.
_SOUNDFILE_SUFFIXES = frozenset(
    {f".{name.lower()}" for name in soundfile.available_formats()} - {".mp3", ".raw"} | {".aif", ".mat", ".sph"}
)
_PIECE = 1 << 20  # frames read at once
_MP4_SUFFIXES = frozenset({".mp4", ".m4a", ".m4v", ".mov"})


class MediaError(ValueError):
    """A media file cannot be used; the message is the reason, without the path."""


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


def read_audio(path: str | Path, start: int = 0, num_samples: int | None = None) -> np.ndarray:
    """Read a segment of a file's sound as mono float32 (num_samples,) in [-1, 1] at 16 kHz.

    Counts are in samples at 16 kHz; `num_samples` None means up to the end, and the result is shorter where the sound
    ends before. Channels are averaged, other rates resampled.

    Raises: MediaError if the file cannot be decoded; ValueError for negative counts.
    """
    if start < 0 or (num_samples is not None and num_samples < 0):
        raise ValueError(f"segment of {num_samples} samples from {start}: both must not be negative")
    path = Path(path)
    if path.suffix.lower() in _SOUNDFILE_SUFFIXES:
        return _read_with_soundfile(path, start, num_samples)
    require_file(path)
    return _read_with_av(path, start, num_samples)


def audio_blocks(path: str | Path, num_samples: int) -> Iterator[np.ndarray]:
    """The sound that `read_audio` gives, `num_samples` at a time, the last block shorter; no more is held in memory.

    Raises: MediaError, when the blocks are asked for.
    """
    path = Path(path)
    require_file(path)
    held: list[np.ndarray] = []
    count = 0
    for piece in _soundfile_pieces(path) if path.suffix.lower() in _SOUNDFILE_SUFFIXES else _av_pieces(path):
        while count + len(piece) >= num_samples:
            cut = num_samples - count
            yield np.concatenate([*held, piece[:cut]])
            piece, held, count = piece[cut:], [], 0
        held.append(piece)
        count += len(piece)
    if count:
        yield np.concatenate(held)


def read_utterance(path: Path, start: int, num_samples: int) -> np.ndarray:
    """`read_audio` for loops over many files: the error names the file, and no sound at all is an error."""
    try:
        waveform = read_audio(path, start, num_samples)
    except MediaError as error:
        raise MediaError(f"{path}: {error}") from error
    if len(waveform) == 0:
        raise MediaError(f"{path} is empty; prepare the data again")
    return waveform


def audio_num_samples(path: str | Path) -> int:
    """Number of samples `read_audio` gives for the whole file: from the header where soundfile reads it, or decoded.

    Raises: MediaError.
    """
    path = Path(path)
    if path.suffix.lower() not in _SOUNDFILE_SUFFIXES:
        require_file(path)
        return sum(len(piece) for piece in _av_pieces(path))
    info = _soundfile_info(path)
    return math.ceil(info.frames * SAMPLE_RATE / info.samplerate)


def is_plain_audio(path: str | Path) -> bool:
    """Whether the sound can be used where it lies: a wav or flac file, mono, 16 kHz.

    Raises: MediaError.
    """
    path = Path(path)
    if path.suffix.lower() not in {".wav", ".flac"}:
        return False
    info = _soundfile_info(path)
    return bool(info.samplerate == SAMPLE_RATE and info.channels == 1)


def write_wav(path: str | Path, waveform: np.ndarray) -> None:
    """Write mono float (n,) at 16 kHz as 16-bit wav; beyond [-1, 1] it clips. Raises: OSError."""
    samples = np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)
    # By way of memory: on a full disk soundfile fails an assertion of its own, not with an OSError.
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    Path(path).write_bytes(buffer.getbuffer())


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
            stream = _first(container.streams.video, "video")
            rate = float(stream.average_rate or 0)
            seconds = float(stream.duration * stream.time_base) if stream.duration else 0.0
            codec = stream.codec_context
            has_audio = bool(container.streams.audio)
            return VideoInfo(codec.width, codec.height, stream.frames, rate, seconds, codec.name, has_audio)
    except (av.FFmpegError, OSError) as error:
        raise MediaError(_reason(error)) from error


class Video(Protocol):
    """An open video: how many frames it has, and frames by number as `read_frames` gives them."""

    num_frames: int

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames uint8 (n, H, W, 3) RGB. Raises: MediaError, IndexError."""


def open_video(path: str | Path, max_side: int | None = None) -> Video:
    """Open a video with decord, or with PyAV where decord refuses it.

    Raises: MediaError if neither can.
    """
    import decord

    path = Path(path)
    require_file(path)
    try:
        return _DecordVideo(path, max_side)
    except (decord.DECORDError, RuntimeError):
        return _AvVideo(path, max_side)


def require_file(path: Path) -> None:
    """Check what can be told without decoding: there, readable, not empty; for MP4 also whole.

    Raises: MediaError with the reason.
    """
    if not path.exists():
        raise MediaError("broken link" if path.is_symlink() else "no such file")
    if not path.is_file():
        raise MediaError("is a directory" if path.is_dir() else "not a regular file")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise MediaError("empty file (0 bytes)")
            if path.suffix.lower() in _MP4_SUFFIXES:
                _require_whole_mp4(file, size)
    except OSError as error:
        raise MediaError(_reason(error)) from error


def _require_whole_mp4(file: BinaryIO, size: int) -> None:
    """Walk the top-level boxes (ISO/IEC 14496-12, 4.2): each must end inside the file, and one must be `moov`."""
    kinds: set[bytes] = set()
    position = 0
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        elif length == 0:
            length = size - position
        if not kinds and kind not in {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"pnot"}:
            return  # another format under this suffix: the decoder may know it
        if length < 8 or position + length > size:
            raise MediaError(f"truncated: {size} bytes, of which the MP4 header announces {position + length}")
        kinds.add(kind)
        position += length
    if b"moov" not in kinds:
        raise MediaError("no moov atom: the recording was never finished or its end is missing")


def _soundfile_info(path: Path) -> Any:
    try:
        return soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError) as error:
        require_file(path)
        raise MediaError(_reason(error)) from error


def _read_with_soundfile(path: Path, start: int, num_samples: int | None) -> np.ndarray:
    try:
        with soundfile.SoundFile(str(path)) as file:
            plain = file.samplerate == SAMPLE_RATE
            if plain and start:  # some formats cannot seek
                file.seek(min(start, file.frames))
            count = num_samples if plain and num_samples is not None else file.frames
            samples = file.read(count, dtype="float32", always_2d=True)
            rate = file.samplerate
    except (soundfile.SoundFileError, OSError) as error:
        # Asked only now: where files lie on a network, each question before would cost what reading costs.
        require_file(path)
        raise MediaError(_reason(error)) from error
    waveform = _mono(samples)
    if plain:
        return np.ascontiguousarray(waveform)
    return _segment(resample(waveform, rate), start, num_samples)


def _soundfile_pieces(path: Path) -> Iterator[np.ndarray]:
    try:
        with soundfile.SoundFile(str(path)) as file:
            pieces = _mono_pieces(file)
            yield from pieces if file.samplerate == SAMPLE_RATE else _resampled_pieces(pieces, file.samplerate)
    except (soundfile.SoundFileError, OSError) as error:
        raise MediaError(_reason(error)) from error


def _mono_pieces(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    while len(samples := file.read(_PIECE, dtype="float32", always_2d=True)):
        yield _mono(samples)


def _mono(samples: np.ndarray) -> np.ndarray:
    """Samples (n, channels) -> (n,)."""
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)


def _resampled_pieces(pieces: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """`resample` of the joined pieces: each is filtered together with the sound around it that the filter reaches."""
    common = math.gcd(SAMPLE_RATE, rate)
    up, down = SAMPLE_RATE // common, rate // common
    reach = math.ceil(10 * max(up, down) / up)  # half the length of resample_poly's filter, in input samples
    context = down * math.ceil(reach / down)  # whole periods: cut there, the output falls on the same instants
    held, done = np.zeros(0, np.float32), 0  # `done` samples of `held` are there as context only
    for piece in pieces:
        held = np.concatenate([held, piece])
        ready = (len(held) - context) // down * down
        if ready > done:
            yield resample(held[: ready + context], rate)[done * up // down : ready * up // down]
            kept = max(0, ready - context)
            held, done = held[kept:], ready - kept
    if len(held) > done:
        yield resample(held, rate)[done * up // down :]


def resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Waveform (n,) at `rate` to float32 (ceil(n x 16000 / rate),) at 16 kHz."""
    from scipy.signal import resample_poly  # slow to import, and most files are at 16 kHz

    common = math.gcd(SAMPLE_RATE, rate)
    return resample_poly(waveform, SAMPLE_RATE // common, rate // common).astype(np.float32)


def _segment(waveform: np.ndarray, start: int, num_samples: int | None) -> np.ndarray:
    return waveform[start : None if num_samples is None else start + num_samples]


def _read_with_av(path: Path, start: int, num_samples: int | None) -> np.ndarray:
    # From the top, without a seek: lossy decoders carry state, and only so is a segment equal to the same part of the
    # whole. Preparation writes wav, where a segment is one read.
    parts: list[np.ndarray] = []
    count = 0
    for piece in _av_pieces(path):
        parts.append(piece)
        count += len(piece)
        if num_samples is not None and count >= start + num_samples:
            break
    return _segment(np.concatenate(parts) if parts else np.zeros(0, np.float32), start, num_samples)


def _av_pieces(path: Path) -> Iterator[np.ndarray]:
    """Mono 16 kHz, as the decoder gives it."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = _first(container.streams.audio, "audio")
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
            for frame in _with_flush(container.decode(stream)):
                yield from (part.to_ndarray()[0] for part in resampler.resample(frame))
    except (av.FFmpegError, OSError) as error:
        raise MediaError(_reason(error)) from error


def _with_flush(frames: Iterator[Any]) -> Iterator[Any]:
    yield from frames
    yield None


def _first(streams: Any, kind: str) -> Any:
    if not streams:
        raise MediaError(f"no {kind} stream")
    return streams[0]


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
                stream = _first(container.streams.video, "video")
                self.num_frames = stream.frames or sum(packet.pts is not None for packet in container.demux(stream))
        except (av.FFmpegError, OSError) as error:
            raise MediaError(_reason(error)) from error
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
            raise MediaError(_reason(error)) from error
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


def _reason(error: Exception) -> str:
    """One line without the path, for a table of rejected files: libraries keep it apart from their message."""
    text = getattr(error, "strerror", None) or getattr(error, "error_string", None) or str(error)
    return str(text).strip().rstrip(".").splitlines()[-1] if text else type(error).__name__
