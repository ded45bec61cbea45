"""Thresholds for acceptable false-alarm rates, from your own trials.

    avspk threshold --trials my_trials.txt --wav-root DIR --model exp/av/model --false-alarm 0.01 0.001
    avspk threshold --scores results/cosine__my_trials.scores.tsv

Trials are lines `1 a.wav b.wav` (1 one speaker, 0 two) or `a b target|nontarget`. To decide, accept scores from the
threshold on, of the same kind (cosine less the training mean, from `avspk verify` and `avspk score`, or
AS-norm with the same cohort).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avspk.commands.console import add_model, complain, guarded, refuse, share
from avspk.commands.vectors import NOT_KEPT, TOP_N, Given, Vectors, add_cohort

if TYPE_CHECKING:
    import pandas as pd

    from avspk.scoring.threshold import OperatingPoint

FEW = 30  # errors below which a rate says little: the "rule of 30" (Doddington et al., 2000)
LOWEST_RATE = 1e-9  # nobody has the trials for less


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Print thresholds; 0, or 2 with a line of error."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--trials", type=Path, help="a trial list, scored with --model")
    source.add_argument("--scores", type=Path, help="lines `enroll test score label` or `score label`")
    add_model(parser, required=False)
    parser.add_argument("--wav-root", type=Path, help="folder that the names in the list start from")
    parser.add_argument("--wav-scp", type=Path, help="Kaldi's `name path`, if names are not paths")
    add_cohort(parser)
    parser.add_argument("--false-alarm", type=_rate, nargs="+", default=[0.05, 0.01, 0.001], metavar="RATE",
                        help="accepted share of different-speaker trials (0.05 0.01 0.001)")  # fmt: skip
    args = parser.parse_args(arguments)
    if args.trials and not args.model:
        parser.error("--trials needs --model")
    if args.scores:
        options = ["--model", "--device", "--wav-root", "--wav-scp", "--cohort", "--top-n"]
        refuse(parser, args, options, "only --trials needs that; --scores are used as they are")
    if not args.cohort:
        refuse(parser, args, ["--top-n"], "only AS-norm has it; give a --cohort")
    return guarded(run, args, "" if args.scores else NOT_KEPT)


def _rate(text: str) -> float:
    rate = share(text)
    if rate < LOWEST_RATE:
        raise argparse.ArgumentTypeError(f"{text!r} is too low; the lowest rate is {LOWEST_RATE:g}")
    return rate


def run(args: argparse.Namespace) -> int:
    """Score the trials if they are not scored yet, and print a line for each rate."""
    from avspk.scoring.metrics import eer, eer_threshold
    from avspk.scoring.threshold import threshold_at

    table = _read_scored(args.scores) if args.scores else _scored(args)
    scores, labels = table["score"].to_numpy(), table["label"].to_numpy()
    points = [threshold_at(scores, labels, rate) for rate in args.false_alarm]
    num_others, at_eer = int((labels == 0).sum()), eer_threshold(scores, labels)
    print(f"{len(labels):,} trials, {num_others:,} of different speakers")
    print(f"EER {100 * eer(scores, labels):.3f} %" + (f" at {at_eer:.4f}" if math.isfinite(at_eer) else ""))
    print("false alarms wanted    threshold    false alarms       misses")
    for rate, point in zip(args.false_alarm, points, strict=True):
        print(f"{100 * rate:17.4g} % {_shown(point):>12} {100 * point.false_alarm:13.4g} % {100 * point.miss:10.4g} %")
        if rate * num_others < FEW:
            complain(
                "warning",
                f"{100 * rate:g} % of {num_others:,} trials are {rate * num_others:.3g} false alarms; "
                f"{FEW} or more give a reproducible rate: use {round(FEW / rate):,} such trials",
            )
    return 0


def _shown(point: OperatingPoint) -> str:
    """The threshold in all its digits, four decimals or more: with fewer, the rates beside it would not be true."""
    if math.isinf(point.threshold):
        return "accept none"
    text = f"{point.threshold:.4f}"
    return text if float(text) == point.threshold else repr(point.threshold)


def _read_scored(path: Path) -> pd.DataFrame:
    """Trials of a score file."""
    from avspk.data.score_file import read_scores
    from avspk.evaluation.trial_list import check_trials

    table = read_scores(path)
    _tell(path, check_trials(table, str(path)))
    return table


def _tell(source: Path, notes: Sequence[str]) -> None:
    for note in notes:
        complain("note", f"{source}: {note}")


def _scored(args: argparse.Namespace) -> pd.DataFrame:
    """The trials with a column of scores."""
    import numpy as np

    from avspk.data.manifest import read_trials
    from avspk.evaluation.audio_files import usable_files
    from avspk.evaluation.official_lists import recognised
    from avspk.scoring.backend import as_norm, cohort_statistics, cosine_scores, normalised

    listed = recognised(args.trials.stem, read_trials(args.trials), False)
    vectors = Vectors(args)
    top_n = args.top_n or TOP_N
    others = vectors.read_cohort(args.cohort, top_n) if args.cohort else None
    files, (trials,) = usable_files([listed], args.wav_root or Path(), args.wav_scp)
    _tell(args.trials, trials.notes)
    names, rows = vectors.embed(Given(str(args.trials), files.names, files.paths))
    if vectors.failed:
        raise ValueError(f"{args.trials}: {vectors.failed} of its files cannot be embedded; take their trials out")
    row = {name: number for number, name in enumerate(names)}
    enroll, test = (np.array([row[name] for name in trials.table[side]]) for side in ("enroll", "test"))
    mean = vectors.model.training_mean
    scores = cosine_scores(rows, enroll, test, mean)
    if others:
        cohort = vectors.embed(others)[1] - mean
        statistics = cohort_statistics(normalised(rows, mean), cohort, min(top_n, len(cohort)))
        scores = as_norm(scores, enroll, test, statistics)
    return trials.table.assign(score=scores)
