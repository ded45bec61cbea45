"""Sound files to mono 16 kHz waveforms: soundfile where it can, PyAV for the rest. Every failure is a MediaError."""

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from avspk.data.media import SAMPLE_RATE, MediaError, first, reason, require_file

# What libsndfile knows, but MP3, which only its newer versions do, and raw samples, which do not tell their rate.
_SOUNDFILE_SUFFIXES = frozenset(
    {f".{name.lower()}" for name in soundfile.available_formats()} - {".mp3", ".raw"} | {".aif", ".mat", ".sph"}
)
_PIECE = 1 << 20  # frames read at once


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


def read_utterance(path: Path, start: int, num_samples: int | None) -> np.ndarray:
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


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """Samples (n,) in [-1, 1] as 16-bit ones, to the nearest; beyond [-1, 1] they clip."""
    return np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)


def write_wav(path: str | Path, waveform: np.ndarray) -> None:
    """Write mono float (n,) at 16 kHz as 16-bit wav; beyond [-1, 1] it clips. Raises: OSError."""
    samples = to_int16(waveform)
    # By way of memory: on a full disk soundfile fails an assertion of its own, not with an OSError.
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    Path(path).write_bytes(buffer.getbuffer())


def _soundfile_info(path: Path) -> Any:
    try:
        return soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError) as error:
        require_file(path)
        raise MediaError(reason(error)) from error


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
        raise MediaError(reason(error)) from error
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
        raise MediaError(reason(error)) from error


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
            stream = first(container.streams.audio, "audio")
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
            for frame in _with_flush(container.decode(stream)):
                yield from (part.to_ndarray()[0] for part in resampler.resample(frame))
    except (av.FFmpegError, OSError) as error:
        raise MediaError(reason(error)) from error


def _with_flush(frames: Iterator[Any]) -> Iterator[Any]:
    yield from frames
    yield None
