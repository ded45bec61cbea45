"""Records of metrics.json from scored trial lists, the Markdown table of them, and the files of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avspk.common.files import whole_or_absent, write_json
from avspk.evaluation.trial_list import TrialList
from avspk.scoring.bootstrap import evaluate_scores

Record = dict[str, Any]


def evaluate_list(system: str, trials: TrialList, replicates: int, seed: int = 0) -> Record:
    """The record of one system on one list with scores; EER and its interval in percent.

    Raises: ValueError naming the system and the list (NaN scores, trials of one class only).
    """
    scores, labels = trials.table["score"], trials.table["label"]
    enroll, test = trials.speakers() or (None, None)
    try:
        metrics = evaluate_scores(scores, labels, enroll, test, replicates=replicates, seed=seed)
    except ValueError as error:
        raise ValueError(f"{system} on {trials.name}: {error}") from error
    return {"system": system, "trials": trials.name, "title": trials.title, "complete": trials.complete} | metrics


def interval_text(low: float | None, high: float | None, separator: str) -> str:
    """The ends of the EER's interval; '' if it has none, because the names of the trials do not give the speakers."""
    return "" if low is None or np.isnan(low) else f"{low:.2f}{separator}{high:.2f}"


def markdown(records: Sequence[Record], notes: Sequence[str] = ()) -> str:
    """Two tables (errors; calibration) of the records, 95 % intervals in brackets, and the notes below."""
    errors = _table(
        ["system", "list", "trials", "EER %", "minDCF(0.01)", "minDCF(0.05)"],
        [[r["system"], _title(r), f"{r['num_trials']:,}", *(_cell(r, name) for name in _ERRORS)] for r in records],
    )
    calibration = _table(
        ["system", "list", *(f"actDCF({p})" for p in _PRIORS), "Cllr", "min Cllr", "threshold at EER",
         *(f"threshold at {p}" for p in _PRIORS)],
        [
            [r["system"], _title(r), *(_cell(r, k) for k in _CALIBRATION), *(_number(r[k]) for k in _THRESHOLDS)]
            for r in records
        ],
    )  # fmt: skip
    footnotes = [
        "Brackets: 95 % bootstrap intervals that resample speakers."
        if any("eer_low" in r for r in records)
        else "No intervals: the names of the trials do not give the speakers.",
        "actDCF and Cllr read scores as natural-log likelihood ratios; raw cosines are not, so their costs are high.",
        *notes,
    ]
    return f"{errors}\n{calibration}\n" + "".join(f"- {note}\n" for note in footnotes)


_PRIORS = ("0.01", "0.05")
_ERRORS = ("eer", *(f"min_dcf_{p}" for p in _PRIORS))
_CALIBRATION = (*(f"act_dcf_{p}" for p in _PRIORS), "cllr", "min_cllr")
_THRESHOLDS = ("eer_threshold", *(f"min_dcf_threshold_{p}" for p in _PRIORS))


def _title(record: Record) -> str:
    return record["title"] if record["complete"] else f"{record['title']} (INCOMPLETE)"


def _cell(record: Record, name: str) -> str:
    text = _number(record[name])
    return (
        f"{text} [{_number(record[f'{name}_low'])}, {_number(record[f'{name}_high'])}]"
        if f"{name}_low" in record
        else text
    )


def _number(value: float) -> str:
    return f"{value:.3f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = [" --- " if column in ("system", "list") else " ---: " for column in header]
    lines = [header, *rows]
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([text[0], f"|{'|'.join(align)}|", *text[1:]]) + "\n"


def write_results(folder: Path, records: Sequence[Record], notes: Sequence[str] = ()) -> None:
    """Write metrics.json and metrics.md into `folder`."""
    write_json(folder / "metrics.json", [_jsonable(record) for record in records])
    with whole_or_absent(folder / "metrics.md") as part:
        part.write_text(markdown(records, notes), encoding="utf-8")


def _jsonable(record: Record) -> Record:
    """Replace infinities, which JSON does not have, by null: an unreachable threshold or an unbounded cost."""
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in record.items()
    }
