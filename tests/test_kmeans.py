"""K-means against loops, scikit-learn and itself over two processes."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from thread_ranks import Ranks, ThreadReducer

from avspk.clusterers import kmeans as module
from avspk.clusterers.kmeans import DistributedReducer, Reducer, kmeans


def blobs(num=600, dim=12, clusters=15, spread=0.3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(clusters, size=num)
    values = rng.normal(size=(clusters, dim))[labels] + spread * rng.normal(size=(num, dim))
    return torch.tensor(values, dtype=torch.float32), labels


def random_mask(num, seed=1):
    observed = np.random.default_rng(seed).random((num, 2)) < 0.7
    observed[~observed.any(1), 0] = True
    return torch.tensor(observed)


def naive_lloyd_step(values, observed, sizes, centroids):
    """One assignment and update by loops over rows, clusters and dimensions; returns labels, errors, centroids."""
    seen = np.repeat(observed, sizes, axis=1)
    labels, errors = [], []
    for row, has in zip(values, seen, strict=True):
        distances = [((row - c)[has] ** 2).sum() for c in centroids]
        labels.append(int(np.argmin(distances)))
        errors.append(min(distances))
    new = centroids.copy()
    for k in range(len(centroids)):
        for d in range(values.shape[1]):
            column = [row[d] for row, has, label in zip(values, seen, labels, strict=True) if label == k and has[d]]
            new[k, d] = np.mean(column) if column else centroids[k, d]
    return np.array(labels), np.array(errors), new


def test_masked_step_equals_loops():
    values, _ = blobs(80, 6, 5)
    observed = random_mask(80)
    rows = module._check(values, observed, (4, 2))
    centroids = values[:7].clone()
    labels, errors = module._assign(rows, rows.values.square().sum(1), centroids)
    updated, sizes = module._update(rows, labels, centroids, Reducer())
    expected = naive_lloyd_step(values.double().numpy(), observed.numpy(), (4, 2), centroids.double().numpy())
    np.testing.assert_array_equal(labels, expected[0])
    np.testing.assert_allclose(errors, expected[1], atol=1e-5)
    np.testing.assert_allclose(updated, expected[2], atol=1e-6)
    np.testing.assert_array_equal(sizes, np.bincount(expected[0], minlength=7))


def test_unobserved_entries_are_never_read():
    values, _ = blobs(100, 6, 5)
    observed = random_mask(100)
    spoiled = values.clone()
    spoiled[:, 4:][~observed[:, 1]] = torch.nan
    spoiled[:, :4][~observed[:, 0]] = 1e9
    arguments = {"num_clusters": 5, "seed": 0, "observed": observed, "block_sizes": (4, 2)}
    assert torch.equal(kmeans(values, **arguments).labels, kmeans(spoiled, **arguments).labels)


def test_rows_are_copied_only_where_something_must_be_hidden():
    values, _ = blobs(100, 6, 5)
    observed = random_mask(100)
    hidden = values * observed.repeat_interleave(torch.tensor([4, 2]), dim=1)
    assert module._check(hidden, observed, (4, 2)).values.data_ptr() == hidden.data_ptr()
    assert torch.equal(module._check(values, observed, (4, 2)).values, hidden)
    assert not torch.equal(values, hidden)


def test_full_mask_changes_nothing():
    values, _ = blobs()
    plain = kmeans(values, 15, seed=3)
    masked = kmeans(values, 15, seed=3, observed=torch.ones(600, 2, dtype=torch.bool), block_sizes=(5, 7))
    assert torch.equal(plain.labels, masked.labels)
    torch.testing.assert_close(plain.centroids, masked.centroids)


def test_ends_where_sklearn_would():
    values, _ = blobs(spread=1.0)
    ours = kmeans(values, 15, seed=0, num_iterations=300, tolerance=0)
    assert ours.num_iterations < 300
    theirs = KMeans(15, init=ours.centroids.numpy(), n_init=1, tol=0).fit(values.numpy())
    np.testing.assert_array_equal(ours.labels, theirs.labels_)
    assert ours.objective == pytest.approx(theirs.inertia_ / len(values), rel=1e-5)


def test_objective_as_good_as_sklearn():
    values, _ = blobs(2000, 16, 60, spread=0.5)
    ours = np.mean([kmeans(values, 60, seed=seed, num_iterations=100).objective for seed in range(5)])
    theirs = np.mean([KMeans(60, n_init=1, random_state=s).fit(values.numpy()).inertia_ / 2000 for s in range(5)])
    assert ours < 1.02 * theirs


def test_finds_separated_clusters():
    values, truth = blobs(spread=0.05)
    assert adjusted_rand_score(truth, kmeans(values, 15, seed=0).labels) == 1


@pytest.mark.parametrize("masked", [False, True])
def test_objective_never_rises(masked):
    values, _ = blobs(spread=1.0)
    mask = {"observed": random_mask(600), "block_sizes": (6, 6)} if masked else {}
    course = [kmeans(values, 20, seed=1, num_iterations=n, **mask).objective for n in range(8)]
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(course))
    assert course[-1] < 0.98 * course[0]


def test_tolerance_stops_early():
    values, _ = blobs(spread=1.0)
    exact = kmeans(values, 20, seed=1, num_iterations=100, tolerance=0)
    loose = kmeans(values, 20, seed=1, num_iterations=100, tolerance=1e-2)
    assert loose.num_iterations < exact.num_iterations
    assert exact.objective <= loose.objective < 1.05 * exact.objective


def test_depends_on_seed_only():
    values, _ = blobs(spread=1.0)
    torch.manual_seed(1)
    first = kmeans(values, 20, seed=4)
    torch.manual_seed(2)
    again = kmeans(values, 20, seed=4)
    assert torch.equal(first.centroids, again.centroids)
    assert not torch.equal(first.centroids, kmeans(values, 20, seed=5).centroids)


@pytest.mark.parametrize("masked", [False, True])
def test_chunks_change_nothing(monkeypatch, masked):
    values, _ = blobs(spread=1.0)
    mask = {"observed": random_mask(600), "block_sizes": (6, 6)} if masked else {}
    whole = kmeans(values, 20, seed=4, **mask)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", {"cpu": 20 * 37, "cuda": 0})
    monkeypatch.setattr(module, "SUM_CHUNK_ROWS", 41)
    chunked = kmeans(values, 20, seed=4, **mask)
    assert torch.equal(whole.labels, chunked.labels)
    torch.testing.assert_close(whole.centroids, chunked.centroids, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_empty_clusters_are_filled(masked):
    """All centroids in one place leave every cluster but one empty; all end with rows, and about as good."""
    values, _ = blobs()
    mask = {"observed": random_mask(600), "block_sizes": (6, 6)} if masked else {}
    result = kmeans(values, 15, seed=0, start=torch.zeros(15, 12), num_iterations=100, **mask)
    assert int(result.counts.min()) > 0
    assert result.objective < 1.5 * kmeans(values, 15, seed=0, num_iterations=100, **mask).objective


def test_seeds_lie_in_all_separated_clusters():
    values, truth = blobs(spread=0.01)
    seeds = module._plus_plus(values, 15, torch.Generator().manual_seed(0))
    rows = (seeds[:, None] == values).all(-1).int().argmax(1)
    assert sorted(truth[rows]) == list(range(15))


def test_incomplete_rows_become_seeds_only_if_needed():
    values, _ = blobs()
    observed = torch.ones(600, 2, dtype=torch.bool)
    observed[40:, 1] = False
    rows = module._check(values, observed, (6, 6))
    assert torch.equal(module._candidates(rows, 40), values[:40])
    filled = module._candidates(rows, 41)
    assert torch.equal(filled[:40], values[:40])
    torch.testing.assert_close(filled[40:, 6:], values[:40, 6:].mean(0).expand(560, 6))


def test_coinciding_rows_leave_clusters_empty():
    values = torch.eye(3).repeat(10, 1)
    result = kmeans(values, 8, seed=0)
    assert result.objective == pytest.approx(0, abs=1e-6)
    assert int((result.counts > 0).sum()) == 3
    assert int(result.counts.sum()) == 30
    assert bool(result.centroids.isfinite().all())


def test_as_many_clusters_as_rows():
    values, _ = blobs(40)
    result = kmeans(values, 40, seed=0)
    assert len(set(result.labels.tolist())) == 40
    assert kmeans(values, 1, seed=0).centroids[0].numpy() == pytest.approx(values.mean(0).numpy(), abs=1e-5)


@pytest.mark.parametrize("num_clusters", [0, 11])
def test_impossible_number_of_clusters(num_clusters):
    with pytest.raises(ValueError, match=rf"{num_clusters} clusters of 10 rows"):
        kmeans(torch.randn(10, 3), num_clusters, seed=0)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="sum of the blocks"):
        kmeans(torch.zeros(10, 3), 2, seed=0, observed=torch.ones(10, 2, dtype=torch.bool), block_sizes=(2, 2))
    with pytest.raises(ValueError, match="rows x blocks"):
        kmeans(torch.zeros(10, 3), 2, seed=0, observed=torch.ones(9, 2, dtype=torch.bool), block_sizes=(1, 2))


@pytest.mark.parametrize(("first", "second", "number"), [([3, -1], [0, 2], 4), ([], [5], 6), ([-1], [-1], 0)])
def test_the_number_of_labels_is_that_of_the_largest(first, second, number):
    """Tables of one row for each label are no larger with more processes."""
    ranks, shares = Ranks(2), [torch.tensor(part, dtype=torch.int64) for part in (first, second)]
    assert ranks.run(lambda rank: ThreadReducer(ranks, rank).num_labels(shares[rank])) == [number, number]


def cluster_share(rank, folder, shares):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/join", rank=rank, world_size=2)
    values, _ = blobs(spread=1.0)
    own = slice(0, shares) if rank == 0 else slice(shares, 600)
    mask = {"observed": random_mask(600)[own], "block_sizes": (6, 6)}
    results = [kmeans(values[own], 20, seed=4, reducer=DistributedReducer(), **kwargs) for kwargs in ({}, mask)]
    torch.save([vars(result) for result in results], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    # Forked like loader workers, because spawned processes would import torch again, longer than all other tests.
    torch.multiprocessing.start_processes(cluster_share, args=(str(tmp_path), 250), nprocs=2, start_method="fork")
    values, _ = blobs(spread=1.0)
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for i, mask in enumerate(({}, {"observed": random_mask(600), "block_sizes": (6, 6)})):
        alone = kmeans(values, 20, seed=4, **mask)
        first, second = shares[0][i], shares[1][i]
        assert torch.equal(first["centroids"], second["centroids"])
        assert torch.equal(first["counts"], alone.counts)
        torch.testing.assert_close(first["centroids"], alone.centroids, atol=1e-5, rtol=1e-5)
        assert first["objective"] == second["objective"] == pytest.approx(alone.objective, rel=1e-6)
        assert torch.equal(torch.cat([first["labels"], second["labels"]]), alone.labels)
