"""Stage 1: DINO for each modality in parallel, cluster-aware from some epoch on (CA-DINO, arXiv 2304.05754)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avspk import distributed, losses
from avspk.data.dataset import ViewDataset
from avspk.data.sampler import ClusterPositives, ExampleSampler
from avspk.models.audio_visual import DinoBranch, DinoOutput
from avspk.models.ema import ema_update, make_teacher, running_mean
from avspk.models.encoder import Encoder
from avspk.models.heads import DinoHead
from avspk.schedules import cosine, linear
from avspk.stages.base import Metrics, Stage
from avspk.stages.cluster import cluster_embeddings
from avspk.stages.modalities import Materials, ModalityKit, build_kits, seeded
from avspk.stages.truth import Truth

STAGE = "pretrain"


class CollapseError(RuntimeError):
    """The targets have lost their information; training on would be a waste."""


class Pretrain(Stage):
    """Student and EMA teacher of every modality; see METHOD in the README for the formulas."""

    name = STAGE

    def __init__(self, materials: Materials, truth: Truth) -> None:
        config = materials.config
        self.settings = config.pretrain
        self.config = config
        self.device = materials.device
        self.truth = truth
        self.utterances = materials.utterances
        self.num_epochs = self.settings.epochs
        self.optimiser = self.settings.optimiser
        self.batch_size = self.settings.batch_size
        self.kits = build_kits(materials)
        self.front_ends = {name: kit.front_end().to(self.device) for name, kit in self.kits.items()}
        self.dataset = ViewDataset({name: kit.pretrain_views() for name, kit in self.kits.items()}, config.seed, STAGE)
        self.sampler = ExampleSampler(
            np.arange(len(materials.utterances)),
            self.batch_size,
            config.seed,
            STAGE,
            {name: kit.usable for name, kit in self.kits.items()},
            distributed.rank(),
            distributed.world_size(),
        )
        self.sampler.num_sources = self.settings.cluster_aware.utterances
        self.model = self.build_model({name: self._branch(kit) for name, kit in self.kits.items()}, config.training)
        self.teacher = make_teacher(self.model)
        self.centers = {name: torch.zeros(config.head.out_dim, device=self.device) for name in self.kits}
        self.collapsed = {name: torch.zeros((), device=self.device) for name in self.kits}
        # Of this batch's parts: mean logits and targets (2, K), mean entropy of the targets.
        self.taught: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.kits}
        self.labels: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}
        self.num_averaged = 0

    def _branch(self, kit: ModalityKit) -> DinoBranch:
        encoder, settings = kit.encoder(), self.config.head
        dims = (settings.hidden_dim, settings.bottleneck_dim, settings.out_dim)
        head = seeded(lambda: DinoHead(encoder.embedding_dim, *dims), self.config.seed, kit.name, "head")
        return DinoBranch(encoder, head)

    # What one step is.

    def loss(self, model: nn.Module, batch: dict[str, Any], step: int) -> tuple[Tensor, Metrics]:
        """Sum over modalities of DINO's loss; what the centres need of the teacher is kept for `before_update`."""
        batch_size = len(batch["index"])
        inputs = {name: self._views(name, batch[name]) for name in self.kits}
        student = model({name: (groups, batch_size) for name, groups in inputs.items()})
        with torch.no_grad():
            teacher = self.teacher({name: (groups[:1], batch_size) for name, groups in inputs.items()})
        temperature = self.teacher_temperature(step)
        metrics: Metrics = {"teacher_temperature": temperature, "momentum": self.teacher_momentum(step)}
        total = torch.zeros((), device=self.device)
        for name in self.kits:
            targets = self._targets(name, teacher[name], temperature)
            loss = self._modality_loss(student[name], teacher[name], targets)
            metrics[f"{name}/loss"] = loss.detach()
            metrics[f"{name}/student_entropy"] = self._student_entropy(student[name])
            total = total + loss
        return total, metrics

    def _views(self, name: str, groups: dict[str, Any]) -> list[Tensor]:
        # The order of the sampler's groups: the global crops come first.
        return [self.front_ends[name](group, groups[group]) for group in ("global", "local") if group in groups]

    def _modality_loss(self, student: DinoOutput, teacher: DinoOutput, targets: Tensor) -> Tensor:
        loss = losses.dino_loss(student.bottleneck, student.prototypes, targets, self.settings.student_temperature)
        if self.settings.consistency > 0:
            loss = loss + self.settings.consistency * losses.cosine_consistency(student.embeddings, teacher.embeddings)
        return loss

    @torch.no_grad()
    def _targets(self, name: str, teacher: DinoOutput, temperature: float) -> Tensor:
        """Teacher probabilities (G, B, K)."""
        logits = (teacher.bottleneck @ teacher.prototypes.T).float()  # (G, B, K)
        targets = losses.teacher_targets(logits, self.centers[name], temperature)
        means = torch.stack([logits.mean((0, 1)), targets.mean((0, 1))])  # (2, K)
        self.taught[name].append((means, losses.entropy(targets).mean()))
        return targets

    @torch.no_grad()
    def _move_center(self, name: str) -> Metrics:
        """The centre moves towards the global batch's mean logits, once, however many parts the batch came in."""
        means, sharpness = (torch.stack(values).mean(0) for values in zip(*self.taught[name], strict=True))
        self.taught[name].clear()
        logits, targets = distributed.mean_over_ranks(means)  # (K,), (K,)
        self.centers[name] = losses.update_center(self.centers[name], logits, self.settings.center_momentum)
        diversity = losses.entropy(targets)
        self._watch_collapse(name, sharpness, diversity)
        return {
            f"{name}/teacher_entropy": sharpness,
            f"{name}/mean_entropy": diversity,
            f"{name}/center_norm": self.centers[name].norm(),
        }

    @torch.no_grad()
    def _student_entropy(self, student: DinoOutput) -> Tensor:
        logits = student.bottleneck[0] @ student.prototypes.T / self.settings.student_temperature  # (B, K)
        return losses.entropy(torch.softmax(logits.float(), -1)).mean()

    def before_update(self, step: int) -> Metrics:
        """The centres move; the prototypes stay frozen at first (DINO's frozen last layer): targets settle before."""
        if step < self.settings.freeze_last_layer_epochs * self.steps_per_epoch:
            for _, branch in self.model.items():
                branch.head.prototype_weight.grad = None
        return {key: value for name in self.kits for key, value in self._move_center(name).items()}

    def after_update(self, step: int) -> None:
        """The teacher follows."""
        ema_update(self.teacher, self.model, self.teacher_momentum(step))

    # Schedules.

    def teacher_temperature(self, step: int) -> float:
        """Linear over the first epochs, then constant."""
        warmup = self.settings.teacher_temperature_warmup * self.num_epochs * self.steps_per_epoch
        return linear(step, self.settings.teacher_temperature, self.settings.final_teacher_temperature, warmup)

    def teacher_momentum(self, step: int) -> float:
        """Cosine to 1 over the stage."""
        return cosine(step, self.settings.teacher_momentum, 1.0, self.num_epochs * self.steps_per_epoch)

    # What one epoch is.

    def begin_epoch(self, epoch: int) -> Metrics:
        """Cluster each modality on its own teacher's embeddings, on the epochs when that is due.

        Each on its own, so that the audio encoder of an audio-visual run equals that of an audio-only run.
        """
        settings = self.settings.cluster_aware
        elapsed = epoch - math.ceil(round(settings.start * self.num_epochs, 6))
        if not settings.enabled or elapsed < 0 or elapsed % settings.every:
            return {}
        counts = settings.num_clusters if isinstance(settings.num_clusters, list) else [settings.num_clusters]
        num_clusters = counts[min(elapsed // settings.every, len(counts) - 1)]
        metrics: Metrics = {}
        for name, kit in self.kits.items():
            rows = kit.embed(self.teacher[name].encoder, distributed.local_share(len(self.utterances)))
            clusterer, seed = self.config.cluster.build(), self.config.seed
            labels, _ = cluster_embeddings({name: rows}, {name: kit.usable}, clusterer, num_clusters, seed, self.device)
            self._use_positives(name, torch.from_numpy(labels))
            metrics |= {f"{name}/{key}": value for key, value in self.truth.of_labels(labels).items()}
        return metrics

    def _use_positives(self, name: str, labels: Tensor) -> None:
        self.labels[name] = labels
        self.sampler.positives[name] = ClusterPositives(labels.numpy())

    def end_epoch(self, epoch: int) -> Metrics:
        """Average the last teachers."""
        if epoch >= self.num_epochs - self.settings.average_last:
            self.average = running_mean(self.average, self.teacher.state_dict(), self.num_averaged)
            self.num_averaged += 1
        return {}

    # Collapse.

    def _watch_collapse(self, name: str, sharpness: Tensor, diversity: Tensor) -> None:
        """Count steps in a row whose targets are uniform (no information) or all alike (no information either)."""
        ceiling = math.log(self.config.head.out_dim)
        collapsed = (sharpness > 0.99 * ceiling) | (diversity < 0.05 * ceiling)
        self.collapsed[name] = torch.where(collapsed, self.collapsed[name] + 1, torch.zeros_like(self.collapsed[name]))

    def check(self) -> None:
        """Raises CollapseError after `collapse_patience` collapsed steps in a row."""
        for name, count in self.collapsed.items():
            if count.item() >= self.settings.collapse_patience:
                raise CollapseError(
                    f"{name}: the teacher's targets have been uniform, or the same for every example, for "
                    f"{int(count.item())} steps (uniform entropy is ln {self.config.head.out_dim} = "
                    f"{math.log(self.config.head.out_dim):.2f}). Usual causes: teacher temperature too high, teacher "
                    "momentum too low, learning rate too high. The last checkpoints hold the collapsed state: start "
                    "again in another output folder."
                )

    # What survives.

    def teachers(self) -> dict[str, Encoder]:
        """Modality -> encoder of the averaged last teachers."""
        final = make_teacher(self.teacher)
        if self.num_averaged:
            final.load_state_dict(self.average)
        return final.encoders()

    def state_dict(self) -> dict[str, Any]:
        """Teacher, centres, cluster labels, average."""
        return {
            "teacher": self.teacher.state_dict(),
            "centers": self.centers,
            "collapsed": self.collapsed,
            "labels": self.labels,
            "average": self.average,
            "num_averaged": self.num_averaged,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.teacher.load_state_dict(state["teacher"])
        self.centers = {name: value.to(self.device) for name, value in state["centers"].items()}
        self.collapsed = {name: value.to(self.device) for name, value in state["collapsed"].items()}
        for name, labels in state["labels"].items():
            self._use_positives(name, labels)
        self.average = {name: value.to(self.device) for name, value in state["average"].items()}
        self.num_averaged = state["num_averaged"]
