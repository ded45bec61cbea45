"""K-means in plain torch: rows may lack blocks of dimensions and may be spread over processes.

A row x with observed dimensions S contributes ||x_S - c_S||^2, and the objective is the sum over rows. Lloyd's two
steps reduce it as usual: the best centroid of a row is the one nearest over S, and the best value of a centroid in a
dimension is the mean over those of its rows that have the dimension. With unobserved entries stored as zeros,

    ||x_S - c_S||^2 = ||x||^2 - 2 x . c + sum over observed blocks b of ||c_b||^2,

so rows of every pattern share one matrix product, and complete rows have no extra cost. (The same
objective as k-POD, Chi, Chi and Baraniuk 2016, without its imputed copy of the data.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Scores of one chunk of rows against all centroids: small enough for the caches of a CPU, large enough to fill a GPU.
CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27}
POOL, FROM_POOL = 128, 8  # k-means++ draws compared at once, and centroids taken from them
SUM_CHUNK_ROWS = 1 << 16  # a float32 sum over more rows loses digits; the total is kept in float64


class Reducer:
    """Sums tensors over the processes that share the rows. This class is for a single process: the identity."""

    rank: int = 0
    size: int = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of `tensor` over all processes, the same on each; `tensor` may be overwritten."""
        return tensor

    def place(self, num_rows: int, device: torch.device | str) -> tuple[int, int]:
        """Return the number of rows of all processes, and the number of rows before this process's `num_rows`."""
        shares = self._of_each(num_rows, device)
        return int(shares.sum()), int(shares[: self.rank].sum())

    def gather(self, rows: Tensor) -> Tensor:
        """Return the finite rows (n, D) of all processes in order, (N, D), the same on each."""
        total, first = self.place(len(rows), rows.device)
        whole = torch.zeros(total, rows.shape[1], dtype=rows.dtype, device=rows.device)
        whole[first : first + len(rows)] = rows
        return self.sum(whole)

    def from_first(self, tensor: Tensor) -> Tensor:
        """Return the first process's tensor on all processes, in case their arithmetic differs."""
        return self.sum(tensor.clone() if self.rank == 0 else torch.zeros_like(tensor))

    def num_labels(self, labels: Tensor) -> int:
        """Return a number above every label (n,) of all processes, the same on each; -1 is no label."""
        return int(self._of_each(int(labels.max()) + 1 if len(labels) else 0, labels.device).max())

    def _of_each(self, number: int, device: torch.device | str) -> Tensor:
        """Return the numbers of all processes (size,) int64, the same on each."""
        numbers = torch.zeros(self.size, dtype=torch.int64, device=device)
        numbers[self.rank] = number
        return self.sum(numbers)


class DistributedReducer(Reducer):
    """A `Reducer` over the default group of an initialised `torch.distributed`."""

    def __init__(self) -> None:
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()

    def sum(self, tensor: Tensor) -> Tensor:
        """All-reduce in place."""
        torch.distributed.all_reduce(tensor)
        return tensor


@dataclass(frozen=True)
class Rows:
    """This process's rows: values (N, D), zero where unobserved; observed (N, B) float 0/1, or None if complete."""

    values: Tensor
    observed: Tensor | None
    block_sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.values)

    def take(self, index: Tensor | slice) -> Rows:
        """Return the rows chosen by `index`."""
        observed = None if self.observed is None else self.observed[index]
        return Rows(self.values[index], observed, self.block_sizes)

    def block_norms(self, centroids: Tensor) -> Tensor:
        """Return (B, K) squared norms of the blocks of centroids (K, D)."""
        return torch.stack([block.square().sum(1) for block in centroids.split(self.block_sizes, 1)])

    def squared_distances(self, centroids: Tensor, block_norms: Tensor) -> Tensor:
        """Return (N, K) squared distances to centroids (K, D) over each row's observed blocks, minus ||x||^2."""
        norms = block_norms.sum(0) if self.observed is None else self.observed @ block_norms  # (K,) or (N, K)
        return torch.addmm(norms, self.values, centroids.T, alpha=-2)

    def per_dimension(self, per_block: Tensor) -> Tensor:
        """Repeat a (..., B) tensor to (..., D)."""
        sizes = torch.tensor(self.block_sizes, device=per_block.device)
        return per_block.repeat_interleave(sizes, dim=-1)


@dataclass(frozen=True)
class Clusters:
    """Result of `kmeans`. Labels are those of this process's rows; the rest is the same on all processes."""

    labels: Tensor  # (N,) int64
    centroids: Tensor  # (K, D)
    counts: Tensor  # (K,) int64, 0 only if rows coincide
    objective: float  # mean squared distance of a row to its centroid
    num_iterations: int


