"""Metric-refined joint clustering: cluster, estimate from the clusters how each modality varies within a speaker,
repeat.

Each modality is first whitened by the covariance of all its rows. After a clustering it is whitened by the pooled
covariance *within* the clusters instead: directions in which the rows of one cluster differ (noise, channel, pose) are
scaled down, directions that separate clusters are kept. This is within-class covariance normalisation (Hatch, Kajarekar
and Stolcke 2006), the within part of PLDA, estimated from pseudo labels. The clusters are those of the joint rows, so
each modality improves the metric of the other. They can also tell how much each modality should weigh
(discriminant.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from avspk.clusterers.agreement import Rows, agreement_weights
from avspk.clusterers.base import Clustering, Embeddings
from avspk.clusterers.discriminant import discriminant_weights
from avspk.clusterers.joint import JointRows, Transform, check_embeddings, chunks, join, missing_weight
from avspk.clusterers.joint_kmeans import fit_kmeans, merged_labels, numbered
from avspk.clusterers.kmeans import Reducer
from avspk.clusterers.number import agreed_number
from avspk.clusterers.ward import Tree, ward, ward_tree
from avspk.common.settings import Count, FirstReader, Positive, Probability, Settings

NO_SPREAD = 1e-9  # of the variance, within clusters: rounding, as where the rows of each cluster are copies
SINGULAR = 1e-6  # of the largest eigenvalue within clusters: below, without shrinkage, a direction has no variance
FLOOR = 1e-3  # added to the eigenvalues of the first whitening, in units of the largest one


class MetricSettings(Settings):
    """Metric-refined joint clustering; all values [C], measured in eval/README.md.

    Up to `ward_rows` utterances, Ward's method merges all rows. Above, it merges `centroids` k-means centroids: 50,000
    at VoxCeleb2's size take 10 GB in the first process.
    """

    first_reader: ClassVar = FirstReader.STAGE_ONE  # stage 1 clusters as well, with its own number of clusters

    kind: Literal["metric"] = "metric"
    num_clusters: Annotated[Count | Literal["auto"], FirstReader.ROUNDS] = Field(
        7500, description="auto: the number at which voices and faces agree best, see number.py"
    )
    refinements: int = Field(4, ge=0, description="clusterings after the first one, each in the metric of the last one")
    shrinkage: Probability = Field(0.1, description="of the within-cluster covariance towards its mean eigenvalue")
    weights: Annotated[dict[str, Positive] | Literal["auto"], FirstReader.JOINT_CLUSTERING] = Field(
        "auto", description="of the modalities' unit blocks; auto: without labels, see agreement.py"
    )
    refine_weights: Annotated[bool, FirstReader.JOINT_CLUSTERING] = Field(
        False, description="the clusters correct these weights with each refinement (discriminant.py)"
    )
    jump: float = Field(
        0.0,
        ge=0,
        description="the last clustering merges on, to half of num_clusters at most and to 30 at least, where the next "
        "merge costs this many times the last one; 0: never. If the number is too large, parts of one speaker are "
        "merged where that is clear",
    )
    ward_rows: Count = Field(20_000, description="at most this many utterances are merged one by one")
    centroids: Count = Field(50_000, description="k-means centroids that are merged where there are more utterances")
    iterations: Count = Field(30, description="of the k-means, at most")

    def build(self) -> MetricClusterer:
        """The clusterer."""
        return MetricClusterer(self)

    def problem(self, num_clusters: int, num_rows: int, modalities: Sequence[str]) -> str:
        """Reason why so many rows of these modalities cannot be clustered with these settings; empty if they can."""
        if self.weights != "auto" and (problem := missing_weight(self.weights, modalities)):
            return problem
        if num_rows <= self.ward_rows or num_clusters <= self.centroids <= num_rows:
            return ""
        return (
            f"centroids is {self.centroids}; they are made of {num_rows} utterances and merged to {num_clusters} "
            f"clusters; valid: {num_clusters} to {num_rows}"
        )


@dataclass(frozen=True)
class Spread:
    """Variation of one modality's rows: mean (D,), covariance of all rows and within clusters (D, D), all float64."""

    mean: Tensor
    total: Tensor
    within: Tensor


