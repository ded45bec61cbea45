"""Dynamic loss gate: a two-component Gaussian mixture of log losses decides which pseudo labels to trust.

Source: Han, Chen and Qian, arXiv 2208.01928. The combination of modalities and epochs is our choice, and so is the
fallback if the losses do not split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy.special import expit

from avspk.common.settings import Count, Positive, Probability, Settings

Floats = NDArray[np.float64]
Status = Literal["fitted", "posterior", "kept", "open", "share"]


class GateSettings(Settings):
    """Dynamic loss gate (arXiv 2208.01928). It starts after `start_epoch` epochs [S: 5 of 15].

    With rule "joint", one gate judges the geometric mean of the modalities' losses over the last epochs, because losses
    of one epoch and one modality are noisy (measured in eval/results/earlier.md). The other rules are the papers'
    gates: one per modality, using only the last epoch.
    """

    enabled: bool = True
    start_epoch: int = Field(5, ge=1)
    rule: str = Field(
        "joint",
        description="joint: one gate for all modalities [C]. Otherwise each modality has a gate, and a trusted label "
        "passes both, either, or the gate of the named modality [C]",
    )
    average_epochs: Count = Field(3, description="rule joint: epochs whose log losses are averaged [C]")
    fallback: Probability = Field(0.5, description="rule joint: share that passes if the losses do not split [C]")
    floor: Probability = Field(0.3, description="rule joint: at least this share passes [C]")
    soft: bool = Field(False, description="rule joint: labels that pass are weighted by their posterior, not 1 [C]")
    min_separation: Positive = Field(
        1.5, description="distance of the means, in root mean square deviations, below which modes are merged [C]"
    )


LOSS_FLOOR = float(np.finfo(np.float32).eps)  # resolution of a cross-entropy in float32: a smaller loss is zero
MIN_LOSSES = 20  # a mixture has 5 free parameters; a fit to fewer losses means nothing
MAX_EXACT = 1 << 12  # if there are more log losses, they are put into this many bins
STD_FLOOR = 1e-2  # minimum of a component, in standard deviations of the data: prevents infinite density
MAX_ITERATIONS = 2000
TOLERANCE = 1e-10  # change of the mean log likelihood at convergence


@dataclass(frozen=True)
class Gate:
    """A threshold and the mixture it comes from, in natural log of the loss. Component 0 has the lower mean.

    status: "fitted": the threshold is the crossing of the weighted densities; "posterior": they do not cross between
    the means, so it is clamped to a mean; "kept": the losses do not split, so this is the previous gate; "open": there
    is no previous gate either, and all labels pass; "share": a fixed share of the labels passes.
    """

    threshold: float
    weights: tuple[float, float]
    means: tuple[float, float]
    stds: tuple[float, float]
    status: Status

    def passes(self, losses: ArrayLike) -> NDArray[np.bool_]:
        """Return which losses are on the trusted side, in the given shape; NaN (never seen) passes."""
        values = np.asarray(losses, dtype=np.float64)
        return ~(_log_losses(values) > self.threshold)

    def trust(self, losses: ArrayLike) -> Floats:
        """Return the posterior of component 0, in the given shape; 1 without a mixture, and for NaN."""
        values = _log_losses(np.asarray(losses, dtype=np.float64))
        if not np.isfinite(self.means).all():
            return np.ones_like(values)
        low, high = (
            np.log(weight / std) - (values - mean) ** 2 / (2 * std**2)
            for weight, mean, std in zip(self.weights, self.means, self.stds, strict=True)
        )
        # Far below both means, the wider component is more likely again. Such labels are still trusted.
        return np.where(np.isnan(values) | (values <= self.means[0]), 1.0, expit(low - high))


OPEN = Gate(np.inf, (np.nan, np.nan), (np.nan, np.nan), (np.nan, np.nan), "open")


def fit_gate(losses: ArrayLike, previous: Gate | None = None, *, min_separation: float = 1.5) -> Gate:
    """Fit the gate of one modality to the losses of an epoch.

    Args:
        losses: (N,) >= 0, one per utterance. NaN and infinite losses are ignored; zeros are clamped before the log.
        previous: the gate of the previous epoch, kept if these losses do not split.
        min_separation: distance of the means, in root mean square standard deviations of the components (Ashman's D),
            below which the modes count as merged [C]. Fits to a skewed distribution with one mode, such as log losses
            without wrong labels, gave 1.2 to 1.5. Two equal Gaussians have one mode below 2.
    """
    log_losses = _log_losses(np.asarray(losses, dtype=np.float64).ravel())
    log_losses = log_losses[np.isfinite(log_losses)]
    mixture = _fit_mixture(log_losses) if len(log_losses) >= MIN_LOSSES else None
    if mixture is None or mixture.separation < min_separation:
        return OPEN if previous is None or previous.status == "open" else replace(previous, status="kept")
    threshold, status = mixture.crossing()
    return Gate(threshold, _pair(mixture.weights), _pair(mixture.means), _pair(mixture.stds), status)


def share_gate(losses: ArrayLike, share: float) -> Gate:
    """Return a gate that passes this share of the finite losses, the lowest ones; without losses, an open gate."""
    log_losses = _log_losses(np.asarray(losses, dtype=np.float64).ravel())
    log_losses = log_losses[np.isfinite(log_losses)]
    if not len(log_losses):
        return OPEN
    return replace(OPEN, threshold=float(np.quantile(log_losses, share)), status="share")


def joint_losses(log_losses: Floats, used: NDArray[np.bool_]) -> Floats:
    """Return (N,) > 0, one loss for all modalities: the geometric mean of the utterance's losses.

    The log losses of each modality are first scaled to mean 0 and variance 1 over the used labels. This gives the
    modalities equal weight, and some may be missing.

    Args:
        log_losses: (N, M), NaN where a modality is missing or was never seen.
        used: (N,) which labels are used in training.
    """
    mean, std = scaling(log_losses, used)
    scaled = (log_losses - mean) / std
    seen = ~np.isnan(scaled)
    return np.where(seen.any(1), np.exp(np.nansum(scaled, axis=1) / seen.sum(1).clip(min=1)), np.nan)


def scaling(log_losses: Floats, used: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Mean and standard deviation (M,) of log losses (N, M) over the used labels; 1 if all are equal."""
    here = np.where(used[:, None], log_losses, np.nan)
    counts = (~np.isnan(here)).sum(0).clip(min=1)
    mean = np.nansum(here, axis=0) / counts
    std = np.sqrt(np.nansum((here - mean) ** 2, axis=0) / counts)
    return mean, np.where(std > 0, std, 1)


def reliable(losses: ArrayLike, gates: Mapping[str, Gate], rule: str = "both") -> NDArray[np.bool_]:
    """Return (N,) whether an utterance's pseudo label is trusted, judged by the modalities with a loss.

    Args:
        losses: (N, M), columns in the order of the gates; NaN: the modality is missing or was never seen.
        gates: modality -> gate.
        rule: "both": every modality passes; "either": one of them; or the name of the one modality that decides [C].
            Without any loss, the label is trusted.

    Raises:
        ValueError: if the rule is unknown, or losses and gates differ in number.
    """
    table = np.asarray(losses)
    if table.ndim != 2 or table.shape[1] != len(gates):
        raise ValueError(f"losses must be (N, {len(gates)}), a column for each of {list(gates)}; got {table.shape}")
    missing = np.isnan(table)
    passes = np.stack([gate.passes(column) for gate, column in zip(gates.values(), table.T, strict=True)], axis=1)
    if rule == "both":
        return (passes | missing).all(axis=1)
    if rule == "either":
        return (passes & ~missing).any(axis=1) | missing.all(axis=1)
    if rule in gates:
        return passes[:, list(gates).index(rule)]
    raise ValueError(f"unknown rule {rule!r}: choose 'both', 'either' or one of {list(gates)}")


@dataclass(frozen=True)
class _Mixture:
    """Two Gaussians, the lower mean first: weights, means, stds (2,) and the mean log likelihood of a sample."""

    weights: Floats
    means: Floats
    stds: Floats
    log_likelihood: float

    @property
    def separation(self) -> float:
        """Ashman's D: distance of the means over the root mean square standard deviation."""
        return float((self.means[1] - self.means[0]) / np.sqrt(np.mean(self.stds**2)))

    def crossing(self) -> tuple[float, Status]:
        """Return the crossing of the weighted densities between the means, or the clamped substitute, and its status.

        Let t be the distance from the lower mean and d the distance of the means. The log density ratio is
            q(t) = a t^2 - (d / s1^2) t + c,  a = 1 / 2 s1^2 - 1 / 2 s0^2,  c = log(w0 s1 / w1 s0) + d^2 / 2 s1^2.
        q(0) - q(d) > 0 always, and the vertex of q lies outside [0, d]. So q falls from 0 to d, and there is one
        crossing if q(0) > 0 > q(d), none otherwise. It is the smaller positive root, in a form that is stable for
        a -> 0. Without a crossing, the same component is more likely at both means, and posterior 0.5 lies beyond the
        other's mean.
        """
        distance = self.means[1] - self.means[0]
        precision0, precision1 = self.stds**-2.0
        a, b = (precision1 - precision0) / 2, distance * precision1
        prior = np.log(self.weights[0] * self.stds[1]) - np.log(self.weights[1] * self.stds[0])
        c = prior + distance**2 * precision1 / 2
        if c <= 0:
            return float(self.means[0]), "posterior"
        if prior - distance**2 * precision0 / 2 >= 0:
            return float(self.means[1]), "posterior"
        return float(self.means[0] + 2 * c / (b + np.sqrt(b**2 - 4 * a * c))), "fitted"


def _log_losses(losses: Floats) -> Floats:
    return np.log(np.maximum(losses, LOSS_FLOOR))


def _pair(values: Floats) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _fit_mixture(values: Floats) -> _Mixture | None:
    """Return the most likely mixture found, or None if one Gaussian (3 parameters fewer) is as good by BIC."""
    num, variance = len(values), values.var()
    if variance <= 1e-12 * (1 + values.mean() ** 2):
        return None
    points, counts = _binned(values)
    fits = [fit for split in _splits(points, counts) if (fit := _expectation_maximisation(points, counts, split))]
    single = -0.5 * (np.log(2 * np.pi * variance) + 1)
    best = max(fits, key=lambda fit: fit.log_likelihood, default=None)
    if best is None or 2 * num * (best.log_likelihood - single) <= 3 * np.log(num):
        return None
    return best


def _binned(values: Floats) -> tuple[Floats, Floats]:
    """Return sorted points and their counts: the values themselves, or means of narrow bins if there are many.

    Bins of 1 / 4,096 of the range lose the variance within a bin, about 1e-6 of the total. The fit does not change.
    """
    if len(values) <= MAX_EXACT:
        return np.sort(values), np.ones(len(values))
    low, high = values.min(), values.max()
    bins = np.minimum(((values - low) * (MAX_EXACT / (high - low))).astype(np.int64), MAX_EXACT - 1)
    counts = np.bincount(bins, minlength=MAX_EXACT).astype(np.float64)
    sums = np.bincount(bins, weights=values, minlength=MAX_EXACT)
    return sums[counts > 0] / counts[counts > 0], counts[counts > 0]


def _splits(points: Floats, counts: Floats) -> list[int]:
    """Return initial cuts of the sorted points: of least variance within both parts, after 10 % and after 90 %."""
    below = np.cumsum(counts)[:-1]
    mass, total = np.cumsum(counts * points)[:-1], counts @ points
    above = counts.sum() - below
    between = mass**2 / below + (total - mass) ** 2 / above
    cuts = np.searchsorted(below, [0.1 * counts.sum(), 0.9 * counts.sum()]) + 1
    return sorted({int(between.argmax()) + 1, *(int(cut) for cut in np.minimum(cuts, len(points) - 1))})


def _expectation_maximisation(points: Floats, counts: Floats, split: int) -> _Mixture | None:
    """Return the mixture to which EM converges from two classes cut at `split`; None if a class vanishes."""
    num = counts.sum()
    floor = STD_FLOOR**2 * (counts @ (points - counts @ points / num) ** 2) / num
    shares = np.zeros((2, len(points)))  # (2, n) counts of the points, divided among the components
    shares[0, :split], shares[1, split:] = counts[:split], counts[split:]
    likelihood = -np.inf
    for _ in range(MAX_ITERATIONS):
        sizes = shares.sum(axis=1)
        if sizes.min() < 1:
            return None
        means = shares @ points / sizes
        deviations = (points - means[:, None]) ** 2  # (2, n)
        variances = np.maximum((shares * deviations).sum(axis=1) / sizes, floor)
        log_peaks = np.log(sizes / num) - np.log(2 * np.pi * variances) / 2  # (2,)
        log_joint = log_peaks[:, None] - deviations / (2 * variances[:, None])  # (2, n)
        log_density = np.logaddexp(log_joint[0], log_joint[1])
        previous, likelihood = likelihood, float(counts @ log_density / num)
        if likelihood - previous < TOLERANCE:
            break
        shares = counts * np.exp(log_joint - log_density)
    order = np.argsort(means)
    return _Mixture((sizes / num)[order], means[order], np.sqrt(variances)[order], likelihood)
