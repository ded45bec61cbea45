"""Collapse of targets: all of them uniform, or the same for every example."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from avspk.common import distributed
from avspk.objectives import losses
from avspk.objectives.base import Figures


class CollapseWatch:
    """Counts consecutive steps with collapsed targets over `num_outputs` outputs, without waiting for the device."""

    def __init__(self, num_outputs: int, patience: int, device: torch.device) -> None:
        self.num_outputs, self.patience = num_outputs, patience
        self.count = torch.zeros((), device=device)
        # Of this batch's parts: mean target (K,), mean entropy of the targets.
        self.parts: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def note(self, targets: Tensor) -> None:
        """Keep statistics of the targets (G, B, K) of a batch, or of a part of it."""
        self.parts.append((targets.mean((0, 1)), losses.entropy(targets).mean()))

    @torch.no_grad()
    def look(self) -> Figures:
        """Once per step: judge its targets. Entropies in nats for the log, of one target and of the mean target."""
        mean, sharpness = (torch.stack(values).mean(0) for values in zip(*self.parts, strict=True))
        self.parts.clear()
        # All processes must come to the same answer, so both figures are those of the global batch.
        figures = distributed.mean_over_ranks(torch.cat([mean, sharpness[None]]))
        diversity, sharpness = losses.entropy(figures[:-1]), figures[-1]
        ceiling = math.log(self.num_outputs)
        collapsed = (sharpness > 0.99 * ceiling) | (diversity < 0.05 * ceiling)
        self.count = torch.where(collapsed, self.count + 1, torch.zeros_like(self.count))
        return {"teacher_entropy": sharpness, "mean_entropy": diversity}

    def problem(self) -> str:
        """The problem after `patience` consecutive collapsed steps; empty before."""
        if self.count.item() < self.patience:
            return ""
        return (
            f"the teacher's targets have been uniform, or the same for every example, for {int(self.count.item())} "
            f"steps (uniform entropy is ln {self.num_outputs} = {math.log(self.num_outputs):.2f}). Usual causes: "
            "teacher temperature too high, teacher momentum too low, learning rate too high. The last checkpoints "
            "hold the collapsed state: start again in another output folder."
        )