@dataclass(frozen=True)
class MetricClusterer:
    """A `Clusterer`."""

    settings: MetricSettings

    def __call__(
        self, rows: Embeddings, num_clusters: int, *, seed: int, device: torch.device | str, reducer: Reducer
    ) -> Clustering:
        """See `Clusterer`. The notes give the weights of the modalities. Refined ones are not kept for later rounds."""
        given, several = self.settings.weights, len(rows) > 1
        refine = self.settings.refine_weights and several
        weights = {name: 1.0 if given == "auto" else given[name] for name in rows}
        labels = self._cluster(rows, weights, num_clusters, seed, device, reducer)
        if given == "auto" and several:
            weights = agreement_weights(rows, labels, self._cluster_once, seed, reducer)
            labels = self._cluster(rows, weights, num_clusters, seed, device, reducer)
        for left in reversed(range(self.settings.refinements)):
            unit = self._unit_rows(rows, labels, device, reducer)
            weights = discriminant_weights(unit, weights, labels, reducer) if refine else weights
            jump = 0 if left else self.settings.jump
            labels = self._group(weigh(unit, check_embeddings(rows, weights)), num_clusters, seed, reducer, jump)
        kind = "refined_weight" if refine else "weight"
        return numbered(labels, reducer, {f"{kind}/{name}": weight for name, weight in weights.items()})

    def number_problem(self, num_rows: int) -> str:
        """See `FindsNumber`."""
        if num_rows <= self.settings.ward_rows:
            return ""
        return f"it is for at most {self.settings.ward_rows} utterances (cluster.ward_rows), and there are {num_rows}"

    def find_number(
        self, rows: Embeddings, recordings: np.ndarray, *, seed: int, device: torch.device | str, reducer: Reducer
    ) -> tuple[int, float]:
        """See `FindsNumber`. The trees are Ward's, of each modality in the metric of its own clusters."""
        whole, one = MetricClusterer(self.settings.model_copy(update={"jump": 0.0})), Reducer()

        def grow(name: str, values: np.ndarray, start: int) -> Tree:
            alone = {name: values}
            labels = torch.from_numpy(whole(alone, start, seed=seed, device="cpu", reducer=one).labels)
            return ward_tree(self._unit_rows(alone, labels, "cpu", one).values.numpy())

        return agreed_number(rows, recordings, grow, device, reducer)

    def _cluster(
        self,
        rows: Embeddings,
        weights: Mapping[str, float],
        num_clusters: int,
        seed: int,
        device: torch.device | str,
        reducer: Reducer,
    ) -> Tensor:
        """Labels (n,) in the metric of all rows."""
        used = check_embeddings(rows, weights)
        return self._group(weigh(self._unit_rows(rows, None, device, reducer), used), num_clusters, seed, reducer)

    def _unit_rows(
        self, rows: Embeddings, labels: Tensor | None, device: torch.device | str, reducer: Reducer
    ) -> JointRows:
        """Unit blocks in the metric of earlier labels (n,); without these, in that of all rows."""
        transforms = {}
        for name, values in rows.items():
            spread = measure_spread(values, name, labels, device, reducer)
            # That of the first process: signs and axes of equal eigenvalues may differ between machines.
            matrix = reducer.from_first(self._whitener(spread, labels is not None))
            transforms[name] = _affine(spread.mean, matrix)
        return join(rows, dict.fromkeys(rows, 1.0), device, transforms)

    def _cluster_once(self, rows: Rows, weights: Mapping[str, float], num_clusters: int) -> np.ndarray:
        """Labels of few rows in one process, with one refinement of the metric; used to compare candidate weights.

        Always by Ward's method: there may be fewer rows than `centroids`.
        """
        used, one = check_embeddings(rows, weights), Reducer()
        labels: Tensor | None = None
        for _ in range(2):
            labels = ward_labels(weigh(self._unit_rows(rows, labels, "cpu", one), used), num_clusters, one)
        assert labels is not None
        return labels.numpy()

    def _whitener(self, spread: Spread, clustered: bool) -> Tensor:
        """Clusters of copies, or of one row each, do not tell how a speaker varies."""
        if clustered and spread.within.trace() > NO_SPREAD * spread.total.trace():
            return within_whitener(spread.within, self.settings.shrinkage)
        return total_whitener(spread.total)

    def _group(self, joint: JointRows, num_clusters: int, seed: int, reducer: Reducer, jump: float = 0) -> Tensor:
        """Labels (n,) of this process's joint rows."""
        total, _ = reducer.place(len(joint.values), joint.values.device)
        if num_clusters > total:
            raise ValueError(f"cannot make {num_clusters} clusters of {total} rows: choose 1 to {total} clusters")
        if total <= self.settings.ward_rows:
            return ward_labels(joint, num_clusters, reducer, jump)
        fit = fit_kmeans(joint, self.settings.centroids, seed, self.settings.iterations, reducer)
        return merged_labels(fit, joint, num_clusters, reducer, jump)


