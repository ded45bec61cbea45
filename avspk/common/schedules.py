"""Step -> value. Pure functions, so a resumed run has the same learning rates as an uninterrupted one."""

from __future__ import annotations

import math


def linear(step: float, start: float, end: float, num_steps: float) -> float:
    """From `start` at step 0 to `end` at `num_steps`, constant afterwards."""
    if num_steps <= 0 or step >= num_steps:
        return end
    return start + (end - start) * max(step, 0.0) / num_steps


def cosine(step: float, start: float, end: float, num_steps: float) -> float:
    """Half a cosine from `start` at step 0 to `end` at `num_steps`, constant afterwards."""
    if num_steps <= 0 or step >= num_steps:
        return end
    return end + (start - end) * (1 + math.cos(math.pi * max(step, 0.0) / num_steps)) / 2


def warmup_cosine(step: float, peak: float, final: float, warmup_steps: float, num_steps: float) -> float:
    """Linear from 0 to `peak` over the warm-up, then half a cosine to `final` at `num_steps`.

    Step 0 gets the value one step into the warm-up, not 0.
    """
    if step < warmup_steps:
        return linear(step + 1, 0.0, peak, warmup_steps)
    return cosine(step - warmup_steps, peak, final, num_steps - warmup_steps)


def ramp(position: float, start: float, end: float, value: float) -> float:
    """0 before `start`, `value` after `end`, linear between (margins; position, start and end in epochs)."""
    return linear(position - start, 0.0, value, end - start) if position >= start else 0.0
