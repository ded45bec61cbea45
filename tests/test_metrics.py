from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from avspk.scoring import metrics
from avspk.scoring.metrics import (
    act_dcf,
    cllr,
    det_curve,
    eer,
    eer_threshold,
    error_rates,
    min_cllr,
    min_dcf,
    summarise,
)


def gaussian_list(decimals=None):
    """300 targets and 1500 non-targets at exact normal quantiles, 3 apart."""
    targets, nontargets = (norm.ppf((np.arange(n) + 0.5) / n) for n in (300, 1500))
    scores = np.concatenate([targets + 3, nontargets])
    return scores if decimals is None else scores.round(decimals), np.repeat([1, 0], [300, 1500])


def naive_rates(scores, labels):
    """(p_miss, p_fa) for every threshold, by definition, one comparison of all trials each."""
    targets, nontargets = scores[labels == 1], scores[labels == 0]
    thresholds = [*sorted(set(scores)), None]
    return [(1.0, 0.0) if t is None else (np.mean(targets < t), np.mean(nontargets >= t)) for t in thresholds]


def naive_eer(scores, labels):
    """Walk along the polygon of operating points to where it crosses the diagonal, by bisection on each edge."""
    rates = naive_rates(scores, labels)
    for (miss, fa), (next_miss, next_fa) in pairwise(rates):
        if next_miss >= next_fa:
            low, high = 0.0, 1.0
            for _ in range(60):
                share = (low + high) / 2
                above = miss + share * (next_miss - miss) >= fa + share * (next_fa - fa)
                low, high = (low, share) if above else (share, high)
            return miss + high * (next_miss - miss)
    raise AssertionError("the polygon ends at (1, 0)")


def naive_min_cllr(scores, labels):
    """Isotonic posteriors by the max-min formula, O(K^3), at even prior."""
    values = sorted(set(scores))
    num_targets, num_nontargets = np.sum(labels == 1), np.sum(labels == 0)
    t = np.array([np.sum((scores == v) & (labels == 1)) for v in values]) / num_targets
    n = np.array([np.sum((scores == v) & (labels == 0)) for v in values]) / num_nontargets
    cost = 0.0
    for i in range(len(values)):
        p = max(
            min(t[a : b + 1].sum() / (t[a : b + 1].sum() + n[a : b + 1].sum()) for b in range(i, len(values)))
            for a in range(i + 1)
        )
        cost += (t[i] * -np.log2(p) if t[i] else 0) + (n[i] * -np.log2(1 - p) if n[i] else 0)
    return cost / 2


@st.composite
def trial_lists(draw):
    labels = np.array([*draw(st.lists(st.integers(0, 1), max_size=25)), 0, 1])
    scores = draw(st.lists(st.integers(-6, 6), min_size=len(labels), max_size=len(labels)))
    return np.array(scores, float), labels


def test_exact_list():
    scores, labels = gaussian_list()
    assert eer(scores, labels) == pytest.approx(0.066666667, abs=1e-8)
    assert min_dcf(scores, labels, 0.01) == pytest.approx(0.602667, abs=1e-6)
    assert min_dcf(scores, labels, 0.05) == pytest.approx(0.42, abs=1e-9)
    assert cllr(scores, labels) == pytest.approx(0.635394, abs=1e-6)


def test_exact_list_with_ties():
    scores, labels = gaussian_list(decimals=1)
    assert eer(scores, labels) == pytest.approx(0.06684, abs=5e-6)
    assert min_dcf(scores, labels, 0.01) == pytest.approx(0.612, abs=1e-9)
    assert min_dcf(scores, labels, 0.05) == pytest.approx(0.428, abs=1e-9)


@given(trial_lists(), st.sampled_from([0.01, 0.05, 0.5, 0.9]))
@settings(max_examples=150)
def test_brute_force(trials, p):
    scores, labels = trials
    rates = naive_rates(scores, labels)
    points = error_rates(scores, labels)
    assert np.allclose(np.stack([points.p_miss, points.p_fa], axis=1), rates, atol=1e-12)
    assert eer(scores, labels) == pytest.approx(naive_eer(scores, labels), abs=1e-9)
    naive_dcf = min(p * miss + (1 - p) * fa for miss, fa in rates) / min(p, 1 - p)
    assert min_dcf(scores, labels, p) == pytest.approx(naive_dcf)
    assert min_cllr(scores, labels) == pytest.approx(naive_min_cllr(scores, labels), abs=1e-9)


