"""Ward's agglomerative clustering of weighted points, some of which may lack blocks of dimensions.

Clusters A and B are merged in increasing order of the growth of the k-means objective,

    2 n_A n_B / (n_A + n_B) ||c_A - c_B||^2,

which the Lance-Williams recurrence updates without the points (Lance and Williams 1967). The nearest-neighbour chain
(Murtagh 1983) finds all merges in O(N^2) operations over one N x N table of float32: 1.6 GB for 20,000 points, 10 GB
for 50,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
CHUNK_ROWS = 1 << 10  # rows of the table filled at once
LEAST_SETTLED = 30
"""[C] Of 100 random points, a cost is 1.25 times the last one in 7 of 10 sets near 4 clusters, in 1 of 10 near 20."""


@dataclass(frozen=True)
class Tree:
    """All merges of N points.

    Attributes:
        merges: (N - 1, 2) points that represent the merged clusters.
        heights: (N - 1,) growth of the objective by each merge.
    """

    merges: NDArray[np.int64]
    heights: Floats

    def cut(self, num_clusters: int) -> NDArray[np.int64]:
        """(N,) labels of K >= 1 clusters, 0 .. K - 1, numbered by the first point of each; N labels if K is larger."""
        num = len(self.merges) + 1
        lowest = np.argsort(self.heights, kind="stable")[: max(num - num_clusters, 0)]
        return _components(num, self.merges[np.sort(lowest)])

    def settled(self, num_clusters: int, jump: float) -> int:
        """The number of clusters at which the cost of a merge jumps, from half of `num_clusters` on; else that number.

        It is at least `LEAST_SETTLED`: with fewer clusters, costs jump by chance.

        Parts of one speaker cost little to merge, two speakers much. So the cost jumps where all parts are merged.

        Args:
            jump: least ratio of the cost of the next merge to that of the last one; 0: `num_clusters` stays.
        """
        numbers = np.arange(max(LEAST_SETTLED, num_clusters // 2), min(num_clusters, len(self.heights) + 1))
        if jump == 0 or len(numbers) == 0:
            return num_clusters
        costs = np.sort(self.heights.astype(np.float64))[::-1]  # costs[k - 2]: of the merge from k to k - 1 clusters
        ratios = costs[numbers - 2] / np.maximum(costs[numbers - 1], np.finfo(np.float32).tiny)
        best = int(ratios.argmax())
        return int(numbers[best]) if ratios[best] >= jump else num_clusters


def ward(
    points: Floats,
    num_clusters: int,
    *,
    jump: float = 0,
    counts: NDArray[np.int64] | None = None,
    observed: NDArray[np.bool_] | None = None,
    block_sizes: Sequence[int] = (),
) -> NDArray[np.int64]:
    """Merge points until `num_clusters` clusters are left, or fewer where the cost of a merge jumps (`Tree.settled`).

    See `ward_tree` for the other arguments.

    Returns:
        (N,) labels 0 .. K - 1, numbered by the first point of each cluster. With K >= N every point is its own cluster.

    Raises:
        ValueError: if K is less than 1, or a point is not finite.
    """
    if num_clusters < 1:
        raise ValueError(f"num_clusters must be at least 1; got {num_clusters}")
    _require_finite(points)
    if num_clusters >= len(points):
        return np.arange(len(points))
    tree = ward_tree(points, counts=counts, observed=observed, block_sizes=block_sizes)
    return tree.cut(tree.settled(num_clusters, jump))


def ward_tree(
    points: Floats,
    *,
    counts: NDArray[np.int64] | None = None,
    observed: NDArray[np.bool_] | None = None,
    block_sizes: Sequence[int] = (),
) -> Tree:
    """Merge points until one cluster is left.

    Points that lack blocks are compared over the blocks that both have, scaled up as if the other blocks agreed
    equally.
    Points that share no block are as far apart as orthogonal points of their length.

    Args:
        points: (N, D), zero where unobserved; N >= 1.
        counts: (N,) weights of the points, such as the sizes of the clusters that they represent; None: 1 each.
        observed: (N, B) bool, which blocks a point has; None: all.
        block_sizes: dimensions of the B blocks, with a sum of D; needed with `observed`.

    Raises:
        ValueError: if a point is not finite.
    """
    _require_finite(points)
    num = len(points)
    sizes = np.ones(num, np.float32) if counts is None else counts.astype(np.float32)
    costs = _distances(points, observed, block_sizes)
    for start in range(0, num, CHUNK_ROWS):
        mine = sizes[start : start + CHUNK_ROWS, None]
        costs[start : start + CHUNK_ROWS] *= 2 * mine * sizes / (mine + sizes)
    np.fill_diagonal(costs, np.inf)
    return Tree(*_nearest_neighbour_chain(costs, sizes))


def _require_finite(points: Floats) -> None:
    if not np.isfinite(points).all():
        raise ValueError("got points that are not finite, which have no distances")  # the search would never end


def _distances(points: Floats, observed: NDArray[np.bool_] | None, block_sizes: Sequence[int]) -> Floats:
    """Return (N, N) squared distances over the blocks that both points have, on the scale of all blocks."""
    num = len(points)
    table = np.empty((num, num), np.float32)
    norms = np.square(points).sum(1)
    masks = None if observed is None or observed.all() else observed.astype(np.float32)
    if masks is not None:
        edges = np.cumsum([0, *block_sizes])
        per_block = np.stack([np.square(points[:, a:b]).sum(1) for a, b in pairwise(edges)], axis=1)
        weights = per_block.sum(0) / masks.sum(0).clip(min=1)  # (B,) mean squared length of a block
    for start in range(0, num, CHUNK_ROWS):
        rows, later = slice(start, start + CHUNK_ROWS), slice(start, num)
        products = points[rows] @ points[later].T
        if masks is None:
            part = norms[rows, None] + norms[later] - 2 * products
        else:
            lengths = (masks * per_block)[rows] @ masks[later].T + masks[rows] @ (masks * per_block)[later].T
            shared = (masks * weights)[rows] @ masks[later].T
            scaled = (lengths - 2 * products) * (weights.sum() / np.where(shared > 0, shared, 1))
            part = np.where(shared > 0, scaled, 2 * weights.sum())
        square = part[:, : len(part)]
        square[:] = np.minimum(square, square.T)  # exactly symmetric: rounding could keep the chain from ending
        table[rows, later] = np.maximum(part, 0, out=part)
        table[later, rows] = part.T
    return table


def _nearest_neighbour_chain(costs: Floats, sizes: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return all N - 1 merges, (N - 1, 2) points that represent the merged clusters, and their costs (N - 1,).

    A chain of ever nearer neighbours ends in two clusters that are each other's nearest; no later merge can come
    between them, so they are merged immediately. `costs` (infinite on the diagonal) and `sizes` are overwritten.
    """
    num = len(costs)
    merges, heights = np.empty((num - 1, 2), np.int64), np.empty(num - 1, np.float32)
    chain: list[int] = []
    first = 0  # clusters before it no longer exist
    for number in range(num - 1):
        if not chain:
            while sizes[first] == 0:
                first += 1
            chain.append(first)
        while True:
            row = costs[chain[-1]]
            nearest = int(row.argmin())
            if len(chain) > 1 and row[chain[-2]] <= row[nearest]:
                break
            chain.append(nearest)
        kept, gone = sorted((chain.pop(), chain.pop()))
        merges[number], heights[number] = (kept, gone), costs[kept, gone]
        _merge(costs, sizes, kept, gone)
    return merges, heights


def _merge(costs: Floats, sizes: Floats, kept: int, gone: int) -> None:
    """Let the cluster `kept` be the union of both, by Lance and Williams's recurrence; `gone` is infinitely far."""
    total = sizes[kept] + sizes[gone] + sizes
    row = (sizes[kept] + sizes) * costs[kept] + (sizes[gone] + sizes) * costs[gone] - sizes * costs[kept, gone]
    row /= total
    row[[kept, gone]] = np.inf
    costs[kept] = costs[:, kept] = row
    costs[gone] = costs[:, gone] = np.inf
    sizes[kept] += sizes[gone]
    sizes[gone] = 0


def _components(num: int, merges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of each point's cluster after these merges, in the order of their first points."""
    owner = np.arange(num)
    for kept, gone in merges:  # in their order: both still represent their clusters
        owner[gone] = kept
    while not np.array_equal(owner, owner[owner]):
        owner = owner[owner]
    return np.unique(owner, return_inverse=True)[1]
