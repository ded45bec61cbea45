"""Metric-refined clustering: covariances against numpy, the effect of whitening, ranks, missing modalities."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from thread_ranks import Ranks, ThreadReducer

from avspk.clusterers import agreement, joint
from avspk.clusterers.kmeans import Reducer
from avspk.clusterers.metric import (
    MetricSettings,
    measure_spread,
    shrunk,
    total_whitener,
    within_whitener,
)

CPU = torch.device("cpu")


def corpus(num=480, speakers=12, seed=0):
    """Audio (N, 12) with a strong channel direction, face (N, 8); the true speakers."""
    rng = np.random.default_rng(seed)
    truth = np.arange(num) % speakers
    channel = 6 * rng.standard_normal((num, 2)) @ rng.standard_normal((2, 12))
    audio = 5 + 2 * rng.standard_normal((speakers, 12))[truth] + channel + 0.8 * rng.standard_normal((num, 12))
    face = 2 * rng.standard_normal((speakers, 8))[truth] + rng.standard_normal((num, 8))
    return {"audio": audio.astype(np.float32), "face": face.astype(np.float32)}, truth


def cluster(rows, num_clusters=12, reducer=None, weights=None, **settings):
    """With equal weights by default, because finding them takes seconds."""
    clusterer = MetricSettings(weights=weights or dict.fromkeys(rows, 1.0), **settings).build()
    return clusterer(rows, num_clusters, seed=0, device=CPU, reducer=reducer or Reducer())


def test_spread_is_the_covariance_of_all_rows_and_within_clusters(monkeypatch):
    monkeypatch.setattr(joint, "CHUNK_ROWS", 50)
    rows, truth = corpus()[0]["audio"], corpus()[1]
    rows[::7] = np.nan
    there, labels = rows[~np.isnan(rows[:, 0])].astype(np.float64), truth[~np.isnan(rows[:, 0])]
    spread = measure_spread(rows, "audio", torch.from_numpy(truth), CPU, Reducer())
    np.testing.assert_allclose(spread.mean, there.mean(0))
    np.testing.assert_allclose(spread.total, np.cov(there.T, bias=True), rtol=1e-9)
    inside = np.concatenate([there[labels == k] - there[labels == k].mean(0) for k in range(12)])
    np.testing.assert_allclose(spread.within, inside.T @ inside / len(there), atol=1e-9)


@pytest.mark.parametrize("weights", [None, "auto"])
def test_clusters_of_copies_do_not_teach_a_metric(weights):
    """Rows of a cluster that are all equal have no spread to whiten by."""
    rows = {"audio": np.repeat(corpus(3, 3)[0]["audio"], 4, 0), "face": np.repeat(corpus(3, 3)[0]["face"], 4, 0)}
    found = cluster(rows, 3, weights=weights)
    assert found.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_whiteners_whiten():
    rng = np.random.default_rng(0)
    root = torch.from_numpy(rng.standard_normal((5, 5)))
    covariance = root @ root.T
    for shrinkage in (0.0, 0.3):
        matrix = within_whitener(covariance, shrinkage)
        torch.testing.assert_close(matrix.T @ shrunk(covariance, shrinkage) @ matrix, torch.eye(5).double())
    matrix = total_whitener(covariance)
    result = matrix.T @ covariance @ matrix
    values = torch.linalg.eigvalsh(covariance)
    torch.testing.assert_close(result.diagonal().sort().values, (values / (values + 1e-3 * values[-1])).sort().values)


def test_directions_without_variance_do_no_harm():
    embeddings, truth = corpus()
    embeddings["audio"] = np.concatenate([embeddings["audio"], np.zeros((480, 3), np.float32)], 1)
    assert adjusted_rand_score(truth, cluster(embeddings).labels) > 0.95
    assert np.isfinite(cluster({"audio": np.ones((30, 4), np.float32)}, 3).labels).all()


def test_refinement_tells_what_varies_within_a_speaker_from_what_does_not():
    """Whitening of all rows makes 30 noise directions as large as the 6 of the speakers. Refinement does not."""
    rng = np.random.default_rng(0)
    truth = np.arange(480) % 12
    rows = 0.5 * rng.standard_normal((480, 36))
    rows[:, :6] += 2 * rng.standard_normal((12, 6))[truth]
    plain, refined = (cluster({"audio": rows}, refinements=number).labels for number in (0, 2))
    before, after = (normalized_mutual_info_score(truth, labels) for labels in (plain, refined))
    assert before < 0.5
    assert after > 0.85


def test_one_modality_teaches_the_other_ones_metric():
    embeddings, truth = corpus(seed=3)
    alone = normalized_mutual_info_score(truth, cluster({"audio": embeddings["audio"]}).labels)
    assert normalized_mutual_info_score(truth, cluster(embeddings).labels) >= alone


def test_a_modality_that_says_less_weighs_less():
    embeddings, _ = corpus()
    noise = np.random.default_rng(0).standard_normal((480, 8))
    weights = [
        cluster(embeddings | {"face": embeddings["face"] + much * noise}, weights="auto").notes for much in (0, 3)
    ]
    assert weights[0]["weight/audio"] == weights[1]["weight/audio"] == 1
    assert weights[1]["weight/face"] < weights[0]["weight/face"]


def test_agreement_finds_the_weights_that_the_truth_likes():
    """Among the candidates, within 0.02 NMI of the best one."""
    embeddings, truth = corpus(600, 40)
    embeddings["face"] += 1.2 * np.random.default_rng(1).standard_normal((600, 8))
    reached = {
        face: normalized_mutual_info_score(truth, cluster(embeddings, 40, weights={"audio": 1, "face": face}).labels)
        for face in agreement.CANDIDATES
    }
    chosen = cluster(embeddings, 40, weights="auto").notes["weight/face"]
    assert max(reached.values()) - min(reached.values()) > 0.04, "the weight matters here"
    assert reached[chosen] > max(reached.values()) - 0.02


def test_clusters_correct_weights_that_are_wrong():
    """From equal weights. Weights that were corrected are noted under another name, so later rounds find their own."""
    embeddings, truth = corpus(600, 40)
    embeddings["face"] += 2 * np.random.default_rng(1).standard_normal((600, 8))
    plain, refined = (cluster(embeddings, 40, refine_weights=refine) for refine in (False, True))
    reached = [normalized_mutual_info_score(truth, found.labels) for found in (plain, refined)]
    assert reached[1] > reached[0] + 0.02
    assert plain.notes == {"weight/audio": 1, "weight/face": 1}
    assert refined.notes["refined_weight/audio"] == 1
    assert refined.notes["refined_weight/face"] < 0.8


def test_one_modality_has_no_weights_to_correct():
    rows = {"audio": corpus()[0]["audio"]}
    plain, refined = (cluster(rows, refine_weights=refine) for refine in (False, True))
    assert plain.notes == refined.notes == {"weight/audio": 1}
    np.testing.assert_array_equal(plain.labels, refined.labels)


@pytest.mark.parametrize("clusters", [1, 40, 200, 5000])
def test_large_corpora_are_judged_by_some_rows_of_many_clusters(clusters):
    labels = np.random.default_rng(1).permutation(np.arange(30_000) % clusters)
    rows = agreement._draw(labels, np.random.default_rng(0))
    sizes = np.bincount(labels[rows], minlength=clusters)
    assert len(rows) == len(np.unique(rows)) == 2000
    each = {1: 2000, 40: 50, 200: 12, 5000: 6}[clusters]
    assert (sizes > 0).sum() == -(-2000 // each)
    assert sizes.max() == each


def test_all_rows_of_a_small_corpus_are_judged():
    assert agreement._draw(np.zeros(2000, int), np.random.default_rng(0)).tolist() == list(range(2000))


def test_processes_draw_the_rows_of_one(monkeypatch):
    monkeypatch.setattr(agreement, "MAX_ROWS", 100)
    embeddings, truth = corpus()
    embeddings["face"][::5] = np.nan
    labels, ranks = torch.from_numpy(truth), Ranks(2)
    whole, number = agreement._sample(embeddings, labels, np.random.default_rng(0), Reducer())
    assert (len(whole["audio"]), number) == (100, 9)

    def work(rank):
        part = slice(170) if rank == 0 else slice(170, None)
        mine = {name: rows[part] for name, rows in embeddings.items()}
        return agreement._sample(mine, labels[part], np.random.default_rng(0), ThreadReducer(ranks, rank))

    for sample, found in ranks.run(work):
        assert found == number
        for name, rows in sample.items():
            np.testing.assert_array_equal(rows, whole[name])


def test_weights_that_nothing_tells_apart_are_equal():
    """Clusters that any weights find."""
    embeddings, truth = corpus()
    rows = {name: 100 * np.eye(12)[truth] + 1e-3 * values[:, :1] for name, values in embeddings.items()}
    assert cluster(rows, weights="auto").notes == {"weight/audio": 1, "weight/face": 1}


def test_more_centroids_than_rows_that_are_judged(monkeypatch):
    """Where k-means clusters the corpus, Ward's method clusters the few rows that tell the weights."""
    monkeypatch.setattr(agreement, "MAX_ROWS", 120)
    settings = {"ward_rows": 80, "centroids": 200}
    assert MetricSettings(**settings).problem(12, 480, ["audio", "face"]) == ""
    embeddings, truth = corpus()
    found = cluster(embeddings, weights="auto", **settings)
    assert normalized_mutual_info_score(truth, found.labels) > 0.9


