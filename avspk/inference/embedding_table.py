"""Writes named embeddings to files that grow row by row. The files contain only complete rows, however a run ends.

    X.npy  (rows, D) float32, with X.tsv, one name per line      or      X.ark, Kaldi's binary vectors, with X.scp

X.json identifies the model, and the precision that it computed in. Rows are written to disk before their names. The
next run overwrites rows without a name. avspk/data/named_vectors.py reads these files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avspk.common.files import whole_or_absent
from avspk.data.kaldi import HEADER_SIZE, ark_entry
from avspk.data.named_vectors import read_named_vectors

NPY_HEADER = 128  # bytes, for any number of rows
SUFFIXES = (".npy", ".ark")
Floats = NDArray[np.float32]


class TableError(ValueError):
    """The existing files have other content. The message says what to do."""


class About(NamedTuple):
    """Content of X.json."""

    model: str  # digest of the content of the model
    dimension: int
    precision: str = ""  # of the computation; empty if the table does not say it


def read_about(path: Path) -> About:
    """What X.json says about the table X.npy or X.ark. Raises: TableError if `avspk embed` did not write it."""
    file = path.with_suffix(".json")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        about = About(content["model"], content["dimension"], str(content.get("precision", "")))
    except FileNotFoundError as error:
        raise TableError(f"{path} has no {file.name}, which names its model; `avspk embed` writes both") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TableError(f"{file} was not written by `avspk embed` ({error!r})") from error
    if not isinstance(about.model, str) or type(about.dimension) is not int or about.dimension < 1:
        raise TableError(f"{file} was not written by `avspk embed`: {about}; a dimension is a whole number, 1 or more")
    return about


class EmbeddingTable:
    """A context manager. It creates the files with the first rows, or continues existing ones.

    Args:
        path: X.npy or X.ark.
        model: digest of the model's content. A table has rows of one model only.
        precision: noted in a new table.

    Raises: TableError if the files belong to another model or were not written by this class.
    """

    def __init__(self, path: Path, model: str, precision: str = "") -> None:
        self.path, self.model, self.precision = path, model, precision
        self.about = path.with_suffix(".json")
        self.body = _body(path)
        self.names: dict[str, None] = {}  # in their order
        self.dimension: int | None = None
        if self.about.exists():
            self._reopen()
        elif found := [file.name for file in (path, self.body.index) if file.exists()]:
            raise TableError(
                f"{path.parent / found[0]} exists without {self.about.name}, which names its model; choose another "
                "--out, or remove it yourself"
            )

    def __enter__(self) -> EmbeddingTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.body.close()

    def _reopen(self) -> None:
        try:
            model, dimension, self.precision = read_about(self.path)
        except TableError as error:
            raise TableError(f"{error}; choose another --out") from error
        if model != self.model:
            raise TableError(
                f"{self.path} holds embeddings of another model ({model}, not {self.model}); "
                "choose another --out, or --overwrite"
            )
        self.dimension = dimension
        self.names = dict.fromkeys(self.body.open(dimension))

    def append(self, names: Sequence[str], rows: Floats) -> None:
        """Write rows (n, D) with new names to the disk. Raises OSError if it is full."""
        if self.dimension is None:
            self._create(rows.shape[1])
        self.body.append(names, rows)
        self.names |= dict.fromkeys(names)

    def _create(self, dimension: int) -> None:
        with whole_or_absent(self.about) as part:
            about = About(self.model, dimension, self.precision)._asdict()
            part.write_text(json.dumps(about) + "\n", encoding="utf-8")
        self.dimension = dimension
        self.body.open(dimension)

    def read(self) -> tuple[list[str], Floats]:
        """All names (n,) and rows (n, D); there must be one. Memory-mapped in X.npy."""
        names, rows = read_named_vectors(self.path)
        return names, rows.astype(np.float32, copy=False)


def own_files(path: Path) -> list[Path]:
    """The files of a table: X.npy with X.tsv or X.ark with X.scp, X.json, and the list of failures."""
    return [path, _body(path).index, path.with_suffix(".json"), path.with_suffix(".failed.tsv")]


def twin(path: Path) -> Path:
    """The table of the other kind with the same name. Two of one model share X.json and the list of failures."""
    return path.with_suffix(".ark" if path.suffix == ".npy" else ".npy")


def require_own(path: Path) -> None:
    """Raises: TableError if files with the names of a table are there, but `avspk embed` did not write them."""
    rows, index, about, _ = own_files(path)
    if found := [file for file in (rows, index, about) if file.exists()]:
        try:
            read_about(path)
        except TableError as error:
            raise TableError(f"{error}; so {found[0]} is not removed: choose another --out") from error


def remove_table(path: Path) -> None:
    """Remove the files of a table, if they are there, but not what its twin shares."""
    rows, index, *shared = own_files(path)
    for file in (rows, index, *([] if twin(path).exists() else shared)):
        file.unlink(missing_ok=True)


def _body(path: Path) -> _Npy | _Ark:
    """Writer of the rows and names. It opens nothing yet."""
    return _Npy(path) if path.suffix == ".npy" else _Ark(path)


class _Npy:
    """A header of fixed size, then rows. The count in the header is written last."""

    def __init__(self, path: Path) -> None:
        self.path, self.index = path, path.with_suffix(".tsv")
        self.rows_file: BinaryIO | None = None

    def open(self, dimension: int) -> list[str]:
        """Names of the complete rows. Data after them is cut off. Raises: TableError on an array of another kind."""
        self.dimension = dimension
        self._require_our_array()
        self.rows_file, self.names_file = _open(self.path), _open(self.index)
        lines = _whole_lines(self.names_file)
        whole = max(0, os.path.getsize(self.path) - NPY_HEADER) // (4 * dimension)
        lines = lines[:whole]
        _cut(self.names_file, sum(map(len, lines)))
        _cut(self.rows_file, NPY_HEADER + len(lines) * 4 * dimension)
        self._set_count(len(lines))
        return [line.decode().removesuffix("\n") for line in lines]

    def _require_our_array(self) -> None:
        """Without rows, after a kill, the header may be missing too."""
        if not self.path.exists() or self.path.stat().st_size <= NPY_HEADER:
            return
        try:
            with self.path.open("rb") as file:
                np.lib.format.read_magic(file)
                shape, _, kind = np.lib.format.read_array_header_1_0(file)
        except ValueError as error:
            raise TableError(f"{self.path} is no array of `avspk embed` ({error}); choose another --out") from error
        if kind != np.dtype("<f4") or shape[1:] != (self.dimension,):
            raise TableError(
                f"{self.path} is an array {kind} {shape}; `avspk embed` writes float32 (rows, {self.dimension}): "
                "choose another --out"
            )

    def append(self, names: Sequence[str], rows: Floats) -> None:
        """Rows, then names, then the count."""
        assert self.rows_file is not None
        _write(self.rows_file, rows.astype("<f4").tobytes())
        _write(self.names_file, "".join(f"{name}\n" for name in names).encode())
        self._set_count(self.count + len(names))

    def _set_count(self, count: int) -> None:
        assert self.rows_file is not None
        self.count = count
        text = str({"descr": "<f4", "fortran_order": False, "shape": (count, self.dimension)})
        header = b"\x93NUMPY\x01\x00" + (NPY_HEADER - 10).to_bytes(2, "little") + text.encode().ljust(NPY_HEADER - 11)
        self.rows_file.seek(0)
        _write(self.rows_file, header + b"\n")
        self.rows_file.seek(0, os.SEEK_END)

    def close(self) -> None:
        if self.rows_file is not None:
            self.rows_file.close()
            self.names_file.close()


class _Ark:
    """Kaldi's binary float vectors, with their offsets in the scp."""

    def __init__(self, path: Path) -> None:
        self.path, self.index = path, path.with_suffix(".scp")
        self.rows_file: BinaryIO | None = None

    def open(self, dimension: int) -> list[str]:
        """Names of the complete vectors. Data after them is cut off."""
        self.dimension = dimension
        self.rows_file, self.names_file = _open(self.path), _open(self.index)
        size = os.path.getsize(self.path)
        lines = _whole_lines(self.names_file)
        while lines and self._end(lines[-1]) > size:
            lines.pop()
        _cut(self.names_file, sum(map(len, lines)))
        _cut(self.rows_file, self._end(lines[-1]) if lines else 0)
        return [line.split(b" ", 1)[0].decode() for line in lines]

    def _end(self, line: bytes) -> int:
        return int(line.rsplit(b":", 1)[1]) + HEADER_SIZE + 4 * self.dimension

    def append(self, names: Sequence[str], rows: Floats) -> None:
        """Vectors, then their offsets."""
        assert self.rows_file is not None
        offset, data, lines = self.rows_file.tell(), b"", []
        for name, row in zip(names, rows, strict=True):
            entry, vector = ark_entry(name, row)
            lines.append(f"{name} {self.path.resolve()}:{offset + len(data) + vector}\n")
            data += entry
        _write(self.rows_file, data)
        _write(self.names_file, "".join(lines).encode())

    def close(self) -> None:
        if self.rows_file is not None:
            self.rows_file.close()
            self.names_file.close()


def _open(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path.open("r+b")


def _whole_lines(file: BinaryIO) -> list[bytes]:
    lines = file.readlines()
    return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]


def _cut(file: BinaryIO, size: int) -> None:
    file.truncate(size)
    file.seek(size)


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
