"""Terms that any objective with embeddings and prototypes may add: spread of embeddings, use of all prototypes.

Both are functions of the global batch, so several processes give the same result as one. With accumulated gradients,
they use one part of the batch at a time.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from avspk.common import distributed
from avspk.common.settings import NotNegative, Settings
from avspk.models.audio_visual import PrototypeOutput
from avspk.objectives import losses
from avspk.objectives.base import Figures

NEAREST = 1e-4  # smaller distances count as this one, without gradient: equal rows have no direction to separate


class RegularisedSettings(Settings):
    """Weights of the two terms; 0: not computed."""

    mean_entropy: NotNegative = Field(0.0, description="weight of ln K - H(mean posterior of the student)")
    koleo: NotNegative = Field(0.0, description="weight of KoLeo on the student's unit embeddings, by view")


def regularise(settings: RegularisedSettings, student: PrototypeOutput, temperature: float) -> tuple[Tensor, Figures]:
    """Weighted sum of the terms, (), and the terms for the log; 0 and empty if both are off."""
    penalty, figures = student.embeddings.new_zeros((), dtype=torch.float32), {}
    if settings.mean_entropy > 0:
        gap = mean_entropy_gap(posterior_logits(student, temperature))
        penalty, figures = penalty + settings.mean_entropy * gap, {"mean_entropy_gap": gap.detach()}
    if settings.koleo > 0:
        spread = koleo(student.embeddings)
        penalty, figures = penalty + settings.koleo * spread, figures | {"koleo": spread.detach()}
    return penalty, figures


def posterior_logits(output: PrototypeOutput, temperature: float) -> Tensor:
    """Cosines of bottleneck and prototypes over the temperature: (V, B, K), float32 under any autocast."""
    with torch.autocast(output.bottleneck.device.type, enabled=False):
        return output.bottleneck.float() @ output.prototypes.float().T / temperature


def mean_entropy_gap(logits: Tensor) -> Tensor:
    """ln K - H(mean of softmax(logits)), in nats (Assran et al., arXiv 2204.07141): logits (V, B, K) -> ().

    The mean is over views and the global batch. 0 if all K prototypes are used equally, ln K if only one is used.
    """
    mean = distributed.mean_over_ranks_with_gradient(torch.softmax(logits.float(), -1).mean((0, 1)))  # (K,)
    return math.log(logits.shape[-1]) - losses.entropy(mean)


def koleo(embeddings: Tensor) -> Tensor:
    """KoLeo (Sablayrolles et al., arXiv 1806.03198): (V, B, D) -> (), the mean over views of -mean ln distance.

    The distance is from a row, scaled to unit length, to the nearest other row of its view in the global batch.

    Raises:
        ValueError: the global batch has one example only, which has no neighbour.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = functional.normalize(embeddings.float(), dim=-1)
        rows = distributed.rows_of_all_ranks(unit.transpose(0, 1)).transpose(0, 1)  # (V, N, D)
        if rows.shape[1] < 2:
            raise ValueError("KoLeo needs a batch, or a part of one, of 2 or more examples; got 1")
        cosines = rows.detach() @ rows.detach().transpose(1, 2)  # (V, N, N)
        cosines.diagonal(dim1=1, dim2=2).fill_(-2.0)
        nearest = cosines.argmax(-1, keepdim=True).expand_as(rows)
        squares = (rows - rows.gather(1, nearest)).square().sum(-1)  # (V, N)
        return -0.5 * squares.clamp(min=NEAREST**2).log().mean()