def test_many_rows_take_centroids():
    embeddings, truth = corpus(1200)
    result = cluster(embeddings, ward_rows=100, centroids=200)
    assert result.num_clusters == 12
    assert normalized_mutual_info_score(truth, result.labels) > 0.95


@pytest.mark.parametrize("settings", [{}, {"ward_rows": 100, "centroids": 200}])
@pytest.mark.parametrize("asked", [41, 50, 60, 80])
def test_parts_of_speakers_are_merged_where_the_cost_jumps(asked, settings):
    """40 speakers, whatever number from 41 to 80 is asked for; without the setting, that number."""
    embeddings, truth = corpus(1200, 40)
    found = cluster(embeddings, asked, jump=1.25, **settings)
    assert found.num_clusters == 40
    assert adjusted_rand_score(truth, found.labels) > 0.98
    assert cluster(embeddings, asked, **settings).num_clusters == asked


def test_without_clear_clusters_the_number_stays():
    rng = np.random.default_rng(0)
    rows = {"audio": rng.standard_normal((400, 12)).astype(np.float32)}
    assert cluster(rows, 30, jump=1.25).num_clusters == 30


def test_a_number_that_is_found_is_not_merged_before_it_is_known():
    """`find_number` compares trees that are whole."""
    embeddings, _ = corpus()
    recordings = np.arange(480) // 2
    numbers = [
        MetricSettings(weights={"audio": 1.0, "face": 1.0}, jump=jump)
        .build()
        .find_number(embeddings, recordings, seed=0, device=CPU, reducer=Reducer())
        for jump in (0.0, 1.25)
    ]
    assert numbers[0] == numbers[1]


