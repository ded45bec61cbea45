"""Reads a user's table of labels: a .tsv, .csv or .parquet file with the columns `utterance` and `label`."""

from __future__ import annotations

from pathlib import Path

from avspk.common.extras import explained
from avspk.common.text_files import read_rows
from avspk.data.manifest_error import ManifestError

with explained():
    import pandas as pd

COLUMNS = ("utterance", "label")
NO_LABEL = ("", "-1")
SUFFIXES = (".tsv", ".csv", ".parquet")


def read_labels(path: Path) -> tuple[list[str], list[str]]:
    """Utterances (n,) and labels (n,) of the rows that have a label. A label is any text or number except "" and -1.

    Raises: ManifestError naming the file, and the line or the columns that are wrong.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ManifestError(f"{path}: labels are a {', a '.join(SUFFIXES)} file with the columns utterance and label")
    table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_text(path)
    kept = [(name, label) for name, label in zip(*table, strict=True) if label not in NO_LABEL]
    if not kept:
        raise ManifestError(f"{path}: no label in it")
    names, labels = zip(*kept, strict=True)
    return list(names), list(labels)


def _read_text(path: Path) -> tuple[list[str], list[str]]:
    (_, header), *rows = read_rows(path, "table of labels", ManifestError) or [(1, [])]
    where = [header.index(name) for name in _required(header, path)]
    names, labels = [], []
    for number, row in rows:
        if len(row) != len(header):
            raise ManifestError(f"{path}, line {number}: {len(row)} fields under {len(header)} columns")
        names.append(row[where[0]])
        labels.append(row[where[1]].strip())
    return names, labels


def _read_parquet(path: Path) -> tuple[list[str], list[str]]:
    if not path.is_file():
        raise ManifestError(f"{path}: no such table of labels")
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: not a readable parquet file ({error})") from error
    _required(list(table.columns), path)
    return table["utterance"].astype(str).tolist(), [_text(value) for value in table["label"].tolist()]


def _required(columns: list[str], path: Path) -> tuple[str, ...]:
    if missing := [name for name in COLUMNS if name not in columns]:
        raise ManifestError(f"{path}: columns are {columns}; there is no {' and no '.join(missing)}")
    return COLUMNS


def _text(value: object) -> str:
    """A label of a typed table as text. pandas reads a column of whole numbers with gaps as floats."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
