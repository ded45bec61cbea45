"""The loss gate: exact checks, scikit-learn, and distributions without two modes."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

from avspk.judges import loss_gate as module
from avspk.judges.loss_gate import LOSS_FLOOR, Gate, fit_gate, joint_losses, reliable, share_gate


def quantiles(num, mean, std):
    return norm.ppf((np.arange(num) + 0.5) / num, mean, std)


def two_modes(num=10_000, share=0.7):
    """Log losses whose crossing is known: quantiles of two Gaussians."""
    low = round(num * share)
    return np.concatenate([quantiles(low, -2, 0.8), quantiles(num - low, 1.5, 0.5)])


BEFORE = fit_gate(np.exp(two_modes()))


def test_exact_check():
    gate = fit_gate(np.exp(two_modes()))
    assert gate.status == "fitted"
    assert gate.threshold == pytest.approx(0.197, abs=1e-3)
    assert gate.weights == pytest.approx((0.7, 0.3), abs=1e-3)
    assert gate.means == pytest.approx((-2, 1.5), abs=1e-3)
    assert gate.stds == pytest.approx((0.8, 0.5), abs=1e-3)


def test_agrees_with_sklearn():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(-3, 1, 900), rng.normal(1, 0.6, 400)])
    gate = fit_gate(np.exp(values))
    theirs = GaussianMixture(2, n_init=5, tol=1e-9, max_iter=2000, random_state=0).fit(values[:, None])
    order = theirs.means_[:, 0].argsort()
    assert gate.means == pytest.approx(theirs.means_[order, 0], abs=1e-3)
    assert gate.stds == pytest.approx(np.sqrt(theirs.covariances_[order, 0, 0]), abs=1e-3)
    assert gate.weights == pytest.approx(theirs.weights_[order], abs=1e-3)


@given(
    st.floats(0.05, 0.95),
    st.floats(0.1, 3),
    st.floats(0.1, 3),
    st.floats(0.01, 10),
)
def test_crossing_is_the_root_between_the_means(weight, std0, std1, distance):
    mixture = module._Mixture(
        np.array([weight, 1 - weight]), np.array([0.5, 0.5 + distance]), np.array([std0, std1]), 0.0
    )

    def log_ratio(x):
        low, high = (
            np.log(w) + norm.logpdf(x, m, s)
            for w, m, s in zip(mixture.weights, mixture.means, mixture.stds, strict=True)
        )
        return low - high

    threshold, status = mixture.crossing()
    ends = log_ratio(mixture.means)
    if ends[0] > 0 > ends[1]:
        assert status == "fitted"
        assert threshold == pytest.approx(brentq(log_ratio, *mixture.means, xtol=1e-12), abs=1e-6)
    else:
        assert status == "posterior"
        assert threshold == mixture.means[1 if ends[0] > 0 else 0]


def test_bins_change_nothing(monkeypatch):
    values = two_modes(60_000)
    binned = fit_gate(np.exp(values))
    monkeypatch.setattr(module, "MAX_EXACT", 100_000)
    exact = fit_gate(np.exp(values))
    assert binned.threshold == pytest.approx(exact.threshold, abs=1e-4)
    assert binned.stds == pytest.approx(exact.stds, abs=1e-4)


def test_unit_of_the_loss_only_shifts():
    gate = fit_gate(8 * np.exp(two_modes()))
    assert gate.threshold == pytest.approx(BEFORE.threshold + np.log(8), abs=1e-6)


def test_order_does_not_matter():
    losses = np.exp(two_modes(2000))
    shuffled = np.random.default_rng(0).permutation(losses)
    assert fit_gate(shuffled) == fit_gate(losses)


def test_nan_and_infinite_losses_are_ignored():
    losses = np.concatenate([np.exp(two_modes()), [np.nan] * 500, [np.inf] * 3])
    assert fit_gate(losses) == BEFORE


def test_zero_losses_are_clamped():
    losses = np.concatenate([np.exp(two_modes()), np.zeros(20)])
    gate = fit_gate(losses)
    assert np.isfinite([gate.threshold, *gate.means, *gate.stds]).all()
    assert gate.passes([0.0]).all()


def test_two_values():
    losses = np.repeat([0.1, 5.0], [300, 100])
    gate = fit_gate(losses)
    assert np.log(0.1) < gate.threshold < np.log(5)
    np.testing.assert_array_equal(gate.passes(losses), losses < 1)


def skewed(num=5000):
    return np.random.default_rng(0).exponential(size=num)


DEGENERATE = {
    "unimodal": np.exp(quantiles(5000, 0, 1)),
    "skewed": skewed(),
    "peaked": np.exp(np.random.default_rng(0).standard_t(3, 5000)),
    "constant": np.full(1000, 0.7),
    "zeros": np.zeros(1000),
    "empty": np.array([]),
    "all NaN": np.full(100, np.nan),
    "all infinite": np.full(100, np.inf),
    "one": np.array([1.0]),
    "two": np.array([0.1, 5.0]),
    "few": np.exp(two_modes(10)),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_losses_keep_the_last_gate(name):
    gate = fit_gate(DEGENERATE[name], BEFORE)
    assert gate.status == "kept"
    assert gate.threshold == BEFORE.threshold
    assert fit_gate(DEGENERATE[name], gate) == gate


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_losses_without_a_gate_keep_everything(name):
    gate = fit_gate(DEGENERATE[name])
    assert gate.status == "open"
    assert gate.passes([0.0, 1e9, np.nan, np.inf]).all()
    assert fit_gate(DEGENERATE[name], gate).status == "open"
    assert fit_gate(np.exp(two_modes()), gate) == BEFORE


def test_component_without_a_region_of_its_own():
    """A small second mode, everywhere below the flank of the first: no crossing, so all up to its mean pass."""
    values = np.concatenate([quantiles(9400, 0, 1), quantiles(600, 1.6, 0.3)])
    gate, mirrored = fit_gate(np.exp(values)), fit_gate(np.exp(-values))
    assert gate.status == mirrored.status == "posterior"
    assert gate.threshold == gate.means[1] == pytest.approx(1.6, abs=0.01)
    assert mirrored.threshold == mirrored.means[0] == pytest.approx(-1.6, abs=0.01)


@settings(max_examples=60)
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.integers(0, 60),
        elements=st.floats(0, 1e6, width=32) | st.just(np.nan),
    ),
    st.sampled_from([None, BEFORE]),
)
def test_any_losses_give_a_gate(losses, previous):
    gate = fit_gate(losses, previous)
    if gate.status in ("fitted", "posterior"):
        assert gate.means[0] <= gate.threshold <= gate.means[1]
        assert min(gate.stds) > 0
        assert sum(gate.weights) == pytest.approx(1)
    else:
        assert gate.status == ("open" if previous is None else "kept")
    passes = gate.passes(losses)
    assert passes.shape == losses.shape
    seen = ~np.isnan(losses)
    assert passes[~seen].all()
    in_order = passes[seen][losses[seen].argsort()]
    assert not (np.diff(in_order.astype(int)) > 0).any()  # nothing passes above something that does not


def test_a_million_losses_in_seconds():
    rng = np.random.default_rng(0)
    losses = np.exp(np.concatenate([rng.normal(-2, 0.8, 800_000), rng.normal(1.5, 0.5, 300_000)])).astype(np.float32)
    start = time.perf_counter()
    gate = fit_gate(losses)
    assert time.perf_counter() - start < 5
    assert gate.means == pytest.approx((-2, 1.5), abs=5e-3)


def gates(audio, face):
    return {"audio": Gate(np.log(audio), (0.5, 0.5), (0, 0), (1, 1), "fitted"),
            "face": Gate(np.log(face), (0.5, 0.5), (0, 0), (1, 1), "fitted")}  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # both pass, audio only, face only, none, faceless good, faceless bad, voiceless good, voiceless bad, never seen
        ("both", [1, 0, 0, 0, 1, 0, 1, 0, 1]),
        ("either", [1, 1, 1, 0, 1, 0, 1, 0, 1]),
        ("audio", [1, 1, 0, 0, 1, 0, 1, 1, 1]),
        ("face", [1, 0, 1, 0, 1, 1, 1, 0, 1]),
    ],
)
def test_rules(rule, expected):
    nan = np.nan
    losses = [[0.5, 1], [0.5, 9], [2, 1], [2, 9], [0.5, nan], [2, nan], [nan, 1], [nan, 9], [nan, nan]]
    np.testing.assert_array_equal(reliable(losses, gates(audio=1, face=3), rule), np.array(expected, dtype=bool))


def test_rules_and_shapes_are_checked():
    with pytest.raises(ValueError, match="unknown rule 'voice'"):
        reliable(np.ones((3, 2)), gates(1, 3), "voice")
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        reliable(np.ones((3, 1)), gates(1, 3))


def test_threshold_itself_passes():
    gate = gates(audio=1, face=3)["audio"]
    np.testing.assert_array_equal(gate.passes([1.0, np.nextafter(1, 2)]), [True, False])
    assert gate.passes([-1e-9, LOSS_FLOOR]).all()


def split(num, share=0.7, seed=0):
    """Log losses (num,): the given share around -2, the others around 1.5."""
    rng = np.random.default_rng(seed)
    low = np.arange(num) < share * num
    return np.where(low, rng.normal(-2, 0.8, num), rng.normal(1.5, 0.5, num))


def test_joint_losses_are_geometric_means_of_scaled_losses():
    logs = np.random.default_rng(0).normal([3, -1], [0.5, 2], (50, 2))
    logs[::5, 1] = np.nan
    used = np.arange(50) % 7 > 0
    result = joint_losses(logs, used)
    scaled = (logs - np.nanmean(logs[used], 0)) / np.nanstd(logs[used], 0)
    np.testing.assert_allclose(np.log(result), np.nanmean(scaled, 1), atol=1e-12)
    assert np.isnan(joint_losses(np.full((3, 2), np.nan), np.ones(3, bool))).all()


def test_a_joint_gate_tells_labels_apart_that_each_modality_confuses():
    """Modes 2 deviations apart in each of two modalities are 2.8 apart in their mean."""
    rng = np.random.default_rng(0)
    low = np.arange(4000) < 2400
    logs = rng.normal(np.where(low, -1.0, 1.0)[:, None], 1.0, (4000, 2))
    joint = joint_losses(logs, np.ones(4000, bool))
    right = [(fit_gate(values).passes(values) == low).mean() for values in (joint, np.exp(logs[:, 0]))]
    assert right[0] > right[1] + 0.04


def test_trust_is_the_posterior_of_the_low_component():
    logs = split(4000)
    gate = fit_gate(np.exp(logs))
    trust = gate.trust(np.exp(logs))
    densities = [
        weight * np.exp(-((logs - mean) ** 2) / (2 * std**2)) / std
        for weight, mean, std in zip(gate.weights, gate.means, gate.stds, strict=True)
    ]
    between = logs > gate.means[0]
    np.testing.assert_allclose(trust[between], (densities[0] / sum(densities))[between], atol=1e-9)
    assert (trust[~between] == 1).all()
    assert gate.trust([np.nan]).item() == 1
    # The threshold is where the posterior is one half.
    assert gate.trust(np.exp([gate.threshold])).item() == pytest.approx(0.5, abs=1e-6)


def test_a_share_gate_lets_the_lowest_pass():
    losses = np.random.default_rng(0).permutation(np.arange(1.0, 101))
    losses[3] = np.nan
    gate = share_gate(losses, 0.25)
    assert gate.status == "share"
    passing = np.sort(losses[gate.passes(losses) & ~np.isnan(losses)])
    np.testing.assert_array_equal(passing, np.sort(losses)[: len(passing)])
    assert len(passing) == pytest.approx(25, abs=1)
    assert share_gate([np.nan], 0.5).status == "open"
