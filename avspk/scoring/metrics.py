"""Error rates and costs of verification scores: EER, DCF, Cllr; exact, O(N log N), independent of the order of ties.

Conventions of the whole file: `scores` (N,), larger means "same speaker"; `labels` (N,), 1 = target, 0 = non-target;
a trial is accepted if its score >= the threshold; every rate and cost is a fraction (percent belongs to printing).
Infinite scores are valid (a certain system); NaN is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression
from scipy.special import logit, ndtri

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
P_TARGETS = (0.01, 0.05)


def check_trials(scores: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, BoolArray]:
    """Return scores (N,) as float64 and labels (N,) as bool; ValueError says what is wrong and with which trial."""
    values, given = np.asarray(scores, np.float64), np.asarray(labels)
    if values.ndim != 1 or values.shape != given.shape:
        raise ValueError(f"scores {values.shape} and labels {given.shape} must be two vectors of one length")
    bad = np.flatnonzero(np.isnan(values))
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(values)} scores are NaN, the first is trial {bad[0]} (counted from 0)")
    wrong = np.flatnonzero((given != 0) & (given != 1))
    if len(wrong):
        raise ValueError(f"label {given[wrong[0]]!r} of trial {wrong[0]} is neither 1 (target) nor 0 (non-target)")
    num_targets, num_trials = int(given.sum()), len(given)
    if num_targets in (0, num_trials):
        raise ValueError(
            f"{num_targets} targets and {num_trials - num_targets} non-targets: error rates need at least one of each"
        )
    return values, given.astype(bool)


@dataclass(frozen=True)
class OperatingPoints:
    """Every distinct operating point of a list, from accept-all to reject-all: K distinct scores give K + 1 points.

    thresholds (K + 1,) ascending, the last is inf (reject all); p_miss (K + 1,) rises from 0 to 1 and
    p_fa (K + 1,) falls from 1 to 0. Tied scores are accepted or rejected together, so their order does not matter.
    """

    thresholds: FloatArray
    p_miss: FloatArray
    p_fa: FloatArray


def error_rates(scores: ArrayLike, labels: ArrayLike) -> OperatingPoints:
    """Return all operating points of scores (N,) with labels (N,)."""
    thresholds, _, targets, nontargets = count_by_score(*check_trials(scores, labels))
    return OperatingPoints(np.append(thresholds, np.inf), *cumulative_rates(targets, nontargets))


def count_by_score(
    scores: FloatArray, labels: BoolArray
) -> tuple[FloatArray, NDArray[np.intp], FloatArray, FloatArray]:
    """Group tied scores (N,): the K distinct ones, ascending; each trial's group (N,); targets and non-targets (K,)."""
    values, group = np.unique(scores, return_inverse=True)
    targets = np.bincount(group, weights=labels, minlength=len(values)).astype(np.float64)
    return values, group, targets, np.bincount(group, minlength=len(values)) - targets