def test_missing_modalities_keep_working():
    embeddings, truth = corpus()
    embeddings["face"][np.random.default_rng(0).random(480) < 0.3] = np.nan
    assert normalized_mutual_info_score(truth, cluster(embeddings).labels) > 0.95


@pytest.mark.parametrize(
    "settings",
    [{}, {"ward_rows": 100, "centroids": 100}, {"refine_weights": True}, {"speakers": 40, "asked": 50, "jump": 1.25}],
)
def test_two_processes_equal_one(settings):
    asked, speakers = settings.get("asked", 12), settings.get("speakers", 12)
    others = {key: value for key, value in settings.items() if key not in ("asked", "speakers")}
    embeddings, _ = corpus(30 * speakers + 120, speakers)
    embeddings["face"][5:60] = np.nan
    whole, ranks = cluster(embeddings, asked, **others), Ranks(2)

    def work(rank):
        share = {name: rows[:170] if rank == 0 else rows[170:] for name, rows in embeddings.items()}
        return cluster(share, asked, ThreadReducer(ranks, rank), **others)

    first, second = ranks.run(work)
    np.testing.assert_array_equal(np.concatenate([first.labels, second.labels]), whole.labels)
    assert first.num_clusters == second.num_clusters == whole.num_clusters == speakers


@pytest.mark.parametrize("settings", [{}, {"ward_rows": 100, "centroids": 100}])
def test_machines_whose_eigenvectors_have_other_signs_agree(settings, monkeypatch):
    """Signs of eigenvectors are arbitrary, so kinds of machines may differ. Here the second process has others."""
    embeddings, _ = corpus()
    whole, ranks, eigh = cluster(embeddings, **settings), Ranks(2), torch.linalg.eigh

    def other_signs(matrix):
        values, vectors = eigh(matrix)
        return values, -vectors if getattr(ranks.here, "rank", 0) else vectors

    def work(rank):
        share = {name: rows[rank * 240 : (rank + 1) * 240] for name, rows in embeddings.items()}
        return cluster(share, reducer=ThreadReducer(ranks, rank), **settings).labels

    monkeypatch.setattr(torch.linalg, "eigh", other_signs)
    np.testing.assert_array_equal(np.concatenate(ranks.run(work)), whole.labels)


def test_too_many_clusters():
    with pytest.raises(ValueError, match="481 clusters of 480 rows"):
        cluster(corpus()[0], 481)
