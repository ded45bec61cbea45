"""Sound by its place, a file or an entry of a pack: one object reads both, and gives the same samples.

A pack is a folder of shards (avspk/data/shards.py): `<name>.sounds` has the concatenated recordings, `<name>.index` one
INDEX_RECORD per recording. Entry 17 of a shard has the place `<folder>/<name>.sounds#17`; the manifest has it in the
column of paths. So the rows of a manifest can be selected, reordered and joined, and may mix packed recordings and
files. Reading a segment is one read from a shard, which stays open: no file is opened for it.

Recordings are stored as 16-bit samples, plain or FLAC, if these represent them exactly, else as float32. So a pack
gives, bit for bit, the same samples as the packed files.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile

from avspk.data.media import SAMPLE_RATE, MediaError
from avspk.data.preparation_settings import PackFormat
from avspk.data.reading_notes import note
from avspk.data.shards import OpenShards, Shard, ShardWriter
from avspk.data.sound import audio_blocks, audio_num_samples, read_audio, read_utterance
from avspk.data.sound_check import check_sound, require_finite, require_length

SUFFIX = "sounds"
INT16, FLAC, FLOAT32 = 0, 1, 2
# `end`: bytes of the shard up to the end of this recording. `encoding`: one of the three above.
INDEX_RECORD = np.dtype([("end", "<u8"), ("num_samples", "<u4"), ("encoding", "<u4")])
_FULL_SCALE = 32768.0
_MARK = f".{SUFFIX}#"
# Bytes of a FLAC recording per read: one read is enough for most; of longer ones only the needed part is read.
_FLAC_PIECE = 1 << 18


class Sound(Protocol):
    """One recording: mono float32 in [-1, 1] at 16 kHz."""

    def read(self, start: int, num_samples: int | None, total: int) -> np.ndarray:
        """Samples from `start` on, all of them or fewer if the sound ends before.

        Raises: MediaError, also if the recording has fewer than `total` samples or they are not finite.
        """

    def whole(self) -> np.ndarray:
        """All samples, unchecked. Raises: MediaError."""

    def num_samples(self) -> int:
        """Number of samples of the whole recording. Raises: MediaError."""

    def blocks(self, num_samples: int) -> Iterator[np.ndarray]:
        """The whole recording in blocks of `num_samples`, the last one shorter. Raises: MediaError."""


class SoundStore:
    """Reads sound from any place. Picklable, and safe to use on both sides of a fork."""

    def __init__(self) -> None:
        self._shards = OpenShards(SUFFIX, INDEX_RECORD)

    def read(self, place: str | Path, start: int = 0, num_samples: int | None = None, total: int = 0) -> np.ndarray:
        """A segment as mono float32 (num_samples,) in [-1, 1] at 16 kHz, shorter if the sound ends before.

        Raises: MediaError naming the place if it cannot be read, has no sound in the segment, has fewer than `total`
        samples in all, or has values that are not finite.
        """
        return self.at(place).read(start, num_samples, total)

    def read_unchecked(self, place: str | Path, start: int, num_samples: int, total: int) -> np.ndarray:
        """As `read`, for an unchecked recording: it is read whole and must pass `SoundCheck`."""
        with _naming(place):
            waveform = self.at(place).whole()
            check_sound(waveform)
            require_length(waveform, total)
        return waveform[start : start + num_samples]

    def num_samples(self, place: str | Path) -> int:
        """Length of a recording in samples at 16 kHz, from its header or index. Raises: MediaError naming the place."""
        with _naming(place):
            return self.at(place).num_samples()

    def at(self, place: str | Path) -> Sound:
        """The recording at a place. Raises: MediaError if a pack has no such entry."""
        note(place)
        shard, number = packed_at(place)
        return SoundFile(Path(place)) if number is None else PackedSound(str(place), self._shard(shard), number)

    def _shard(self, path: str) -> Shard:
        try:
            return self._shards(path)
        except OSError as error:
            raise MediaError(f"{path}.{SUFFIX} cannot be opened: {error.strerror}; pack the sound again") from error


@contextmanager
def _naming(place: str | Path) -> Iterator[None]:
    """Prefixes errors with the place."""
    try:
        yield
    except MediaError as error:
        if str(error).startswith(str(place)):
            raise
        raise MediaError(f"{place}: {error}") from error


class SoundFile:
    """A recording in its own file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, start: int, num_samples: int | None, total: int) -> np.ndarray:
        """See `Sound`."""
        return read_utterance(self._path, start, num_samples, total)

    def whole(self) -> np.ndarray:
        """See `Sound`."""
        return read_audio(self._path)

    def num_samples(self) -> int:
        """See `Sound`."""
        return audio_num_samples(self._path)

    def blocks(self, num_samples: int) -> Iterator[np.ndarray]:
        """See `Sound`."""
        return audio_blocks(self._path, num_samples)


