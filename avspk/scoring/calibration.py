"""Scores to log-likelihood ratios: prior-weighted logistic regression on the score and on the quality of both sides."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from avspk.scoring.metrics import check_trials

FloatArray = NDArray[np.float64]
QUALITY_NAMES = ("duration", "magnitude", "cohort_mean")
RIDGE = 1e-6  # [C] keeps weights finite when training trials are perfectly separable; no effect on any other list


@dataclass(frozen=True)
class Calibration:
    """An affine map from features, the raw score first, to natural-log likelihood ratios.

    `fitted_on`: description of the trials that it was fitted on.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    bias: float
    fitted_on: str = ""

    def llr(self, features: ArrayLike) -> FloatArray:
        """Return log-likelihood ratios (T,) of features (T, F), or of plain scores (T,) when there is one feature."""
        columns = _columns(features)
        if columns.shape[1] != len(self.weights):
            raise ValueError(f"{columns.shape[1]} features given; this calibration takes {', '.join(self.names)}")
        return columns @ np.asarray(self.weights) + self.bias

    def probability(self, features: ArrayLike, p_target: float) -> FloatArray:
        """Return the posterior probability of "same speaker" (T,) under the prior `p_target`."""
        return expit(self.llr(features) + logit(p_target))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """Rebuild from the values of `to_dict`.

        Raises: KeyError if one is missing; ValueError unless there is a finite weight for each name, and a finite bias.
        """
        names, weights, bias = values["names"], values["weights"], values["bias"]
        lists = isinstance(names, (list, tuple)) and isinstance(weights, (list, tuple)) and len(names) == len(weights)
        if not (lists and all(map(_is_finite, [*weights, bias]))):
            raise ValueError(f"names {names!r}, weights {weights!r}, bias {bias!r}; want a finite weight for each name")
        return cls(tuple(names), tuple(map(float, weights)), float(bias), str(values.get("fitted_on", "")))


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def fit_calibration(
    features: ArrayLike, labels: ArrayLike, p_target: float = 0.05, names: tuple[str, ...] = ("score",)
) -> Calibration:
    """Fit features (T, F), or scores (T,), to labels (T,) 1 or 0, by logistic regression.

    The two classes have weights `p_target` and 1 - `p_target` for any counts (Bruemmer et al., 2007, FoCal), so the
    result is a likelihood ratio, most exact around the Bayes threshold of that prior.
    Raises ValueError if a feature is not finite or a class is missing.
    """
    columns = _columns(features)
    if columns.shape[1] != len(names):
        raise ValueError(f"{columns.shape[1]} features but {len(names)} names {names}")
    _, target = check_trials(columns[:, 0], labels)
    centre, scale = columns.mean(axis=0), columns.std(axis=0)
    scale[scale == 0] = 1
    inputs = np.column_stack([(columns - centre) / scale, np.ones(len(columns))])  # (T, F + 1)
    sample_weights = np.where(target, p_target / target.sum(), (1 - p_target) / (~target).sum())
    weights, bias = np.split(_logistic_regression(inputs, target, sample_weights, float(logit(p_target))), [-1])
    weights = weights / scale
    return Calibration(names, tuple(weights.tolist()), float(bias[0] - weights @ centre))


