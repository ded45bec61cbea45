"""Label correction: for labels the gate does not trust, the model's own prediction on the clean view is the target.

Han, Chen and Qian, arXiv 2208.01928 and 2304.05754; how several modalities are joined is our choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

Rule = Literal["mean", "agree", "own"]


@dataclass(frozen=True)
class Correction:
    """Targets of B utterances over C pseudo speakers, one set for all M modalities or, by rule "own", one for each.

    targets: (B, C) or (M, B, C), rows summing to 1; accepted: (B,) or (M, B) bool, whether the target is to be used;
    confidence: (B,) or (M, B), the top probability of the sharpened posterior, 0 where there is none.
    """

    targets: Tensor
    accepted: Tensor
    confidence: Tensor


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """Return p^(1/c) / sum p^(1/c) over the last dimension, computed on logarithms; c < 1 sharpens, 1 changes nothing.

    Raises:
        ValueError: if the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}")
    tiny = torch.finfo(probabilities.dtype).tiny
    return torch.softmax(probabilities.clamp(min=tiny).log() / temperature, dim=-1)


def combine_posteriors(probabilities: Tensor, present: Tensor, rule: Rule = "mean") -> tuple[Tensor, Tensor]:
    """Combine the modalities' posteriors over the pseudo speakers.

    Args:
        probabilities: (M, B, C); rows of missing modalities may hold anything.
        present: (M, B) bool, which modalities an utterance has.
        rule: "mean": the average of the present ones; "agree": the same, of use only where their best pseudo speakers
            are the same; "own": each its own.

    Returns:
        The posterior (B, C), by "own" (M, B, C), and where it is of use (B,), by "own" (M, B).

    Raises:
        ValueError: on an unknown rule, or shapes that do not fit.
    """
    if probabilities.ndim != 3 or present.shape != probabilities.shape[:2]:
        shapes = f"{tuple(probabilities.shape)} and {tuple(present.shape)}"
        raise ValueError(f"probabilities must be (M, B, C) and present (M, B); got {shapes}")
    known = torch.where(present[..., None], probabilities, 0.0)
    if rule == "own":
        return known, present
    mean = known.sum(0) / present.sum(0).clamp(min=1)[:, None]  # (B, C)
    if rule == "mean":
        return mean, present.any(0)
    if rule == "agree":
        best = known.argmax(-1)  # (M, B)
        reference = best.gather(0, present.int().argmax(0, keepdim=True))  # (1, B), of the first present modality
        return mean, present.any(0) & ((best == reference) | ~present).all(0)
    raise ValueError(f"unknown rule {rule!r}: choose 'mean', 'agree' or 'own'")


@torch.no_grad()
def correct_labels(
    clean_logits: Tensor,
    present: Tensor | None = None,
    *,
    temperature: float = 0.1,
    threshold: float = 0.5,
    rule: Rule = "mean",
    hard: bool = False,
) -> Correction:
    """Turn predictions on clean views into targets for the augmented ones, without gradient.

    The combined posterior is first sharpened, and the *sharpened* top probability is compared with the threshold. On
    scaled logits (s around 30) and c = 0.1 this accepts nearly everything: watch the confidence.

    Args:
        clean_logits: (M, B, C) scaled cosines without margin; rows of missing modalities may hold anything.
        present: (M, B) bool, which modalities an utterance has; None: all.
        temperature: c of the sharpening.
        threshold: tau_2, exceeded by the top probability of an accepted target.
        rule: how modalities are combined, see `combine_posteriors`.
        hard: the target is the best pseudo speaker alone.
    """
    present = torch.ones_like(clean_logits[..., 0], dtype=torch.bool) if present is None else present
    posterior, useful = combine_posteriors(clean_logits.float().softmax(-1), present, rule)
    targets = sharpen(posterior, temperature)
    confidence, best = targets.max(-1)
    confidence = torch.where(useful, confidence, 0.0)
    if hard:
        targets = one_hot(best, targets.shape[-1]).to(targets)
    return Correction(targets, useful & (confidence > threshold), confidence)
