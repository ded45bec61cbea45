"""Reads tables of named vectors: an array with a list of names, or Kaldi's ark and scp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avspk.common.text_files import read_lines
from avspk.data.kaldi import KaldiError, read_ark, read_scp

Floats = NDArray[np.floating]
LISTS = (".tsv", ".txt")


class VectorsError(ValueError):
    """A file of named vectors cannot be read."""


def read_named_vectors(path: Path) -> tuple[list[str], Floats]:
    """Names (n,) and vectors (n, D), memory-mapped where the file allows it.

    The names of `X.npy` are in X.tsv or X.txt in the same folder. The first field of each line is a name. `X.scp` and
    `X.ark` hold Kaldi's binary vectors. `avspk embed` writes both kinds.

    Raises: VectorsError that names the file and the problem.
    """
    if path.suffix.lower() not in (".npy", ".scp", ".ark"):
        raise VectorsError(f"{path}: embeddings are a .npy file with a list of names, or Kaldi's .scp or .ark")
    if not path.is_file():
        raise VectorsError(f"{path}: no such file of embeddings")
    if path.suffix.lower() == ".npy":
        return _read_npy(path)
    try:
        return _stacked(path, read_scp(path) if path.suffix.lower() == ".scp" else read_ark(path))
    except (KaldiError, OSError) as error:
        raise VectorsError(str(error)) from error


def _read_npy(path: Path) -> tuple[list[str], Floats]:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise VectorsError(f"{path}: not a readable array ({error})") from error
    if rows.ndim != 2 or rows.shape[1] == 0 or rows.dtype.kind != "f":
        raise VectorsError(f"{path}: an array {rows.dtype} {rows.shape}; valid: floats (utterances, numbers)")
    found = [path.with_suffix(suffix) for suffix in LISTS if path.with_suffix(suffix).is_file()]
    if not found:
        raise VectorsError(
            f"{path}: no list of names; want {path.with_suffix('.tsv').name} in its folder, a line a row"
        )
    names = [line.split("\t")[0].strip() for line in read_lines(found[0], "list of names", VectorsError)]
    if len(names) != len(rows):
        raise VectorsError(f"{path} has {len(rows)} rows, {found[0].name} {len(names)} names")
    return names, rows


def _stacked(path: Path, entries: Iterator[tuple[str, Floats]]) -> tuple[list[str], Floats]:
    names: list[str] = []
    vectors: list[Floats] = []
    for name, vector in entries:
        if vectors and len(vector) != len(vectors[0]):
            raise VectorsError(f"{path}: {name} has {len(vector)} numbers, {names[0]} {len(vectors[0])}")
        names.append(name)
        vectors.append(vector)
    if not names:
        raise VectorsError(f"{path}: no embedding in it")
    return names, np.stack(vectors)
