"""Score files, the exchange format of verification: lines `enroll test score label`, five decimals."""

import re
from pathlib import Path

import numpy as np

from avspk.common.extras import explained
from avspk.common.files import whole_or_absent
from avspk.common.text_files import read_fields

with explained():
    import pandas as pd

DECIMALS = 5
_LABELS = {"1": 1, "0": 0, "target": 1, "nontarget": 0}
_COLUMNS = {4: ["enroll", "test", "score", "label"], 2: ["score", "label"]}


class ScoreFileError(ValueError):
    """A score file is missing or malformed; the message names the file, the first bad line and what is valid."""


def read_scores(path: str | Path) -> pd.DataFrame:
    """Scored trials: `enroll` and `test` (str, absent if the file has none), `score` (float64), `label` (int8 1/0).

    Takes lines `enroll test score label` or `score label`, one kind in a file, separated by blanks; labels are
    target|nontarget or 1|0. Infinite scores are valid, NaN is not.

    Raises: ScoreFileError naming the file and the first line that is neither.
    """
    numbered = read_fields(Path(path), "score file", ScoreFileError)
    width = len(numbered[0][1])
    for number, fields in numbered:
        if len(fields) != width or width not in _COLUMNS or fields[-1] not in _LABELS or not _is_score(fields[-2]):
            raise ScoreFileError(
                f"{path}, line {number}: {' '.join(fields)[:100]!r} is not a scored trial; lines are `enroll test "
                "score label` or `score label`, one kind in a file, the score a number (not NaN), the label "
                "target|nontarget or 1|0"
            )
    table = pd.DataFrame([fields for _, fields in numbered], columns=_COLUMNS[width])
    table["score"] = table["score"].astype(np.float64)
    table["label"] = table["label"].map(_LABELS).astype(np.int8)
    return table


def _is_score(text: str) -> bool:
    try:
        return not np.isnan(float(text))
    except ValueError:
        return False


def write_scores(table: pd.DataFrame, path: str | Path) -> None:
    """Write the columns enroll, test, score, label of `table` atomically, with five decimals.

    The file gives the same metrics as the table if its scores were rounded to DECIMALS before.
    """
    columns = [table[name].tolist() for name in _COLUMNS[4]]
    with whole_or_absent(Path(path)) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(
            f"{enroll} {test} {score:.{DECIMALS}f} {label}\n"
            for enroll, test, score, label in zip(*columns, strict=True)
        )


def score_file_name(system: str, trials: str) -> str:
    """`<system>__<list>.scores.tsv`, the system in plain letters: "stage 1 (DINO)" -> "stage_1_dino"."""
    return f"{slug(system)}__{trials}.scores.tsv"


def slug(system: str) -> str:
    """A system's name in lower-case letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", system.lower()).strip("_")