def cumulative_rates(targets: FloatArray, nontargets: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Turn weights by ascending score, (K, ...) each, into p_miss and p_fa at the K + 1 operating points."""
    below = [np.concatenate([np.zeros_like(w[:1]), np.cumsum(w, axis=0)]) for w in (targets, nontargets)]
    miss, rejected = below
    return miss / miss[-1], (rejected[-1] - rejected) / rejected[-1]


def eer(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the equal error rate, a fraction, by linear interpolation between operating points."""
    return eer_point(error_rates(scores, labels))[0]


def eer_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the threshold at the equal error rate, interpolated like the EER itself."""
    return eer_point(error_rates(scores, labels))[1]


def eer_point(points: OperatingPoints) -> tuple[float, float]:
    """Return (EER as a fraction, its threshold) where the polygon through the points meets p_miss = p_fa."""
    excess = points.p_miss - points.p_fa  # rises strictly from -1 to 1
    after = int(np.argmax(excess >= 0))
    share = excess[after - 1] / (excess[after - 1] - excess[after])
    rate = points.p_miss[after - 1] + share * (points.p_miss[after] - points.p_miss[after - 1])
    low, high = points.thresholds[after - 1], points.thresholds[after]
    if share == 1 or not np.isfinite(low):
        return float(rate), float(high)
    return float(rate), float(low + share * (high - low) if np.isfinite(high) else low)


def _check_prior(p_target: float) -> float:
    if not 0 < p_target < 1:
        raise ValueError(f"p_target is {p_target}; a prior lies strictly between 0 and 1, such as 0.01")
    return p_target


def detection_cost(p_miss: ArrayLike, p_fa: ArrayLike, p_target: float) -> FloatArray:
    """Return the normalised detection cost of error rates, both costs 1: below 1 beats a decision without scores.

    (p_target p_miss + (1 - p_target) p_fa) / min(p_target, 1 - p_target), NIST SRE.
    """
    p = _check_prior(p_target)
    return (p * np.asarray(p_miss, np.float64) + (1 - p) * np.asarray(p_fa, np.float64)) / min(p, 1 - p)


def min_dcf(scores: ArrayLike, labels: ArrayLike, p_target: float) -> float:
    """Return the normalised detection cost at the best threshold for this list and prior (NIST minDCF)."""
    return min_dcf_point(error_rates(scores, labels), p_target)[0]


def min_dcf_point(points: OperatingPoints, p_target: float) -> tuple[float, float]:
    """Return (minDCF, the lowest threshold that attains it)."""
    cost = detection_cost(points.p_miss, points.p_fa, p_target)
    best = int(np.argmin(cost))
    return float(cost[best]), float(points.thresholds[best])


def bayes_threshold(p_target: float) -> float:
    """Return the log-likelihood ratio (natural log) from which a Bayes decision accepts, both costs 1."""
    return -float(logit(_check_prior(p_target)))


def act_dcf(scores: ArrayLike, labels: ArrayLike, p_target: float) -> float:
    """Return the normalised detection cost of Bayes decisions, reading scores as natural-log likelihood ratios."""
    scores, labels = check_trials(scores, labels)
    accepted = scores >= bayes_threshold(p_target)
    return float(detection_cost(np.mean(~accepted[labels]), np.mean(accepted[~labels]), p_target))


def cllr_costs(scores: FloatArray, labels: BoolArray) -> FloatArray:
    """Return the cost in bits of each natural-log likelihood ratio, (N,): log2(1 + exp(-llr)) for a target."""
    return np.logaddexp(0, np.where(labels, -scores, scores)) / np.log(2)


def cllr(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the cost of natural-log likelihood ratios in bits (Bruemmer and du Preez, 2006); 1: no information."""
    scores, labels = check_trials(scores, labels)
    costs = cllr_costs(scores, labels)
    return float((costs[labels].mean() + costs[~labels].mean()) / 2)


def min_cllr(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the Cllr in bits of the best monotone map of the scores (pool adjacent violators): discrimination only."""
    _, _, targets, nontargets = count_by_score(*check_trials(scores, labels))
    return min_cllr_of_counts(targets, nontargets)


def min_cllr_of_counts(targets: FloatArray, nontargets: FloatArray) -> float:
    """Return the minimal Cllr of K score groups, ascending, with targets (K,) and non-targets (K,) by weight."""
    seen = targets + nontargets > 0
    targets, nontargets = targets[seen] / targets.sum(), nontargets[seen] / nontargets.sum()
    weight = targets + nontargets  # each class weighs 1, so the posterior is at even prior
    posterior = np.clip(isotonic_regression(targets / weight, weights=weight).x, 0, 1)
    llr = logit(posterior)
    # A group of one class costs nothing, and 0 times an infinite cost of the absent class must stay 0.
    cost_target = targets * np.where(targets > 0, np.logaddexp(0, -llr), 0)
    cost_nontarget = nontargets * np.where(nontargets > 0, np.logaddexp(0, llr), 0)
    return float((cost_target.sum() + cost_nontarget.sum()) / (2 * np.log(2)))


def score_runs(scores: FloatArray, labels: BoolArray) -> NDArray[np.int64]:
    """Number the runs of scores between which an optimal threshold can lie: (N,) run of each trial, ascending.

    A run is a tie group that mixes targets and non-targets, or a stretch of neighbouring groups of one class. Along
    such a stretch only one error rate changes, so EER (linear), minDCF (a corner) and PAV (a segment of the hull) are
    the same if it counts as one point. A good system's list shrinks to a few percent of its trials.
    """
    _, group, targets, nontargets = count_by_score(scores, labels)
    kind = np.where(targets == 0, 0, np.where(nontargets == 0, 1, 2))
    starts = np.append(True, (kind[1:] != kind[:-1]) | (kind[1:] == 2))
    return (np.cumsum(starts) - 1)[group]


def det_curve(scores: ArrayLike, labels: ArrayLike, max_points: int = 500) -> tuple[FloatArray, FloatArray]:
    """Return (p_fa, p_miss) for a detection error trade-off plot, at most `max_points` each, p_fa falling.

    The points are a subset of the operating points, spread evenly along the curve on the normal-deviate axes of a
    DET plot (Martin et al., 1997).
    """
    points = error_rates(scores, labels)
    p_fa, p_miss = points.p_fa, points.p_miss
    if len(p_fa) <= max_points:
        return p_fa, p_miss
    deviates = ndtri(np.clip(np.stack([p_fa, p_miss]), 1e-7, 1 - 1e-7))
    position = np.append(0, np.cumsum(np.abs(np.diff(deviates)).sum(axis=0)))
    kept = np.unique(np.searchsorted(position, np.linspace(0, position[-1], max_points)))
    return p_fa[kept], p_miss[kept]


def summarise(scores: ArrayLike, labels: ArrayLike, p_targets: Sequence[float] = P_TARGETS) -> dict[str, float]:
    """Return all metrics under the names of metrics.json, rates as fractions.

    Keys: eer, eer_threshold, cllr, min_cllr and, for each prior p of `p_targets`, min_dcf_p, min_dcf_threshold_p and
    act_dcf_p. cllr and act_dcf_p read the scores as natural-log likelihood ratios; the others need no calibration.
    """
    points = error_rates(scores, labels)
    rate, threshold = eer_point(points)
    summary = {"eer": rate, "eer_threshold": threshold, "cllr": cllr(scores, labels)}
    summary["min_cllr"] = min_cllr(scores, labels)
    for p in p_targets:
        summary[f"min_dcf_{p:g}"], summary[f"min_dcf_threshold_{p:g}"] = min_dcf_point(points, p)
        summary[f"act_dcf_{p:g}"] = act_dcf(scores, labels, p)
    return summary
