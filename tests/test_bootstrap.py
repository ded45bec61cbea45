import numpy as np
import pytest

from avspk.scoring import bootstrap as module
from avspk.scoring.bootstrap import SpeakerBootstrap, evaluate_scores, interval, paired_difference
from avspk.scoring.metrics import summarise


def synthetic_trials(seed=0, speakers=12, trials=400, spread=0.5, decimals=1):
    """Scores with an effect of each speaker, ties included."""
    rng = np.random.default_rng(seed)
    enroll = rng.integers(speakers, size=trials)
    other = (enroll + rng.integers(1, speakers, size=trials)) % speakers
    test = np.where(rng.random(trials) < 0.4, enroll, other)
    effect = rng.normal(scale=spread, size=speakers)
    scores = rng.normal(size=trials) + 2 * (enroll == test) + effect[enroll] + effect[test]
    return scores.round(decimals), (enroll == test).astype(int), enroll, test


def rebuilt_list(copies, scores, labels, enroll, test):
    """The list of a replicate, written out trial by trial from the definition."""
    rows = []
    for score, label, a, b in zip(scores, labels, enroll, test, strict=True):
        rows += [(score, label)] * int(copies[a] if a == b else copies[a] * copies[b])
    return np.array(rows).T


def test_replicates_are_the_metrics_of_the_rebuilt_lists(monkeypatch):
    monkeypatch.setattr(module, "WEIGHTS_PER_CHUNK", 2000)  # several chunks
    scores, labels, enroll, test = synthetic_trials()
    bootstrap = SpeakerBootstrap(labels, enroll, test, replicates=15, seed=3)
    replicates = bootstrap.metrics(scores)
    for r in range(15):
        new_scores, new_labels = rebuilt_list(bootstrap.copies[r], scores, labels, enroll, test)
        expected = summarise(new_scores, new_labels)
        assert set(replicates) == {name for name in expected if "threshold" not in name}
        for name, values in replicates.items():
            assert values[r] == pytest.approx(expected[name], abs=1e-9), name


def test_speakers_are_drawn_with_replacement():
    labels, people = np.tile([1, 0, 0], 30), np.arange(30)
    enroll, test = np.repeat(people, 3), np.stack([people, (people + 1) % 30, (people + 2) % 30], axis=1).ravel()
    copies = SpeakerBootstrap(labels, enroll, test, replicates=4000).copies
    assert (copies.sum(axis=1) == 30).all()
    assert np.allclose(copies.mean(axis=0), 1, atol=0.1)
    assert np.mean(copies == 0) == pytest.approx((1 - 1 / 30) ** 30, abs=0.01)


def test_names_of_speakers_and_sides_do_not_matter():
    scores, labels, enroll, test = synthetic_trials()
    names = np.array([f"id{i:05d}" for i in range(12)])
    expected = evaluate_scores(scores, labels, enroll, test, replicates=50)
    assert evaluate_scores(scores, labels, names[enroll], names[test], replicates=50) == pytest.approx(expected)
    assert evaluate_scores(scores, labels, test, enroll, replicates=50) == pytest.approx(expected)


def test_same_seed_same_interval_other_seed_other():
    trials = synthetic_trials()
    first, again, other = (evaluate_scores(*trials, replicates=50, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first["eer_low"] != other["eer_low"]


def test_record_has_percent_counts_and_ordered_intervals():
    scores, labels, enroll, test = synthetic_trials()
    record = evaluate_scores(scores, labels, enroll, test, replicates=200)
    plain = summarise(scores, labels)
    assert record["eer"] == pytest.approx(100 * plain["eer"])
    assert (record["num_trials"], record["num_speakers"]) == (400, 12)
    assert record["num_targets"] + record["num_nontargets"] == 400
    for name in ("eer", "min_dcf_0.01", "min_dcf_0.05", "act_dcf_0.01", "act_dcf_0.05", "cllr", "min_cllr"):
        assert record[f"{name}_low"] <= record[name] <= record[f"{name}_high"], name
    assert "eer_low" not in evaluate_scores(scores, labels)


def test_interval_covers_the_population_and_trials_alone_would_not():
    """Speakers carry most of the spread: resampling them covers; pretending trials are independent does not."""
    truth = np.mean(
        [summarise(*synthetic_trials(seed, speakers=2000, trials=40_000, spread=1)[:2])["eer"] for seed in (0, 1)]
    )
    covered, covered_by_trials = 0, 0
    for seed in range(60):
        scores, labels, enroll, test = synthetic_trials(seed + 10, speakers=30, trials=3000, spread=1)
        low, high = interval(SpeakerBootstrap(labels, enroll, test, replicates=200).metrics(scores)["eer"])
        covered += low <= truth <= high
        width = 2 * 1.96 * np.sqrt(truth * (1 - truth) / np.array([labels.sum(), (1 - labels).sum()]).min())
        covered_by_trials += abs(summarise(scores, labels)["eer"] - truth) <= width / 2
    assert covered >= 51  # 85 % or more of a nominal 95 %, at 60 draws
    assert covered_by_trials < covered - 5


def test_paired_difference_sees_what_two_intervals_cannot():
    scores, labels, enroll, test = synthetic_trials(speakers=40, trials=4000, spread=1, decimals=3)
    rng = np.random.default_rng(5)
    worse = scores + rng.normal(scale=1.5, size=len(scores))
    bootstrap = SpeakerBootstrap(labels, enroll, test, replicates=300)
    result = paired_difference(bootstrap, worse, scores)
    assert 0 < result.low < result.difference < result.high
    assert 2 / 301 <= result.p_value < 0.05
    intervals = [interval(bootstrap.metrics(s)["eer"]) for s in (scores, worse)]
    assert intervals[0][1] > intervals[1][0]  # taken apart, the two overlap
    back = paired_difference(bootstrap, scores, worse)
    assert (back.difference, back.low, back.high) == pytest.approx((-result.difference, -result.high, -result.low))


def test_paired_difference_of_equals_is_nothing():
    scores, labels, enroll, test = synthetic_trials()
    bootstrap = SpeakerBootstrap(labels, enroll, test, replicates=100)
    result = paired_difference(bootstrap, scores, 3 * scores, metric="min_dcf_0.05")
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_infinite_scores_and_few_speakers_give_results_not_warnings():
    scores, labels, enroll, test = synthetic_trials(speakers=2, trials=40)
    scores[0], scores[1] = np.inf, -np.inf
    record = evaluate_scores(scores, labels, enroll, test, replicates=100)
    assert np.isfinite([record["eer_low"], record["eer_high"], record["min_dcf_0.01_high"]]).all()
    certain = np.where(labels == 1, -np.inf, 0.0)
    assert evaluate_scores(certain, labels, enroll, test, replicates=20)["cllr_high"] == np.inf


def test_contradicting_labels_are_named():
    with pytest.raises(ValueError, match="1 labels contradict the speakers: trial 1 is a target of anna and bert"):
        SpeakerBootstrap([1, 1, 0], ["anna", "anna", "anna"], ["anna", "bert", "bert"])
    with pytest.raises(ValueError, match="differ in length"):
        SpeakerBootstrap([1, 0], ["anna"], ["anna", "bert"])
    with pytest.raises(ValueError, match="two or more"):
        SpeakerBootstrap([1, 1], ["anna", "anna"], ["anna", "anna"])
