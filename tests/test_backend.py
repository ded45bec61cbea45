import numpy as np
import pytest

from avspk.scoring import backend
from avspk.scoring.backend import as_norm, cohort_statistics, cosine_scores, normalised, pseudo_speaker_means


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.fixture
def embeddings():
    return np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32) + 0.5


def test_as_norm_exact():
    """Population standard deviation, closed-form vectors."""
    cohort = np.sin(0.7 * np.arange(320).reshape(40, 8)) + 0.1
    pair = np.stack([np.cos(0.3 * np.arange(8)), np.cos(0.5 * np.arange(8) + 0.2)])
    raw = cosine_scores(pair, [0], [1])
    assert raw[0] == pytest.approx(0.58322546, abs=1e-6)
    for top_n, expected in ((10, -3.18954932), (40, 0.89997561)):
        assert as_norm(raw, [0], [1], cohort_statistics(pair, cohort, top_n))[0] == pytest.approx(expected, abs=1e-4)


def test_cosine_is_that_of_one_pair_at_a_time(embeddings, monkeypatch):
    monkeypatch.setattr(backend, "TRIALS_PER_CHUNK", 7)
    rng = np.random.default_rng(1)
    enroll, test = rng.integers(50, size=(2, 100))
    mean = embeddings.mean(axis=0)
    expected = [cosine(embeddings[e] - mean, embeddings[t] - mean) for e, t in zip(enroll, test, strict=True)]
    assert np.allclose(cosine_scores(embeddings, enroll, test, mean), expected, atol=1e-6)
    assert np.array_equal(cosine_scores(embeddings, enroll, test), cosine_scores(embeddings, test, enroll))
    assert len(cosine_scores(embeddings, [], [])) == 0


def test_input_is_left_alone(embeddings):
    before = embeddings.copy()
    normalised(embeddings, embeddings.mean(axis=0))
    cohort_statistics(embeddings, embeddings[:20], 5)
    assert np.array_equal(embeddings, before)


@pytest.mark.parametrize("chunk", [1, 60, 10**6])
def test_cohort_statistics_are_those_of_a_full_sort(embeddings, monkeypatch, chunk):
    monkeypatch.setattr(backend, "COHORT_SCORES_PER_CHUNK", chunk)
    cohort = np.random.default_rng(2).normal(size=(20, 12))
    mean, std = cohort_statistics(embeddings, cohort, top_n=6, threads=3)
    for row, embedding in enumerate(embeddings.astype(float)):
        nearest = sorted(cosine(embedding, c) for c in cohort)[-6:]
        assert mean[row] == pytest.approx(np.mean(nearest), abs=1e-5)
        assert std[row] == pytest.approx(np.std(nearest), abs=1e-5)


def test_as_norm_undoes_a_shift_of_one_side():
    """AS-norm removes a shift and a scale of one side's scores."""
    scores, enroll, test = np.array([0.3, 0.6]), [0, 0], [1, 1]
    plain = as_norm(scores, enroll, test, (np.array([0.1, 0.1]), np.array([0.2, 0.2])))
    moved = as_norm(2 * scores + 1, enroll, test, (np.array([1.2, 1.2]), np.array([0.4, 0.4])))
    assert np.allclose(plain, moved, atol=1e-6)


def test_pseudo_speaker_means(embeddings):
    labels = np.array([7, 3, -1, 7, 3] * 10)
    cohort = pseudo_speaker_means(embeddings, labels, mean=np.ones(12))
    rows = embeddings - 1
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.allclose(cohort, [rows[labels == 3].mean(axis=0), rows[labels == 7].mean(axis=0)], atol=1e-6)


def test_bad_input_is_named(embeddings):
    broken = embeddings.copy()
    broken[4, 2], broken[9] = np.nan, 0
    with pytest.raises(ValueError, match=r"2 of 50 embeddings .* first is row 4"):
        cosine_scores(broken, [0], [1])
    with pytest.raises(ValueError, match="the cohort holds 1 vector; AS-norm needs the spread of two or more"):
        cohort_statistics(embeddings, embeddings[:1])
    with pytest.raises(ValueError, match="top_n is 300; with a cohort of 20 it must be between 2 and 20"):
        cohort_statistics(embeddings, embeddings[:20])
    with pytest.raises(ValueError, match="contain copies"):
        cohort_statistics(embeddings, np.ones((20, 12)), top_n=5)
    with pytest.raises(ValueError, match="one length"):
        cosine_scores(embeddings, [0, 1], [1])
    with pytest.raises(ValueError, match=r"expected \(number, dimension\)"):
        normalised(embeddings[0])
