"""The scale that keeps float16 gradients from underflow; it does nothing if the precision needs no scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler


class LossScale:
    """A gradient scaler over the stages of a run.

    The loss is multiplied by the scale before the backward pass, and the gradients are divided by it after. A scaled
    gradient that is too large for float16 becomes infinite. Then the update is skipped and the scale is halved; after
    2,000 good updates it is doubled (Micikevicius et al., 2018, arXiv 1710.03740). The host does not wait for this.
    """

    def __init__(self, scaler: GradScaler | None) -> None:
        self.scaler = scaler
        self.initial = None if scaler is None else scaler.state_dict()

    def restart(self) -> None:
        """Reset the scale, so that a stage does not depend on interruptions before it."""
        self.load_state_dict(self.initial)

    def unscale(self, optimiser: torch.optim.Optimizer, like: Tensor) -> Tensor | None:
        """Divide the gradients by the scale. Returns the scale () on the device of `like`, None if there is none."""
        if self.scaler is None:
            return None
        self.scaler.unscale_(optimiser)
        return self.scaler.scale(torch.ones_like(like, dtype=torch.float32))

    def update(self) -> None:
        """Halve the scale after a gradient that was not finite, double it after many finite ones."""
        if self.scaler is not None:
            self.scaler.update()

    def state_dict(self) -> dict[str, Any] | None:
        """For a checkpoint; None if there is no scale. Waits for the device."""
        return None if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue with a checkpoint's scale. If the run or the checkpoint has no scale, nothing changes."""
        if self.scaler is not None and state is not None:
            self.scaler.load_state_dict(state)
