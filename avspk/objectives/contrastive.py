"""Momentum contrast: a student's view must find the teacher's view of its own example among those of the whole batch.

Chen, Xie and He, "An Empirical Study of Training Self-Supervised Vision Transformers" (MoCo v3), arXiv 2104.02057,
without its second prediction head; the loss is InfoNCE (van den Oord et al., arXiv 1807.03748). It has no prototypes,
targets or centres. So it also learns from some hundred examples of faces, whose views are so different that the
posteriors of DINO and SDPN stay uniform there (figures: eval/README.md). Its negatives are the other examples of the
batch: small batches give few.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from avspk.common import distributed
from avspk.common.settings import Positive, Settings
from avspk.models.audio_visual import ProjectionBranch
from avspk.models.encoder import Encoder
from avspk.objectives.base import Course, Figures, Objective, ViewPlan
from avspk.objectives.head import ProjectionSettings


class ContrastiveSettings(Settings):
    """Momentum contrast; the temperature is MoCo v3's [S], the views are SDPN's [S]."""

    kind: Literal["contrastive"] = "contrastive"
    head: ProjectionSettings = ProjectionSettings()
    temperature: Positive = 0.2
    clean_teacher: bool = True

    @property
    def views(self) -> ViewPlan:
        """One long crop for the teacher, short ones for the student."""
        return ViewPlan(1, 4, least_short=1, student_long=False, clean_teacher=self.clean_teacher)

    def build(self, course: Course, device: torch.device) -> Contrastive:
        """The objective of one modality."""
        return Contrastive(self)


class Contrastive(Objective):
    """See `Objective`. It has no state."""

    def __init__(self, settings: ContrastiveSettings) -> None:
        self.settings = settings

    def network(self, encoder: Encoder) -> ProjectionBranch:
        """The encoder with a projection head."""
        return ProjectionBranch(encoder, self.settings.head.build(encoder.embedding_dim))

    def loss(self, student: Tensor, teacher: Tensor, step: int) -> tuple[Tensor, Figures]:
        """InfoNCE of student (V, B, E) against teacher (G, B, E), and the share of views that find their example."""
        logits = similarities(student, teacher) / self.settings.temperature
        own = distributed.rank() * student.shape[1] + torch.arange(student.shape[1], device=student.device)
        own = own.expand(logits.shape[:-1])  # (G, V, B)
        with torch.no_grad():
            found = (logits.argmax(-1) == own).float().mean()
        return functional.cross_entropy(logits.flatten(0, -2), own.flatten()), {"found": found}


def similarities(student: Tensor, teacher: Tensor) -> Tensor:
    """Cosines of the student's views with the teacher's of all N examples of the global batch, float32.

    student (V, B, E) and teacher (G, B, E), rows of unit length -> (G, V, B, N). The examples of process r are the
    columns from r * B on.
    """
    with torch.autocast(student.device.type, enabled=False):
        everyone = distributed.rows_of_all_ranks(teacher.float().transpose(0, 1)).permute(1, 2, 0)  # (G, E, N)
        return student.float()[None] @ everyone[:, None]
