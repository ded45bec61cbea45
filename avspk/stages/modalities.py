"""A modality: an encoder, a front end and a view sampler under a name. Only this file tells modalities apart."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from avspk.config import AudioPolicy, Config, ImagePolicy
from avspk.data.crop_store import CropStore
from avspk.data.dataset import ViewSampler
from avspk.data.manifest import Utterances
from avspk.data.noise import NoisePack
from avspk.data.views import AudioGroup, AudioViews, FaceGroup, FaceViews
from avspk.frontend.audio_augment import AudioAugment
from avspk.frontend.fbank import Fbank
from avspk.frontend.front_end import AudioFrontEnd, FaceFrontEnd
from avspk.frontend.image_augment import ImageAugment
from avspk.inference.embed import embed_audio, embed_faces
from avspk.models.encoder import Encoder
from avspk.models.registry import build_encoder
from avspk.objectives.base import ViewPlan

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Materials:
    """What the stages work on: settings, data, device."""

    config: Config
    utterances: Utterances
    crops: Path
    noise: NoisePack
    device: torch.device


class ModalityKit(ABC):
    """Builds the parts of one modality.

    Attributes:
        name: "audio" or "face".
        usable: (N,) bool, which utterances have this modality.
    """

    name: str
    usable: np.ndarray

    def __init__(self, materials: Materials) -> None:
        self.materials = materials
        self.config = materials.config

    @abstractmethod
    def encoder(self) -> Encoder:
        """A new encoder whose initial weights depend on (seed, modality) alone."""

    @abstractmethod
    def pretrain_views(self, plan: ViewPlan) -> AudioViews | FaceViews:
        """Groups "global" (long crops) and "local" (short ones), as the objective of stage 1 wants them."""

    @abstractmethod
    def refine_views(
        self, seconds: float | None = None, augmented: bool = True, clean_seconds: float | None = None
    ) -> ViewSampler:
        """Group "refine": one view to be classified; with `clean_seconds` also "clean": a longer one without noise."""

    @abstractmethod
    def front_end(self) -> nn.Module:
        """Raw views of any of these groups -> encoder inputs."""

    @abstractmethod
    def embed(self, encoder: Encoder, rows: slice) -> np.ndarray:
        """Embeddings of these utterances, (n, D) float32; NaN where the modality is missing."""

    @property
    def _long_alone(self) -> bool:
        """Whether stage 1's long crops, which the teacher sees, come from the example's first utterance alone."""
        return self.config.pretrain.cluster_aware.teacher_alone

    def _seeded(self, architecture: str, **arguments: object) -> Encoder:
        return seeded(lambda: build_encoder(architecture, **arguments), self.config.seed, self.name, "encoder")


class AudioKit(ModalityKit):
    """Audio: crops of the waveform -> fbank -> ECAPA or ResNet."""

    name = "audio"

    def __init__(self, materials: Materials) -> None:
        super().__init__(materials)
        self.usable = np.ones(len(materials.utterances), bool)

    def encoder(self) -> Encoder:
        settings = self.config.audio
        return self._seeded(**settings.encoder.model_dump(), num_mels=settings.features.num_mels)

    def pretrain_views(self, plan: ViewPlan) -> AudioViews | FaceViews:
        views, policy = self.config.audio.views, self.config.audio.policy
        long, short = views.counts(plan)
        return self._views(
            {
                "global": AudioGroup(long, views.global_seconds, None if plan.clean_long else policy, self._long_alone),
                "local": AudioGroup(short, views.local_seconds, policy),
            }
        )

    def refine_views(
        self, seconds: float | None = None, augmented: bool = True, clean_seconds: float | None = None
    ) -> ViewSampler:
        policy: AudioPolicy | None = self.config.audio.policy if augmented else None
        groups = {"refine": AudioGroup(1, seconds or self.config.audio.refine_seconds, policy)}
        if clean_seconds is not None:
            groups["clean"] = AudioGroup(1, clean_seconds, None)
        return self._views(groups)

    def front_end(self) -> nn.Module:
        return AudioFrontEnd(AudioAugment(self.materials.noise), self.fbank())

    def fbank(self) -> Fbank:
        """The features alone, for whole utterances."""
        features = self.config.audio.features
        return Fbank(num_mels=features.num_mels, window=features.window)

    def embed(self, encoder: Encoder, rows: slice) -> np.ndarray:
        utterances, training = self.materials.utterances, self.config.training
        return embed_audio(
            encoder,
            self.fbank().to(self.materials.device),
            [utterances.audio_path(row) for row in range(*rows.indices(len(utterances)))],
            utterances.table["num_samples"].to_numpy()[rows],
            self.materials.device,
            training.embed_seconds,
            training.workers,
        )

    def _views(self, groups: dict[str, AudioGroup]) -> AudioViews:
        wanted = {name: group for name, group in groups.items() if group.count}
        return AudioViews(self.materials.utterances, wanted, self.materials.noise)


class FaceKit(ModalityKit):
    """Face: crops of the video -> image augmentation -> ResNet."""

    name = "face"

    def __init__(self, materials: Materials) -> None:
        super().__init__(materials)
        self.usable = materials.utterances.table["num_crops"].to_numpy() > 0

    def encoder(self) -> Encoder:
        return self._seeded(**self.config.face.encoder.model_dump())

    def pretrain_views(self, plan: ViewPlan) -> AudioViews | FaceViews:
        views = self.config.face.views
        long, short = views.counts(plan)
        return self._views(
            {
                "global": FaceGroup(long, None if plan.clean_long else views.global_policy, self._long_alone),
                "local": FaceGroup(short, views.local_policy),
            }
        )

    def refine_views(
        self, seconds: float | None = None, augmented: bool = True, clean_seconds: float | None = None
    ) -> ViewSampler:
        # A clean view of a face is the crop that is trained on, whole: there is no longer one.
        policy: ImagePolicy | None = self.config.face.refine_policy if augmented else None
        return self._views({"refine": FaceGroup(1, policy)})

    def front_end(self) -> nn.Module:
        views = self.config.face.views
        return FaceFrontEnd(
            {"global": views.global_size, "local": views.local_size, "refine": self.config.face.refine_size}
        )

    def embed(self, encoder: Encoder, rows: slice) -> np.ndarray:
        table = self.materials.utterances.table
        resize = ImageAugment(self.config.face.refine_size).to(self.materials.device)
        return embed_faces(
            encoder,
            lambda images: resize(images, None),
            CropStore(self.materials.crops),
            table["first_crop"].to_numpy()[rows],
            table["num_crops"].to_numpy()[rows],
            self.materials.device,
            self.config.training.workers,
        )

    def _views(self, groups: dict[str, FaceGroup]) -> FaceViews:
        wanted = {name: group for name, group in groups.items() if group.count}
        return FaceViews(self.materials.utterances, self.materials.crops, wanted)


KITS: dict[str, type[ModalityKit]] = {"audio": AudioKit, "face": FaceKit}


def build_kits(materials: Materials) -> dict[str, ModalityKit]:
    """One kit for each of the config's modalities, in its order."""
    return {name: KITS[name](materials) for name in materials.config.modalities}


def seeded(build: Callable[[], Module], seed: int, *key: str) -> Module:
    """`build()` with torch's generator seeded by (seed, key), the global generator left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(repr((seed, *key)).encode()))
        return build()