def kmeans(
    values: Tensor,
    num_clusters: int,
    *,
    seed: int,
    num_iterations: int = 20,
    tolerance: float = 1e-4,
    samples_per_cluster: int = 16,
    start: Tensor | None = None,
    observed: Tensor | None = None,
    block_sizes: Sequence[int] = (),
    reducer: Reducer | None = None,
) -> Clusters:
    """Cluster rows by Lloyd's algorithm from a k-means++ start (Arthur and Vassilvitskii 2007).

    Args:
        values: (N, D) floats on any device, finite; this process's share, in order of rank.
        num_clusters: K, at most the number of rows of all processes.
        seed: of the start; the same rows and seed give the same clusters for any sharing of the rows (up to rounding).
        num_iterations: maximal number of updates of the centroids.
        tolerance: stop when the relative decrease of the objective is not above this; 0: only when it stops falling.
        samples_per_cluster: the start is found on a random sample of this many rows per cluster.
        start: (K, D) initial centroids instead.
        observed: (N, B) bool, which blocks of dimensions a row has; None: all. Every row has at least one.
        block_sizes: dimensions of the B blocks, adding up to D; needed with `observed`.
        reducer: sums over the processes; None: a single process.

    Raises:
        ValueError: on shapes that do not fit, or fewer rows than clusters.
    """
    reducer = reducer or Reducer()
    rows = _check(values, observed, tuple(block_sizes) or (values.shape[-1],))
    generator = torch.Generator().manual_seed(seed)
    centroids = start
    if centroids is None:
        sample = _draw_sample(rows, num_clusters, samples_per_cluster, generator, reducer)
        centroids = reducer.from_first(_plus_plus(_candidates(sample, num_clusters), num_clusters, generator))
    norms = torch.linalg.vector_norm(rows.values, dim=1).square()
    labels, errors = _assign(rows, norms, centroids)
    objective, iteration = _total(errors, reducer), 0
    while iteration < num_iterations:
        iteration += 1
        centroids, counts = _update(rows, labels, centroids, reducer)
        empty = (counts == 0).nonzero().flatten()
        if len(empty):
            cluster_errors = reducer.sum(torch.zeros_like(counts).index_add_(0, labels, errors.double()))
            centroids = _split_worst(centroids, counts, cluster_errors, empty, generator)
        labels, errors = _assign(rows, norms, centroids)
        previous, objective = objective, _total(errors, reducer)
        if not len(empty) and previous - objective <= tolerance * previous:
            break
    sizes = reducer.sum(torch.bincount(labels, minlength=num_clusters))
    return Clusters(labels, centroids, sizes, objective / max(int(sizes.sum()), 1), iteration)


def _check(values: Tensor, observed: Tensor | None, block_sizes: tuple[int, ...]) -> Rows:
    if values.ndim != 2 or sum(block_sizes) != values.shape[1]:
        raise ValueError(f"values must be (N, {sum(block_sizes)}), D the sum of the blocks; got {tuple(values.shape)}")
    if observed is None:
        return Rows(values.float(), None, block_sizes)
    if observed.shape != (shape := (len(values), len(block_sizes))):
        raise ValueError(f"observed must be {shape}, rows x blocks; got {tuple(observed.shape)}")
    rows = Rows(values.float(), observed.float(), block_sizes)
    parts = (slice(start, start + SUM_CHUNK_ROWS) for start in range(0, len(rows), SUM_CHUNK_ROWS))
    if not any(rows.values[part][rows.per_dimension(~observed[part])].any() for part in parts):
        return rows  # not copied: there may be a million rows
    return Rows(rows.values.masked_fill(rows.per_dimension(~observed), 0), rows.observed, block_sizes)


def _draw_sample(rows: Rows, num_clusters: int, per_cluster: int, generator: torch.Generator, reducer: Reducer) -> Rows:
    """Return the same random rows on every process: each fills in its own, and the sum is the sample."""
    total, first = reducer.place(len(rows), rows.values.device)
    if not 1 <= num_clusters <= total:
        raise ValueError(f"cannot make {num_clusters} clusters of {total} rows: choose 1 to {total} clusters")
    size = min(total, max(per_cluster, 1) * num_clusters)
    chosen = torch.randperm(total, generator=generator)[:size].to(rows.values.device) - first
    own = ((chosen >= 0) & (chosen < len(rows))).nonzero().flatten()
    mine = rows.take(chosen[own])

    def shared(part: Tensor) -> Tensor:
        return reducer.sum(part.new_zeros(size, part.shape[1]).index_copy_(0, own, part))

    return Rows(shared(mine.values), None if mine.observed is None else shared(mine.observed), rows.block_sizes)


