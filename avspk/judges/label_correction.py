"""Label correction: if the gate does not trust a label, the model's prediction on the clean view is the target.

Source: Han, Chen and Qian, arXiv 2208.01928 and 2304.05754. The combination of several modalities is our choice.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from avspk.common.settings import Positive, Probability, Settings
from avspk.judges.base import Replacement

Rule = Literal["mean", "agree", "own"]


class CorrectionSettings(Settings):
    """Label correction (arXiv 2208.01928).

    wavlm_ssl_sv sharpens with temperature 0.1 and accepts predictions above 0.5 [S], on unscaled logits. Our logits are
    scaled, so these values would accept everything. Our values are [C] (measured in eval/results/earlier.md).
    """

    enabled: bool = True
    start_epoch: int = Field(5, ge=1, description="starts after this many epochs, and not before the gate [C]")
    temperature: Positive = Field(1.0, description="c of the target p^(1/c), where p is the posterior [C]")
    threshold: Probability = Field(0.7, description="top probability that the unsharpened posterior must exceed [C]")
    rule: Rule = Field("agree", description="how the modalities' clean posteriors are combined [C]")
    hard: bool = False
    weighted: bool = Field(False, description="the weight of a target is its top probability, not 1 [C]")
    align_prior: bool = Field(
        False, description="posterior times class prior over mean posterior [C]; a mean of each process"
    )


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """Return p^(1/c) / sum p^(1/c) over the last dimension, computed from logarithms; c < 1 sharpens, c = 1 does not.

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
        rule: "mean": the average over available modalities; "agree": the same, but valid only if their best pseudo
            speakers are equal; "own": each modality separately.

    Returns:
        The posterior (B, C) and its validity (B,); with "own", (M, B, C) and (M, B).

    Raises:
        ValueError: if the rule is unknown or the shapes do not match.
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
def replace_labels(
    posteriors: Tensor, present: Tensor, settings: CorrectionSettings, prior: Tensor | None = None
) -> Replacement:
    """Turn predictions on clean views into targets for the augmented views, without gradient.

    Args:
        posteriors: (M, R, C) softmax over the pseudo speakers; rows of missing modalities may hold anything.
        present: (M, R) bool, which modalities an utterance has.
        settings: rule, temperature and threshold.
        prior: (M, C) factors for each modality's posteriors before they are combined; None: 1.
    """
    if prior is not None:
        aligned = posteriors * prior[:, None]
        posteriors = aligned / aligned.sum(-1, keepdim=True)
    combined, useful = combine_posteriors(posteriors, present, settings.rule)
    confidence, best = combined.max(-1)
    confidence = torch.where(useful, confidence, 0.0)
    accepted = useful & (confidence > settings.threshold)
    targets = sharpen(combined, settings.temperature)
    if settings.hard:
        targets = one_hot(best, targets.shape[-1]).to(targets)
    weights = torch.where(accepted, confidence if settings.weighted else 1.0, 0.0)
    if settings.rule == "own":
        # The log shows the first modality of the config, which usually is audio.
        accepted, best, confidence = accepted[0], best[0], confidence[0]
    return Replacement(targets, weights, torch.where(accepted, best, -1), confidence)
