"""Lists of recordings in common formats: wav.scp, a table with a column `path`, one path a line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from avspk.common.text_files import read_lines, read_rows
from avspk.data.file_lists import read_wav_scp
from avspk.data.manifest_error import ManifestError

logger = logging.getLogger(__name__)


class Listed(NamedTuple):
    """A file, and its name and speaker if the list gives them, else ""."""

    path: str
    name: str = ""
    speaker: str = ""


def read_clip_list(path: Path) -> list[Listed]:
    """Files in the order of the list: `*.scp` has lines `name path`, `*.tsv` and `*.csv` a header with `path` and
    optionally `name` and `speaker` (other columns are not used), any other file a path a line.

    Raises: ManifestError naming the file, and the line or the column that is wrong.
    """
    if path.suffix.lower() == ".scp":
        listed = [Listed(file, name) for name, file in read_wav_scp(path).items()]
    elif path.suffix.lower() in (".tsv", ".csv"):
        listed = list(_table(path))
    else:
        listed = [Listed(line.strip()) for line in read_lines(path, "list", ManifestError) if line.strip()]
    if not listed:
        raise ManifestError(f"{path}: it contains no path")
    return listed


def _table(path: Path) -> Iterator[Listed]:
    (_, columns), *rows = read_rows(path, "table", ManifestError) or [(1, [])]
    used = [name for name in columns if name in Listed._fields]
    if "path" not in used or len(set(used)) < len(used):
        raise ManifestError(f"{path}: columns are {columns}, must have one path and optionally one name and speaker")
    if unused := [name for name in columns if name not in used]:
        logger.info("%s: columns that are not used: %s", path, ", ".join(unused))
    for number, fields in rows:
        row = dict(zip(columns, fields, strict=False))
        if len(fields) != len(columns) or not row["path"]:
            raise ManifestError(f"{path}, line {number}: must have {len(columns)} fields with a path")
        yield Listed(**{name: row[name] for name in used})