def _plus_plus(points: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Return K of the points (S, D), drawn in proportion to their squared distance to the points drawn before.

    Greedy k-means++ reads all points for each centroid, to keep the best of a few draws. Here a pool of draws is
    compared with the points in one pass and gives several centroids, each the draw that most lowers the summed
    distance.
    At equal cost more draws compete: the start is better than one draw at a time, in half the time.
    """
    norms = points.square().sum(1)
    chosen: list[Tensor] = []
    nearest, mass = torch.full_like(norms, torch.inf), torch.ones_like(norms)
    while len(chosen) < num_clusters:
        cumulative = mass.double().cumsum(0)
        draws = torch.rand(POOL, generator=generator, dtype=torch.float64).to(cumulative) * cumulative[-1]
        picks = torch.searchsorted(cumulative, draws).clamp_(max=len(points) - 1)
        reached = torch.addmm(norms, points[picks], points.T, alpha=-2).add_(norms[picks, None]).clamp_(min=0)
        for _ in range(min(FROM_POOL, num_clusters - len(chosen))):
            torch.minimum(reached, nearest, out=reached)  # (POOL, S)
            best = reached.sum(1).argmin(keepdim=True)
            nearest = mass = reached[best].flatten()
            chosen.append(picks[best])
    return points[torch.cat(chosen)]


def _candidates(sample: Rows, num_clusters: int) -> Tensor:
    """Return the sample's rows that can be centroids: complete ones, if there are enough, else all, filled with means.

    Filled rows are a poor choice: a block filled with the mean is far from all rows.
    """
    if sample.observed is None:
        return sample.values
    complete = sample.observed.all(1)
    if int(complete.sum()) >= num_clusters:
        return sample.values[complete]
    means = sample.values.sum(0) / sample.per_dimension(sample.observed.sum(0).clamp(min=1))  # (D,)
    return torch.where(sample.per_dimension(sample.observed) > 0, sample.values, means)


def _assign(rows: Rows, norms: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest centroid of each row (N,) and the squared distance to it (N,), given ||x||^2 (N,)."""
    step = max(1, CHUNK_ELEMENTS.get(rows.values.device.type, CHUNK_ELEMENTS["cuda"]) // len(centroids))
    labels = torch.empty(len(rows), dtype=torch.int64, device=rows.values.device)
    errors = torch.empty(len(rows), device=rows.values.device)
    block_norms = rows.block_norms(centroids)  # (B, K)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        errors[part], labels[part] = _smallest(rows.take(part).squared_distances(centroids, block_norms))
    return labels, errors.add_(norms).clamp_(min=0)


def _smallest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest value of each row of (N, K) and its index, both (N,)."""
    if scores.device.type != "cpu":
        values, index = scores.min(1)
        return values, index
    # torch's argmin does not use a CPU's vector units. NumPy's takes an eighth of the time: 6 % less per iteration.
    index = torch.from_numpy(scores.numpy().argmin(1))
    return scores.gather(1, index[:, None]).squeeze(1), index


def _update(rows: Rows, labels: Tensor, centroids: Tensor, reducer: Reducer) -> tuple[Tensor, Tensor]:
    """Return centroids (K, D), each dimension the mean over the rows that have it, and the clusters' sizes (K,).

    If no row of a cluster has a dimension, the old value stays: the objective does not depend on it.
    """
    sums = centroids.new_zeros(centroids.shape, dtype=torch.float64)
    counts = centroids.new_zeros(len(centroids), len(rows.block_sizes), dtype=torch.float64)
    for start in range(0, len(rows), SUM_CHUNK_ROWS):
        part = slice(start, start + SUM_CHUNK_ROWS)
        sums += _sum_by_label(rows.values[part], labels[part], len(centroids))
        if rows.observed is not None:
            counts += _sum_by_label(rows.observed[part], labels[part], len(centroids))
    sizes = reducer.sum(torch.bincount(labels, minlength=len(centroids)).double())
    sums, counts = reducer.sum(sums), sizes[:, None] if rows.observed is None else reducer.sum(counts)
    counts = rows.per_dimension(counts) if rows.observed is not None else counts  # (K, D) or (K, 1)
    return torch.where(counts > 0, (sums / counts.clamp(min=1)).to(centroids), centroids), sizes


def _sum_by_label(values: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """Return (K, D) sums of the rows of each label, in an order that does not depend on the run."""
    sums = values.new_zeros(num_clusters, values.shape[1])
    if values.is_cuda:  # on GPUs index_add_ adds in random order, index_put_ sorts first
        return sums.index_put_((labels,), values, accumulate=True)
    return sums.index_add_(0, labels, values)


def _split_worst(
    centroids: Tensor, counts: Tensor, errors: Tensor, empty: Tensor, generator: torch.Generator
) -> Tensor:
    """Give each empty cluster half of one of the clusters with the largest summed error (K,).

    Both halves start a tenth of the cluster's radius from its centroid, on opposite sides of it in a random direction.
    Clusters without error hold coinciding rows and cannot be split; the remaining empty clusters stay empty.
    """
    num = min(len(empty), int((errors > 0).sum()))
    donors, empty = errors.topk(num).indices, empty[:num]
    direction = torch.randn(num, centroids.shape[1], generator=generator).to(centroids)
    direction /= direction.norm(dim=1, keepdim=True)
    step = 0.1 * (errors[donors] / counts[donors]).sqrt()[:, None].to(centroids) * direction
    result = centroids.clone()
    result[empty] = centroids[donors] + step
    result[donors] = centroids[donors] - step
    return result


def _total(errors: Tensor, reducer: Reducer) -> float:
    return float(reducer.sum(errors.double().sum()))
