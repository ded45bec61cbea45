"""DINO (Caron et al., arXiv 2104.14294): the student predicts the teacher's centred, sharpened outputs."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from avspk.common import distributed
from avspk.common.schedules import linear
from avspk.common.settings import Count, NotNegative, Positive, Probability
from avspk.models.audio_visual import PrototypeBranch, PrototypeOutput
from avspk.models.encoder import Encoder
from avspk.objectives import losses
from avspk.objectives.base import Course, Figures, Objective, ViewPlan
from avspk.objectives.collapse import CollapseWatch
from avspk.objectives.head import HeadSettings
from avspk.objectives.regularisers import RegularisedSettings, regularise


class DinoSettings(RegularisedSettings):
    """DINO [S wespeaker v3/dino]; its regularisers and a clean teacher are off [C]."""

    kind: Literal["dino"] = "dino"
    head: HeadSettings = HeadSettings()
    student_temperature: Positive = 0.1
    teacher_temperature: Positive = 0.04
    final_teacher_temperature: Positive = 0.07
    teacher_temperature_warmup: Probability = Field(0.2, description="fraction of the epochs")
    center_momentum: Probability = 0.9
    freeze_last_layer_epochs: int = Field(1, ge=0)
    consistency: NotNegative = Field(0.0, description="weight of the cosine consistency of embeddings [C]")
    clean_teacher: bool = Field(False, description="the teacher's crops are not augmented [C]")
    collapse_patience: Count = Field(500, description="steps of collapsed targets after which the run stops [C]")

    @property
    def views(self) -> ViewPlan:
        """Two long crops for both sides, short ones for the student."""
        return ViewPlan(2, 4, least_long=2, clean_teacher=self.clean_teacher)

    def build(self, course: Course, device: torch.device) -> Dino:
        """The objective of one modality."""
        return Dino(self, course, device)


class Dino(Objective):
    """See `Objective`. `center`: (K,) running mean of the teacher's logits over the global batch."""

    def __init__(self, settings: DinoSettings, course: Course, device: torch.device) -> None:
        self.settings, self.course = settings, course
        self.center = torch.zeros(settings.head.out_dim, device=device)
        self.watch = CollapseWatch(settings.head.out_dim, settings.collapse_patience, device)
        self.mean_logits: list[Tensor] = []  # (K,) of this batch's parts

    def network(self, encoder: Encoder) -> PrototypeBranch:
        """The encoder with a projection head and prototypes."""
        return PrototypeBranch(encoder, self.settings.head.build(encoder.embedding_dim))

    def loss(self, student: PrototypeOutput, teacher: PrototypeOutput, step: int) -> tuple[Tensor, Figures]:
        """Cross-entropy over pairs of different views; keeps the mean logits for `before_update`."""
        settings = self.settings
        targets = self._targets(teacher, self.teacher_temperature(step))
        loss = losses.dino_loss(student.bottleneck, student.prototypes, targets, settings.student_temperature)
        if settings.consistency > 0:
            loss = loss + settings.consistency * losses.cosine_consistency(student.embeddings, teacher.embeddings)
        penalty, figures = regularise(settings, student, settings.student_temperature)
        return loss + penalty, {"student_entropy": self._student_entropy(student), **figures}

    @torch.no_grad()
    def _targets(self, teacher: PrototypeOutput, temperature: float) -> Tensor:
        """Teacher probabilities (G, B, K)."""
        logits = (teacher.bottleneck @ teacher.prototypes.T).float()  # (G, B, K)
        targets = losses.teacher_targets(logits, self.center, temperature)
        self.mean_logits.append(logits.mean((0, 1)))
        self.watch.note(targets)
        return targets

    @torch.no_grad()
    def _student_entropy(self, student: PrototypeOutput) -> Tensor:
        logits = student.bottleneck[0] @ student.prototypes.T / self.settings.student_temperature  # (B, K)
        return losses.entropy(torch.softmax(logits.float(), -1)).mean()

    def before_update(self, network: PrototypeBranch, step: int) -> Figures:
        """Move the centre; freeze the prototypes at first (DINO's frozen last layer), until targets settle."""
        if step < self.settings.freeze_last_layer_epochs * self.course.steps_per_epoch:
            network.head.prototype_weight.grad = None
        self._move_center()
        return {**self.watch.look(), "center_norm": self.center.norm()}

    @torch.no_grad()
    def _move_center(self) -> None:
        """Move it towards the global batch's mean logits, once per batch for any number of parts."""
        mean = distributed.mean_over_ranks(torch.stack(self.mean_logits).mean(0))  # (K,)
        self.mean_logits.clear()
        self.center = losses.update_center(self.center, mean, self.settings.center_momentum)

    def teacher_temperature(self, step: int) -> float:
        """Linear over the first epochs, then constant."""
        settings = self.settings
        warmup = settings.teacher_temperature_warmup * self.course.num_steps
        return linear(step, settings.teacher_temperature, settings.final_teacher_temperature, warmup)

    def schedules(self, step: int) -> dict[str, float]:
        """The teacher's temperature."""
        return {"teacher_temperature": self.teacher_temperature(step)}

    def problem(self) -> str:
        """Collapse."""
        return self.watch.problem()

    def state_dict(self) -> dict[str, Any]:
        """Centre and count of collapsed steps."""
        return {"center": self.center, "collapsed": self.watch.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.center = state["center"].to(self.center.device)
        self.watch.count = state["collapsed"].to(self.center.device)
