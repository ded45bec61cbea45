"""Kaldi's binary vectors, as in an ark: name, blank, NUL B, "FV " or "DV ", byte 4, D as int32, D floats."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avspk.common.text_files import read_lines

HEADER_SIZE = 10
_KINDS = {b"\0BFV \4": "<f4", b"\0BDV \4": "<f8"}

Floats = NDArray[np.floating]


class KaldiError(ValueError):
    """An ark or scp that cannot be read; the message names the file and the entry."""


def ark_entry(name: str, vector: NDArray[np.float32]) -> tuple[bytes, int]:
    """Bytes of a vector (D,) under this name, and the offset in them that an scp points to."""
    key = f"{name} ".encode()
    size = np.array([len(vector)], "<i4").tobytes()
    return key + b"\0BFV \4" + size + vector.astype("<f4").tobytes(), len(key)


def read_ark(path: Path) -> Iterator[tuple[str, Floats]]:
    """Name and vector (D,) of every entry, in their order. Raises: KaldiError."""
    with _mapped(path) as data:
        begin = 0
        while begin < len(data):
            blank = data.find(b" ", begin)
            if blank < 0:
                raise KaldiError(f"{path}: no entry of a binary ark at byte {begin}")
            name = data[begin:blank].decode("utf-8", "replace")
            vector = _vector(data, blank + 1, f"{path}, {name}")
            yield name, vector
            begin = blank + 1 + HEADER_SIZE + vector.nbytes


def read_scp(path: Path) -> Iterator[tuple[str, Floats]]:
    """Name and vector (D,) of every line `name ARK:offset`, in their order.

    An ark that was moved is also looked for in the folder of the scp.

    Raises: KaldiError.
    """
    arks: dict[str, mmap.mmap] = {}
    try:
        for number, line in enumerate(read_lines(path, "scp", KaldiError), 1):
            name, *place = line.split(maxsplit=1) or [""]
            if not name:
                continue
            ark, _, offset = "".join(place).strip().rpartition(":")
            if not ark or not offset.isdecimal():
                raise KaldiError(f"{path}, line {number}: {line[:100]!r} is not `name ARK:offset`")
            if ark not in arks:
                arks[ark] = _mapped(_found(Path(ark), path))
            yield name, _vector(arks[ark], int(offset), f"{ark}:{offset}, {name}")
    finally:
        for data in arks.values():
            data.close()


def _found(ark: Path, scp: Path) -> Path:
    beside = scp.with_name(ark.name)
    if not ark.is_file() and not beside.is_file():
        raise KaldiError(f"{scp}: {ark} is not there, nor {beside}")
    return ark if ark.is_file() else beside


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file cannot be mapped
            raise KaldiError(f"{path}: the file is empty") from error


def _vector(data: mmap.mmap, begin: int, entry: str) -> Floats:
    """A copy of the vector whose NUL is at this byte."""
    kind = _KINDS.get(data[begin : begin + 6])
    size = int.from_bytes(data[begin + 6 : begin + HEADER_SIZE], "little", signed=True)
    if kind is None:
        raise KaldiError(f"{entry}: no binary vector; text arks and matrices are not read")
    end = begin + HEADER_SIZE + size * np.dtype(kind).itemsize
    if size < 1 or end > len(data):
        raise KaldiError(f"{entry}: a vector of {size} numbers, but the file ends before it does")
    return np.frombuffer(data[begin + HEADER_SIZE : end], kind)