def _columns(features: ArrayLike) -> FloatArray:
    columns = np.asarray(features, np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns  # (T, F)
    bad = np.flatnonzero(~np.isfinite(columns).all(axis=1))
    if len(bad):
        raise ValueError(f"features of {len(bad)} trials are NaN or infinite, the first is trial {bad[0]}")
    return columns


def _logistic_regression(
    inputs: FloatArray, target: NDArray[np.bool_], sample_weights: FloatArray, prior_logit: float
) -> FloatArray:
    """Return the coefficients (F + 1,) that minimise the weighted cross-entropy of posteriors; convex, so exact."""
    sign = np.where(target, -1.0, 1.0)
    ridge = RIDGE * np.append(np.ones(inputs.shape[1] - 1), 0)

    def error(theta: FloatArray) -> FloatArray:
        return sign * (inputs @ theta + prior_logit)

    def loss(theta: FloatArray) -> float:
        return float(sample_weights @ np.logaddexp(0, error(theta)) + ridge @ theta**2 / 2)

    def gradient(theta: FloatArray) -> FloatArray:
        return inputs.T @ (sample_weights * sign * expit(error(theta))) + ridge * theta

    def hessian(theta: FloatArray) -> FloatArray:
        p = expit(error(theta))
        return (inputs.T * (sample_weights * p * (1 - p))) @ inputs + np.diag(ridge)

    start = np.zeros(inputs.shape[1])
    return minimize(loss, start, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-10}).x


def quality_measures(num_samples: ArrayLike, embeddings: ArrayLike, cohort_means: ArrayLike) -> FloatArray:
    """Return (N, 3) measures of N files: log duration, log embedding magnitude, mean of the nearest cohort scores.

    num_samples (N,); embeddings (N, D) from the encoder; cohort_means (N,) from `backend.cohort_statistics`.
    They show how reliable a file's scores are (Thienpondt et al., 2020, quality measure functions).
    """
    magnitude = np.linalg.norm(np.asarray(embeddings, np.float64), axis=1)
    return np.column_stack([np.log(np.asarray(num_samples, np.float64)), np.log(magnitude), np.asarray(cohort_means)])


def trial_features(scores: ArrayLike, enroll: ArrayLike, test: ArrayLike, measures: ArrayLike) -> FloatArray:
    """Return (T, 1 + 2 M): the scores (T,), then of each measure (N, M) the lower and the higher of the two sides.

    enroll and test (T,) are rows of `measures`. Symmetric in the two sides, like the cosine.
    """
    sides = [np.asarray(measures, np.float64)[np.asarray(rows)] for rows in (enroll, test)]
    return np.column_stack([scores, np.minimum(*sides), np.maximum(*sides)])


def feature_names(measures: tuple[str, ...] = QUALITY_NAMES) -> tuple[str, ...]:
    """Return the names of the columns of `trial_features`."""
    return ("score", *(f"min_{name}" for name in measures), *(f"max_{name}" for name in measures))


def training_trials(
    labels: ArrayLike, recordings: ArrayLike, num_trials: int, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """Draw trials from pseudo labels (N,): rows enroll (T,), test (T,) and targets (T,), about half of each kind.

    Both sides always come from different `recordings` (N,): two cuts of one recording share its channel and would make
    target trials look easier than they are. Rows with a negative label are not used; T is at most `num_trials`.
    """
    labels, recordings = np.asarray(labels), np.asarray(recordings)
    rows = np.flatnonzero(labels >= 0)
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} of {len(labels)} utterances has a label; trials need two or more")
    rows = rows[np.argsort(labels[rows], kind="stable")]
    _, start, size = np.unique(labels[rows], return_index=True, return_counts=True)
    group = np.repeat(np.arange(len(start)), size)  # (n,) of the sorted rows
    drawn = rng.integers(len(rows), size=2 * num_trials)  # twice as many as wanted, because some pairs are invalid
    partner = start[group[drawn]] + rng.integers(size[group[drawn]])
    other = rng.integers(len(rows), size=2 * num_trials)
    kept = []
    for second, target in ((partner, True), (other, False)):
        fits = (group[drawn] == group[second]) == target
        fits &= recordings[rows[drawn]] != recordings[rows[second]]
        pairs = np.unique(np.sort(np.stack([rows[drawn[fits]], rows[second[fits]]]), axis=0), axis=1)
        kept.append(pairs[:, rng.permutation(pairs.shape[1])[: num_trials // 2]])
    enroll, test = np.concatenate(kept, axis=1)
    return enroll, test, np.arange(len(enroll)) < kept[0].shape[1]
