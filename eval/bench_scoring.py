"""Seconds and memory of scoring lists of VoxCeleb1-O/E/H size, with AS-norm and metrics, against the plain way.

python eval/bench_scoring.py > scoring.json

A JSON list of {"name", "ours", "baseline", "ratio", "unit", "baseline_is"}, ratio = baseline / ours. Embeddings are
random speakers plus noise; the plain way is timed on a part and scaled up.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from avspk.scoring.backend import as_norm, cohort_statistics, cosine_scores, normalised
from avspk.scoring.bootstrap import SpeakerBootstrap, interval
from avspk.scoring.metrics import eer, summarise

LISTS = {
    "O": (37_611, 4_708, 40),
    "E": (579_818, 145_160, 1_251),
    "H": (550_894, 137_924, 1_190),
}  # trials, files, speakers
COHORT, TOP_N, DIM, REPLICATES = 7_500, 300, 192, 1_000
PLAIN_TRIALS, PLAIN_REPLICATES = 200, 3
Floats = NDArray[np.floating]
Timing = dict[str, Any]


@dataclass(frozen=True)
class Trials:
    """Embeddings (N, D) of files and trials between them: rows (T,), speakers (T,), labels (T,)."""

    embeddings: Floats
    enroll: NDArray[np.int64]
    test: NDArray[np.int64]
    speakers: tuple[NDArray[np.int64], NDArray[np.int64]]
    labels: NDArray[np.bool_]


def make_trials(trials: int, files: int, speakers: int, rng: np.random.Generator) -> Trials:
    """Half target and half non-target trials of speakers with equally many files, EER about 2 %."""
    speaker = np.arange(files) % speakers
    embeddings = rng.normal(size=(speakers, DIM)).astype(np.float32)[speaker]
    embeddings += 1.55 * rng.normal(size=(files, DIM)).astype(np.float32) * rng.uniform(0.7, 1.5, size=(files, 1))
    enroll = rng.integers(files, size=trials)
    other = rng.integers(files, size=trials)
    same = (enroll + speakers * rng.integers(1, files // speakers, size=trials)) % files
    test = np.where((rng.random(trials) < 0.5) & (speaker[same] == speaker[enroll]), same, other)
    sides = speaker[enroll], speaker[test]
    return Trials(embeddings, enroll, test, sides, sides[0] == sides[1])


def ours(trials: Trials, cohort: Floats) -> Floats:
    """AS-normed scores and all metrics of a list, as eval/voxceleb.py computes them."""
    rows = normalised(trials.embeddings)
    scores = cosine_scores(rows, trials.enroll, trials.test)
    scores = as_norm(scores, trials.enroll, trials.test, cohort_statistics(rows, cohort, TOP_N))
    summarise(scores, trials.labels)
    return scores


def plain_scores(trials: Trials, cohort: Floats) -> Floats:
    """The same scores of the first trials, one after the other."""

    def unit(vector: Floats) -> Floats:
        return vector / np.linalg.norm(vector)

    references = np.stack([unit(vector) for vector in cohort])
    scores = []
    for a, b in zip(trials.enroll[:PLAIN_TRIALS], trials.test[:PLAIN_TRIALS], strict=True):
        sides = [unit(trials.embeddings[row]) for row in (a, b)]
        nearest = [np.sort(references @ side)[-TOP_N:] for side in sides]
        score = sides[0] @ sides[1]
        scores.append(np.mean([(score - near.mean()) / near.std() for near in nearest]))
    return np.array(scores)


def plain_eer(scores: Floats, labels: NDArray[np.bool_]) -> float:
    """The usual lines around scikit-learn's ROC."""
    p_fa, p_detect, _ = roc_curve(labels, scores, pos_label=1)
    nearest = np.nanargmin(np.abs(1 - p_detect - p_fa))
    return float((p_fa[nearest] + 1 - p_detect[nearest]) / 2)


def plain_bootstrap(trials: Trials, scores: Floats, copies: NDArray[np.int64]) -> list[float]:
    """EER of replicates whose lists are written out, trial by trial as often as its speakers were drawn."""
    first, second = trials.speakers
    values = []
    for drawn in copies[:PLAIN_REPLICATES]:
        times = np.where(first == second, drawn[first], drawn[first] * drawn[second])
        values.append(plain_eer(np.repeat(scores, times), np.repeat(trials.labels, times)))
    return values


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds that a call takes, and its result."""
    start = perf_counter()
    result = function(*arguments)
    return perf_counter() - start, result


def row(name: str, mine: float, plain: float, unit: str, plain_is: str) -> Timing:
    """One line of the result."""
    digits = {"ours": mine, "baseline": plain, "ratio": plain / mine}
    return (
        {"name": name} | {key: float(f"{x:.4g}") for key, x in digits.items()} | {"unit": unit, "baseline_is": plain_is}
    )


def bench_list(name: str, trials: Trials, cohort: Floats) -> list[Timing]:
    """Scoring, EER and intervals of one list; stops if the plain way gives other scores."""
    seconds, scores = timed(ours, trials, cohort)
    plain_seconds, plain = timed(plain_scores, trials, cohort)
    if not np.allclose(plain, scores[: len(plain)], atol=1e-3):
        raise RuntimeError(f"list {name}: the two ways of scoring disagree")
    eer_seconds, _ = timed(eer, scores, trials.labels)
    roc_seconds, _ = timed(plain_eer, scores, trials.labels)
    bootstrap = SpeakerBootstrap(trials.labels, *trials.speakers, replicates=REPLICATES)
    boot_seconds, replicates = timed(bootstrap.metrics, scores)
    rebuilt_seconds, _ = timed(plain_bootstrap, trials, scores, bootstrap.copies)
    low, high = (100 * end for end in interval(replicates["eer"]))
    scale, size = len(scores) / PLAIN_TRIALS, f"{name}, {len(scores):,} trials"
    loop = f"a loop over trials, each against the cohort; {PLAIN_TRIALS} timed, scaled up"
    rebuilt = f"lists written out, EER only; {PLAIN_REPLICATES} timed, scaled up"
    what = f"{REPLICATES} replicates of all metrics ({size}; EER {low:.2f} to {high:.2f} %)"
    return [
        row(f"AS-norm and metrics ({size})", seconds, plain_seconds * scale, "s", loop),
        row(f"EER ({size})", eer_seconds, roc_seconds, "s", "scikit-learn's ROC curve and its nearest point"),
        row(what, boot_seconds, rebuilt_seconds * REPLICATES / PLAIN_REPLICATES, "s", rebuilt),
    ]


def main() -> None:
    """Print the timings of the lists as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", nargs="+", choices=sorted(LISTS), default=list(LISTS))
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    cohort = rng.normal(size=(COHORT, DIM)).astype(np.float32)
    rows = []
    for name in args.lists:
        rows += bench_list(name, make_trials(*LISTS[name], rng), cohort)
    mine, plain = (
        sum(line[key] for line in rows if line["name"].startswith("AS-norm")) for key in ("ours", "baseline")
    )
    rows.append(row(f"AS-norm and metrics, lists {', '.join(args.lists)}", mine, plain, "s", "the loops over trials"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    full = max(LISTS[name][1] for name in args.lists) * COHORT * 4 / 2**30
    rows.append(
        row(
            "peak memory", peak, peak + full, "GiB", "computed, not run: and one matrix of all files against the cohort"
        )
    )
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
