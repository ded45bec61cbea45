"""Labels of all utterances for a round. They are made once, before the round begins."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from avspk.clusterers.base import FindsNumber
from avspk.clusterers.number import usual_number
from avspk.common import distributed
from avspk.common.sources import sources
from avspk.config import ClusterSettings, Config, ConfigError
from avspk.data.manifest import Utterances
from avspk.modalities.base import ModalityKit
from avspk.run import PSEUDO
from avspk.stages.cluster import cluster_embeddings, make_reducer
from avspk.stages.materials import Materials

NUMBER = "num_clusters"
"""Among the figures of a round: a number of clusters that was found, or that of the labels that were given."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundInput:
    """What the labels of a round are made from.

    Attributes:
        rows: modality -> this rank's share of the training embeddings (n, D), NaN where it is missing.
        first: the figures of round 1; empty in round 1.
    """

    rows: Mapping[str, np.ndarray]
    materials: Materials
    kits: Mapping[str, ModalityKit]
    first: Mapping[str, float]


class Labeller(Protocol):
    """Makes the labels of a round.

    Attributes:
        name: recorded in the run folder. A run continues only with labels of the same name.
    """

    name: str

    def settle(self, config: Config) -> Config:
        """The config, changed as these labels require."""

    def check(self, utterances: Utterances, config: Config) -> None:
        """Raise ConfigError if these utterances cannot get such labels."""

    def describe(self, stage: str, description: str) -> str:
        """Description of a stage for its model card."""

    def claim(self, stage: str, config: Config) -> str:
        """Statement about the labels for the model cards of a stage."""

    def __call__(self, given: RoundInput) -> tuple[np.ndarray, dict[str, float]]:
        """Labels (N,) of all utterances, and figures for the log. Collective: every rank calls it."""


class ClusterLabeller:
    """Pseudo labels by joint clustering of all modalities: the method."""

    name = PSEUDO

    def __init__(self, settings: ClusterSettings) -> None:
        self.settings = settings

    def settle(self, config: Config) -> Config:
        """See `Labeller`; unchanged here."""
        return config

    def check(self, utterances: Utterances, config: Config) -> None:
        """See `Labeller`. A number of clusters is checked together with the sizes of all stages."""
        finds = config.rounds_cluster and len(config.modalities) > 1
        if finds and (problem := number_problem(self.settings, len(utterances))):
            raise ConfigError(
                f"cluster.num_clusters is auto: {problem}. Give a number, such as 1.25 to 1.5 times the speakers that "
                "you expect"
            )

    def describe(self, stage: str, description: str) -> str:
        """See `Labeller`."""
        return description

    def claim(self, stage: str, config: Config) -> str:
        """See `Labeller`. It names labels, embeddings and weights that come from elsewhere."""
        found = sources(config.model_dump(mode="json"), stage, card=True)
        other = "other " if found else ""
        rest = f"No {other}speaker label and no {other}pretrained weights were used in training."
        return " ".join(["Method of arXiv 2304.05754.", *found, rest])

    def __call__(self, given: RoundInput) -> tuple[np.ndarray, dict[str, float]]:
        """See `Labeller`. Later rounds keep the modalities' weights of round 1.

        A modality that was trained on the labels of a round agrees with them, right or wrong. So the agreement after a
        round does not tell how good a modality is (figures: eval/results/earlier.md). Weights that the clusters have
        corrected have other names in the notes, so each round finds its own.
        """
        weights = {name: given.first[key] for name in given.kits if (key := f"weight/{name}") in given.first}
        settings = self.settings.model_copy(update={"weights": weights}) if weights else self.settings
        usable = {name: kit.usable for name, kit in given.kits.items()}
        seed, device = given.materials.seed, given.materials.device
        number, agreement = self._number(given)
        labels, notes = cluster_embeddings(given.rows, usable, settings.build(), number, seed, device)
        return labels, notes | agreement

    def _number(self, given: RoundInput) -> tuple[int, dict[str, float]]:
        """Number of clusters, and the figures that it follows from. Later rounds keep the number of round 1.

        After a round, the modalities agree because both were trained on its clusters.
        """
        if isinstance(self.settings.num_clusters, int):
            return self.settings.num_clusters, {}
        if NUMBER in given.first:
            return int(given.first[NUMBER]), {NUMBER: given.first[NUMBER]}
        utterances, clusterer = given.materials.utterances, self.settings.build()
        if len(given.rows) > 1 and isinstance(clusterer, FindsNumber):
            number, kappa = clusterer.find_number(
                given.rows,
                utterances.videos[distributed.local_share(len(utterances))],
                seed=given.materials.seed,
                device=given.materials.device,
                reducer=make_reducer(),
            )
            if not math.isnan(kappa):
                return number, {NUMBER: number, "kappa": kappa}
        number = usual_number(len(utterances))
        logger.info("%d clusters, the usual number: voices and faces do not tell a better one", number)
        return number, {NUMBER: number}


def number_problem(settings: ClusterSettings, num_utterances: int) -> str:
    """Reason why this clusterer cannot find the number of clusters of so many utterances; empty if it need not."""
    if isinstance(settings.num_clusters, int):
        return ""
    clusterer = settings.build()
    if not isinstance(clusterer, FindsNumber):
        return f"the clusterer {settings.kind} cannot find a number"
    return clusterer.number_problem(num_utterances)
