"""Ward's method against scipy's, with weights against repeated points, and with missing blocks."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster
from scipy.cluster.hierarchy import ward as scipy_ward
from sklearn.metrics import adjusted_rand_score

from avspk.clusterers import ward as module
from avspk.clusterers.ward import Tree, ward


def points(num, dim=6, seed=0):
    return np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float32)


@pytest.mark.parametrize(("num", "clusters"), [(2, 1), (40, 7), (400, 12), (400, 399)])
def test_equals_scipy(num, clusters):
    rows = points(num)
    expected = fcluster(scipy_ward(rows.astype(np.float64)), clusters, "maxclust")
    labels = ward(rows, clusters)
    assert adjusted_rand_score(expected, labels) == 1
    assert len(np.unique(labels)) == clusters


def test_points_without_distances_are_refused():
    rows = points(10)
    rows[3, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        ward(rows, 4)


def test_a_point_of_weight_n_is_n_equal_points():
    rows, counts = points(60), np.random.default_rng(1).integers(1, 6, 60)
    repeated = ward(np.repeat(rows, counts, 0), 8)
    assert adjusted_rand_score(repeated, np.repeat(ward(rows, 8, counts=counts), counts)) == 1


def test_labels_are_numbered_by_their_first_points():
    labels = ward(points(50), 9)
    assert list(dict.fromkeys(labels.tolist())) == list(range(9))


def test_equal_points_still_make_the_number_of_clusters_asked_for():
    rows = np.repeat(points(3), 10, 0)
    assert len(np.unique(ward(rows, 5))) == 5
    assert adjusted_rand_score(np.repeat(np.arange(3), 10), ward(rows, 3)) == 1


def tree(*costs):
    return Tree(np.zeros((len(costs), 2), np.int64), np.array(costs, np.float32))


def test_the_number_of_clusters_is_where_the_cost_of_a_merge_jumps(monkeypatch):
    """Nine points. Merges from 9 to 1 clusters cost 1, 1.1, 1.2, 1.3, 2.6, 2.7, 9, 10: it jumps at 5, and at 3."""
    monkeypatch.setattr(module, "LEAST_SETTLED", 2)
    costs = tree(1, 1.1, 1.2, 1.3, 2.6, 2.7, 9, 10)
    assert costs.settled(8, 1.25) == 5
    assert costs.settled(6, 1.25) == 3, "the largest jump counts"
    assert costs.settled(5, 1.25) == 3
    assert costs.settled(8, 2.1) == 8, "no jump of this size between 8 and 4"
    assert costs.settled(9, 1.25) == 5
    assert costs.settled(8, 0) == 8
    assert tree(10, 1, 9, 1.3, 2.6, 1.2, 2.7, 1.1).settled(8, 1.25) == 5, "merges are in no order"


@pytest.mark.parametrize("num", [1, 2, 3])
def test_few_points_have_no_jump(num):
    assert ward(points(num), 1, jump=1.25).tolist() == [0] * num
    assert len(np.unique(ward(points(num), 2, jump=1.25))) == min(num, 2)


def test_copies_cost_nothing_to_merge():
    """Ten copies of 40 points: from 60 clusters, 20 merges of copies are free."""
    assert len(np.unique(ward(np.repeat(points(40), 10, 0), 60, jump=1.25))) == 40


@pytest.mark.parametrize("asked", [4, 10, 20, 30])
def test_few_clusters_are_not_merged_because_chance_makes_such_jumps(asked, monkeypatch):
    trees = [module.ward_tree(points(100, 10, seed)) for seed in range(20)]
    assert all(one.settled(asked, 1.25) == asked for one in trees)
    monkeypatch.setattr(module, "LEAST_SETTLED", 2)
    assert asked > 20 or any(one.settled(asked, 1.25) < asked for one in trees)


def test_no_more_clusters_than_points():
    np.testing.assert_array_equal(ward(points(4), 9), np.arange(4))
    with pytest.raises(ValueError, match="at least 1; got 0"):
        ward(points(4), 0)


def blocks(seed=0, per_speaker=12, noise=0.15):
    """Two unit blocks of 8 and 5 dimensions, 10 speakers."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(10), per_speaker)
    parts = [rng.standard_normal((10, dim))[truth] + noise * rng.standard_normal((len(truth), dim)) for dim in (8, 5)]
    parts = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
    return np.concatenate(parts, 1).astype(np.float32), truth


def test_distances_cover_what_both_points_have(monkeypatch):
    rows, _ = blocks()
    observed = np.ones((len(rows), 2), bool)
    observed[::3, 1] = False
    observed[1::5, 0] = False
    observed[~observed.any(1), 0] = True
    rows[~observed[:, 0], :8] = 0
    rows[~observed[:, 1], 8:] = 0
    monkeypatch.setattr(module, "CHUNK_ROWS", 7)
    table = module._distances(rows, observed, (8, 5))
    for i, j in np.random.default_rng(0).integers(len(rows), size=(200, 2)):
        shared = observed[i] & observed[j]
        apart = [((rows[i, :8] - rows[j, :8]) ** 2).sum(), ((rows[i, 8:] - rows[j, 8:]) ** 2).sum()]
        expected = np.dot(apart, shared) * 2 / shared.sum() if shared.any() else 4.0  # both blocks have unit length
        assert table[i, j] == pytest.approx(expected, abs=1e-5)


class Rounded(np.ndarray):
    """Rows whose products depend on where they stand, as they may with another library for matrices."""

    def __matmul__(self, other):
        products = np.asarray(self) @ np.asarray(other)
        return products * (1 + 1e-6 * np.random.default_rng(products.size).standard_normal(products.shape))


def test_products_that_round_differently_have_an_end(monkeypatch):
    """Nearest neighbours of equal points went round in a circle if the table was not symmetric."""
    rows = points(6)[np.random.default_rng(0).integers(6, size=90)].view(Rounded)
    monkeypatch.setattr(module, "CHUNK_ROWS", 8)
    table = module._distances(rows, None, ())
    assert np.array_equal(table, table.T)
    assert len(np.unique(ward(rows, 5))) == 5


@pytest.mark.parametrize("missing", [0.1, 0.5])
def test_points_without_a_block_join_their_own(missing):
    rows, truth = blocks()
    observed = np.ones((len(rows), 2), bool)
    observed[:, 1] = np.random.default_rng(2).random(len(rows)) > missing
    rows[~observed[:, 1], 8:] = 0
    assert adjusted_rand_score(truth, ward(rows, 10, observed=observed, block_sizes=(8, 5))) == 1


def test_speakers_without_a_block_at_all_are_clusters_of_their_own():
    rows, truth = blocks()
    observed = np.ones((len(rows), 2), bool)
    observed[truth < 4, 1] = False
    rows[~observed[:, 1], 8:] = 0
    assert adjusted_rand_score(truth, ward(rows, 10, observed=observed, block_sizes=(8, 5))) == 1
