"""Confidence intervals that resample speakers: trials of one speaker are not independent, so trials are not drawn.

A replicate draws as many people as there are, with replacement, and rebuilds the list from them: a person drawn n
times counts as n people, each with the target trials of that person (weight n), and each pair of different people
keeps its non-target trials (weight n_a n_b). Copies of one person have no non-target trials with each other.
This is the vertex bootstrap of network data (Snijders and Borgatti, 1999); as for crossed data in general (Owen,
2007, the pigeonhole bootstrap), its intervals tend to be too wide rather than too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from avspk.scoring.metrics import (
    P_TARGETS,
    bayes_threshold,
    check_trials,
    cllr_costs,
    cumulative_rates,
    detection_cost,
    min_cllr_of_counts,
    score_runs,
    summarise,
)

FloatArray = NDArray[np.float64]
WEIGHTS_PER_CHUNK = 8_000_000  # 64 MB of float64
INFINITE = 1e200  # replaces an infinite cost, so that a weight of 0 still makes it 0


class SpeakerBootstrap:
    """One set of replicates for one trial list, used for every system scored on that list.

    labels (T,) 1 or 0; enroll_speakers and test_speakers (T,) name the two people of each trial (strings or ints).
    Raises ValueError when a label contradicts the names, or when there are fewer than two people.
    """

    def __init__(
        self,
        labels: ArrayLike,
        enroll_speakers: ArrayLike,
        test_speakers: ArrayLike,
        replicates: int = 1000,
        seed: int = 0,
    ) -> None:
        self.labels = np.asarray(labels).astype(bool)
        enroll, test = np.asarray(enroll_speakers), np.asarray(test_speakers)
        if not self.labels.shape == enroll.shape == test.shape:
            raise ValueError(f"labels {self.labels.shape}, enroll {enroll.shape}, test {test.shape} differ in length")
        _check_names(self.labels, enroll, test)
        people, codes = np.unique(np.concatenate([enroll, test]), return_inverse=True)
        if len(people) < 2:
            raise ValueError("all trials are of one speaker; resampling speakers needs two or more")
        ends = np.sort(codes.reshape(2, -1), axis=0)  # (2, T)
        pairs, self.pair = np.unique(ends[0] * len(people) + ends[1], return_inverse=True)
        self.first, self.second = np.divmod(pairs, len(people))  # (P,) each
        self.num_speakers = len(people)
        rng = np.random.default_rng(seed)
        self.copies = rng.multinomial(len(people), np.full(len(people), 1 / len(people)), size=replicates)  # (R, S)

    def pair_weights(self, replicates: slice) -> FloatArray:
        """Return the weight of each pair of people in some replicates, (P, r)."""
        copies = self.copies[replicates].T.astype(np.float64)  # (S, r)
        other = np.where((self.first == self.second)[:, None], 1, copies[self.second])  # (P, r)
        return copies[self.first] * other

    def metrics(self, scores: ArrayLike, p_targets: Sequence[float] = P_TARGETS) -> dict[str, FloatArray]:
        """Return each metric of scores (T,) in all replicates, (R,) each, rates as fractions.

        Keys: eer, cllr, min_cllr, and min_dcf_p and act_dcf_p for each prior p. A replicate without a target or
        without a non-target trial (possible with a handful of speakers only) gives NaN.
        """
        trials = _PairCounts.of(*check_trials(scores, self.labels), self.pair, p_targets)
        step = max(1, WEIGHTS_PER_CHUNK // (len(self.first) + 4 * trials.targets.shape[0]))
        chunks = [
            trials.metrics(self.pair_weights(slice(start, start + step)), p_targets)
            for start in range(0, len(self.copies), step)
        ]
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _check_names(labels: NDArray[np.bool_], enroll: NDArray, test: NDArray) -> None:
    wrong = np.flatnonzero(labels != (enroll == test))
    if len(wrong):
        row = wrong[0]
        kind = "target" if labels[row] else "non-target"
        raise ValueError(
            f"{len(wrong)} labels contradict the speakers: trial {row} is a {kind} of {enroll[row]} and {test[row]}"
        )


@dataclass(frozen=True)
class _PairCounts:
    """A scored list, summed by pair of people, so that a replicate is a matrix product.

    targets and nontargets (K, P): trials of each pair in each run of scores (`score_runs`). costs (2, P, 2 + n): by
    class (non-target, target), each pair's number of trials, Cllr costs, and wrong Bayes decisions at n priors.
    """

    targets: csr_matrix
    nontargets: csr_matrix
    costs: FloatArray

    @classmethod
    def of(
        cls, scores: FloatArray, labels: NDArray[np.bool_], pair: NDArray[np.intp], p_targets: Sequence[float]
    ) -> _PairCounts:
        runs, num_pairs = score_runs(scores, labels), int(pair.max()) + 1
        shape = (int(runs.max()) + 1, num_pairs)
        targets, nontargets = (
            csr_matrix((np.ones(len(rows)), (runs[rows], pair[rows])), shape=shape)
            for rows in (np.flatnonzero(labels), np.flatnonzero(~labels))
        )
        wrong = [labels != (scores >= bayes_threshold(p)) for p in p_targets]
        costs = np.zeros((2, num_pairs, 2 + len(p_targets)))
        llr_costs = np.minimum(cllr_costs(scores, labels), INFINITE)
        for column, cost in enumerate([np.ones(len(scores)), llr_costs, *wrong]):
            np.add.at(costs[:, :, column], (labels.astype(int), pair), cost)
        return cls(targets, nontargets, costs)

    def metrics(self, weights: FloatArray, p_targets: Sequence[float]) -> dict[str, FloatArray]:
        """Return the metrics, (r,) each, under weights (P, r) of the pairs."""
        targets, nontargets = self.targets @ weights, self.nontargets @ weights  # (K, r) each
        with np.errstate(divide="ignore", invalid="ignore"):
            p_miss, p_fa = cumulative_rates(targets, nontargets)  # (K + 1, r) each
            sums = np.einsum("cpm,pr->cmr", self.costs, weights, optimize=True)
            nontarget_cost, target_cost = sums[:, 1:] / sums[:, :1]  # (1 + n, r) each
        cllr = (target_cost[0] + nontarget_cost[0]) / 2
        values = {"eer": _interpolated_eer(p_miss, p_fa), "cllr": np.where(cllr > INFINITE / 1e9, np.inf, cllr)}
        values["min_cllr"] = _min_cllr(targets, nontargets)
        for i, p in enumerate(p_targets):
            values[f"min_dcf_{p:g}"] = detection_cost(p_miss, p_fa, p).min(axis=0)
            values[f"act_dcf_{p:g}"] = detection_cost(target_cost[1 + i], nontarget_cost[1 + i], p)
        return values


def _interpolated_eer(p_miss: FloatArray, p_fa: FloatArray) -> FloatArray:
    """Return the EER (r,) of p_miss and p_fa (K + 1, r), as `metrics.eer_point` does for one list."""
    excess = p_miss - p_fa
    after = np.argmax(excess >= 0, axis=0)
    column = np.arange(excess.shape[1])
    below, above = excess[after - 1, column], excess[after, column]
    miss_below, miss_above = p_miss[after - 1, column], p_miss[after, column]
    return miss_below + below / (below - above) * (miss_above - miss_below)


def _min_cllr(targets: FloatArray, nontargets: FloatArray) -> FloatArray:
    present = (targets.sum(axis=0) > 0) & (nontargets.sum(axis=0) > 0)
    return np.array(
        [min_cllr_of_counts(targets[:, i], nontargets[:, i]) if present[i] else np.nan for i in range(len(present))]
    )


def interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Return the central percentile interval of replicates (R,) without NaN values.

    Its ends are values of replicates, rounded outwards, so infinite replicates do no harm.
    """
    values, tail = np.asarray(values, np.float64), (1 - level) / 2
    return float(np.nanquantile(values, tail, method="lower")), float(np.nanquantile(values, 1 - tail, method="higher"))


