"""The labels that a round is trained on, for all utterances; made once before the round begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from avspk.config import ClusterSettings, Config
from avspk.data.manifest import Utterances
from avspk.modalities.base import ModalityKit
from avspk.run import PSEUDO
from avspk.sources import sources
from avspk.stages.cluster import cluster_embeddings
from avspk.stages.materials import Materials


class Labeller(Protocol):
    """Makes the labels of a round.

    Attributes:
        name: recorded in the run folder, which continues only with labels of the same name.
    """

    name: str

    def settle(self, config: Config) -> Config:
        """The config, changed as these labels require."""

    def check(self, utterances: Utterances, config: Config) -> None:
        """Raises: ConfigError if there can be no such labels for these utterances."""

    def describe(self, stage: str, description: str) -> str:
        """Description of a stage for its model card."""

    def claim(self, stage: str, config: Config) -> str:
        """What the cards of a stage's models say about the labels."""

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

    def __init__(self, settings: ClusterSettings) -> None:
        self.clusterer, self.num_clusters = settings.build(), settings.num_clusters

    def settle(self, config: Config) -> Config:
        """See `Labeller`; unchanged here."""
        return config

    def check(self, utterances: Utterances, config: Config) -> None:
        """See `Labeller`: sizes are checked with those of the other stages."""

    def describe(self, stage: str, description: str) -> str:
        """See `Labeller`."""
        return description

    def claim(self, stage: str, config: Config) -> str:
        """See `Labeller`: what came from elsewhere is named."""
        found = sources(config.model_dump(mode="json"), rounds=stage != "pretrain", card=True)
        other = "other " if found else ""
        rest = f"No {other}speaker label and no {other}pretrained weights were used in training."
        return " ".join(["Method of arXiv 2304.05754.", *found, rest])

    def __call__(
        self, rows: Mapping[str, np.ndarray], materials: Materials, kits: Mapping[str, ModalityKit]
    ) -> tuple[np.ndarray, dict[str, float]]:
        """See `Labeller`."""
        usable = {name: kit.usable for name, kit in kits.items()}
        return cluster_embeddings(rows, usable, self.clusterer, self.num_clusters, materials.seed, materials.device)
