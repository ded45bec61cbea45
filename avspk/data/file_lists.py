"""Lists of sounds in common formats: files, folders, Kaldi's wav.scp, tables, manifests, one path a line."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from avspk.common.text_files import is_binary, read_lines, read_rows, read_standard_input
from avspk.data.manifest_error import ManifestError
from avspk.data.suffixes import MEDIA_SUFFIXES
from avspk.data.tree import media_below

logger = logging.getLogger(__name__)
STDIN = "-"
_ARK_ENTRY = re.compile(r"\.ark:\d+\s*$")


class Listed(NamedTuple):
    """A file, and its name and speaker if the list gives them, else ""."""

    path: str
    name: str = ""
    speaker: str = ""


def named_sounds(sources: Sequence[str], lists: Sequence[str]) -> dict[str, Path]:
    """Name -> path of every sound, in the order given. A name that is given twice with one path counts once.

    Args:
        sources: files, and folders, whose sounds are taken at any depth; the name is the path.
        lists: files with one path a line, or "-" for standard input; wav.scp (any *.scp), whose names are
            kept; tables (*.tsv, *.csv) with a column `path` and optionally `name`; manifests (*.parquet, *.tsv), whose
            utterances are the names; folders; single sounds.

    Raises: ManifestError if a list cannot be read, a folder holds no sound, or a name has two paths.
    """
    sounds: dict[str, Path] = {}
    for name, path in _all(sources, lists):
        if sounds.setdefault(name, path) != path:
            raise ManifestError(f"the name {name!r} is given to two files: {sounds[name]} and {path}")
    return sounds


def _all(sources: Sequence[str], lists: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for source in sources:
        yield from _in_folder(Path(source)) if os.path.isdir(source) else [(source, Path(source))]
    for source in lists:
        yield from _listed(source)


def _listed(source: str) -> Iterator[tuple[str, Path]]:
    path = Path(source)
    if source == STDIN:
        yield from _lines(read_standard_input("list", ManifestError), "standard input")
    elif path.is_dir():
        yield from _in_folder(path)
    elif path.suffix.lower() in MEDIA_SUFFIXES and is_binary(path):
        yield source, path
    elif path.suffix.lower() == ".scp":
        yield from ((name, Path(file)) for name, file in read_wav_scp(path).items())
    elif _is_path_table(path):
        yield from ((one.name or one.path, Path(one.path)) for one in read_path_table(path))
    elif path.suffix.lower() in {".parquet", ".tsv"}:
        from avspk.data.manifest import read_utterances  # needs pandas

        utterances = read_utterances(path)
        yield from ((str(name), utterances.audio_path(row)) for row, name in enumerate(utterances.table["utterance"]))
    else:
        yield from _lines(read_lines(path, "list", ManifestError), str(path))


def _is_path_table(path: Path) -> bool:
    """Whether it is a table, but no manifest: a csv of several columns, or a tsv with a column `path`."""
    suffix = path.suffix.lower()
    if suffix not in {".csv", ".tsv"} or not path.is_file():
        return False
    first = next((line for line in read_lines(path, "list", ManifestError) if line), "")
    columns = [name.strip('"') for name in first.split("," if suffix == ".csv" else "\t")]
    return "path" in columns or (suffix == ".csv" and len(columns) > 1)


def _lines(given: Sequence[str], source: str) -> Iterator[tuple[str, Path]]:
    lines = [line.strip() for line in given]
    if not any(lines):
        raise ManifestError(f"{source}: it contains no path; it must have one a line")
    yield from ((line, Path(line)) for line in lines if line)


def _in_folder(folder: Path) -> Iterator[tuple[str, Path]]:
    found = media_below(folder)
    if not found:
        raise ManifestError(f"{folder}: no sound in this folder; suffixes: {', '.join(sorted(MEDIA_SUFFIXES))}")
    yield from ((str(path), path) for path in found)


def read_path_table(path: Path) -> Iterator[Listed]:
    """The rows of a table with a column `path` and optionally `name` and `speaker`; other columns are not used.

    Raises: ManifestError naming the file, and the line or the column that is wrong, or if there are no rows.
    """
    (_, columns), *rows = read_rows(path, "table", ManifestError) or [(1, [])]
    used = [name for name in columns if name in Listed._fields]
    if "path" not in used or len(set(used)) < len(used):
        raise ManifestError(f"{path}: columns are {columns}, must have one path and optionally one name and speaker")
    if unused := [name for name in columns if name not in used]:
        logger.info("%s: columns that are not used: %s", path, ", ".join(unused))
    if not rows:
        raise ManifestError(f"{path}: it contains no path")
    for number, fields in rows:
        row = dict(zip(columns, fields, strict=False))
        if len(fields) != len(columns) or not row["path"]:
            raise ManifestError(f"{path}, line {number}: must have {len(columns)} fields with a path")
        yield Listed(**{name: row[name] for name in used})


def read_wav_scp(path: Path) -> dict[str, str]:
    """Name -> path of Kaldi's wav.scp. Raises: ManifestError naming the invalid line, a pipe, or an entry of an ark."""
    entries: dict[str, str] = {}
    for number, line in enumerate(read_lines(path, "wav.scp", ManifestError), 1):
        fields = line.split(maxsplit=1)
        if not fields:
            continue
        if len(fields) != 2:
            raise ManifestError(f"{path}, line {number}: {line[:100]!r} is not `name path`")
        if fields[1].rstrip().endswith("|"):
            raise ManifestError(
                f"{path}, line {number}: {line[:100]!r} is a pipe, which is not run; give the path of a sound file "
                "instead (any format and rate)"
            )
        if _ARK_ENTRY.search(fields[1]):
            raise ManifestError(
                f"{path}, line {number}: {line[:100]!r} is an entry of Kaldi's ark, not a sound file; if it is an "
                "embedding, give the .ark itself as the table"
            )
        if entries.setdefault(fields[0], fields[1].strip()) != fields[1].strip():
            raise ManifestError(f"{path}, line {number}: the name {fields[0]!r} appears twice, with two paths")
    return entries


def read_enrolment(path: Path) -> list[tuple[str, Path]]:
    """(speaker, path) of every line of an enrolment; a speaker may have several.

    Raises: ManifestError naming the invalid line, or if there are no lines.
    """
    entries = []
    for number, line in enumerate(read_lines(path, "list of speakers", ManifestError), 1):
        fields = line.split(maxsplit=1)
        if len(fields) == 1:
            raise ManifestError(f"{path}, line {number}: {line[:100]!r} is not `speaker path`")
        if fields:
            entries.append((fields[0], Path(fields[1].strip())))
    if not entries:
        raise ManifestError(f"{path}: it enrols no speaker; it must have lines `speaker path`")
    return entries
