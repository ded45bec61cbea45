"""Embeds a list of files into a table: existing rows are skipped; slices run separately and are joined."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from avspk.common.files import alone, lock_of, whole_or_absent
from avspk.inference.embedding_table import EmbeddingTable, TableError, read_about, remove_table, require_own, twin
from avspk.inference.many_files import Embedded

_ROWS_A_PIECE = 1 << 16


@dataclass
class Outcome:
    """Counts of one run."""

    there: int = 0
    embedded: int = 0
    failures: dict[str, str] = field(default_factory=dict)  # name -> reason


class EmbeddingJob:
    """The output files of `avspk embed`.

    Args:
        out: X.npy or X.ark.
        model: digest of the model's content.
        shard: (i, n), slice i of n, from 1: its rows go to X.shard<i>of<n>; the slice that ends last joins all into X.
    """

    def __init__(self, out: Path, model: str, shard: tuple[int, int] = (1, 1)) -> None:
        self.out, self.model, self.shard = out, model, shard
        self.path = _shard_path(out, *shard) if shard[1] > 1 else out
        for table in {self.out, self.path}:
            read_failures(table)
        others = set(_shards(out)) - set(self._slices())
        if others:
            raise TableError(f"{min(others)} exists, from another number of slices; end that run first, or --overwrite")

    def _slices(self) -> list[Path]:
        return [_shard_path(self.out, number, self.shard[1]) for number in range(1, self.shard[1] + 1)]

    def share(self, sounds: Mapping[str, Path]) -> dict[str, Path]:
        """The sounds of this slice."""
        number, of = self.shard
        names = list(sounds)
        return {name: sounds[name] for name in names[len(names) * (number - 1) // of : len(names) * number // of]}

    def precision(self, wanted: str) -> str:
        """The precision that the existing rows were computed in; '' if there are none, or if they do not say it.

        Raises: TableError if `wanted` is another one; "auto" fits all.
        """
        found = {read_about(path).precision for path in (self.out, self.path) if path.with_suffix(".json").exists()}
        for noted in found - {"", wanted}:
            if wanted != "auto":
                raise TableError(
                    f"{self.out} holds embeddings computed in {noted}, not {wanted}; choose another --out, "
                    "--overwrite, or --precision auto, which continues as it is"
                )
        return max(found, default="")

    def known(self) -> set[str]:
        """Names that have a row already."""
        known: set[str] = set()
        for path in {self.out, self.path}:
            with alone(path), EmbeddingTable(path, self.model) as table:
                known |= table.names.keys()
        return known

    def write(
        self, names: Sequence[str], results: Iterator[list[Embedded]], outcome: Outcome, precision: str = ""
    ) -> Iterator[Embedded]:
        """Write rows as they arrive, computed in this precision; yield each result after its row is on the disk."""
        with alone(self.path), EmbeddingTable(self.path, self.model, precision) as table:
            try:
                for some in results:
                    good = [result for result in some if result.embedding is not None]
                    fresh = [result for result in good if names[result.index] not in table.names]
                    if fresh:
                        rows = np.stack([result.embedding for result in fresh if result.embedding is not None])
                        table.append([names[result.index] for result in fresh], rows)
                    outcome.embedded += len(good)
                    outcome.failures |= {names[r.index]: str(r.error) for r in some if r.embedding is None}
                    yield from some
            finally:
                _note_failures(self.path, table, outcome.failures)

    def join(self, sounds: Mapping[str, Path]) -> bool:
        """Mark this slice as done; if all are, join them. False if others are not finished."""
        if self.shard[1] == 1:
            return True
        content = hashlib.sha256("\n".join([self.model, *sounds]).encode()).hexdigest()
        with alone(self.out):
            with whole_or_absent(_done(self.path)) as part:
                part.write_text(content)
            paths = self._slices()
            if not all(_done(path).is_file() and _done(path).read_text() == content for path in paths):
                return False
            precisions = {read_about(path).precision for path in paths if path.with_suffix(".json").exists()}
            with EmbeddingTable(self.out, self.model, precisions.pop() if len(precisions) == 1 else "") as table:
                for path in paths:
                    _move_rows(path, table)
            for path in paths:
                _remove_slice(path)
        return True


def _move_rows(path: Path, table: EmbeddingTable) -> None:
    with EmbeddingTable(path, table.model) as slice_:
        names, rows = slice_.read() if slice_.names else ([], np.zeros((0, 0), np.float32))
        for begin in range(0, len(names), _ROWS_A_PIECE):
            piece = range(begin, min(begin + _ROWS_A_PIECE, len(names)))
            fresh = [row for row in piece if names[row] not in table.names]
            if fresh:
                table.append([names[row] for row in fresh], rows[fresh])
    _note_failures(table.path, table, read_failures(path))


def discard(out: Path) -> None:
    """Remove the table and all its slices.

    Raises: TableError if a table of the other kind shares files with it, or if the files are not those of a table.
    """
    if (other := twin(out)).exists():
        shared = out.with_suffix(".json").name
        raise TableError(f"{other} shares {shared} with {out.name}; choose another --out, or remove {other} by hand")
    with alone(out):
        for path in (out, *_shards(out)):
            require_own(path)
        remove_table(out)
        for path in _shards(out):
            _remove_slice(path)


def _remove_slice(path: Path) -> None:
    remove_table(path)
    for other in (_done(path), lock_of(path)):
        other.unlink(missing_ok=True)


def failures_path(out: Path) -> Path:
    """The list of files without a row, with reasons."""
    return out.with_suffix(".failed.tsv")


def read_failures(out: Path) -> dict[str, str]:
    """Name -> reason of every file that is listed as failed. Raises: TableError naming a line that is not both."""
    path = failures_path(out)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        if "\t" not in line:
            raise TableError(f"{path}, line {number}: {line[:99]!r} is no name, tab and reason; remove the line")
    return dict(line.split("\t", 1) for line in lines)


def _note_failures(out: Path, table: EmbeddingTable, failures: Mapping[str, str]) -> None:
    """Add failures to the list; remove names that now have a row."""
    known = {name: reason for name, reason in (read_failures(out) | dict(failures)).items() if name not in table.names}
    if not known:
        failures_path(out).unlink(missing_ok=True)
        return
    with whole_or_absent(failures_path(out)) as part:
        part.write_text(
            "".join(f"{_one_line(name)}\t{_one_line(reason)}\n" for name, reason in known.items()), encoding="utf-8"
        )


def _one_line(text: str) -> str:
    return " ".join(text.split()).encode(errors="backslashreplace").decode()


def unusable_name(name: str, out: Path) -> str | None:
    """Reason why this name cannot be in the output's list of names; None if it can."""
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in name):
        return "a line end, tab or byte that is not UTF-8 in its name: give it another name in a wav.scp"
    if out.suffix == ".ark" and re.search(r"\s", name):
        return "a blank in its name, which Kaldi's keys cannot have: give it another name in a wav.scp"
    return None


def _shard_path(out: Path, number: int, of: int) -> Path:
    return out.with_name(f"{out.stem}.shard{number}of{of}{out.suffix}")


def _shards(out: Path) -> list[Path]:
    pattern = re.compile(re.escape(out.stem) + r"\.shard\d+of\d+" + re.escape(out.suffix))
    return [path for path in out.parent.glob("*") if pattern.fullmatch(path.name)]


def _done(path: Path) -> Path:
    return path.with_name(path.name + ".done")
