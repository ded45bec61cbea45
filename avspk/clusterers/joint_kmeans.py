"""The papers' clusterer: k-means on the joint unit rows, optionally with many centroids that Ward's method merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from avspk.clusterers.base import Clustering, Embeddings
from avspk.clusterers.joint import JointRows, check_embeddings, join, missing_weight
from avspk.clusterers.kmeans import Clusters, Reducer, kmeans
from avspk.clusterers.ward import ward
from avspk.common.settings import Count, FirstReader, Positive, Settings


class JointKmeansSettings(Settings):
    """K-means on concatenated unit embeddings (arXiv 2304.05754), K = 7,500 [I].

    `centroids` > 0: k-means with that many centroids, which Ward's method merges [S sslsv].
    """

    first_reader: ClassVar = FirstReader.STAGE_ONE  # stage 1 clusters as well, with its own number of clusters

    kind: Literal["kmeans"] = "kmeans"
    num_clusters: Annotated[Count, FirstReader.ROUNDS] = 7500
    centroids: int = Field(0, ge=0, description="k-means centroids that are merged to num_clusters; 0: plain k-means")
    iterations: Count = 30
    restarts: Count = 1
    weights: Annotated[dict[str, Positive] | Literal["equal"], FirstReader.JOINT_CLUSTERING] = Field(
        "equal", description="of the modalities' unit blocks"
    )

    def build(self) -> JointKmeans:
        """The clusterer."""
        return JointKmeans(self)

    def problem(self, num_clusters: int, num_rows: int, modalities: Sequence[str]) -> str:
        """Reason why so many rows of these modalities cannot be clustered with these settings; empty if they can."""
        if self.weights != "equal" and (problem := missing_weight(self.weights, modalities)):
            return problem
        if not self.centroids or num_clusters <= self.centroids <= num_rows:
            return ""
        return (
            f"centroids is {self.centroids}; they are made of {num_rows} utterances and merged to {num_clusters} "
            f"clusters; valid: {num_clusters} to {num_rows}, or 0 for none"
        )


@dataclass(frozen=True)
class JointKmeans:
    """A `Clusterer`. Utterances that lack a modality are compared over the dimensions that they have."""

    settings: JointKmeansSettings

    def __call__(
        self, rows: Embeddings, num_clusters: int, *, seed: int, device: torch.device | str, reducer: Reducer
    ) -> Clustering:
        """See `Clusterer`. Uses the one of `restarts` fits with the lowest objective."""
        given = self.settings.weights
        weights = check_embeddings(rows, {name: 1.0 if given == "equal" else given[name] for name in rows})
        joint = join(rows, weights, device)
        subclusters = self.settings.centroids or None
        fits = [
            fit_kmeans(joint, subclusters or num_clusters, seed + attempt, self.settings.iterations, reducer)
            for attempt in range(self.settings.restarts)
        ]
        best = min(fits, key=lambda fit: fit.objective)
        labels = best.labels if subclusters is None else merged_labels(best, joint, num_clusters, reducer)
        return numbered(labels, reducer, {"objective": best.objective})


def fit_kmeans(joint: JointRows, num_clusters: int, seed: int, num_iterations: int, reducer: Reducer) -> Clusters:
    """K-means of the joint rows of all processes, over the blocks that each row has."""
    # All processes must take the same branch.
    complete = int(reducer.sum((~joint.observed).sum())) == 0
    return kmeans(
        joint.values,
        num_clusters,
        seed=seed,
        num_iterations=num_iterations,
        observed=None if complete else joint.observed,
        block_sizes=joint.block_sizes,
        reducer=reducer,
    )


def merged_labels(fit: Clusters, joint: JointRows, num_clusters: int, reducer: Reducer, jump: float = 0) -> Tensor:
    """Labels (n,) after Ward's method has merged the centroids, each weighted by the size of its cluster.

    Only the first process merges: distances between 50,000 centroids take 10 GB, and a node has many processes.

    Args:
        fit: k-means of the joint rows.
        joint: this process's rows.
        num_clusters: at most the number of centroids.
        jump: see `ward`.
        reducer: sums over the processes.

    Raises:
        ValueError: if there are fewer centroids than clusters.
    """
    if len(fit.centroids) < num_clusters:
        raise ValueError(f"{len(fit.centroids)} centroids cannot be merged to {num_clusters} clusters: ask for more")
    observed = _observed(fit, joint, reducer)
    merge = torch.zeros_like(fit.counts)
    if reducer.rank == 0:
        filled = fit.counts > 0
        # K-means keeps an old value in a block that none of a cluster's rows has: it tells nothing.
        sizes = torch.tensor(joint.block_sizes, device=observed.device)
        points = fit.centroids.masked_fill(~observed.repeat_interleave(sizes, 1), 0)
        found = ward(
            points[filled].cpu().numpy(),
            num_clusters,
            jump=jump,
            counts=fit.counts[filled].cpu().numpy(),
            observed=observed[filled].cpu().numpy(),
            block_sizes=joint.block_sizes,
        )
        merge[filled] = torch.from_numpy(found).to(merge)
    return reducer.sum(merge)[fit.labels]


def _observed(fit: Clusters, joint: JointRows, reducer: Reducer) -> Tensor:
    """Which blocks each centroid has (K, M) bool: those of any of its rows, on any process."""
    seen = torch.zeros(len(fit.centroids), len(joint.block_sizes), dtype=torch.int64, device=joint.values.device)
    return reducer.sum(seen.index_add_(0, fit.labels, joint.observed.long())) > 0


def numbered(labels: Tensor, reducer: Reducer, notes: Mapping[str, float]) -> Clustering:
    """A clustering from labels (n,) >= 0, renumbered without empty clusters, over all processes."""
    counts = reducer.sum(torch.bincount(labels, minlength=reducer.num_labels(labels)))
    number = (counts > 0).cumsum(0) - 1
    return Clustering(number[labels].cpu().numpy(), int(number[-1]) + 1, dict(notes))
