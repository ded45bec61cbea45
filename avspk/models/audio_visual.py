"""Encoders of all modalities in one module, so that one launch and one loop train them in parallel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from avspk.models.encoder import Encoder
from avspk.models.heads import CosineClassifier, DinoHead, ProjectionHead


class EncoderBranch(nn.Module):
    """One modality's encoder, with its head for training."""

    encoder: Encoder


class PrototypeOutput(NamedTuple):
    """embeddings (V, B, D), bottleneck (V, B, E) of unit length, prototypes (K, E) of unit length."""

    embeddings: Tensor
    bottleneck: Tensor
    prototypes: Tensor


class PrototypeBranch(EncoderBranch):
    """One modality's encoder, projection head and prototypes."""

    def __init__(self, encoder: Encoder, head: DinoHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, groups: list[Tensor], batch_size: int) -> PrototypeOutput:
        """Groups of equally shaped views, each (n * B, ...) view-major -> outputs over all V views."""
        embeddings = torch.cat([self.encoder(group) for group in groups])  # (V * B, D)
        bottleneck = self.head(embeddings)
        by_view = (-1, batch_size)
        return PrototypeOutput(
            embeddings.unflatten(0, by_view),  # (V, B, D)
            bottleneck.unflatten(0, by_view),  # (V, B, E)
            self.head.prototypes(),
        )


class ProjectionBranch(EncoderBranch):
    """One modality's encoder and projection head."""

    def __init__(self, encoder: Encoder, head: ProjectionHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, groups: list[Tensor], batch_size: int) -> Tensor:
        """Groups of equally shaped views, each (n * B, ...) view-major -> (V, B, E), rows of unit length."""
        embeddings = torch.cat([self.encoder(group) for group in groups])  # (V * B, D)
        projected: Tensor = self.head(embeddings)
        return projected.unflatten(0, (-1, batch_size))


class ClassifierBranch(EncoderBranch):
    """One modality's encoder and cosine classifier over the pseudo speakers."""

    def __init__(self, encoder: Encoder, classifier: CosineClassifier) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = classifier

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, ...) -> cosines (B, C)."""
        return self.classifier(self.encoder(inputs))


Branch = TypeVar("Branch", bound=EncoderBranch)


class ParallelBranches(nn.Module, Generic[Branch]):
    """Modality name -> branch. The branches share no weights; one forward gives one gradient reduction."""

    def __init__(self, branches: Mapping[str, Branch]) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(branches)

    def __getitem__(self, name: str) -> Branch:
        return cast(Branch, self.branches[name])

    def items(self) -> Iterator[tuple[str, Branch]]:
        """(modality, branch), in the order of the config."""
        return ((name, self[name]) for name in self.branches)

    def encoders(self) -> dict[str, Encoder]:
        """Modality -> encoder."""
        return {name: branch.encoder for name, branch in self.items()}

    def forward(self, inputs: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
        """Modality -> arguments of its branch; modality -> its output."""
        return {name: self.branches[name](*arguments) for name, arguments in inputs.items()}
