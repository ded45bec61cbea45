"""What every encoder looks like from outside.

Its file holds its settings, which build it, and the module. A member of a union in `avspk.models.registry` is the only
other line that a new encoder needs. A saved model holds the settings, so that loading it builds the same encoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from avspk.settings import Settings


class EncoderSettings(Settings, ABC):
    """What all encoders have. A subclass has a field `architecture`: its name, or one of the names of its sizes.

    Attributes:
        takes: the input: "features" are log mel energies (B, frames, mels), "waveform" is (B, samples) at 16 kHz in
            [-1, 1], "image" is (B, 3, H, W); another word for what only a new modality has.
        frame_length, hop_length: of an encoder of waveforms: samples in its first frame, which is the least that it
            can take, and samples between two frames.
    """

    takes: ClassVar[str] = "features"
    frame_length: ClassVar[int] = 400
    hop_length: ClassVar[int] = 160

    embedding_norm: bool = Field(False, description="batch norm on the embedding; recipes differ [C]")

    @abstractmethod
    def build(self, num_mels: int) -> Encoder:
        """Encoder with random weights. `num_mels`: of a frame of features; other inputs ignore it.

        Whatever comes from elsewhere, such as pretrained weights, belongs to `initialise`: this also builds the
        encoder of a saved model, where files of the training machine are not at hand.
        """

    def initialise(self, encoder: Encoder) -> None:
        """Load what a run does not learn into a new encoder. A saved model holds it already."""

    @classmethod
    def describe_input(cls) -> dict[str, Any]:
        """The input, as a saved model states it."""
        if cls.takes != "waveform":
            return {"takes": cls.takes}
        return {"takes": cls.takes, "frame_length": cls.frame_length, "hop_length": cls.hop_length}


class Encoder(nn.Module):
    """Inputs (B, ...) -> embeddings (B, embedding_dim)."""

    embedding_dim: int

    def frozen(self) -> Iterable[nn.Module]:
        """Parts that no stage trains, such as a pretrained front end: no gradients, always in evaluation mode."""
        return ()

    def learn(self) -> None:
        """Let all parameters learn but those of frozen parts."""
        self.requires_grad_(True)
        for part in self.frozen():
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> Encoder:
        """As of any module, but frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self.frozen():
            part.eval()
        return self


def last_norm(embedding_dim: int, wanted: bool) -> nn.Module:
    """What follows the last linear layer: batch norm on the embedding (B, embedding_dim), or nothing."""
    return nn.BatchNorm1d(embedding_dim) if wanted else nn.Identity()
