"""Means and differences over several trainings: one interval covers the tested speakers and the trained seeds.

The speakers of a trial list and the seed of a training are two sources of noise. The replicates of the speaker
bootstrap, which all systems share, contain the first. Only a few trainings show the second; the uncertainty of their
mean follows Student's t, whose draws are added to the replicates. One training shows nothing about seeds: its
interval covers the speakers only. For two independent groups this is the Behrens-Fisher interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avspk.scoring.bootstrap import Difference, interval, p_value

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class SeedMean:
    """Mean over trainings, its 95 % interval, and the standard deviation between trainings (NaN for one)."""

    mean: float
    low: float
    high: float
    spread: float


def mean_of_seeds(points: ArrayLike, replicates: ArrayLike, rng: np.random.Generator) -> SeedMean:
    """The mean of a metric over trainings; points (S,) on the whole list, replicates (S, R) of the same bootstrap."""
    points, draws = _checked(points, replicates)
    low, high = interval(_with_seed_noise(points, draws, rng))
    spread = float(points.std(ddof=1)) if len(points) > 1 else float("nan")
    return SeedMean(float(points.mean()), low, high, spread)


def difference_of_seeds(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike], paired: bool, rng: np.random.Generator
) -> Difference:
    """A metric of the first system minus that of the second: difference, 95 % interval, two-sided p value.

    Args:
        first, second: (points (S,), replicates (S, R)) as in `mean_of_seeds`, of one bootstrap.
        paired: the s-th training of both started from the same seed, so only differences within seeds vary.
        rng: for the draws of Student's t; with one training each, none are drawn, and the result equals
            `bootstrap.paired_difference`.

    Raises:
        ValueError: if paired groups differ in number.
    """
    (points_1, draws_1), (points_2, draws_2) = _checked(*first), _checked(*second)
    if paired and len(points_1) != len(points_2):
        raise ValueError(f"paired trainings must be equal in number, got {len(points_1)} and {len(points_2)}")
    if paired:
        draws = _with_seed_noise(points_1 - points_2, draws_1 - draws_2, rng)
    else:
        draws = _with_seed_noise(points_1, draws_1, rng) - _with_seed_noise(points_2, draws_2, rng)
    draws = draws[~np.isnan(draws)]
    return Difference(float(points_1.mean() - points_2.mean()), *interval(draws), p_value(draws))


def _with_seed_noise(points: FloatArray, draws: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Replicates (R,) of the mean over trainings, widened by the uncertainty of the mean of the trainings (S,)."""
    mean, number = draws.mean(axis=0), len(points)
    if number == 1:
        return mean
    return mean + points.std(ddof=1) / np.sqrt(number) * rng.standard_t(number - 1, len(mean))


def _checked(points: ArrayLike, replicates: ArrayLike) -> tuple[FloatArray, FloatArray]:
    values, draws = np.asarray(points, np.float64), np.asarray(replicates, np.float64)
    if values.ndim != 1 or draws.ndim != 2 or len(values) != len(draws) or not len(values):
        raise ValueError(f"points must be (S,) and replicates (S, R), S >= 1; got {values.shape} and {draws.shape}")
    return values, draws
