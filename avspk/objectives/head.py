"""Settings of the projection head that objectives with prototypes share."""

from __future__ import annotations

from pydantic import Field

from avspk.common.settings import Count, Settings
from avspk.models.heads import DinoHead


class HeadSettings(Settings):
    """DINO projection head [S]; `out_dim` is the number of prototypes."""

    hidden_dim: Count = 2048
    bottleneck_dim: Count = 256
    out_dim: int = Field(65536, ge=2)

    def build(self, embedding_dim: int) -> DinoHead:
        """The head on embeddings of this size."""
        return DinoHead(embedding_dim, self.hidden_dim, self.bottleneck_dim, self.out_dim)
