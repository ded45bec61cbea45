"""The threshold for an acceptable false-alarm rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from avspk.scoring.metrics import error_rates

DECIMALS = 4
MOST_DECIMALS = 25  # scores that need more are neighbours, or next to zero


@dataclass(frozen=True)
class OperatingPoint:
    """Accept scores from `threshold` on; the shares of non-target and of target trials that are then wrong.

    An infinite threshold accepts nothing, not even an infinite score.
    """

    threshold: float
    false_alarm: float
    miss: float


def threshold_at(scores: ArrayLike, labels: ArrayLike, false_alarm: float) -> OperatingPoint:
    """The lowest operating point that accepts at most this share of the non-target trials.

    The threshold lies half way between the highest rejected and the lowest accepted score, rounded to four decimals, or
    to as many more as it takes to stay between them; if no number is between, it is the accepted score. So
    `score >= threshold` gives exactly the two rates.

    Args:
        scores: (T,).
        labels: (T,), 1 where both sides are one speaker, else 0.
        false_alarm: between 0 and 1, both excluded.

    Raises ValueError on other rates, and as `error_rates`.
    """
    if not 0 < false_alarm < 1:
        raise ValueError(f"the false-alarm rate is {false_alarm:g}; it must be between 0 and 1, both excluded")
    points = error_rates(scores, labels)
    # The first point accepts all, more than `false_alarm`; the last one accepts nothing, so one of them qualifies.
    place = int(np.argmax(points.p_fa <= false_alarm * (1 + 1e-12)))
    nothing = place == len(points.thresholds) - 1
    threshold = math.inf if nothing else _between(*points.thresholds[place - 1 : place + 1].tolist())
    return OperatingPoint(threshold, float(points.p_fa[place]), float(points.p_miss[place]))


def _between(rejected: float, accepted: float) -> float:
    """A finite number above the first score and at most the second; both may be infinite."""
    low = rejected if math.isfinite(rejected) else min(accepted, 1.0) - 1
    high = accepted if math.isfinite(accepted) else max(low + 1, math.nextafter(low, math.inf))
    middle = low / 2 + high / 2
    rounded = (round(middle, decimals) + 0.0 for decimals in range(DECIMALS, MOST_DECIMALS))
    return next((value for value in rounded if low < value < high), high)