@given(trial_lists(), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_order_does_not_matter(trials, random):
    scores, labels = trials
    order = list(range(len(scores)))
    random.shuffle(order)
    expected = summarise(scores, labels)
    for name, value in summarise(scores[order], labels[order]).items():
        assert value == pytest.approx(expected[name], abs=1e-12), name


@given(trial_lists())
@settings(max_examples=60)
def test_monotone_maps_change_no_discrimination(trials):
    scores, labels = trials
    for moved in (scores**3, 0.1 * scores - 7, np.where(scores > 5, np.inf, np.where(scores < -5, -np.inf, scores))):
        assert eer(moved, labels) == eer(scores, labels)
        assert min_dcf(moved, labels, 0.01) == min_dcf(scores, labels, 0.01)
        assert min_cllr(moved, labels) == min_cllr(scores, labels)


@given(trial_lists())
@settings(max_examples=60)
def test_runs_keep_every_metric(trials):
    scores, labels = trials
    runs = metrics.score_runs(scores, labels == 1)
    assert eer(runs, labels) == pytest.approx(eer(scores, labels), abs=1e-12)
    assert min_dcf(runs, labels, 0.05) == pytest.approx(min_dcf(scores, labels, 0.05), abs=1e-12)
    assert min_cllr(runs, labels) == pytest.approx(min_cllr(scores, labels), abs=1e-9)


def test_cllr_of_known_ratios():
    llr, labels = np.log([3.0, 1 / 3]), [1, 0]
    assert cllr(llr, labels) == pytest.approx(np.log2(4 / 3))
    assert cllr([0.0, 0.0], labels) == pytest.approx(1)  # no information: one bit
    assert cllr([np.inf, -np.inf], labels) == 0
    assert cllr([-np.inf, 0.0], labels) == np.inf


def test_actual_cost_decides_at_the_bayes_threshold():
    labels = np.array([1, 1, 0, 0])
    llr = np.log(99) + np.array([1e-9, -1e-9, 1e-9, -1e-9])  # one miss, one false alarm
    assert act_dcf(llr, labels, 0.01) == pytest.approx((0.01 * 0.5 + 0.99 * 0.5) / 0.01)
    assert act_dcf(np.full(4, -50.0), labels, 0.01) == pytest.approx(1)  # rejecting all


def test_calibrated_gaussians_lose_nothing_by_their_threshold():
    scores, labels = gaussian_list()
    llr = 3 * scores - 4.5  # exact for N(3, 1) against N(0, 1)
    assert cllr(llr, labels) == pytest.approx(min_cllr(llr, labels), abs=0.02)
    assert act_dcf(llr, labels, 0.05) == pytest.approx(min_dcf(llr, labels, 0.05), abs=0.05)


def test_thresholds_give_the_rates_they_stand_for():
    scores, labels = gaussian_list()
    cut = eer_threshold(scores, labels)
    assert np.mean(scores[labels == 1] < cut) == pytest.approx(eer(scores, labels), abs=1 / 300)
    assert np.mean(scores[labels == 0] >= cut) == pytest.approx(eer(scores, labels), abs=1 / 1500)
    cost, cut = metrics.min_dcf_point(error_rates(scores, labels), 0.01)
    rates = np.mean(scores[labels == 1] < cut), np.mean(scores[labels == 0] >= cut)
    assert metrics.detection_cost(*rates, 0.01) == cost


def test_extremes():
    labels = np.array([0, 0, 1, 1])
    perfect = summarise([-2.0, -1.0, 1.0, 2.0], labels)
    assert (perfect["eer"], perfect["min_dcf_0.01"], perfect["min_cllr"]) == (0, 0, 0)
    assert -1 < perfect["eer_threshold"] <= 1
    assert eer([2.0, 1.0, -1.0, -2.0], labels) == 1
    constant = summarise(np.ones(4), labels)
    assert (constant["eer"], constant["min_dcf_0.01"], constant["min_cllr"]) == (0.5, 1, pytest.approx(1))
    infinite = summarise([-np.inf, np.inf, np.inf, np.inf], labels)
    assert infinite["eer"] == pytest.approx(1 / 3)  # half the false alarms at no miss, then all misses
    assert np.isfinite(eer_threshold([-np.inf, 0.0, 0.0, np.inf], labels))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, 2.0], [1, 1], "2 targets and 0 non-targets"),
        ([1.0, 2.0], [0, 0], "0 targets and 2 non-targets"),
        ([], [], "0 targets and 0 non-targets"),
        ([1.0, np.nan, 3.0], [1, 0, 0], "1 of 3 scores are NaN, the first is trial 1"),
        ([1.0, 2.0], [1, -1], "label .* of trial 1 is neither"),
        ([1.0, 2.0, 3.0], [1, 0], "one length"),
        ([[1.0], [2.0]], [[1], [0]], "two vectors"),
    ],
)
def test_bad_lists_are_named(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        summarise(scores, labels)


@pytest.mark.parametrize("p", [0, 1, -0.1, 5])
def test_bad_priors_are_named(p):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        min_dcf([0.0, 1.0], [0, 1], p)


def test_det_curve_is_a_thin_subset_of_the_operating_points():
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], 20_000)
    scores = rng.normal(size=40_000) + 2.5 * labels
    points = error_rates(scores, labels)
    p_fa, p_miss = det_curve(scores, labels, max_points=200)
    assert 150 <= len(p_fa) <= 200
    assert set(zip(p_fa, p_miss, strict=True)) <= set(zip(points.p_fa, points.p_miss, strict=True))
    steps = np.abs(np.diff(norm.ppf(p_fa[(p_fa > 0.01) & (p_fa < 0.5)])))
    assert steps.max() < 0.15  # no gap in the visible part
    assert len(det_curve([0.0, 1.0], [0, 1])[0]) == 3
