"""SDPN: self-distillation on a few prototypes that student and teacher share, with balanced targets.

Chen et al., "Self-Distillation Prototypes Network: Learning Robust Speaker Representations without Supervision",
arXiv 2308.02774. Values tagged [S] are from its public recipe, which sums the prototypes' gradient over its GPUs;
here it is averaged, as for all weights.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from avspk.common import distributed
from avspk.common.settings import Count, NotNegative, Positive
from avspk.models.audio_visual import PrototypeBranch, PrototypeOutput
from avspk.models.encoder import Encoder
from avspk.objectives import losses
from avspk.objectives.base import Course, Figures, Objective, ViewPlan
from avspk.objectives.collapse import CollapseWatch
from avspk.objectives.head import HeadSettings
from avspk.objectives.regularisers import RegularisedSettings, posterior_logits, regularise


class SdpnHeadSettings(HeadSettings):
    """DINO's projection head with 1,024 prototypes [S]; about 2.7 for each example of a batch."""

    out_dim: int = Field(1024, ge=2)


class SdpnSettings(RegularisedSettings):
    """SDPN [S]: the teacher gets one clean long crop, the student short augmented ones."""

    kind: Literal["sdpn"] = "sdpn"
    head: SdpnHeadSettings = SdpnHeadSettings()
    temperature: Positive = 0.1
    sharpening: Positive = Field(0.25, description="the teacher's temperature as a share of the student's")
    sinkhorn_iterations: int = Field(3, ge=0)
    mean_entropy: NotNegative = Field(1.0, description="weight of ln K - H(mean posterior of the student)")
    koleo: NotNegative = Field(0.1, description="weight of KoLeo on the student's unit embeddings, by view")
    clean_teacher: bool = True
    collapse_patience: Count = Field(500, description="steps of collapsed targets after which the run stops [C]")

    @property
    def views(self) -> ViewPlan:
        """One long crop for the teacher, short ones for the student."""
        return ViewPlan(1, 4, least_short=1, student_long=False, clean_teacher=self.clean_teacher)

    def build(self, course: Course, device: torch.device) -> Sdpn:
        """The objective of one modality."""
        return Sdpn(self, device)


class Sdpn(Objective):
    """See `Objective`. The teacher's copy of the prototypes is not used: both sides read the student's."""

    def __init__(self, settings: SdpnSettings, device: torch.device) -> None:
        self.settings = settings
        self.watch = CollapseWatch(settings.head.out_dim, settings.collapse_patience, device)

    def network(self, encoder: Encoder) -> PrototypeBranch:
        """The encoder with a projection head and prototypes."""
        return PrototypeBranch(encoder, self.settings.head.build(encoder.embedding_dim))

    def loss(self, student: PrototypeOutput, teacher: PrototypeOutput, step: int) -> tuple[Tensor, Figures]:
        """Cross-entropy of the student's posteriors against balanced targets, plus the regularisers."""
        settings = self.settings
        targets = self._targets(teacher.bottleneck, student.prototypes)
        logits = posterior_logits(student, settings.temperature)  # (V, B, K)
        penalty, figures = regularise(settings, student, settings.temperature)
        with torch.no_grad():
            figures["student_entropy"] = losses.entropy(torch.softmax(logits, -1)).mean()
        return cross_entropy_of_pairs(targets, logits) + penalty, figures

    @torch.no_grad()
    def _targets(self, bottleneck: Tensor, prototypes: Tensor) -> Tensor:
        """Teacher's bottleneck (G, B, E) -> targets (G, B, K)."""
        output = PrototypeOutput(bottleneck, bottleneck, prototypes)
        logits = posterior_logits(output, self.settings.temperature * self.settings.sharpening)
        posteriors = torch.softmax(logits, -1)
        targets = sinkhorn(posteriors.flatten(0, 1), self.settings.sinkhorn_iterations).view_as(posteriors)
        self.watch.note(targets)
        return targets

    def before_update(self, network: PrototypeBranch, step: int) -> Figures:
        """Check the step's targets for collapse."""
        return self.watch.look()

    def without_decay(self, network: PrototypeBranch) -> list[nn.Parameter]:
        """The prototypes."""
        return [network.head.prototype_weight]

    def problem(self) -> str:
        """Collapse."""
        return self.watch.problem()

    def state_dict(self) -> dict[str, Any]:
        """Count of collapsed steps."""
        return {"collapsed": self.watch.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.watch.count = state["collapsed"].to(self.watch.count.device)


def cross_entropy_of_pairs(targets: Tensor, logits: Tensor) -> Tensor:
    """Mean over teacher views g, student views v and examples of H(targets[g], softmax(logits[v])).

    targets (G, B, K), logits (V, B, K) -> (). It is linear in both, so the means over views are sufficient.
    """
    log_posteriors = torch.log_softmax(logits, -1).mean(0)  # (B, K)
    return -(targets.mean(0) * log_posteriors).sum(-1).mean()


@torch.no_grad()
def sinkhorn(posteriors: Tensor, iterations: int) -> Tensor:
    """Balance posteriors over the global batch (Cuturi 2013; Caron et al., arXiv 2006.09882): (n, K) -> (n, K).

    Each iteration gives every prototype the same total over all processes' rows, then every row the sum 1. The rows'
    sums are exact, the prototypes' totals N / K in the limit.
    """
    least = torch.finfo(torch.float32).tiny
    balanced = posteriors.float()
    for _ in range(iterations):
        totals = distributed.sum_over_ranks(balanced.sum(0))  # (K,)
        balanced = balanced / totals.clamp(min=least)
        balanced = balanced / balanced.sum(1, keepdim=True).clamp(min=least)
    return balanced
