import math

import pytest

from avspk.common import schedules


@pytest.mark.parametrize(
    ("step", "expected"),
    [(-1, 0.0), (0, 0.0), (5, 0.5), (10, 1.0), (11, 1.0), (1e9, 1.0)],
)
def test_linear_boundaries(step, expected):
    assert schedules.linear(step, 0.0, 1.0, 10) == pytest.approx(expected)


@pytest.mark.parametrize(("step", "expected"), [(0, 2.0), (5, 1.5), (10, 1.0), (12, 1.0)])
def test_cosine_boundaries(step, expected):
    assert schedules.cosine(step, 2.0, 1.0, 10) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.25), (3, 1.0), (4, 1.0), (12, 0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2), (20, 0.1), (99, 0.1)],
)
def test_warmup_cosine_boundaries(step, expected):
    assert schedules.warmup_cosine(step, 1.0, 0.1, 4, 20) == pytest.approx(expected)


def test_no_warmup_starts_at_peak():
    assert schedules.warmup_cosine(0, 1.0, 0.0, 0, 10) == 1.0


@pytest.mark.parametrize(("position", "expected"), [(0, 0.0), (0.99, 0.0), (1, 0.0), (2, 0.1), (3, 0.2), (9, 0.2)])
def test_ramp(position, expected):
    assert schedules.ramp(position, 1, 3, 0.2) == pytest.approx(expected)


def test_ramp_without_width_is_a_step():
    assert schedules.ramp(0, 0, 0, 0.5) == 0.5
