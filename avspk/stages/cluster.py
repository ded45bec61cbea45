"""Embeddings, sharded over ranks, -> one pseudo label an utterance, the same table on every rank."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from avspk import distributed
from avspk.config import ClusterSettings
from avspk.pseudo_labels.clustering import joint_cluster
from avspk.pseudo_labels.kmeans import DistributedReducer
from avspk.stages.base import local_share


def cluster_embeddings(
    rows: Mapping[str, np.ndarray],
    usable: Mapping[str, np.ndarray],
    settings: ClusterSettings,
    num_clusters: int,
    seed: int,
    device: torch.device,
) -> np.ndarray:
    """Pseudo labels (N,) int64 of all utterances; -1 where an utterance has none of the modalities.

    Args:
        rows: modality -> (n, D_m), this rank's contiguous share of the embeddings.
        usable: modality -> (N,) bool, which utterances have the modality.
    """
    some = np.logical_or.reduce([usable[name] for name in rows])
    share = local_share(len(some))
    mine = np.arange(len(some))[share][some[share]]
    present = {name: values[some[share]] for name, values in rows.items()}
    attempts = [
        joint_cluster(
            present,
            {name: weight for name, weight in settings.weights.items() if name in rows},
            num_clusters,
            seed=seed + attempt,
            num_iterations=settings.iterations,
            num_subclusters=settings.centroids or None,
            device=device,
            reducer=DistributedReducer() if distributed.world_size() > 1 else None,
        )
        for attempt in range(settings.restarts)
    ]
    best = min(attempts, key=lambda attempt: attempt.objective)
    labels = torch.zeros(len(some), dtype=torch.int64, device=device)
    labels[torch.from_numpy(mine).to(device)] = torch.from_numpy(best.labels).to(device) + 1
    return distributed.sum_over_ranks(labels).cpu().numpy() - 1
