"""Files that were joined (`cat a b`), in formats without a length: decoders read only the first, or a click between."""

import os
import re
from pathlib import Path
from typing import BinaryIO

from avspk.data.containers import ContainerError, announced

_PIECE = 1 << 22
_LONGEST = 64  # bytes of a header that is recognised
_WAVE = rb".{4}WAVE(fmt |ds64|bext|JUNK|LIST|fact)"
# The beginning of a file -> what follows it there, and again where another one begins.
_ALWAYS = {
    b"fLaC": rb"[\0\x80]\0\0\x22",
    b"FLV\1": rb"[\0\1\4\5]\0\0\0\x09\0\0\0\0",
    b"Creative Voice File\x1a": rb"",
}
_IF_ENDLESS = {
    b"RIFF": _WAVE,
    b"RIFX": _WAVE,
    b"RF64": _WAVE,
    b"BW64": _WAVE,
    b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0": rb".{8}wave",
    b"caff\0\1\0\0desc": rb"",
    b".snd": rb"\0\0.{6}\0\0\0.\0.{3}\0\0\0.",
    b"\x1a\x45\xdf\xa3": rb".{0,40}?\x42\x82.(matroska|webm)",
}
_HEADERS = {start: re.compile(rest, re.DOTALL) for start, rest in (_ALWAYS | _IF_ENDLESS).items()}


def require_single(path: Path) -> None:
    """Raises: ContainerError for a file in which a second one of its kind begins, if only a look at all bytes shows it.

    Kinds that announce their lengths are left to `announced`.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(_LONGEST)
        start = next((start for start in _HEADERS if head.startswith(start)), None)
        if start is None or (start in _IF_ENDLESS and _has_length(file, size)):
            return
        place = _next_header(file, start)
    if place is not None:
        raise ContainerError(
            f"another file of this kind begins after {place} of {size} bytes, as if files were joined; split them"
        )


def _has_length(file: BinaryIO, size: int) -> bool:
    extent = announced(file, size)
    return extent is not None and not extent.patches


def _next_header(file: BinaryIO, start: bytes) -> int | None:
    """Place of the second header that begins with `start`; None if there is none."""
    begin = 1
    while True:
        file.seek(begin)
        piece = file.read(_PIECE)
        place = piece.find(start)
        while place >= 0 and not _HEADERS[start].match(piece, place + len(start)):
            place = piece.find(start, place + 1)
        if place >= 0:
            return begin + place
        if len(piece) < _PIECE:
            return None
        begin += _PIECE - _LONGEST
