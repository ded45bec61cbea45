"""Joint clustering of utterances by the embeddings of all modalities they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from avspk.pseudo_labels.kmeans import Clusters, Reducer, kmeans

Embeddings = Mapping[str, np.ndarray | Tensor]
CHUNK_ROWS = 1 << 16  # read and scaled at once: a million utterances are not held twice


@dataclass(frozen=True)
class JointClusters:
    """Pseudo labels (N,) int64 of this process's utterances, 0..K'-1 without gaps, and the clustering behind them."""

    labels: np.ndarray
    num_clusters: int  # K', less than asked only if embeddings coincide
    centroids: np.ndarray  # (K', D), blocks in the order of the weights; means of merged ones after `num_subclusters`
    objective: float  # mean squared distance of the k-means, which lies in [0, 2]


def joint_cluster(
    embeddings: Embeddings,
    weights: Mapping[str, float],
    num_clusters: int,
    *,
    seed: int,
    num_iterations: int = 20,
    tolerance: float = 1e-4,
    num_subclusters: int | None = None,
    device: torch.device | str = "cpu",
    reducer: Reducer | None = None,
) -> JointClusters:
    """Cluster utterances on the concatenation of their weighted, normalised embeddings.

    Every modality's embedding is scaled to unit length, weighted, and the concatenation scaled to unit length again. An
    utterance without a modality is compared over the dimensions it has, on the same scale as the others.

    Args:
        embeddings: modality -> (N, D_m); an utterance without the modality is a row of NaN. With several processes,
            this process's share of the utterances, shares being in order of rank.
        weights: modality -> weight >= 0; modalities of weight 0 are left out.
        num_clusters: K.
        seed: of the k-means.
        num_iterations: of the k-means, at most.
        tolerance: of the k-means: it ends once the objective falls by no more than this share of itself.
        num_subclusters: if given, k-means makes this many clusters, whose centroids Ward's agglomerative clustering
            then merges into K (50,000 to 7,500 at VoxCeleb2's size), in the first process, while the others wait; its
            memory grows with their square.
        device: where to compute.
        reducer: sums over the processes; None: there is one process.

    Raises:
        ValueError: on unknown modalities, bad weights or shapes, an utterance with no modality, half-missing rows, or
            fewer utterances than clusters.
    """
    used = _used_modalities(embeddings, weights)
    values, observed = _joint_rows(embeddings, used, device)
    reducer = reducer or Reducer()
    complete = int(reducer.sum((~observed).sum())) == 0  # on all processes, which have to take the same path
    result = kmeans(
        values,
        _num_kmeans_clusters(num_clusters, num_subclusters),
        seed=seed,
        num_iterations=num_iterations,
        tolerance=tolerance,
        observed=None if complete else observed,
        block_sizes=[embeddings[modality].shape[1] for modality in used],
        reducer=reducer,
    )
    merge = np.arange(len(result.centroids)) if num_subclusters is None else _agglomerate(result, num_clusters, reducer)
    return _renumbered(result, merge)


def _used_modalities(embeddings: Embeddings, weights: Mapping[str, float]) -> dict[str, float]:
    """Return modality -> weight for positive weights, scaled so that a complete utterance has unit length."""
    if set(embeddings) != set(weights):
        raise ValueError(
            f"weights are for {sorted(weights)}, embeddings for {sorted(embeddings)}: they must be the same"
        )
    if not all(np.isfinite(weight) and weight >= 0 for weight in weights.values()) or not any(weights.values()):
        raise ValueError(f"weights must be finite, not negative, and not all zero; got {dict(weights)}")
    if len({len(rows) for rows in embeddings.values()}) > 1:
        raise ValueError(f"modalities differ in rows: { {name: len(rows) for name, rows in embeddings.items()} }")
    length = float(np.linalg.norm(list(weights.values())))
    return {modality: weight / length for modality, weight in weights.items() if weight > 0}


def _joint_rows(embeddings: Embeddings, used: Mapping[str, float], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return values (N, D), zero where missing, and which modalities an utterance has (N, M) bool.

    Blocks of an utterance that lacks others keep their scale: a centroid's block is a mean over complete and partial
    rows alike, so both must have the same length there.
    """
    sizes = [embeddings[modality].shape[1] for modality in used]
    num_rows = len(next(iter(embeddings.values())))
    values = torch.empty(num_rows, sum(sizes), device=device)
    observed = torch.empty(num_rows, len(used), dtype=torch.bool, device=device)
    for column, (block, (modality, weight)) in enumerate(zip(values.split(sizes, 1), used.items(), strict=True)):
        for start in range(0, num_rows, CHUNK_ROWS):
            part = block[start : start + CHUNK_ROWS]
            part.copy_(_tensor(embeddings[modality][start : start + CHUNK_ROWS]))
            observed[start : start + CHUNK_ROWS, column] = _present(part, modality, start)
            part.copy_(torch.nn.functional.normalize(part.nan_to_num_(), dim=1) * weight)
    if not observed.any(1).all():
        row = int((~observed.any(1)).nonzero()[0])
        raise ValueError(f"utterance {row} has no embedding in any of {list(used)}: leave such utterances out")
    return values, observed


def _tensor(rows: np.ndarray | Tensor) -> Tensor:
    """A tensor of the rows: copied, because a memory-mapped file may be one that must not be written."""
    return rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))


