"""What sound and video files have in common: one error, and checks that need no decoder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

SAMPLE_RATE = 16_000
_MP4_SUFFIXES = frozenset({".mp4", ".m4a", ".m4v", ".mov"})


class MediaError(ValueError):
    """A media file cannot be used; the message is the reason, without the path."""


@contextmanager
def decoder_errors() -> Iterator[None]:
    """Every error of a library that reads media, of whatever type, becomes a MediaError with its reason."""
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(reason(error)) from error


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
        raise MediaError(reason(error)) from error


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


def first(streams: Any, kind: str) -> Any:
    """The first stream of a kind. Raises: MediaError if there is none."""
    if not streams:
        raise MediaError(f"no {kind} stream")
    return streams[0]


def reason(error: Exception) -> str:
    """One line without the path, for a table of rejected files: libraries keep it apart from their message."""
    text = getattr(error, "strerror", None) or getattr(error, "error_string", None) or str(error)
    return str(text).strip().rstrip(".").splitlines()[-1] if text else type(error).__name__
