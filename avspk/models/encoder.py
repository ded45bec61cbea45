"""What every encoder looks like from outside."""

from torch import nn


class Encoder(nn.Module):
    """Inputs (B, ...) -> embeddings (B, embedding_dim)."""

    embedding_dim: int
