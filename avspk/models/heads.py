"""Heads for training: projections of embeddings, and the cosine classifier."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """Three linear layers, the first two with batch norm and GELU, then L2 normalisation."""

    def __init__(self, in_dim: int, hidden_dim: int = 2048, bottleneck_dim: int = 256) -> None:
        super().__init__()
        self.projection = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        for layer in self.projection:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, in_dim) -> bottleneck (B, bottleneck_dim), rows of unit length, float32."""
        return F.normalize(self.projection(embeddings).float(), dim=1)


class DinoHead(ProjectionHead):
    """Projection to `out_dim` prototypes: Caron et al., arXiv 2104.14294, with batch norm as in wespeaker's recipe.

    After the projection, the cosine with every prototype, that is a weight-normalised linear layer whose gain g is
    fixed at 1 and therefore not stored.
    """

    def __init__(self, in_dim: int, hidden_dim: int = 2048, bottleneck_dim: int = 256, out_dim: int = 65536) -> None:
        super().__init__(in_dim, hidden_dim, bottleneck_dim)
        self.prototype_weight = nn.Parameter(torch.empty(out_dim, bottleneck_dim))
        # As in DINO's last layer: the default of nn.Linear. Only the directions affect the output.
        nn.init.kaiming_uniform_(self.prototype_weight, a=math.sqrt(5))

    def prototypes(self) -> Tensor:
        """Prototypes (out_dim, bottleneck_dim), rows of unit length, float32."""
        return F.normalize(self.prototype_weight.float(), dim=1)

    def logits(self, bottleneck: Tensor) -> Tensor:
        """Bottleneck (B, bottleneck_dim) -> cosines with the prototypes (B, out_dim), in the type of autocast."""
        return F.linear(bottleneck, self.prototypes())


class CosineClassifier(nn.Module):
    """Embeddings (B, dim) -> cosines with one weight vector per class (B, num_classes).

    Always in float32: losses scale cosines by about 30, so an error in bfloat16's third digit reaches a logit's first.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, dim))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, dim) -> (B, num_classes), float32 in [-1, 1] up to rounding."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return F.linear(F.normalize(embeddings.float(), dim=1), F.normalize(self.weight.float(), dim=1))
