"""Weights of the modalities by Fisher's discriminant: all pairs one by one, sklearn's LDA, noise, ranks."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from thread_ranks import Ranks, ThreadReducer

from avspk.clusterers import discriminant
from avspk.clusterers.discriminant import LEAST, discriminant_weights
from avspk.clusterers.joint import JointRows, join
from avspk.clusterers.kmeans import Reducer

EQUAL = {"audio": 1.0, "face": 1.0}
CPU = torch.device("cpu")


def embeddings(num=120, speakers=12, audio=0.7, face=1.2, missing=0.0):
    """Embeddings with noise of these sizes around the speakers' means, and the true speakers."""
    rng = np.random.default_rng(0)
    truth = np.arange(num) % speakers
    rows = {
        "audio": rng.standard_normal((speakers, 16))[truth] + audio * rng.standard_normal((num, 16)),
        "face": rng.standard_normal((speakers, 10))[truth] + face * rng.standard_normal((num, 10)),
    }
    rows["face"][rng.random(num) < missing] = np.nan
    return rows, truth


def joint_rows(rows):
    return join(rows, EQUAL, CPU)


def weights(rows, labels, before=EQUAL):
    return discriminant_weights(joint_rows(rows), before, torch.from_numpy(np.asarray(labels)), Reducer())


def pairs(rows, labels):
    """Scores of all pairs (P, M), only those that have both modalities, and whether they are in one cluster (P,)."""
    there = np.isfinite(rows["face"]).all(1)
    units = [values[there] / np.linalg.norm(values[there], axis=1, keepdims=True) for values in rows.values()]
    first, second = np.triu_indices(there.sum(), 1)
    same = labels[there][first] == labels[there][second]
    return np.stack([(unit[first] * unit[second]).sum(1) for unit in units], 1), same


def test_weights_are_those_of_all_pairs(monkeypatch):
    monkeypatch.setattr(discriminant, "CHUNK_ROWS", 50)
    rows, truth = embeddings()
    scores, same = pairs(rows, truth)
    squares = (scores[same].mean(0) - scores.mean(0)) / scores.var(0)
    assert weights(rows, truth) == pytest.approx({"audio": 1, "face": np.sqrt(squares[1] / squares[0])}, rel=1e-4)


def test_weights_are_near_those_of_a_linear_discriminant():
    """sklearn's LDA uses the variance within the two kinds of pairs, and their correlation, which is small."""
    rows, truth = embeddings(480, 40)
    first, second = LinearDiscriminantAnalysis().fit(*pairs(rows, truth)).coef_[0]
    assert weights(rows, truth)["face"] == pytest.approx(np.sqrt(second / first), rel=0.1)


def test_a_modality_of_noise_has_the_least_weight():
    rows, truth = embeddings(1200, face=0.3)
    assert weights(rows, truth)["face"] > 0.8
    rows["face"] = np.random.default_rng(1).standard_normal((1200, 10))
    assert weights(rows, truth)["face"] < 4 * LEAST
    rows["audio"], rows["face"] = rows["face"], rows["audio"]
    assert weights(rows, truth)["face"] > 1 / (4 * LEAST)  # the first one has the weight 1, also if it is noise


def test_missing_rows_are_left_out():
    rows, truth = embeddings(missing=0.4)
    there = np.isfinite(rows["face"]).all(1)
    alone, _ = pairs({name: values[there] for name, values in rows.items()}, truth[there])
    same = pairs(rows, truth)[1]
    square = (alone[same, 1].mean() - alone[:, 1].mean()) / alone[:, 1].var()
    scores, every = pairs({"audio": rows["audio"], "face": rows["audio"]}, truth)
    audio = (scores[every, 0].mean() - scores[:, 0].mean()) / scores[:, 0].var()
    assert weights(rows, truth)["face"] == pytest.approx(np.sqrt(square / audio), rel=1e-4)


@pytest.mark.parametrize("kind", ["one row in each cluster", "one cluster", "copies"])
def test_clusters_that_tell_nothing_change_nothing(kind):
    rows, truth = embeddings()
    labels = {"one row in each cluster": np.arange(len(truth)), "one cluster": 0 * truth, "copies": truth}[kind]
    if kind == "copies":
        rows = {name: np.ones_like(values) for name, values in rows.items()}
    before = {"audio": 1.0, "face": 0.7}
    assert weights(rows, labels, before) == before


def test_two_ranks_equal_one():
    rows, truth = embeddings(missing=0.2)
    whole, ranks = weights(rows, truth), Ranks(2)

    def work(rank):
        part = slice(0, 40) if rank == 0 else slice(40, None)
        joint = joint_rows(rows)
        mine = JointRows(joint.values[part], joint.observed[part], joint.block_sizes)
        return discriminant_weights(mine, EQUAL, torch.from_numpy(truth[part]), ThreadReducer(ranks, rank))

    for found in ranks.run(work):
        assert found == pytest.approx(whole)
