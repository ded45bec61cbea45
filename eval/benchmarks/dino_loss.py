"""DINO loss over 65,536 outputs: peak memory, time and gradient against the textbook form.

Textbook: all student logits at once, a log-softmax and a cross-entropy for each pair of a teacher and another student
view, gradients by autograd. Forward and backward of both, from the same bottleneck features, prototypes and targets.
Memory on a CPU: peak resident memory of a fresh process minus its memory before the loss; on a GPU: the same of torch's
allocator. Neither includes features, prototypes and targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from avspk.objectives.losses import dino_loss
from benchmarks.figures import Figure, cost
from benchmarks.measure import GIB, clock_on, in_child, peak_gib, resident_gib, take_turns

TEMPERATURE = 0.1
TOLERANCE = 1e-5  # of the gradients' difference, as a share of the largest gradient
NAMED = "textbook: a log-softmax and a cross-entropy per pair of views"


@dataclass(frozen=True)
class Sizes:
    """The paper's views and outputs; its batch is 512."""

    batch: int = 128
    outputs: int = 65536
    features: int = 256
    global_views: int = 2
    views: int = 6
    turns: int = 3


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(student: Tensor, prototypes: Tensor, targets: Tensor) -> Tensor:
    """`avspk.objectives.losses.dino_loss`."""
    return dino_loss(student, prototypes, targets, TEMPERATURE)


def textbook(student: Tensor, prototypes: Tensor, targets: Tensor) -> Tensor:
    """The loss as DINO's paper writes it."""
    logits = student @ prototypes.T / TEMPERATURE  # (V, B, K)
    pairs = [(g, v) for g in range(len(targets)) for v in range(len(logits)) if g != v]
    losses = [-(targets[g] * functional.log_softmax(logits[v], dim=-1)).sum(-1).mean() for g, v in pairs]
    return torch.stack(losses).mean()


LOSSES: dict[str, Loss] = {"ours": ours, "textbook": textbook}


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Peak memory, seconds, and the difference of the gradients."""
    suffix = f"batch {sizes.batch}, {sizes.outputs:,} outputs"
    measured = {name: _peak(name, device, sizes) for name in LOSSES}
    yield cost(f"DINO loss: peak memory, {suffix}", "GiB", [measured["ours"]], [measured["textbook"]], NAMED)
    inputs = make_inputs(device, sizes)
    jobs = {name: lambda loss=loss: gradients(loss, inputs) for name, loss in LOSSES.items()}
    taken = take_turns(jobs, sizes.turns, clock_on(device))
    yield cost(
        f"DINO loss: forward and backward, {suffix}", clock_on(device).unit, taken["ours"], taken["textbook"], NAMED
    )
    worst = largest_difference(gradients(ours, inputs), gradients(textbook, inputs))
    if worst > TOLERANCE:
        raise RuntimeError(f"the gradients of the two forms differ by {worst:.2g} of the largest one")
    unit, named = "of the largest", f"no baseline; must be below {TOLERANCE:g}"
    yield Figure("DINO loss: largest difference of gradients", worst, unit, None, named)


def make_inputs(device: torch.device, sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Bottleneck features (V, B, D) and prototypes (K, D) of unit length; targets (G, B, K) as sharp as a teacher's."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(sizes.views, sizes.batch, sizes.features, generator=generator).to(device)
    prototypes = torch.randn(sizes.outputs, sizes.features, generator=generator).to(device)
    student /= student.norm(dim=2, keepdim=True)
    prototypes /= prototypes.norm(dim=1, keepdim=True)
    targets = torch.empty(sizes.global_views, sizes.batch, sizes.outputs, device=device)
    for row in range(sizes.batch):  # all rows together would take more memory than the measured loss
        targets[:, row] = torch.softmax(student[: sizes.global_views, row] @ prototypes.T / 0.04, dim=-1)
    return student, prototypes, targets


def gradients(loss: Loss, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Gradients of the student's features and of the prototypes."""
    student, prototypes = (value.detach().requires_grad_() for value in inputs[:2])
    loss(student, prototypes, inputs[2]).backward()
    assert student.grad is not None
    assert prototypes.grad is not None
    return student.grad, prototypes.grad


def largest_difference(mine: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """Largest difference, as a share of the largest gradient of the same kind."""
    pairs = zip(mine, theirs, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def _peak(name: str, device: torch.device, sizes: Sizes) -> float:
    return float(in_child(peak, name, str(device), sizes).result)


def peak(name: str, device: str, sizes: Sizes) -> float:
    """GiB that forward and backward of a loss take in addition to their inputs; call it in a fresh process."""
    inputs = make_inputs(torch.device(device), sizes)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        gradients(LOSSES[name], inputs)
        return (torch.cuda.max_memory_allocated() - held) / GIB
    before, made = resident_gib(), peak_gib()
    gradients(LOSSES[name], inputs)
    if peak_gib() <= made:
        raise RuntimeError("the loss took less memory than making its inputs: nothing was measured; use a larger batch")
    return peak_gib() - before