class PackedSound:
    """Recording number `number` of a shard. Raises: MediaError if the shard has no such number."""

    def __init__(self, place: str, shard: Shard, number: int) -> None:
        if number >= shard.count:
            raise MediaError(f"{place}: the shard holds {shard.count} recordings; pack the sound again")
        self._place, self._shard = place, shard
        self._first, record = shard.record(number)
        self._num_bytes = int(record["end"]) - self._first
        self._length, self._encoding = int(record["num_samples"]), int(record["encoding"])

    def read(self, start: int, num_samples: int | None, total: int) -> np.ndarray:
        """See `Sound`."""
        if self._length < total:
            raise MediaError(f"{self._place} has {self._length} samples, expected {total}; pack the sound again")
        samples = self._read(start, num_samples)
        if self._encoding == FLOAT32:
            with _naming(self._place):
                require_finite(samples)
        return samples

    def whole(self) -> np.ndarray:
        """See `Sound`."""
        return self._read(0, None)

    def _read(self, start: int, num_samples: int | None) -> np.ndarray:
        count = max(0, self._length - start)
        count = count if num_samples is None else min(count, num_samples)
        if not count:
            raise MediaError(f"{self._place} has {self._length} samples, none from {start} on; prepare the data again")
        samples = self._read_flac(start, count) if self._encoding == FLAC else self._read_plain(start, count)
        if len(samples) < count:
            raise MediaError(f"{self._place} is damaged: {len(samples)} of {count} samples; pack the sound again")
        return samples

    def num_samples(self) -> int:
        """See `Sound`."""
        return self._length

    def blocks(self, num_samples: int) -> Iterator[np.ndarray]:
        """See `Sound`."""
        for start in range(0, self._length, num_samples):
            yield self._read(start, num_samples)

    def _read_plain(self, start: int, count: int) -> np.ndarray:
        kind = np.dtype("<i2" if self._encoding == INT16 else "<f4")
        content = self._shard.read(self._first + start * kind.itemsize, count * kind.itemsize)
        samples = np.frombuffer(content[: len(content) // kind.itemsize * kind.itemsize], kind)
        return samples / np.float32(_FULL_SCALE) if self._encoding == INT16 else samples.astype(np.float32)

    def _read_flac(self, start: int, count: int) -> np.ndarray:
        try:
            part = io.BufferedReader(_Range(self._shard, self._first, self._num_bytes), _FLAC_PIECE)
            with part, soundfile.SoundFile(part) as file:
                file.seek(min(start, self._length))
                return file.read(count, dtype="float32")
        except soundfile.SoundFileError as error:
            raise MediaError(f"{self._place} is damaged: {error}; pack the sound again") from error


class _Range(io.RawIOBase):
    """A part of a shard as a file for a decoder."""

    def __init__(self, shard: Shard, first: int, size: int) -> None:
        self._shard, self._first, self._size, self._position = shard, first, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._position))
        content = self._shard.read(self._first + self._position, wanted)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class SoundWriter:
    """Appends recordings to one shard of a pack; raises the errors of `ShardWriter`."""

    def __init__(self, path: Path, packed: PackFormat, keep: int | None = None) -> None:
        self.shard = ShardWriter(path, SUFFIX, INDEX_RECORD, keep)
        self._path, self._format = path, packed

    def append(self, waveform: np.ndarray) -> str:
        """Store mono float32 (n,) at 16 kHz; returns its place, relative to the pack's folder. Raises: OSError."""
        content, encoding = encode(waveform, self._format)
        self.shard.append([content], np.array([(0, len(waveform), encoding)], INDEX_RECORD))
        return f"{self._path.name}{_MARK}{self.shard.count - 1}"

    def __enter__(self) -> "SoundWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.shard.close()


def encode(waveform: np.ndarray, packed: PackFormat) -> tuple[bytes, int]:
    """Bytes and encoding of mono float32 (n,): 16 bits if these represent it exactly, else float32."""
    scaled = waveform * np.float32(_FULL_SCALE)
    with np.errstate(invalid="ignore"):  # NaN and infinity become numbers that differ from the input
        samples = np.clip(scaled, -32768, 32767).astype("<i2")
    if not np.array_equal(samples, scaled):
        return waveform.astype("<f4").tobytes(), FLOAT32
    if packed == "int16":
        return samples.tobytes(), INT16
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue(), FLAC


def packed_at(place: str | Path) -> tuple[str, int | None]:
    """Path of a shard without suffix and number in it; for a file, the place itself and None."""
    text = str(place)
    shard, mark, number = text.rpartition(_MARK)
    return (shard, int(number)) if mark and number.isdecimal() else (text, None)


def holder(place: Path) -> Path:
    """The file that contains the sound at a place."""
    shard, number = packed_at(place)
    return place if number is None else Path(f"{shard}.{SUFFIX}")