@dataclass(frozen=True)
class Difference:
    """A difference of two systems on the same trials: first minus second, its 95 % interval, two-sided p value."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_difference(
    bootstrap: SpeakerBootstrap, first: ArrayLike, second: ArrayLike, metric: str = "eer"
) -> Difference:
    """Compare two systems' scores (T,) on the list of `bootstrap`: `metric` of the first minus that of the second.

    Both use the same resampled speakers.
    """
    differences = bootstrap.metrics(first)[metric] - bootstrap.metrics(second)[metric]
    differences = differences[~np.isnan(differences)]
    point = summarise(first, bootstrap.labels)[metric] - summarise(second, bootstrap.labels)[metric]
    return Difference(point, *interval(differences), p_value(differences))


def p_value(draws: FloatArray) -> float:
    """The share of replicates (R,) of a difference beyond zero, doubled.

    At least 2 / (R + 1), because R replicates cannot show less (Davison and Hinkley, 1997).
    """
    tail = min(np.sum(draws <= 0), np.sum(draws >= 0))
    return float(min(1.0, 2 * (1 + tail) / (1 + len(draws))))


def evaluate_scores(
    scores: ArrayLike,
    labels: ArrayLike,
    enroll_speakers: ArrayLike | None = None,
    test_speakers: ArrayLike | None = None,
    p_targets: Sequence[float] = P_TARGETS,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Return a record of metrics.json for scores (T,) and labels (T,): the EER and its interval in PERCENT.

    Keys: num_trials, num_targets, num_nontargets, those of `metrics.summarise`, and, when both sides' speakers (T,) are
    given, num_speakers and a 95 % speaker-bootstrap interval `<metric>_low`, `<metric>_high` of each metric.
    """
    scores, labels = check_trials(scores, labels)
    record: dict[str, float] = {"num_trials": len(labels), "num_targets": int(labels.sum())}
    record["num_nontargets"] = len(labels) - record["num_targets"]
    record |= summarise(scores, labels, p_targets)
    if enroll_speakers is not None and test_speakers is not None:
        bootstrap = SpeakerBootstrap(labels, enroll_speakers, test_speakers, replicates, seed)
        record["num_speakers"] = bootstrap.num_speakers
        for name, values in bootstrap.metrics(scores, p_targets).items():
            record[f"{name}_low"], record[f"{name}_high"] = interval(values)
    return record | {name: 100 * record[name] for name in ("eer", "eer_low", "eer_high") if name in record}
