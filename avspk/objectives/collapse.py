"""Collapse of targets: all of them uniform, or the same for every example."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class CollapseWatch:
    """Counts steps in a row with collapsed targets over `num_outputs` outputs, without waiting for the device."""

    def __init__(self, num_outputs: int, patience: int, device: torch.device) -> None:
        self.num_outputs, self.patience = num_outputs, patience
        self.count = torch.zeros((), device=device)

    @torch.no_grad()
    def look(self, sharpness: Tensor, diversity: Tensor) -> None:
        """Look at a step's targets.

        Args:
            sharpness: (), their mean entropy in nats; near ln K they are uniform.
            diversity: (), the entropy of their mean in nats; near 0 they are all alike.
        """
        ceiling = math.log(self.num_outputs)
        collapsed = (sharpness > 0.99 * ceiling) | (diversity < 0.05 * ceiling)
        self.count = torch.where(collapsed, self.count + 1, torch.zeros_like(self.count))

    def problem(self) -> str:
        """What is wrong after `patience` collapsed steps in a row; empty before."""
        if self.count.item() < self.patience:
            return ""
        return (
            f"the teacher's targets have been uniform, or the same for every example, for {int(self.count.item())} "
            f"steps (uniform entropy is ln {self.num_outputs} = {math.log(self.num_outputs):.2f}). Usual causes: "
            "teacher temperature too high, teacher momentum too low, learning rate too high. The last checkpoints "
            "hold the collapsed state: start again in another output folder."
        )
