"""The interface of modalities: cut views of an utterance, prepare them on the device, and embed whole utterances.

The file of a modality has its settings, a `ModalitySettings`, and the `ModalityKit` that they build. A new modality
needs two other lines: a field of `Config` with these settings, whose name is the name of the modality, and its encoder
in `ENCODERS` of avspk/models/registry.py.
Its media must be prepared with the utterances: see `Media`, and `avspk.data`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from avspk.common.seeding import seeded
from avspk.common.settings import Count, FirstReader, Settings
from avspk.data.dataset import ViewSampler
from avspk.data.manifest import Utterances
from avspk.data.noise import NoisePack
from avspk.data.views import GroupedViews
from avspk.models.encoder import Encoder, EncoderSettings
from avspk.objectives.base import ViewPlan

VERIFIED = "audio"
"""The modality of the speaker model: all utterances have it, and every run trains it."""


@dataclass(frozen=True)
class Media:
    """Data of a kit.

    Attributes:
        utterances: the manifest; its folder contains the prepared data.
        crops: the face crop store.
        noise: recordings and impulse responses for augmenting sound.
        device: device of inputs and embeddings.
        seed: of the run.
        embed_seconds: of sound in one embedding batch.
        workers: loader processes.
    """

    utterances: Utterances
    crops: Path
    noise: NoisePack
    device: torch.device
    seed: int
    embed_seconds: float
    workers: int


class CropCounts(Settings):
    """Numbers of long (global) and short (local) crops of one utterance in stage 1."""

    global_crops: Count | None = Field(None, description="default: set by the objective; DINO 2 [S], SDPN 1 [S]")
    local_crops: int | None = Field(None, ge=0, description="default: set by the objective; 4 [S]")

    def counts(self, plan: ViewPlan) -> tuple[int, int]:
        """Numbers of long and short crops."""
        long, short = self.global_crops, self.local_crops
        return plan.long_crops if long is None else long, plan.short_crops if short is None else short


class ModalitySettings(Settings, ABC):
    """Settings of one modality. A subclass defines its encoders and views.

    A setting that stage 1 does not read is an `Annotated[..., FirstReader.ROUNDS]`: it may change until round 1 begins.
    """

    first_reader: ClassVar = FirstReader.STAGE_ONE

    encoder: EncoderSettings
    views: CropCounts

    @abstractmethod
    def build(self, name: str, media: Media) -> ModalityKit:
        """The kit of the modality `name`."""

    @abstractmethod
    def usable(self, utterances: Utterances) -> np.ndarray:
        """(N,) bool: which utterances have this modality."""

    @abstractmethod
    def require_media(self, utterances: Utterances, crops: Path, share: slice) -> None:
        """Raise FileNotFoundError, saying what to do, if media of the utterances in `share` are missing."""

    @abstractmethod
    def example_inputs(self, batch_size: int) -> Tensor:
        """Random encoder inputs (B, ...) of a usual size, to time the encoder with."""

    @property
    def num_mels(self) -> int:
        """Mel bands of a feature frame; 0 if the encoder takes no features."""
        return 0

    def architecture(self) -> dict[str, Any]:
        """What a saved model says of its encoder: arguments of `avspk.models.registry.build_encoder`."""
        return self.encoder.model_dump(mode="json")  # lists, as they are read back

    def inputs(self) -> dict[str, Any]:
        """What a saved model says of how its inputs are made; empty if there is nothing to choose."""
        return {}

    def build_encoder(self) -> Encoder:
        """Encoder with random weights, to be overwritten."""
        return self.encoder.build(self.num_mels)

    def new_encoder(self) -> Encoder:
        """Encoder at the start of a run: random weights, and weights that its settings load."""
        encoder = self.build_encoder()
        self.encoder.initialise(encoder)
        return encoder


class ModalityKit(ABC):
    """Builds the parts of one modality.

    Attributes:
        name: of the modality.
        usable: (N,) bool, which utterances have this modality.
        settings, media: the arguments it was built from.
    """

    def __init__(self, name: str, settings: ModalitySettings, media: Media) -> None:
        self.name, self.settings, self.media = name, settings, media
        self.usable = settings.usable(media.utterances)

    def with_encoder(self, encoder: EncoderSettings) -> ModalityKit:
        """The same kit for an encoder of other settings."""
        return self.settings.model_copy(update={"encoder": encoder}).build(self.name, self.media)

    def encoder(self) -> Encoder:
        """A new encoder whose initial weights depend only on (seed, modality)."""
        return seeded(self.settings.new_encoder, self.media.seed, self.name, "encoder")

    @abstractmethod
    def pretrain_views(self, plan: ViewPlan, long_alone: bool = False) -> GroupedViews:
        """Groups "global" (long crops) and "local" (short ones), in the numbers of the plan.

        A group without crops is left out. With `long_alone` the long crops come from the example's first utterance.
        """

    @abstractmethod
    def refine_views(
        self, seconds: float | None = None, augmented: bool = True, clean_seconds: float | None = None
    ) -> ViewSampler:
        """Group "refine": one view for the classifier; with `clean_seconds` also "clean": a longer one without noise.

        Arguments in seconds are for media with a length; a kit of images may ignore them.
        """

    @abstractmethod
    def front_end(self, augmented: bool = True) -> nn.Module:
        """Module (name of a group, group, augmented=True) -> encoder inputs (n * B, ...), view-major.

        See `avspk.frontend.front_end`. `augmented` False: it is for clean views alone, so it need not hold the noise,
        which are gigabytes on the device.
        """

    @abstractmethod
    def embed(self, encoder: Encoder, rows: slice) -> np.ndarray:
        """Embeddings of these utterances, (n, D) float32; NaN if the modality is missing."""

    def describe_model(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a saved model says of itself: architecture and inputs; see `ModalitySettings`."""
        return self.settings.architecture(), self.settings.inputs()


def build_kits(modalities: Mapping[str, ModalitySettings], media: Media) -> dict[str, ModalityKit]:
    """Modality -> its kit, in the order of the modalities."""
    return {name: settings.build(name, media) for name, settings in modalities.items()}
