"""The interface of clusterers: a call that turns the rows of all modalities into one label per utterance.

Its file also holds its settings: `kind`, `num_clusters`, `problem(num_clusters, num_rows, modalities)` and `build()`.
The only other line is in `ClusterSettings` in avspk/config.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from avspk.clusterers.kmeans import Reducer

Embeddings = Mapping[str, np.ndarray | Tensor]
"""Modality -> (n, D_m), this process's share of the rows, in order of rank; NaN rows if the modality is missing."""


@dataclass(frozen=True)
class Clustering:
    """Pseudo labels (n,) int64 of this process's utterances, 0 .. num_clusters - 1 without gaps over all processes.

    -1 leaves an utterance out: no round trains it. `numbered` in joint_kmeans.py removes gaps, but takes no -1.

    num_clusters: less than requested only if embeddings coincide.
    notes: figures for the log, by name. `weight/<modality>` of round 1 becomes the setting `weights` of later rounds.
    """

    labels: np.ndarray
    num_clusters: int
    notes: dict[str, float]


@runtime_checkable
class FindsNumber(Protocol):
    """A clusterer that can find the number of clusters itself, so its `num_clusters` may be "auto"."""

    def number_problem(self, num_rows: int) -> str:
        """Reason why the number cannot be found for so many utterances; empty if it can."""

    def find_number(
        self, rows: Embeddings, recordings: np.ndarray, *, seed: int, device: torch.device | str, reducer: Reducer
    ) -> tuple[int, float]:
        """Number of clusters, and how well the modalities agree there (kappa); see `number.agreed_number`."""


class Clusterer(Protocol):
    """Clusters utterances by the embeddings of the modalities that they have."""

    def __call__(
        self, rows: Embeddings, num_clusters: int, *, seed: int, device: torch.device | str, reducer: Reducer
    ) -> Clustering:
        """Cluster all rows of all processes. Every row must have at least one modality.

        The same rows and the same seed give the same labels on any number of processes, up to rounding.

        Raises:
            ValueError: on embeddings that do not fit the settings or each other, an utterance without any modality,
                half-missing rows, or fewer utterances than clusters.
        """
