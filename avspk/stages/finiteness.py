"""Stop the training at a non-finite loss or gradient, without making a GPU wait for the host at every step."""

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
    """Numbers of a step that are being copied to the host, and a function that names the utterances of its batch."""

    values: Tensor  # (3,): loss, gradient norm, loss scale; on the CPU, valid after `arrived`
    arrived: torch.cuda.Event | None
    utterances: Callable[[], list[str]]
    step: int


class FiniteGuard:
    """Stops the training at a non-finite loss or gradient before it changes the weights.

    On a CPU, `watch` raises at once. On a GPU, this would make the device idle at every step. There the fused
    optimiser skips the update itself (`found_inf`). The host reads the numbers of a step after it has queued the
    next step, and before anything is logged or saved and before the stage ends. Other state that the bad step changed
    on the device, such as running statistics, is lost when the process ends.

    With a loss scale (float16), a non-finite gradient also skips the update, but it is not yet an error: the scaled
    gradient was too large, and the scale will be halved. It stops the training if the scale is 1 or less, because then
    scaling is not the cause. A non-finite loss always stops the training: it is computed before scaling.
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
        """Check a step. Call it before the optimiser's step.

        Args:
            loss: () of this step.
            gradient_norm: () of the gradients, unscaled.
            utterances: returns the names of the batch's utterances.
            step: of the stage.
            scale: () factor of the loss in the backward pass; None: no factor.
        """
        scale = torch.ones_like(loss) if scale is None else scale
        values = torch.stack([loss.float(), gradient_norm.float(), scale.float()])
        if self.deferred:
            self.optimiser.found_inf = (~values[:2].isfinite().all()).float()
            self.settle()  # the previous step
            self.pending = _read(values, utterances, step)
        else:
            _require_finite(self.stage, _read(values, utterances, step))

    def settle(self) -> None:
        """Wait for the numbers that are still being copied. Raises: NonFiniteLossError."""
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
    # Gradients are sums over ranks, so a bad batch on one rank stops all ranks at the same step. Each names its batch.
    if math.isfinite(loss) and (math.isfinite(gradient_norm) or scale > 1):
        return
    raise NonFiniteLossError(
        f"{stage}: at step {figures.step + 1} the loss is {loss}, the gradient norm is {gradient_norm}. The optimiser "
        "did not apply it. The same command would reach the same batch. Listen to the utterances below and remove "
        "broken ones from the manifest, or lower this stage's learning rate; both need another output folder. With "
        "training.precision=fp16, activations above 65504 are infinite: try precision=no. If you change only the rate "
        "of a later stage, stage_one= keeps the finished stage 1 of this run. The batch was cut from: "
        f"{', '.join(figures.utterances())}"
    )
