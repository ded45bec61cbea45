"""Losses and gradients that are not finite stop the training, without making a GPU wait for the host at every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient of a batch is NaN or infinite. The optimiser did not apply it."""


@dataclass
class _Figures:
    """Figures of a step on their way to the host, and a call that names the utterances of its batch."""

    values: Tensor  # (3,): loss, gradient norm, loss scale; on the CPU, valid after `arrived`
    arrived: torch.cuda.Event | None
    utterances: Callable[[], list[str]]
    step: int


class FiniteGuard:
    """Stops the training at a loss or a gradient that is not finite, without letting it move the weights.

    On a CPU `watch` raises at once. A GPU would stand still if the host read a number of every step. There the fused
    optimiser skips the update by itself (`found_inf`), and the host reads the figures of a step when it has queued the
    next one, and before anything is logged, saved or ended. Whatever else the bad step touched on the device, such as
    running statistics, ends with the process.

    With a loss scale (float16), a gradient that is not finite skips the update as well, but says nothing yet: the
    scaled gradient was too large, and the scale will be halved. It stops the training once the scale is 1 or less,
    where scaling is not to blame. A loss that is not finite always stops the training: it is computed before scaling.
    """

    def __init__(self, stage: str, optimiser: torch.optim.Optimizer) -> None:
        self.stage = stage
        self.optimiser: Any = optimiser
        self.deferred = optimiser.defaults["fused"]
        self.pending: _Figures | None = None

    def watch(
        self,
        loss: Tensor,
        gradient_norm: Tensor,
        utterances: Callable[[], list[str]],
        step: int,
        scale: Tensor | None = None,
    ) -> None:
        """Called before the optimiser's step.

        Args:
            loss: () of this step.
            gradient_norm: () of the gradients, unscaled.
            utterances: names those of the batch, when asked.
            step: of the stage.
            scale: () by which the loss was multiplied for the backward pass; None: it was not.
        """
        scale = torch.ones_like(loss) if scale is None else scale
        values = torch.stack([loss.float(), gradient_norm.float(), scale.float()])
        if self.deferred:
            self.optimiser.found_inf = (~values[:2].isfinite().all()).float()
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
    loss, gradient_norm, scale = figures.values.tolist()
    # Gradients are sums over ranks: one rank's bad batch stops all of them at the same step, each naming its own.
    if math.isfinite(loss) and (math.isfinite(gradient_norm) or scale > 1):
        return
    raise NonFiniteLossError(
        f"{stage}: at step {figures.step + 1} the loss is {loss}, the gradient's norm {gradient_norm}. The optimiser "
        "did not apply it. The same command would come to the same batch. Listen to the utterances below and take out "
        "of the manifest what is broken, or lower this stage's learning rate; either needs another output folder. With "
        "training.precision=fp16, activations above 65504 are infinite: try precision=no. Where only the rate of a "
        "later stage is another, stage_one= keeps the finished stage 1 of this one. The batch was cut from: "
        f"{', '.join(figures.utterances())}"
    )
