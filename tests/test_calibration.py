import json

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from avspk.scoring.calibration import (
    Calibration,
    feature_names,
    fit_calibration,
    quality_measures,
    training_trials,
    trial_features,
)
from avspk.scoring.metrics import act_dcf, cllr, min_cllr, min_dcf


def gaussian_scores(num_targets, num_nontargets):
    quantiles = [norm.ppf((np.arange(n) + 0.5) / n) for n in (num_targets, num_nontargets)]
    return np.concatenate([quantiles[0] + 3, quantiles[1]]), np.repeat([1, 0], [num_targets, num_nontargets])


@pytest.mark.parametrize("p_target", [0.01, 0.5])
@pytest.mark.parametrize("counts", [(2000, 2000), (500, 8000)])
def test_gaussians_have_a_known_ratio(p_target, counts):
    """log N(s; 3, 1) / N(s; 0, 1) = 3 s - 4.5, for any counts and any prior of the fit."""
    scores, labels = gaussian_scores(*counts)
    fitted = fit_calibration(scores, labels, p_target)
    assert fitted.weights[0] == pytest.approx(3, abs=0.06)
    assert fitted.bias == pytest.approx(-4.5, abs=0.12)


def test_same_as_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=800)
    features = rng.normal(size=(800, 3)) * [1, 10, 0.1] + labels[:, None] * [1.5, 4, 0.02]
    p = 0.05
    sample_weights = np.where(labels == 1, p / labels.sum(), (1 - p) / (1 - labels).sum())
    reference = LogisticRegression(C=1e12, tol=1e-12, max_iter=10_000).fit(features, labels, 800 * sample_weights)
    expected = reference.decision_function(features) - np.log(p / (1 - p))
    assert np.allclose(fit_calibration(features, labels, p, ("a", "b", "c")).llr(features), expected, atol=2e-3)


def test_units_of_the_features_do_not_matter():
    scores, labels = gaussian_scores(100, 300)
    llr = fit_calibration(scores, labels).llr(scores)
    assert np.allclose(fit_calibration(1e-3 * scores + 40, labels).llr(1e-3 * scores + 40), llr, atol=1e-6)


def test_calibrated_cosines_give_usable_costs():
    scores, labels = gaussian_scores(300, 3000)
    cosines = 0.1 * scores + 0.2
    llr = fit_calibration(cosines, labels).llr(cosines)
    assert cllr(cosines, labels) > 0.8
    assert cllr(llr, labels) == pytest.approx(min_cllr(llr, labels), abs=0.02)
    assert act_dcf(llr, labels, 0.05) == pytest.approx(min_dcf(llr, labels, 0.05), rel=0.1)


def test_probability_follows_the_prior():
    calibration = Calibration(("score",), (2.0,), -1.0)
    assert calibration.probability([0.5], 0.3)[0] == pytest.approx(0.3)  # llr 0 leaves the prior
    assert calibration.probability([1.0], 0.5)[0] == pytest.approx(1 / (1 + np.exp(-1)))


def test_quality_helps_where_short_files_score_low():
    rng = np.random.default_rng(1)
    files, trials = 400, 6000
    log_seconds = rng.normal(1.5, 0.8, size=files)
    enroll, test = rng.integers(files, size=(2, trials))
    labels = rng.integers(2, size=trials)
    scores = rng.normal(size=trials) + 2 * labels + np.minimum(log_seconds[enroll], log_seconds[test])
    measures = np.column_stack([log_seconds, rng.normal(size=files), rng.normal(size=files)])
    features = trial_features(scores, enroll, test, measures)
    plain = fit_calibration(scores, labels).llr(scores)
    aware = fit_calibration(features, labels, names=feature_names()).llr(features)
    assert min_cllr(aware, labels) < min_cllr(plain, labels) - 0.05


def test_features_are_symmetric_and_in_order():
    measures = quality_measures([16_000, 32_000], [[3.0, 4.0], [0.6, 0.8]], [0.1, 0.2])
    assert np.allclose(measures, [[np.log(16_000), np.log(5), 0.1], [np.log(32_000), 0, 0.2]])
    features = trial_features([0.5], [0], [1], measures)
    assert np.array_equal(features, trial_features([0.5], [1], [0], measures))
    values = dict(zip(feature_names(), features[0], strict=True))
    assert (values["score"], values["min_cohort_mean"], values["max_cohort_mean"]) == (0.5, 0.1, 0.2)
    assert (values["min_magnitude"], values["max_magnitude"]) == pytest.approx((0, np.log(5)))


def test_separable_and_constant_input_stay_finite():
    labels = np.array([0, 0, 1, 1])
    assert np.isfinite(fit_calibration([-1.0, -0.5, 0.5, 1.0], labels).llr([0.0, 100.0])).all()
    assert fit_calibration(np.ones(4), labels).llr(np.ones(4)) == pytest.approx(np.zeros(4), abs=1e-6)
    column = np.column_stack([[0.0, 0.4, 0.3, 1.0], np.full(4, 7.0)])
    assert fit_calibration(column, labels, names=("score", "constant")).weights[1] == 0


def test_json_round_trip():
    scores, labels = gaussian_scores(50, 50)
    fitted = fit_calibration(scores, labels)
    assert Calibration.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="1 trials are NaN or infinite, the first is trial 1"):
        fit_calibration([0.0, np.inf, 1.0], [0, 1, 1])
    with pytest.raises(ValueError, match="need at least one of each"):
        fit_calibration([0.0, 1.0], [1, 1])
    with pytest.raises(ValueError, match="2 features given; this calibration takes score"):
        Calibration(("score",), (1.0,), 0.0).llr([[1.0, 2.0]])


def test_training_trials_keep_their_promises():
    rng = np.random.default_rng(2)
    labels = rng.integers(-1, 20, size=600)
    recordings = rng.integers(200, size=600)
    enroll, test, target = training_trials(labels, recordings, 1000, np.random.default_rng(3))
    assert labels[enroll].min() >= 0
    assert labels[test].min() >= 0
    assert np.array_equal(labels[enroll] == labels[test], target)
    assert (recordings[enroll] != recordings[test]).all()
    assert 900 <= len(enroll) <= 1000
    assert target.sum() == pytest.approx(len(enroll) / 2, abs=50)
    assert len({*zip(enroll, test, target, strict=True)}) == len(enroll)
    again = training_trials(labels, recordings, 1000, np.random.default_rng(3))
    assert np.array_equal([enroll, test], again[:2])


def test_training_trials_where_there_are_none():
    enroll, _, target = training_trials(np.arange(5), np.arange(5), 10, np.random.default_rng(0))
    assert not target.any()  # no label has two utterances
    assert len(enroll) > 0
    with pytest.raises(ValueError, match="1 of 3 utterances has a label"):
        training_trials([-1, 4, -1], [0, 1, 2], 10, np.random.default_rng(0))
