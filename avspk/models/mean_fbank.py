"""The untrained baseline: the mean log mel spectrum of an utterance."""

from torch import Tensor

from avspk.models.encoder import Encoder


class MeanFbank(Encoder):
    """Features (B, T, F) -> their mean over time (B, F); features must not have been mean-normalised."""

    def __init__(self, num_mels: int = 80) -> None:
        super().__init__()
        self.embedding_dim = num_mels

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, F) -> (B, F)."""
        return features.mean(dim=1)
