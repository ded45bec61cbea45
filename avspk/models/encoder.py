"""The interface of encoders.

The file of an encoder has the module and the settings that build it. The only other line for a new encoder is a member
of a union in `avspk.models.registry`. A saved model holds the settings, so loading it builds the same encoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from avspk.common.settings import Settings


class EncoderSettings(Settings, ABC):
    """Settings of all encoders. A subclass has a field `architecture`: its name, or one of the names of its sizes.

    Attributes:
        takes: the input: "features" are log mel energies (B, frames, mels), "waveform" is (B, samples) at 16 kHz in
            [-1, 1], "image" is (B, 3, H, W); a new modality may use another word.
        frame_length, hop_length: for encoders of waveforms: samples in the first frame, which is the minimal input,
            and samples between two frames.
    """

    takes: ClassVar[str] = "features"
    frame_length: ClassVar[int] = 400
    hop_length: ClassVar[int] = 160

    embedding_norm: bool = Field(False, description="batch norm on the embedding; recipes differ [C]")

    @abstractmethod
    def build(self, num_mels: int) -> Encoder:
        """Encoder with random weights. `num_mels`: mel bands of a feature frame; other inputs ignore it.

        Loading external data, such as pretrained weights, belongs to `initialise`: `build` also builds the encoder of a
        saved model, where files of the training machine may be missing.
        """

    def initialise(self, encoder: Encoder) -> None:
        """Load external weights into a new encoder at the start of a run. A saved model already has them."""

    @classmethod
    def describe_input(cls) -> dict[str, Any]:
        """The input, as stored in a saved model."""
        if cls.takes != "waveform":
            return {"takes": cls.takes}
        return {"takes": cls.takes, "frame_length": cls.frame_length, "hop_length": cls.hop_length}


class Encoder(nn.Module):
    """Inputs (B, ...) -> embeddings (B, embedding_dim)."""

    embedding_dim: int

    def frozen(self) -> Iterable[nn.Module]:
        """Parts that no stage trains, such as a pretrained front end: no gradients, always in evaluation mode."""
        return ()

    def last_linear(self) -> nn.Linear | None:
        """The layer with a bias whose output is the embedding, if there is one; a round may start by whitening it."""
        return None

    def learn(self) -> None:
        """Let all parameters learn except those of frozen parts, which are in evaluation mode from here on."""
        self.requires_grad_(True)
        for part in self.frozen():
            part.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Encoder:
        """As in any module, but frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self.frozen():
            part.eval()
        return self


def last_norm(embedding_dim: int, wanted: bool) -> nn.Module:
    """Layer after the last linear layer: batch norm on the embedding (B, embedding_dim), or none."""
    return nn.BatchNorm1d(embedding_dim) if wanted else nn.Identity()
