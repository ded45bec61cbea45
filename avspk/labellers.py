"""What a round is trained on: labels of all utterances, made once before the round begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from avspk.config import Config
from avspk.data.manifest import Utterances
from avspk.modalities.base import ModalityKit
from avspk.run import PSEUDO
from avspk.stages.cluster import cluster_embeddings
from avspk.stages.materials import Materials


class Labeller(Protocol):
    """Makes the labels of a round.

    Attributes:
        name: what a run folder holds: it is continued with labels of the same name only.
        claim: what the cards of the models say about the labels.
    """

    name: str
    claim: str

    def settle(self, config: Config) -> Config:
        """The config that these labels ask for."""

    def check(self, utterances: Utterances, config: Config) -> None:
        """Raises: ConfigError if there can be no such labels for these utterances."""

    def describe(self, stage: str, description: str) -> str:
        """How the card of a stage's model calls it."""

    def __call__(
        self, rows: Mapping[str, np.ndarray], materials: Materials, kits: Mapping[str, ModalityKit]
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Labels (N,) of all utterances, and figures for the log. Collective: every rank calls it.

        Args:
            rows: modality -> this rank's share of the training embeddings (n, D), NaN where it is missing.
        """


class ClusterLabeller:
    """Pseudo labels by joint clustering of all modalities: the method."""

    name = PSEUDO
    claim = "Method of arXiv 2304.05754. No speaker label and no pretrained weights were used in training."

    def settle(self, config: Config) -> Config:
        """See `Labeller`: as it is."""
        return config

    def check(self, utterances: Utterances, config: Config) -> None:
        """See `Labeller`: sizes are checked with those of the other stages."""

    def describe(self, stage: str, description: str) -> str:
        """See `Labeller`."""
        return description

    def __call__(
        self, rows: Mapping[str, np.ndarray], materials: Materials, kits: Mapping[str, ModalityKit]
    ) -> tuple[np.ndarray, dict[str, float]]:
        """See `Labeller`."""
        usable = {name: kit.usable for name, kit in kits.items()}
        config = materials.config
        clusterer, num_clusters = config.cluster.build(), config.cluster.num_clusters
        return cluster_embeddings(rows, usable, clusterer, num_clusters, config.seed, materials.device)
