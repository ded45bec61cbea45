"""Cluster embeddings that are sharded over ranks: one pseudo label per utterance."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from avspk.clusterers.base import Clusterer
from avspk.clusterers.joint import CHUNK_ROWS, Transform
from avspk.clusterers.kmeans import DistributedReducer, Reducer
from avspk.common import distributed

CENTRES_AT_ONCE = 1 << 12  # compared with all others: 400 MB with 25,000 clusters


def cluster_embeddings(
    rows: Mapping[str, np.ndarray],
    usable: Mapping[str, np.ndarray],
    clusterer: Clusterer,
    num_clusters: int,
    seed: int,
    device: torch.device,
) -> tuple[np.ndarray, dict[str, float]]:
    """Pseudo labels (N,) int64 of all utterances, and the clusterer's notes.

    An utterance without any modality has -1, and so has one that the clusterer left out. Collective: every rank gets
    the same labels.

    Args:
        rows: modality -> (n, D_m), this rank's contiguous share of the embeddings.
        usable: modality -> (N,) bool, which utterances have the modality.

    Raises: ValueError if the clusterer's labels are not those of a `Clustering`.
    """
    some = np.logical_or.reduce([usable[name] for name in rows])
    share = distributed.local_share(len(some))
    mine = np.arange(len(some))[share][some[share]]
    # If every utterance has audio, nothing is copied here, and memory-mapped rows stay on the disk.
    present = {name: values if some[share].all() else values[some[share]] for name, values in rows.items()}
    result = clusterer(present, num_clusters, seed=seed, device=device, reducer=make_reducer())
    if result.labels.shape != mine.shape:
        raise ValueError(f"the clusterer gave labels of shape {result.labels.shape} for {len(mine)} utterances")
    labels = torch.zeros(len(some), dtype=torch.int64, device=device)
    labels[torch.from_numpy(mine).to(device)] = torch.from_numpy(result.labels).to(device) + 1
    everyone = distributed.sum_over_ranks(labels).cpu().numpy() - 1
    _require_numbered(everyone)
    return everyone, result.notes


def nearest_clusters(
    rows: Mapping[str, np.ndarray], labels: np.ndarray, count: int, device: torch.device
) -> torch.Tensor:
    """The `count` nearest other clusters of each cluster, (K, count) int64, nearest first; fewer if there are no more.

    Nearness is the cosine of the clusters' centres: for each modality the mean unit embedding minus the overall mean.
    Collective: every rank gets the same clusters.

    Args:
        rows: modality -> (n, D_m), this rank's contiguous share of the embeddings.
        labels: (N,) of all utterances, 0 .. K - 1, -1 for none.
    """
    unit = torch.nn.functional.normalize
    centres = unit(torch.cat([unit(class_vectors(values, labels, device)) for values in rows.values()], 1)).to(device)
    count = min(count, len(centres) - 1)
    found = torch.zeros(len(centres), count, dtype=torch.int64, device=device)
    if distributed.rank() == 0:
        for start in range(0, len(centres), CENTRES_AT_ONCE):
            likeness = centres[start : start + CENTRES_AT_ONCE] @ centres.T
            likeness.diagonal(start).fill_(-torch.inf)
            found[start : start + CENTRES_AT_ONCE] = likeness.topk(count).indices
    return distributed.sum_over_ranks(found).cpu()


def _require_numbered(labels: np.ndarray) -> None:
    """Raise a ValueError unless the labels are 0, 1, ... without gaps, and -1."""
    found = np.unique(labels[labels != -1])
    if len(found) == 0:
        raise ValueError("the clusterer left out all utterances: each of its labels is -1")
    if found[0] != 0 or found[-1] != len(found) - 1:
        raise ValueError(
            f"the clusterer gave {len(found)} different labels from {found[0]} to {found[-1]}; they must be 0 to "
            f"{len(found) - 1} without gaps, and -1 for utterances that are left out; see `numbered` in "
            "avspk/clusterers/joint_kmeans.py"
        )


def make_reducer() -> Reducer:
    """Reducer over the processes of this run."""
    return DistributedReducer() if distributed.world_size() > 1 else Reducer()


def class_vectors(
    rows: np.ndarray, labels: np.ndarray, device: torch.device, transform: Transform | None = None
) -> torch.Tensor:
    """Initial class vectors (C, D) [C]: mean normalised embedding of each class, minus the overall mean.

    A class without embeddings gets 0. A classifier with random weights spends a short round on relearning the clusters.

    Args:
        rows: (n, D), this rank's contiguous share of the embeddings; NaN where missing.
        labels: (N,) pseudo labels of all utterances, -1 for none.
        transform: applied to the rows first.
    """
    mine = labels[distributed.local_share(len(labels))]
    sums = torch.zeros(labels.max() + 1, rows.shape[1] + 1, dtype=torch.float64)  # the last column holds the count
    for start in range(0, len(rows), CHUNK_ROWS):
        part, numbers = rows[start : start + CHUNK_ROWS], mine[start : start + CHUNK_ROWS]
        seen = ~np.isnan(part).any(1) & (numbers >= 0)
        values = torch.from_numpy(part[seen])
        values = values if transform is None else transform(values.to(device)).cpu()
        units = torch.nn.functional.normalize(values, dim=1).double()
        owners = torch.from_numpy(numbers[seen])
        sums[:, :-1].index_add_(0, owners, units)
        sums[:, -1] += torch.bincount(owners, minlength=len(sums))
    sums = distributed.sum_over_ranks(sums.to(device)).cpu()
    counts = sums[:, -1:]
    means = sums[:, :-1] / counts.clamp(min=1)
    overall = sums[:, :-1].sum(0) / counts.sum()
    return torch.where(counts > 0, means - overall, 0.0).float()
