"""What a modality does: it cuts views of an utterance, prepares them on the device, and embeds whole utterances.

Its file holds its settings, a `ModalitySettings`, and the `ModalityKit` that they build. A field of `Config` that has
these settings is the only other line that a new modality needs; the name of the field is the name of the modality.
Its media must come with the utterances: see `Media`, and `avspk.data` for how it is prepared.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from avspk.data.dataset import ViewSampler
from avspk.data.manifest import Utterances
from avspk.data.noise import NoisePack
from avspk.data.views import GroupedViews
from avspk.models.encoder import Encoder, EncoderSettings
from avspk.objectives.base import ViewPlan
from avspk.settings import Count, Settings

Module = TypeVar("Module", bound=nn.Module)
VERIFIED = "audio"
"""The modality of the speaker model: all utterances have it, and every run trains it."""


@dataclass(frozen=True)
class Media:
    """What a kit works on.

    Attributes:
        utterances: the manifest; its folder holds what preparation has made of the videos.
        crops: the face crop store.
        noise: recordings and impulse responses that sound is augmented with.
        device: where inputs and embeddings are computed.
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
    """How many long (global) and short (local) crops of one utterance stage 1 takes."""

    global_crops: Count | None = Field(None, description="default: what the objective asks for; DINO 2 [S], SDPN 1 [S]")
    local_crops: int | None = Field(None, ge=0, description="default: what the objective asks for; 4 [S]")

    def counts(self, plan: ViewPlan) -> tuple[int, int]:
        """Long and short crops."""
        long, short = self.global_crops, self.local_crops
        return plan.long_crops if long is None else long, plan.short_crops if short is None else short


class ModalitySettings(Settings, ABC):
    """Settings of one modality. A subclass says which encoders and views it has.

    Attributes:
        first_read_by_rounds: names of the fields that stage 1 does not read; they may change until round 1 begins.
    """

    first_read_by_rounds: ClassVar[tuple[str, ...]] = ()

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
        """Raise FileNotFoundError, saying what to do, if media of the utterances in `share` is not there."""

    @abstractmethod
    def example_inputs(self, batch_size: int) -> Tensor:
        """Random encoder inputs (B, ...) of a usual size, to time the encoder with."""

    @property
    def num_mels(self) -> int:
        """Of a frame of features; 0 where the encoder takes none."""
        return 0

    def build_encoder(self) -> Encoder:
        """Encoder with random weights, for weights that come from elsewhere."""
        return self.encoder.build(self.num_mels)

    def new_encoder(self) -> Encoder:
        """Encoder as a run starts with it: random weights, and those that its settings load."""
        encoder = self.build_encoder()
        self.encoder.initialise(encoder)
        return encoder


class ModalityKit(ABC):
    """Builds the parts of one modality.

    Attributes:
        name: of the modality.
        usable: (N,) bool, which utterances have this modality.
        settings, media: what it was built from.
    """

    def __init__(self, name: str, settings: ModalitySettings, media: Media) -> None:
        self.name, self.settings, self.media = name, settings, media
        self.usable = settings.usable(media.utterances)

    def with_encoder(self, encoder: EncoderSettings) -> ModalityKit:
        """The same kit for an encoder of other settings."""
        return self.settings.model_copy(update={"encoder": encoder}).build(self.name, self.media)

    def encoder(self) -> Encoder:
        """A new encoder whose initial weights depend on (seed, modality) alone."""
        return seeded(self.settings.new_encoder, self.media.seed, self.name, "encoder")

    @abstractmethod
    def pretrain_views(self, plan: ViewPlan, long_alone: bool = False) -> GroupedViews:
        """Groups "global" (long crops) and "local" (short ones), as the objective of stage 1 wants them.

        A group that has no crops is left out. With `long_alone` the long crops come from the example's first utterance.
        """

    @abstractmethod
    def refine_views(
        self, seconds: float | None = None, augmented: bool = True, clean_seconds: float | None = None
    ) -> ViewSampler:
        """Group "refine": one view to be classified; with `clean_seconds` also "clean": a longer one without noise.

        Arguments in seconds are for media that has a length; a kit of images may ignore them.
        """

    @abstractmethod
    def front_end(self) -> nn.Module:
        """Module (name of a group, group, augmented=True) -> encoder inputs (n * B, ...), view-major.

        See `avspk.frontend.front_end`.
        """

    @abstractmethod
    def embed(self, encoder: Encoder, rows: slice) -> np.ndarray:
        """Embeddings of these utterances, (n, D) float32; NaN where the modality is missing."""

    def describe_model(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a saved model says of itself: arguments of `build_encoder`, and of `Fbank` (empty without one)."""
        return self.settings.encoder.model_dump(), {}


def seeded(build: Callable[[], Module], seed: int, *key: str) -> Module:
    """`build()` with torch's generator seeded by (seed, key), the global generator left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(repr((seed, *key)).encode()))
        return build()