def _present(block: Tensor, modality: str, first: int) -> Tensor:
    """Return which rows (n,) are there; a row is there in full or NaN in full, anything else is damage.

    `first`: number of the first row, for the error.
    """
    missing = block.isnan().all(1)
    broken = ~(missing | block.isfinite().all(1))
    if broken.any():
        row = first + int(broken.nonzero()[0])
        raise ValueError(f"{modality} embedding of utterance {row} is not finite: it must be finite, or NaN throughout")
    return ~missing


def _num_kmeans_clusters(num_clusters: int, num_subclusters: int | None) -> int:
    if num_subclusters is not None and num_subclusters < num_clusters:
        raise ValueError(f"num_subclusters must be at least num_clusters = {num_clusters}; got {num_subclusters}")
    return num_clusters if num_subclusters is None else num_subclusters


def _agglomerate(result: Clusters, num_clusters: int, reducer: Reducer) -> np.ndarray:
    """Return the merged cluster (K,) of each k-means cluster; empty ones are left out and marked 0.

    The first process alone works: distances between 50,000 centroids are 10 GB, and a node has many processes.
    """
    merge = torch.zeros_like(result.counts)
    if reducer.rank == 0:
        merge = torch.from_numpy(_ward(result, num_clusters)).to(merge)
    return reducer.sum(merge).cpu().numpy()


def _ward(result: Clusters, num_clusters: int) -> np.ndarray:
    from sklearn.cluster import AgglomerativeClustering

    filled = (result.counts > 0).cpu().numpy()
    merge = np.zeros(len(filled), dtype=np.int64)
    if filled.sum() <= num_clusters:
        merge[filled] = np.arange(filled.sum())
    else:
        centroids = result.centroids.cpu().numpy()[filled]
        merge[filled] = AgglomerativeClustering(num_clusters, linkage="ward").fit_predict(centroids)
    return merge


def _renumbered(result: Clusters, merge: np.ndarray) -> JointClusters:
    """Merge clusters and drop empty ones, keeping the order."""
    counts = result.counts.cpu().numpy()
    centroids = result.centroids.cpu().numpy()
    sizes = np.bincount(merge, weights=counts)
    sums = np.zeros((len(sizes), centroids.shape[1]))
    np.add.at(sums, merge, centroids * counts[:, None])
    filled = sizes > 0
    number = np.cumsum(filled) - 1
    labels = number[merge[result.labels.cpu().numpy()]].astype(np.int64)
    means = (sums[filled] / sizes[filled, None]).astype(np.float32)
    return JointClusters(labels, int(filled.sum()), means, result.objective)
