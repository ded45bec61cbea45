"""Averages of weights over time: the EMA teacher and the mean of the last checkpoints."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from avspk.models.norm import freeze_batchnorm_statistics

Module = TypeVar("Module", bound=nn.Module)


def make_teacher(student: Module) -> Module:
    """A copy without gradients whose batch norms do not update their buffers: `ema_update` does that."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    freeze_batchnorm_statistics(teacher)
    return teacher


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, over parameters *and* buffers; counters are copied."""
    ours, theirs = teacher.state_dict(keep_vars=True), student.state_dict(keep_vars=True)
    floating = [name for name, value in ours.items() if value.is_floating_point()]
    torch._foreach_lerp_([ours[name] for name in floating], [theirs[name] for name in floating], 1 - momentum)
    for name in ours.keys() - set(floating):
        ours[name].copy_(theirs[name])


@torch.no_grad()
def running_mean(average: dict[str, Tensor], state: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Mean of `count` + 1 states, given the mean of the first `count`; counters are copied."""
    if count == 0:
        return {name: value.clone() for name, value in state.items()}
    return {
        name: torch.lerp(average[name], value, 1 / (count + 1)) if value.is_floating_point() else value.clone()
        for name, value in state.items()
    }
