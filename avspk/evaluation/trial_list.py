"""A trial list for evaluation: checked, titled, and marked if it is incomplete."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from avspk.data.manifest import speaker_of
from avspk.data.manifest_error import ManifestError
from avspk.data.score_file import DECIMALS

_VOXCELEB_NAME = re.compile(r"id\d{5}/")


@dataclass(frozen=True)
class TrialList:
    """Trials `table` (label, enroll, test, and score if scored) under a name.

    `title` is the printed name of the list, `notes` are remarks that its numbers need, and `complete` is false if its
    numbers are not those of the list that the title names.
    """

    name: str
    table: pd.DataFrame
    title: str
    complete: bool = True
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> NDArray[np.str_]:
        """The distinct files of the list, sorted, (F,)."""
        return np.unique(self.table[["enroll", "test"]].to_numpy(str))

    def without(self, missing: set[str]) -> TrialList:
        """The list without the trials of missing files, marked incomplete if there are any."""
        lost = self.table["enroll"].isin(missing) | self.table["test"].isin(missing)
        if not lost.any():
            return self
        note = f"{lost.sum():,} of {len(lost):,} trials left out, their files are missing"
        return replace(self, table=self.table[~lost].reset_index(drop=True), complete=False, notes=(*self.notes, note))

    def with_scores(self, scores: ArrayLike) -> TrialList:
        """The list with scores (T,) in its order, rounded as in a score file, so both give equal numbers."""
        rounded = np.round(np.asarray(scores, np.float64), DECIMALS)
        return replace(self, table=self.table.assign(score=rounded))

    def speakers(self) -> tuple[NDArray[np.str_], NDArray[np.str_]] | None:
        """The speakers (T,) of both sides, read from the names; None if the labels show that the names do not contain
        them.

        Tried in this order: the part before the first `/` (VoxCeleb), and before the first `-` (Kaldi utterance ids).
        """
        if "enroll" not in self.table:
            return None
        sides = [self.table[side].to_numpy(str) for side in ("enroll", "test")]
        for first_part in (speaker_of, _before_dash):
            enroll, test = (_map_unique(first_part, side) for side in sides)
            if np.array_equal(enroll == test, self.table["label"] == 1):
                return enroll, test
        return None


def _before_dash(name: str) -> str:
    return name.split("-", 1)[0]


def _map_unique(function: Callable[[str], str], names: NDArray[np.str_]) -> NDArray[np.str_]:
    values, inverse = np.unique(names, return_inverse=True)
    return np.array([function(value) for value in values])[inverse]


def check_trials(table: pd.DataFrame, source: str) -> tuple[str, ...]:
    """Notes on a table of trials (label, enroll, test): repeated trials, and trials of a file against itself.

    Raises: ManifestError if the label of a VoxCeleb trial contradicts its speakers, if a trial appears with both
    labels, or if all are of one kind.
    """
    if "enroll" not in table:
        require_both_kinds(table, source)
        return ()
    voxceleb = table["enroll"].map(_is_voxceleb) & table["test"].map(_is_voxceleb)
    same = table["enroll"].map(speaker_of) == table["test"].map(speaker_of)
    wrong = np.flatnonzero(voxceleb & (same != (table["label"] == 1)))
    if len(wrong):
        trial = " ".join(map(str, table.loc[wrong[0], ["label", "enroll", "test"]]))
        raise ManifestError(f"{source}: {len(wrong)} labels contradict the speakers; trial {wrong[0] + 1} is {trial!r}")
    repeated = table.duplicated(["enroll", "test"])
    if repeated.sum() != table.duplicated(["enroll", "test", "label"]).sum():
        raise ManifestError(f"{source}: a trial appears twice, with both labels")
    require_both_kinds(table, source)
    with_itself = int((table["enroll"] == table["test"]).sum())
    notes = {
        f"{repeated.sum():,} trials appear more than once": repeated.any(),
        f"{with_itself:,} trials compare a file with itself": with_itself,
    }
    return tuple(note for note, applies in notes.items() if applies)


def require_both_kinds(table: pd.DataFrame, source: str) -> None:
    """Raises: ManifestError if all trials (label) are of one kind."""
    num_targets = int((table["label"] == 1).sum())
    if num_targets in (0, len(table)):
        raise ManifestError(
            f"{source}: {num_targets} targets and {len(table) - num_targets} non-targets: error rates need at least "
            "one of each"
        )


def _is_voxceleb(name: str) -> bool:
    return _VOXCELEB_NAME.match(name) is not None
