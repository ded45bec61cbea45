"""Losses: tensors in, tensors out. Temperatures and margins are arguments; no state, no schedule, no distribution.

A loss of the rounds, the last student and the large margin also has settings here: `kind`, and `build()`, which returns
a `ClassLoss`. The only other line for a new loss is `ClassLossSettings` in avspk/config.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from avspk.common.settings import Settings

ClassLoss = Callable[[Tensor, Tensor, float, float], Tensor]
"""Cosines (B, C) with the class vectors, labels (B,), margin, scale -> loss per row (B,)."""


def teacher_targets(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """P_T = softmax((T - c) / tau_t) (DINO, arXiv 2104.14294): logits (G, B, K), center (K,) -> (G, B, K)."""
    return torch.softmax((logits.float() - center) / temperature, dim=-1)


def update_center(center: Tensor, batch_mean: Tensor, momentum: float) -> Tensor:
    """c <- m c + (1 - m) mean of T over the global batch: both (K,) -> (K,)."""
    return momentum * center + (1 - momentum) * batch_mean


def dino_loss(
    student: Tensor, prototypes: Tensor, targets: Tensor, temperature: float, chunk_rows: int = 512
) -> Tensor:
    """DINO's multi-crop cross-entropy, averaged over the pairs (teacher view g, student view v != g) and the batch.

    student (V, B, D): bottleneck features, the G global views first; prototypes (K, D): the head's last layer;
    targets (G, B, K): teacher probabilities of the global views. Returns a scalar.

    Two identities save memory and time. Cross-entropy is linear in its target, so view v needs one cross-entropy,
    against the sum of the targets of the other views: the cost grows with the views, not with the pairs. The
    gradient of that cross-entropy follows directly from its logits, so the K-way logits exist only for `chunk_rows`
    rows at a time and are never stored for the backward pass (see `_ProjectedCrossEntropy`).
    """
    num_global, num_views = targets.shape[0], student.shape[0]
    if not 2 <= num_global <= num_views or student.shape[1] != targets.shape[1]:
        raise ValueError(
            f"student {tuple(student.shape)} and targets {tuple(targets.shape)}: "
            "want (V, B, D) and (G, B, K) with 2 <= G <= V"
        )
    num_pairs = num_global * (num_views - 1)
    total = _ProjectedCrossEntropy.apply(student, prototypes, targets, temperature, chunk_rows)
    return total / (num_pairs * student.shape[1])


class _ProjectedCrossEntropy(torch.autograd.Function):
    """Sum over views v and rows b of H(sum over g != v of targets[g, b], softmax(student[v, b] @ prototypes.T / tau)).

    For a row with logits z, target t of mass w (the number of summed teacher views): loss = w logsumexp(z) - t . z,
    dloss/dz = w softmax(z) - t. Both passes over K happen while the chunk's logits are in memory.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, prototypes: Tensor, targets: Tensor, temperature: float, chunk_rows: int
    ) -> Tensor:
        device = student.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else student.dtype
        precise = torch.promote_types(compute, torch.float32)
        weight, summed = prototypes.to(compute), targets.sum(0)  # (K, D), (B, K)
        grad_student = torch.empty_like(student)
        grad_weight = torch.zeros_like(prototypes, dtype=precise)
        total = torch.zeros((), device=student.device, dtype=precise)
        with torch.autocast(device, enabled=False):
            for view, begin in itertools.product(range(student.shape[0]), range(0, student.shape[1], chunk_rows)):
                rows = slice(begin, begin + chunk_rows)
                is_global = view < targets.shape[0]
                mass = targets.shape[0] - int(is_global)
                target = summed[rows] - targets[view, rows] if is_global else summed[rows]
                features = student[view, rows].to(compute)
                logits = (features @ weight.T).to(precise).div_(temperature)  # (rows, K)
                log_norm = logits.logsumexp(-1, keepdim=True)
                total += mass * log_norm.sum() - torch.dot(target.flatten().to(precise), logits.flatten())
                if ctx.needs_input_grad[0]:
                    grad = logits.sub_(log_norm).exp_().mul_(mass).sub_(target).div_(temperature).to(compute)
                    grad_student[view, rows] = grad @ weight
                    if compute == precise:  # one pass over K x D instead of three
                        grad_weight.addmm_(grad.T, features)
                    else:
                        grad_weight += grad.T @ features
        ctx.save_for_backward(grad_student, grad_weight.to(prototypes.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_student, grad_weight = ctx.saved_tensors
        return grad_student * grads[0], grad_weight * grads[0], None, None, None


def cosine_consistency(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cos over teacher views g and student views v != g: (V, B, D), (G, B, D) -> scalar."""
    student, teacher = functional.normalize(student.float(), dim=-1), functional.normalize(teacher.float(), dim=-1)
    cosines = torch.einsum("vbd,gbd->vgb", student, teacher)
    # Indices from the host, not a mask: with a mask the host would wait for the GPU to count the pairs.
    pairs = itertools.product(range(student.shape[0]), range(teacher.shape[0]))
    other = torch.tensor([number for number, (v, g) in enumerate(pairs) if v != g])
    return (1 - cosines.flatten(0, 1)[other.to(cosines.device, non_blocking=True)]).mean()


def aam_softmax(cosines: Tensor, labels: Tensor, margin: float, scale: float) -> Tensor:
    """Additive angular margin softmax (ArcFace, arXiv 1801.07698): cosines (B, C), labels (B,) -> loss per row (B,).

    Beyond theta = pi - m the target's logit is cos(theta) - m sin(m), so it keeps falling.
    """
    cosines = cosines.float()
    target = cosines.gather(1, labels[:, None]).clamp(-1 + 1e-7, 1 - 1e-7)  # (B, 1)
    sine = (1 - target.square()).sqrt()
    shifted = target * math.cos(margin) - sine * math.sin(margin)
    shifted = torch.where(target > -math.cos(margin), shifted, target - margin * math.sin(margin))
    logits = scale * cosines.scatter(1, labels[:, None], shifted)
    return functional.cross_entropy(logits, labels, reduction="none")


class AamSettings(Settings):
    """AAM-softmax as the loss of a classification stage."""

    kind: Literal["aam"] = "aam"

    def build(self) -> ClassLoss:
        """See `aam_softmax`."""
        return aam_softmax


def soft_target_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """H(targets, softmax(logits)): both (B, C) -> loss per row (B,)."""
    return -(targets * torch.log_softmax(logits.float(), dim=-1)).sum(-1)


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats over the last dimension: (..., K) -> (...)."""
    return torch.special.entr(probabilities.float()).sum(-1)
