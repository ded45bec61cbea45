"""Stage 1: parallel self-distillation of the modalities, cluster-aware in later epochs (arXiv 2304.05754)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avspk.clusterers.base import Clusterer
from avspk.common import distributed
from avspk.common.schedules import cosine
from avspk.common.seeding import seeded
from avspk.common.settings import kind_title
from avspk.config import PretrainSettings
from avspk.data.batch import Batch, Groups
from avspk.data.dataset import ViewDataset
from avspk.data.sampler import ClusterPositives, ExampleSampler
from avspk.data.views import rows_of_views
from avspk.modalities.base import ModalityKit
from avspk.models.audio_visual import EncoderBranch, ParallelBranches
from avspk.models.ema import ema_update, make_teacher, running_mean
from avspk.models.encoder import Encoder
from avspk.objectives.base import Course
from avspk.stages.base import Metrics, Stage
from avspk.stages.cluster import cluster_embeddings, nearest_clusters
from avspk.stages.initial import head_weights, initial_encoder, start_head
from avspk.stages.materials import Materials
from avspk.stages.truth import Truth

STAGE = "pretrain"
PAIRS_FROM = 2000  # number of examples whose pairs of views are logged


class CollapseError(RuntimeError):
    """An objective found a problem that makes further training useless."""


class Pretrain(Stage):
    """Student and EMA teacher of every modality, compared by the configured objective."""

    name = STAGE

    def __init__(
        self,
        materials: Materials,
        settings: PretrainSettings,
        kits: Mapping[str, ModalityKit],
        clusterer: Clusterer,
        truth: Truth,
    ) -> None:
        """Build the stage.

        Args:
            kits: modality -> kit that builds its parts.
            clusterer: finds the clusters that positives are drawn from.
            truth: true speakers, for the log only.
        """
        self.settings, self.kits, self.clusterer, self.truth = settings, kits, clusterer, truth
        self.seed = materials.seed
        self.device = materials.device
        self.utterances = materials.utterances
        self.num_epochs = self.settings.epochs
        self.optimiser = self.settings.optimiser
        self.batch_size = self.settings.batch_size
        self.front_ends = {name: kit.front_end().to(self.device) for name, kit in self.kits.items()}
        plan = self.settings.objective.views
        alone = self.settings.cluster_aware.teacher_alone
        views = {name: kit.pretrain_views(plan, alone) for name, kit in self.kits.items()}
        self.groups = {name: sampler.groups for name, sampler in views.items()}
        self.dataset = ViewDataset(views, self.seed, STAGE)
        self.sampler = ExampleSampler(
            np.arange(len(materials.utterances)),
            self.batch_size,
            self.seed,
            STAGE,
            {name: kit.usable for name, kit in self.kits.items()},
            distributed.rank(),
            distributed.world_size(),
        )
        self.sampler.num_sources = self.settings.cluster_aware.utterances
        course = Course(self.num_epochs, self.steps_per_epoch)
        self.objectives = {name: self.settings.objective.build(course, self.device) for name in self.kits}
        self.model = self.build_model({name: self._network(name) for name in self.kits}, materials.training)
        self.teacher = make_teacher(self.model)
        self.labels: dict[str, Tensor] = {}
        self.neighbours: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}
        self.num_averaged = 0

    def _network(self, name: str) -> EncoderBranch:
        objective, init_from = self.objectives[name], self.settings.init_from.get(name)
        encoder = initial_encoder(self.kits[name], init_from)
        network = seeded(lambda: objective.network(encoder), self.seed, name, "head")
        if init_from is not None and self.num_epochs:
            start_head(network, init_from)
        return network

    # One step.

    def loss(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Sum over modalities of the objective's loss."""
        batch_size = len(batch)
        views = {name: self._views(name, batch.groups[name]) for name in self.kits}
        student = model({name: (groups, batch_size) for name, (groups, _) in views.items()})
        with torch.no_grad():
            teacher = self.teacher({name: (groups, batch_size) for name, (_, groups) in views.items()})
        metrics: Metrics = {"momentum": self.teacher_momentum(step)}
        total = torch.zeros((), device=self.device)
        for name, objective in self.objectives.items():
            loss, figures = objective.loss(student[name], teacher[name], step)
            metrics |= objective.schedules(step)
            metrics |= _named(name, {"loss": loss.detach(), **figures})
            total = total + loss
        return total, metrics

    def _views(self, name: str, groups: Groups) -> tuple[list[Tensor], list[Tensor]]:
        """The student's and the teacher's groups of views. Long views come first."""
        plan, front_end = self.settings.objective.views, self.front_ends[name]
        short = [front_end("local", groups["local"])] if "local" in groups else []
        taught = front_end("global", groups["global"], augmented=not plan.clean_teacher)
        if not plan.student_long:
            return short, [taught]
        long = front_end("global", groups["global"]) if plan.clean_teacher else taught
        return [long, *short], [taught]

    def without_decay(self) -> list[nn.Parameter]:
        """The parameters that the objectives exempt."""
        return [p for name, one in self.objectives.items() for p in one.without_decay(self.model[name])]

    def before_update(self, step: int) -> Metrics:
        """Let the objectives update their state."""
        metrics: Metrics = {}
        for name, objective in self.objectives.items():
            metrics |= _named(name, objective.before_update(self.model[name], step))
        return metrics

    def after_update(self, step: int) -> None:
        """Update the teacher, the exponential mean of the student."""
        ema_update(self.teacher, self.model, self.teacher_momentum(step))

    def teacher_momentum(self, step: int) -> float:
        """Momentum of the exponential mean: a cosine from `teacher_momentum` to 1 over the stage."""
        return cosine(step, self.settings.teacher_momentum, 1.0, self.num_epochs * self.steps_per_epoch)

    # One epoch.

    def begin_epoch(self, epoch: int) -> Metrics:
        """If this epoch is due, cluster the teachers' embeddings; an example's views then come from its cluster."""
        settings = self.settings.cluster_aware
        elapsed = epoch - math.ceil(round(settings.start * self.num_epochs, 6))
        if not settings.enabled or elapsed < 0 or elapsed % settings.every:
            return {}
        counts = settings.num_clusters if isinstance(settings.num_clusters, list) else [settings.num_clusters]
        num_clusters = counts[min(elapsed // settings.every, len(counts) - 1)]
        metrics: Metrics = {}
        # With separate clusters, an audio-visual run trains the same audio encoder as an audio-only run.
        for names in [list(self.kits)] if settings.joint else [[name] for name in self.kits]:
            labels, neighbours = self._cluster(names, num_clusters)
            for name in names:
                # An utterance without this modality cannot give views, even if other modalities assign it a cluster.
                own = np.where(self.kits[name].usable, labels, -1)
                self._use_positives(name, torch.from_numpy(own), neighbours)
                metrics |= _named(name, self.truth.of_labels(own) | self._pairs(name, epoch))
        return metrics

    def _cluster(self, names: list[str], num_clusters: int) -> tuple[np.ndarray, Tensor | None]:
        """Labels (N,) from joint clustering of the teachers' embeddings of these modalities; -1 without any.

        Also the nearest other clusters of each cluster (K, M), if positives come from them.
        """
        share = distributed.local_share(len(self.utterances))
        rows = {name: self.kits[name].embed(self.teacher[name].encoder, share) for name in names}
        usable = {name: self.kits[name].usable for name in names}
        labels, _ = cluster_embeddings(rows, usable, self.clusterer, num_clusters, self.seed, self.device)
        count = self.settings.cluster_aware.neighbours
        return labels, nearest_clusters(rows, labels, count, self.device) if count else None

    def _use_positives(self, name: str, labels: Tensor, neighbours: Tensor | None) -> None:
        self.labels[name] = labels
        if neighbours is not None:
            self.neighbours[name] = neighbours
        recordings = self.utterances.videos if self.settings.cluster_aware.other_recordings else None
        near = None if neighbours is None else neighbours.numpy()
        self.sampler.positives[name] = ClusterPositives(labels.numpy(), recordings, near)

    def _pairs(self, name: str, epoch: int) -> dict[str, float]:
        """Share of correct (teacher view, student view) pairs over some examples, for the log."""
        rows = np.flatnonzero(self.kits[name].usable)
        rows = rows[np.linspace(0, len(rows) - 1, min(PAIRS_FROM, len(rows))).astype(np.int64)]
        pairs: list[tuple[int, int]] = []
        for row in rows.tolist():
            views = rows_of_views(self.groups[name], self.sampler.sources(epoch, row, name))
            long, short = list(enumerate(views["global"])), views.get("local", [])
            if self.settings.objective.views.student_long:
                pairs += [(one, other) for k, one in long for j, other in long if j != k]
            pairs += [(one, other) for _, one in long for other in short]
        first, second = np.array(pairs).T
        return self.truth.of_pairs(first, second)

    def end_epoch(self, epoch: int) -> Metrics:
        """Average the teachers of the last epochs."""
        if epoch >= self.num_epochs - self.settings.average_last:
            self.average = running_mean(self.average, self.teacher.state_dict(), self.num_averaged)
            self.num_averaged += 1
        return {}

    def check(self) -> None:
        """Raise CollapseError if an objective has found a problem."""
        for name, objective in self.objectives.items():
            if problem := objective.problem():
                raise CollapseError(f"{name}: {problem}")

    # Results and state.

    @property
    def description(self) -> str:
        """What the teachers are, for their model folders."""
        objective = kind_title(self.settings.objective.kind)
        return f"{objective} pretraining, mean of the last teachers" if self.num_epochs else "stage 1 without training"

    def teachers(self) -> dict[str, Encoder]:
        """Modality -> encoder of the average teacher."""
        return self._final().encoders()

    def heads(self) -> dict[str, dict[str, Tensor]]:
        """Modality -> weights of the average teacher's head, for a stage 1 that continues on other data.

        Without training there are none.
        """
        return {name: head_weights(branch) for name, branch in self._final().items() if self.num_epochs}

    def _final(self) -> ParallelBranches[EncoderBranch]:
        final = make_teacher(self.teacher)
        if self.num_averaged:
            final.load_state_dict(self.average)
        return final

    def state_dict(self) -> dict[str, Any]:
        """Teacher, objectives, cluster labels and neighbours, average."""
        return {
            "teacher": self.teacher.state_dict(),
            "objectives": {name: objective.state_dict() for name, objective in self.objectives.items()},
            "labels": self.labels,
            "neighbours": self.neighbours,
            "average": self.average,
            "num_averaged": self.num_averaged,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.teacher.load_state_dict(state["teacher"])
        for name, objective in self.objectives.items():
            objective.load_state_dict(state["objectives"][name])
        for name, labels in state["labels"].items():
            self._use_positives(name, labels, state.get("neighbours", {}).get(name))
        self.average = {name: value.to(self.device) for name, value in state["average"].items()}
        self.num_averaged = state["num_averaged"]


def _named(modality: str, figures: Metrics) -> Metrics:
    return {f"{modality}/{key}": value for key, value in figures.items()}