def weigh(joint: JointRows, weights: Mapping[str, float]) -> JointRows:
    """The joint rows, each block multiplied by its weight, in place to save a copy of a million rows."""
    for block, weight in zip(joint.values.split(joint.block_sizes, 1), weights.values(), strict=True):
        block *= weight
    return joint


def measure_spread(
    rows: np.ndarray | Tensor, modality: str, labels: Tensor | None, device: torch.device | str, reducer: Reducer
) -> Spread:
    """Mean and covariances of one modality's rows (n, D) of all processes; NaN rows are left out.

    Args:
        labels: (n,) clusters of this process's rows, -1 for rows to leave out, for the covariance within them; None:
            the covariance of all rows.
    """
    dim = rows.shape[1]
    sums = torch.zeros(dim + 1, dtype=torch.float64, device=device)  # the last one counts
    for _, values, present in _labelled(rows, modality, labels, device):
        sums[:-1] += values.sum(0, dtype=torch.float64)
        sums[-1] += present.sum()
    sums = reducer.sum(sums)
    count = sums[-1].clamp(min=1)
    mean = sums[:-1] / count
    scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)
    num_labels = 0 if labels is None else reducer.num_labels(labels)
    classes = torch.zeros(num_labels, dim + 1, dtype=torch.float64, device=device)
    for start, values, present in _labelled(rows, modality, labels, device):
        centred = (values.double() - mean)[present]
        scatter += centred.T @ centred
        if labels is not None:
            mine = labels[start : start + len(present)][present]
            classes.index_add_(0, mine, torch.cat([centred, centred.new_ones(len(centred), 1)], 1))
    total = reducer.sum(scatter) / count
    if labels is None:
        return Spread(mean, total, total)
    classes = reducer.sum(classes)
    class_sums, sizes = classes[:, :-1], classes[:, -1:].clamp(min=1)
    return Spread(mean, total, total - (class_sums / sizes).T @ class_sums / count)


def _labelled(
    rows: np.ndarray | Tensor, modality: str, labels: Tensor | None, device: torch.device | str
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """As `chunks`; rows without a label count as missing."""
    for start, values, present in chunks(rows, modality, device):
        if labels is not None:
            present = present & (labels[start : start + len(present)] >= 0)
            values = values.masked_fill(~present[:, None], 0)
        yield start, values, present


def total_whitener(covariance: Tensor) -> Tensor:
    """Matrix (D, D) that decorrelates rows of this covariance; directions without variance are not amplified."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors / (values.clamp(min=0) + FLOOR * values[-1].clamp(min=torch.finfo(values.dtype).tiny)).sqrt()


def within_whitener(covariance: Tensor, shrinkage: float) -> Tensor:
    """Matrix (D, D) that whitens rows of this covariance, shrunk by a share of `shrinkage` to its mean eigenvalue."""
    values, vectors = torch.linalg.eigh(shrunk(covariance, shrinkage))
    return vectors / values.clamp(min=max(SINGULAR * float(values[-1]), torch.finfo(values.dtype).tiny)).sqrt()


def shrunk(covariance: Tensor, shrinkage: float) -> Tensor:
    """(1 - a) C + a tr(C) / D I of a covariance C (D, D)."""
    mean = (covariance.trace() / len(covariance)).clamp(min=torch.finfo(torch.float32).tiny)
    return (1 - shrinkage) * covariance + shrinkage * mean * torch.eye(len(covariance)).to(covariance)


def _affine(mean: Tensor, matrix: Tensor) -> Transform:
    """x -> (x - mean) matrix, computed in float64, because rows may be far from 0."""
    return lambda rows: ((rows.double() - mean) @ matrix).float()


def ward_labels(joint: JointRows, num_clusters: int, reducer: Reducer, jump: float = 0) -> Tensor:
    """Labels (n,) by Ward's method over the rows of all processes; only the first process merges."""
    device, dim = joint.values.device, joint.values.shape[1]
    rows = reducer.gather(torch.cat([joint.values, joint.observed.float()], 1))
    labels = torch.zeros(len(rows), dtype=torch.int64, device=device)
    if reducer.rank == 0:
        points, observed = rows[:, :dim].cpu().numpy(), rows[:, dim:].cpu().numpy() > 0
        found = ward(points, num_clusters, jump=jump, observed=observed, block_sizes=joint.block_sizes)
        labels += torch.from_numpy(found).to(device)
    _, first = reducer.place(len(joint.values), device)
    return reducer.sum(labels)[first : first + len(joint.values)]
