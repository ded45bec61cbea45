"""The threshold for an acceptable false-alarm rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from avspk.scoring.metrics import error_rates


@dataclass(frozen=True)
class OperatingPoint:
    """Accept scores from `threshold` on; the shares of non-target and of target trials that are then wrong."""

    threshold: float
    false_alarm: float
    miss: float


def threshold_at(scores: ArrayLike, labels: ArrayLike, false_alarm: float) -> OperatingPoint:
    """The lowest threshold that accepts at most this share of the non-target trials.

    It lies half way between two scores, so printing it with fewer digits changes no decision.

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
    rejected, accepted = points.thresholds[place - 1], points.thresholds[place]
    middle = (rejected + accepted) / 2 if math.isfinite(rejected + accepted) else np.nextafter(rejected, np.inf)
    return OperatingPoint(float(middle), float(points.p_fa[place]), float(points.p_miss[place]))
