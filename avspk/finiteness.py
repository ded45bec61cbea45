"""Losses and gradients that are not finite stop the training, without making a GPU wait for the host at every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient of a batch is NaN or infinite; the optimiser was not moved by it."""


@dataclass
class _Figures:
    """Loss and gradient norm of a step on their way to the host, and who can name the utterances that they are of."""

    values: Tensor  # (2,), on the CPU, valid after `arrived`
    arrived: torch.cuda.Event | None
    utterances: Callable[[], list[str]]
    step: int


class FiniteGuard:
    """Stops the training at a loss or a gradient that is not finite, without letting it move the weights.

    On a CPU `watch` raises at once. A GPU would stand still if the host read a number of every step: there the fused
    optimiser finds out by itself and skips the update (`found_inf`, as with gradient scaling), and the host reads the
    figures of a step when it has queued the next one, and before anything is logged, saved or ended. Whatever else
    the bad step touched on the device, running statistics say, ends with the process.
    """

    def __init__(self, stage: str, optimiser: torch.optim.Optimizer) -> None:
        self.stage = stage
        self.optimiser: Any = optimiser
        self.deferred = optimiser.defaults["fused"]
        self.pending: _Figures | None = None

    def watch(self, loss: Tensor, gradient_norm: Tensor, utterances: Callable[[], list[str]], step: int) -> None:
        """Before the optimiser's step: loss () and gradient norm () of this step; asked, its batch's `utterances`."""
        values = torch.stack([loss.float(), gradient_norm.float()])
        if self.deferred:
            self.optimiser.found_inf = (~values.isfinite().all()).float()
            self.settle()  # the step before
            self.pending = _read(values, utterances, step)
        else:
            _require_finite(self.stage, _read(values, utterances, step))

    def settle(self) -> None:
        """Wait for the figures that are still on their way; raises NonFiniteLossError."""
        figures, self.pending = self.pending, None
        if figures is not None:
            _require_finite(self.stage, figures)


def _read(values: Tensor, utterances: Callable[[], list[str]], step: int) -> _Figures:
    host = values.to("cpu", non_blocking=True)  # pinned memory, if it comes from a GPU
    arrived = None
    if values.is_cuda:
        arrived = torch.cuda.Event()
        arrived.record()
    return _Figures(host, arrived, utterances, step)


def _require_finite(stage: str, figures: _Figures) -> None:
    if figures.arrived is not None:
        figures.arrived.synchronize()
    loss, gradient_norm = figures.values.tolist()
    # Gradients are sums over ranks: one rank's bad batch stops all of them at the same step, each naming its own.
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        return
    raise NonFiniteLossError(
        f"{stage}: at step {figures.step + 1} the loss is {loss}, the gradient's norm {gradient_norm}; the optimiser "
        "was not moved. The same command would come to the same batch. Listen to the utterances below and take out of "
        "the manifest what is broken, or lower this stage's learning rate; either needs another output folder. Where "
        "only the rate of a later stage is another, stage_one= keeps the finished stage 1 of this one. The batch was "
        f"cut from: {', '.join(figures.utterances())}"
    )
