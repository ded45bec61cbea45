"""Sound files of any format as mono 16 kHz waveforms: whole, by segments, in blocks. Every failure is a MediaError."""

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from avspk.data.media import SAMPLE_RATE, MediaError
from avspk.data.sound_check import SILENCE_DB, SoundCheck, check_sound, require_finite, require_length
from avspk.data.sound_clock import SoundClock, SoundTime
from avspk.data.sound_decoding import read_segment, sound_header, sound_pieces


def read_audio(path: str | Path, start: int = 0, num_samples: int | None = None, total: int = 0) -> np.ndarray:
    """Read a segment of a file's sound as mono float32 (num_samples,) at 16 kHz; full scale is [-1, 1].

    Counts are in samples at 16 kHz; `num_samples` None means up to the end. The result is shorter if the sound ends
    before. Channels are averaged, other rates resampled. If the header gives a length, a file of fewer than `total`
    samples is an error.

    Raises: MediaError if the file cannot be decoded, or if it is read to its end and is truncated or its channels
    cancel each other; ValueError for negative counts.
    """
    if start < 0 or (num_samples is not None and num_samples < 0):
        raise ValueError(f"segment of {num_samples} samples from {start}: both must not be negative")
    path = Path(path)
    if num_samples is None:
        return _joined(sound_pieces(path))[start:]
    segment = read_segment(path, start, num_samples, total)
    return _read_from_top(path, start, num_samples) if segment is None else segment


def _read_from_top(path: Path, start: int, num_samples: int) -> np.ndarray:
    # Without a seek: lossy decoders have state, and only decoding from the start makes a segment equal to the same
    # part of the whole. Preparation writes wav, where a segment is one read.
    pieces: list[np.ndarray] = []
    count = 0
    for piece in sound_pieces(path):
        pieces.append(piece)
        count += len(piece)
        if count >= start + num_samples:
            break
    return _joined(pieces)[start : start + num_samples]


def _joined(pieces: Iterator[np.ndarray] | list[np.ndarray]) -> np.ndarray:
    pieces = list(pieces)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def read_sound(path: str | Path, min_seconds: float = 0.0, silence_db: float = SILENCE_DB) -> np.ndarray:
    """A whole recording, mono float32 (n,) at 16 kHz, that passes `SoundCheck`. Raises: MediaError."""
    waveform = read_audio(path)
    check_sound(waveform, min_seconds, silence_db)
    return waveform


class TimedSound(NamedTuple):
    """A sound (n,), and its place in time if it is of a video."""

    waveform: np.ndarray
    time: SoundTime = SoundTime()


def read_sound_of_video(path: str | Path, min_seconds: float = 0.0, silence_db: float = SILENCE_DB) -> TimedSound:
    """`read_sound` of a video, and its place in time. Raises: MediaError."""
    clock = SoundClock()
    waveform = _joined(sound_pieces(Path(path), clock=clock))
    check_sound(waveform, min_seconds, silence_db)
    return TimedSound(waveform, clock.time)


def read_first_channel(path: str | Path) -> np.ndarray:
    """A whole recording as in `read_audio`, but only its first channel. Raises: MediaError."""
    return _joined(sound_pieces(Path(path), first_channel=True))


def audio_blocks(path: str | Path, num_samples: int) -> Iterator[np.ndarray]:
    """The sound of `read_audio` in blocks of `num_samples`, the last one shorter; no more is held in memory.

    Raises: MediaError while the blocks are read.
    """
    held: list[np.ndarray] = []
    count = 0
    for piece in sound_pieces(Path(path)):
        while count + len(piece) >= num_samples:
            cut = num_samples - count
            yield np.concatenate([*held, piece[:cut]])
            piece, held, count = piece[cut:], [], 0
        held.append(piece)
        count += len(piece)
    if count:
        yield np.concatenate(held)


def read_utterance(path: Path, start: int, num_samples: int | None, total: int = 0) -> np.ndarray:
    """`read_audio` for loops over prepared files, which had `total` samples when they passed `SoundCheck`.

    Raises: MediaError, which names the file, if it cannot be read, is now shorter, or has values that are not finite.
    """
    try:
        waveform = read_audio(path, start, num_samples, total)
        rest = total - start
        require_length(waveform, rest if num_samples is None else min(num_samples, rest))
        require_finite(waveform)
    except MediaError as error:
        raise MediaError(f"{path}: {error}; prepare the data again") from error
    return waveform


def audio_num_samples(path: str | Path) -> int:
    """Number of samples that `read_audio` gives for the whole file: from the header if that is exact, else decoded.

    Raises: MediaError.
    """
    path = Path(path)
    header = sound_header(path)
    if header is None:
        return sum(len(piece) for piece in sound_pieces(path))
    return math.ceil(header.frames * SAMPLE_RATE / header.samplerate)


def checked_num_samples(path: str | Path) -> int:
    """Number of samples at 16 kHz of a recording that passes `SoundCheck`, found by decoding it. Raises: MediaError."""
    check = SoundCheck()
    for piece in sound_pieces(Path(path)):
        check.see(piece)
    check.finish()
    return check.num_samples


def is_plain_audio(path: str | Path) -> bool:
    """Whether the sound can be used without conversion: a wav or flac file of an exact coding, mono, 16 kHz.

    Raises: MediaError.
    """
    path = Path(path)
    if path.suffix.lower() not in {".wav", ".flac"}:
        return False
    header = sound_header(path)
    return header is not None and header.samplerate == SAMPLE_RATE and header.channels == 1


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """Samples (n,) in [-1, 1] as 16-bit ones, rounded to the nearest; beyond [-1, 1] they clip."""
    return np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)


def write_wav(path: str | Path, waveform: np.ndarray) -> None:
    """Write mono float (n,) at 16 kHz as 16-bit wav; beyond [-1, 1] it clips. Raises: OSError."""
    samples = to_int16(waveform)
    # Through memory: on a full disk soundfile fails with an assertion, not with an OSError.
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    Path(path).write_bytes(buffer.getbuffer())
