"""Joint clustering: geometry, missing modalities, merging, errors."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from thread_ranks import Ranks, ThreadReducer

from avspk.clusterers import joint, joint_kmeans
from avspk.clusterers.joint import check_embeddings, join
from avspk.clusterers.joint_kmeans import JointKmeansSettings
from avspk.clusterers.kmeans import Reducer
from avspk.clusterers.metric import ward_labels

EVEN = {"audio": 1.0, "face": 1.0}


def joint_cluster(embeddings, weights, num_clusters, *, seed, reducer=None, **settings):
    """The papers' clusterer, called as in the stages."""
    clusterer = JointKmeansSettings(weights=weights, **settings).build()
    return clusterer(embeddings, num_clusters, seed=seed, device="cpu", reducer=reducer or Reducer())


def corpus(num=400, speakers=12, noise=0.25, seed=0):
    """Audio (N, 10) and face (N, 6) embeddings of any length, and the true speakers."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(speakers), rng.integers(speakers, size=num - speakers)])
    audio = rng.normal(size=(speakers, 10))[truth] + noise * rng.normal(size=(num, 10))
    face = rng.normal(size=(speakers, 6))[truth] + noise * rng.normal(size=(num, 6))
    return {"audio": audio * rng.uniform(0.1, 9, (num, 1)), "face": face.astype(np.float32)}, truth


def test_lengths_of_embeddings_do_not_matter():
    embeddings, _ = corpus()
    longer = {name: rows * np.random.default_rng(1).uniform(0.5, 2, (400, 1)) for name, rows in embeddings.items()}
    first, second = (joint_cluster(e, EVEN, 12, seed=0) for e in (embeddings, longer))
    np.testing.assert_array_equal(first.labels, second.labels)


def test_only_ratio_of_weights_matters():
    embeddings, _ = corpus(noise=0.8)
    first = joint_cluster(embeddings, {"audio": 1, "face": 0.5}, 12, seed=0)
    second = joint_cluster(embeddings, {"audio": 4, "face": 2}, 12, seed=0)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.notes["objective"] == pytest.approx(second.notes["objective"])


def test_joint_rows_are_weighted_unit_blocks_of_unit_length():
    embeddings, _ = corpus()
    rows = join(embeddings, check_embeddings(embeddings, {"audio": 2, "face": 1}), "cpu")
    audio, face = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in embeddings.values())
    expected = np.concatenate([2 * audio, face], axis=1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(rows.values, expected, atol=1e-6)
    assert rows.observed.all()
    assert rows.block_sizes == [10, 6]


def test_weight_zero_leaves_a_modality_out():
    embeddings, _ = corpus(noise=0.8)
    rows = join(embeddings, check_embeddings(embeddings, {"audio": 3.0, "face": 0.0}), "cpu")
    alone = join({"audio": embeddings["audio"]}, {"audio": 1.0}, "cpu")
    torch.testing.assert_close(rows.values, alone.values)


def test_two_modalities_beat_each():
    embeddings, truth = corpus(2000, 30, noise=0.9)
    scores = {
        names: normalized_mutual_info_score(
            truth, joint_cluster({name: embeddings[name] for name in names}, EVEN, 30, seed=0).labels
        )
        for names in (("audio",), ("face",), ("audio", "face"))
    }
    assert scores["audio", "face"] > max(scores[("audio",)], scores[("face",)]) + 0.05


def test_missing_faces_keep_working():
    embeddings, truth = corpus(noise=0.1)
    embeddings["face"][100:250] = np.nan
    embeddings["audio"][300:330] = np.nan
    result = joint_cluster(embeddings, EVEN, 12, seed=0)
    assert adjusted_rand_score(truth, result.labels) == 1


def test_missing_face_is_judged_by_audio_alone():
    """Two speakers with one voice and different faces: rows without a face follow the voice and move no centroid."""
    rng = np.random.default_rng(0)
    speaker = np.repeat([0, 1, 2], 30)
    audio = np.eye(4)[[0, 0, 1]][speaker] + 0.02 * rng.normal(size=(90, 4))
    face = np.eye(4)[speaker] + 0.02 * rng.normal(size=(90, 4))
    face[80:] = np.nan
    result = joint_cluster({"audio": audio, "face": face}, EVEN, 3, seed=0)
    assert adjusted_rand_score(speaker, result.labels) == 1


def test_accepts_tensors():
    embeddings, _ = corpus()
    tensors = {name: torch.tensor(rows) for name, rows in embeddings.items()}
    first, second = (joint_cluster(e, EVEN, 12, seed=0).labels for e in (embeddings, tensors))
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.int64


def test_inputs_are_left_alone():
    embeddings, _ = corpus()
    embeddings["face"][3] = np.nan
    before = {name: rows.copy() for name, rows in embeddings.items()}
    joint_cluster(embeddings, EVEN, 12, seed=0)
    for name, rows in embeddings.items():
        np.testing.assert_array_equal(rows, before[name])


def test_labels_have_no_gaps():
    rows = np.eye(4)[np.arange(40) % 4]
    result = joint_cluster({"audio": rows}, {"audio": 1.0}, 10, seed=0)
    assert sorted(set(result.labels)) == [0, 1, 2, 3]
    assert result.num_clusters == 4


def test_merging_subclusters():
    embeddings, truth = corpus(noise=0.3)
    embeddings["face"][:50] = np.nan
    result = joint_cluster(embeddings, EVEN, 12, seed=0, centroids=60)
    assert result.num_clusters == 12
    assert sorted(set(result.labels)) == list(range(12))
    assert adjusted_rand_score(truth, result.labels) > 0.95


def test_centroids_are_merged_by_the_modalities_that_their_rows_have():
    """Most centroids have no row with a face. They are merged as well as all rows are."""
    embeddings, truth = corpus(1000, 50, noise=0.7)
    embeddings["face"][np.random.default_rng(0).random(1000) < 0.7] = np.nan
    merged = joint_cluster(embeddings, EVEN, 50, seed=0, centroids=400)
    rows = join(embeddings, EVEN, "cpu")
    alone = ward_labels(rows, 50, Reducer())
    reached, whole = (normalized_mutual_info_score(truth, labels) for labels in (merged.labels, alone))
    assert reached > whole - 0.02


def test_what_no_row_of_a_centroid_has_is_never_read():
    """K-means keeps any old value there."""
    embeddings, _ = corpus()
    embeddings["face"][np.random.default_rng(0).random(400) < 0.7] = np.nan
    rows = join(embeddings, EVEN, "cpu")
    fit = joint_kmeans.fit_kmeans(rows, 150, 0, 30, Reducer())
    labels = joint_kmeans.merged_labels(fit, rows, 12, Reducer())
    seen = torch.stack([rows.observed[fit.labels == number].any(0) for number in range(150)])
    assert not seen.all()
    old = ~seen.repeat_interleave(torch.tensor(rows.block_sizes), 1)
    for value in (0.0, 9.0):
        fit.centroids[old] = value
        assert torch.equal(joint_kmeans.merged_labels(fit, rows, 12, Reducer()), labels)


def test_the_first_process_merges_for_all(monkeypatch):
    """Two processes, half of the rows each: same clusters as one process, only the first one used the memory."""
    embeddings, _ = corpus()
    embeddings["face"][::2] = np.nan
    whole = joint_cluster(embeddings, EVEN, 12, seed=0, centroids=60)
    ranks, merged, half = Ranks(2), [], len(embeddings["audio"]) // 2

    def ward(*arguments, **named):
        merged.append(ranks.here.rank)
        return original(*arguments, **named)

    original = joint_kmeans.ward
    monkeypatch.setattr(joint_kmeans, "ward", ward)

    def work(rank):
        rows = slice(half) if rank == 0 else slice(half, None)
        share = {name: values[rows] for name, values in embeddings.items()}
        return joint_cluster(share, EVEN, 12, seed=0, centroids=60, reducer=ThreadReducer(ranks, rank)).labels

    assert np.array_equal(np.concatenate(ranks.run(work)), whole.labels)
    assert merged == [0]


def test_merging_fewer_distinct_rows_than_clusters():
    rows = np.eye(4)[np.arange(40) % 4]
    result = joint_cluster({"audio": rows}, {"audio": 1.0}, 10, seed=0, centroids=20)
    assert sorted(set(result.labels)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "weights", "num_clusters", "message"),
    [
        ({}, EVEN, 401, "401 clusters of 400 rows"),
        ({"face": np.ones((399, 6))}, EVEN, 5, "differ in rows"),
        ({"face": np.full((400, 6), np.inf)}, EVEN, 5, "face embedding of utterance 0 is not finite"),
    ],
)
def test_errors_say_what_is_wrong(change, weights, num_clusters, message):
    with pytest.raises(ValueError, match=message):
        joint_cluster({**corpus()[0], **change}, weights, num_clusters, seed=0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"audio": 1.0}, "must be the same"),
        ({"audio": 1.0, "face": -1.0}, "not negative"),
        ({"audio": 0.0, "face": 0.0}, "not all zero"),
    ],
)
def test_weights_are_checked(weights, message):
    with pytest.raises(ValueError, match=message):
        check_embeddings(corpus()[0], weights)


def test_utterance_without_any_modality():
    embeddings, _ = corpus()
    for rows in embeddings.values():
        rows[7] = np.nan
    with pytest.raises(ValueError, match="utterance 7 has no embedding"):
        joint_cluster(embeddings, EVEN, 5, seed=0)


def test_half_missing_row():
    embeddings, _ = corpus()
    embeddings["audio"][9, 3] = np.nan
    with pytest.raises(ValueError, match="audio embedding of utterance 9 is not finite"):
        joint_cluster(embeddings, EVEN, 5, seed=0)


def test_too_few_subclusters():
    with pytest.raises(ValueError, match="11 centroids cannot be merged to 12 clusters"):
        joint_cluster(corpus()[0], EVEN, 12, seed=0, centroids=11)


def test_chunks_of_rows_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    rows = {"audio": rng.standard_normal((50, 4)), "face": rng.standard_normal((50, 3))}
    rows["face"][::7] = np.nan
    weights = {"audio": 1.0, "face": 2.0}
    whole = join(rows, weights, "cpu")
    monkeypatch.setattr(joint, "CHUNK_ROWS", 8)
    pieces = join(rows, weights, "cpu")
    assert torch.equal(pieces.values, whole.values)
    assert torch.equal(pieces.observed, whole.observed)
    rows["audio"][33, 0] = np.inf
    with pytest.raises(ValueError, match="utterance 33 is not finite"):
        join(rows, weights, "cpu")


@pytest.mark.parametrize("at_once", [3, 4096])
def test_nearest_clusters_are_those_with_the_highest_cosine_of_the_centres(monkeypatch, at_once):
    """Against a loop. Cluster 4 has no face, utterance 7 no cluster."""
    from avspk.stages import cluster

    monkeypatch.setattr(cluster, "CENTRES_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 9
    rows = {
        "audio": rng.standard_normal((60, 5)).astype(np.float32),
        "face": rng.standard_normal((60, 3)).astype(np.float32),
    }
    rows["face"][labels == 4] = np.nan
    labels[7] = -1
    found = cluster.nearest_clusters(rows, labels, 3, torch.device("cpu"))
    blocks = []
    for values in rows.values():
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        seen = (labels >= 0) & ~np.isnan(unit).any(1)
        overall = unit[seen].mean(0)
        centres = [
            unit[seen & (labels == k)].mean(0) - overall if (seen & (labels == k)).any() else overall * 0
            for k in range(9)
        ]
        blocks.append([centre / max(np.linalg.norm(centre), 1e-12) for centre in centres])
    joint = np.concatenate(blocks, axis=1)
    joint /= np.linalg.norm(joint, axis=1, keepdims=True)
    for own in range(9):
        others = [k for k in np.argsort(-joint @ joint[own], kind="stable") if k != own]
        assert found[own].tolist() == others[:3]
    assert cluster.nearest_clusters(rows, labels, 99, torch.device("cpu")).shape == (9, 8)


def test_class_vectors_do_not_depend_on_the_chunks(monkeypatch):
    from avspk.stages import cluster

    rng = np.random.default_rng(0)
    rows, labels = rng.standard_normal((50, 4), dtype=np.float32), rng.integers(-1, 5, 50)
    rows[::9] = np.nan
    whole = cluster.class_vectors(rows, labels, torch.device("cpu"))
    monkeypatch.setattr(cluster, "CHUNK_ROWS", 8)
    torch.testing.assert_close(cluster.class_vectors(rows, labels, torch.device("cpu")), whole)
    assert whole.any()
