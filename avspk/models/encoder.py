"""What every encoder looks like from outside."""

from pydantic import Field
from torch import nn

from avspk.settings import Settings


class EncoderSettings(Settings):
    """What all encoders have."""

    embedding_norm: bool = Field(False, description="batch norm on the embedding; recipes differ [C]")


class Encoder(nn.Module):
    """Inputs (B, ...) -> embeddings (B, embedding_dim)."""

    embedding_dim: int


def last_norm(embedding_dim: int, wanted: bool) -> nn.Module:
    """What follows the last linear layer: batch norm on the embedding (B, embedding_dim), or nothing."""
    return nn.BatchNorm1d(embedding_dim) if wanted else nn.Identity()
