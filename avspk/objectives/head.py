"""Settings of the projection heads that objectives share."""

from __future__ import annotations

from pydantic import Field

from avspk.common.settings import Count, Settings
from avspk.models.heads import DinoHead, ProjectionHead


class ProjectionSettings(Settings):
    """Projection without prototypes; sizes as in DINO [S]."""

    hidden_dim: Count = 2048
    bottleneck_dim: Count = 256

    def build(self, embedding_dim: int) -> ProjectionHead:
        """The projection on embeddings of this size."""
        return ProjectionHead(embedding_dim, self.hidden_dim, self.bottleneck_dim)


class HeadSettings(ProjectionSettings):
    """DINO projection head [S]; `out_dim` is the number of prototypes."""

    out_dim: int = Field(65536, ge=2)

    def build(self, embedding_dim: int) -> DinoHead:
        """The head on embeddings of this size."""
        return DinoHead(embedding_dim, self.hidden_dim, self.bottleneck_dim, self.out_dim)
