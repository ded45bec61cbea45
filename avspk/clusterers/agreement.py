"""Weights of the modalities without speaker labels: those for which random parts of the data give similar clusters.

Two random parts of the rows are clustered separately. With suitable weights, the rows that both parts share fall into
the same clusters; if a noisy modality has too much weight, they do not (stability of clusterings: Ben-Hur, Elisseeff
and Guyon 2002). Candidates are ratios of a modality's unit block to that of the first modality.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from avspk.clusterers.base import Embeddings
from avspk.clusterers.joint import gather_rows
from avspk.clusterers.kmeans import Reducer
from avspk.common.extras import explained

CANDIDATES = (0.35, 0.5, 0.7, 1.0, 1.4)
PARTS, SHARE = 8, 0.8  # random parts that are compared pairwise, and the share of the rows in each
MAX_ROWS = 2_000  # of larger corpora, this many random rows are compared
CLUSTER_ROWS = 12
"""[C] Rows of one cluster, at most; more where all clusters together have fewer than MAX_ROWS. 2,000 rows of whole
clusters would be 14 clusters of VoxCeleb2, which any weights separate."""
Rows = dict[str, np.ndarray]
Cluster = Callable[[Rows, Mapping[str, float], int], np.ndarray]
"""Rows (n, D_m) by modality, weights, number of clusters -> labels (n,)."""


def agreement_weights(
    rows: Embeddings, labels: Tensor, cluster: Cluster, seed: int, reducer: Reducer
) -> dict[str, float]:
    """Modality -> weight, 1 for the first one.

    Each further modality in turn gets the candidate with the best mean adjusted Rand index; the others are fixed. Of
    equal ones, the nearest to 1 wins: without evidence, modalities weigh the same.

    Args:
        rows: this process's share of the embeddings.
        labels: (n,) a first clustering of the rows; rows are drawn by its clusters, so speakers have several.
        cluster: clusters the rows of one process; called only in the first process.
        seed: for the draws.
        reducer: sums over the processes.
    """
    names = list(rows)
    sample, num_clusters = _sample(rows, labels, np.random.default_rng(seed), reducer)
    chosen = torch.zeros(len(names), dtype=torch.float64, device=labels.device)
    if reducer.rank == 0:
        weights = dict.fromkeys(names, 1.0)
        for name in names[1:]:
            # `max` takes the first of equal ones.
            nearest_first = sorted(CANDIDATES, key=lambda candidate: abs(np.log(candidate)))
            trials = [{**weights, name: candidate} for candidate in nearest_first]
            weights = max(trials, key=lambda trial: _agreement(sample, trial, num_clusters, cluster, seed))
        chosen += torch.tensor(list(weights.values()), dtype=torch.float64).to(chosen.device)
    return dict(zip(names, reducer.sum(chosen).tolist(), strict=True))


def _agreement(sample: Rows, weights: Mapping[str, float], num_clusters: int, cluster: Cluster, seed: int) -> float:
    """Mean adjusted Rand index of separately clustered parts, over the rows that they share."""
    with explained():
        from sklearn.metrics import adjusted_rand_score

    num = len(next(iter(sample.values())))
    rng = np.random.default_rng(seed)
    parts = rng.random((PARTS, num)) < SHARE
    found = np.full((PARTS, num), -1)
    for labels, part in zip(found, parts, strict=True):
        mine = {name: values[part] for name, values in sample.items()}
        labels[part] = cluster(mine, weights, min(num_clusters, int(part.sum())))
    shared = [(one >= 0) & (other >= 0) for one, other in pairwise(found)]
    indices = [
        adjusted_rand_score(one[both], other[both]) for (one, other), both in zip(pairwise(found), shared, strict=True)
    ]
    return float(np.mean(indices))


def _sample(rows: Embeddings, labels: Tensor, rng: np.random.Generator, reducer: Reducer) -> tuple[Rows, int]:
    """Drawn rows of all processes in order, and the number of their clusters."""
    whole = reducer.gather(labels[:, None]).flatten().cpu().numpy()
    drawn = _draw(whole, rng)
    _, first = reducer.place(len(labels), labels.device)
    mine = drawn[(drawn >= first) & (drawn < first + len(labels))] - first
    sample = {name: gather_rows(values[mine], labels.device, reducer) for name, values in rows.items()}
    return sample, len(np.unique(whole[drawn]))


def _draw(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Increasing numbers of at most MAX_ROWS drawn rows, from the labels (N,) of all."""
    if len(labels) <= MAX_ROWS:
        return np.arange(len(labels))
    clusters = rng.permutation(np.unique(labels))
    each = max(CLUSTER_ROWS, MAX_ROWS // len(clusters))
    drawn = np.empty(0, np.int64)
    for cluster in clusters:
        if len(drawn) >= MAX_ROWS:
            break
        members = rng.permutation(np.flatnonzero(labels == cluster))
        drawn = np.concatenate([drawn, members[:each]])
    return np.sort(drawn[:MAX_ROWS])
