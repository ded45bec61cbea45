"""Audio: crops of the waveform -> filter bank, or the waveform itself -> encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from avspk.common.settings import Count, FirstReader, Positive, Settings
from avspk.data.augmentation import AudioPolicy
from avspk.data.dataset import ViewSampler
from avspk.data.manifest import Utterances
from avspk.data.media import SAMPLE_RATE, MediaError
from avspk.data.views import AudioGroup, AudioViews, GroupedViews
from avspk.frontend.audio_augment import AudioAugment
from avspk.frontend.fbank import Fbank
from avspk.frontend.front_end import AudioFrontEnd
from avspk.frontend.waveform import SoundInput, Waveform
from avspk.inference.embed import embed_audio
from avspk.modalities.base import CropCounts, Media, ModalityKit, ModalitySettings
from avspk.models.ecapa import EcapaSettings
from avspk.models.encoder import Encoder
from avspk.models.registry import AudioEncoderSettings
from avspk.objectives.base import ViewPlan

USUAL_FRAMES = 100  # a second


class FeatureSettings(Settings):
    """Kaldi-compatible log mel filter bank, 25 ms windows every 10 ms [S]."""

    num_mels: Count = 80
    window: Literal["hamming", "povey"] = "hamming"
    high_freq: float | None = Field(
        None, ge=3_000, le=8_000, description="upper edge of the filters, Hz; 7600 and povey: sherpa-onnx's front end"
    )

    def build(self) -> Fbank:
        """Waveforms (B, T) -> features (B, frames, num_mels)."""
        return Fbank(num_mels=self.num_mels, window=self.window, high_freq=self.high_freq)


class AudioViewSettings(CropCounts):
    """Crops of one utterance for stage 1 [S wespeaker v3/dino]."""

    global_seconds: Positive = 3.0
    local_seconds: Positive = 2.0


class AudioSettings(ModalitySettings):
    """The audio modality."""

    encoder: AudioEncoderSettings = EcapaSettings()
    features: FeatureSettings = FeatureSettings()
    views: AudioViewSettings = AudioViewSettings()
    policy: AudioPolicy = AudioPolicy()
    refine_seconds: Annotated[Positive, FirstReader.ROUNDS] = Field(
        3.0, description="[C] crop length of the classifier rounds"
    )

    def build(self, name: str, media: Media) -> AudioKit:
        """See `ModalitySettings`."""
        return AudioKit(name, self, media)

    def usable(self, utterances: Utterances) -> np.ndarray:
        """All utterances: preparation leaves out videos without sound."""
        return np.ones(len(utterances), bool)

    def require_media(self, utterances: Utterances, crops: Path, share: slice) -> None:
        """Check that every sound is there, and as long as the manifest says, as far as headers show it."""
        faulty = utterances.faulty_audio(share)
        if faulty:
            looked_at, (place, reason) = len(range(*share.indices(len(utterances)))), faulty[0]
            raise MediaError(
                f"{len(faulty)} of {looked_at} audio files cannot be used, first {place}: {reason}; "
                "prepare the data again, or move the audio back to where the manifest says"
            )

    def example_inputs(self, batch_size: int) -> Tensor:
        """Features (B, T, F), or waveforms (B, samples), of a second."""
        if self.encoder.takes == "waveform":
            return torch.randn(batch_size, SAMPLE_RATE)
        return torch.randn(batch_size, USUAL_FRAMES, self.num_mels)

    @property
    def num_mels(self) -> int:
        """See `ModalitySettings`."""
        return self.features.num_mels

    def architecture(self) -> dict[str, Any]:
        """See `ModalitySettings`."""
        takes_features = self.encoder.takes == "features"
        return super().architecture() | ({"num_mels": self.num_mels} if takes_features else {})

    def inputs(self) -> dict[str, Any]:
        """See `ModalitySettings`; arguments of `Fbank`."""
        return self.features.model_dump() if self.encoder.takes == "features" else {}

    def sound_input(self) -> SoundInput:
        """Waveforms (B, T) -> encoder inputs."""
        if self.encoder.takes == "waveform":
            return Waveform(self.encoder.frame_length, self.encoder.hop_length)
        return self.features.build()


class AudioKit(ModalityKit):
    """Views are segments of the waveform; the filter bank is computed on the device."""

    settings: AudioSettings

    def pretrain_views(self, plan: ViewPlan, long_alone: bool = False) -> GroupedViews:
        """See `ModalityKit`."""
        views, policy = self.settings.views, self.settings.policy
        long, short = views.counts(plan)
        return self._views(
            {
                "global": AudioGroup(long, views.global_seconds, None if plan.clean_long else policy, long_alone),
                "local": AudioGroup(short, views.local_seconds, policy),
            }
        )

    def refine_views(
        self, seconds: float | None = None, augmented: bool = True, clean_seconds: float | None = None
    ) -> ViewSampler:
        """See `ModalityKit`."""
        policy = self.settings.policy if augmented else None
        groups = {"refine": AudioGroup(1, seconds or self.settings.refine_seconds, policy)}
        if clean_seconds is not None:
            groups["clean"] = AudioGroup(1, clean_seconds, None)
        return self._views(groups)

    def front_end(self, augmented: bool = True) -> nn.Module:
        """See `ModalityKit`."""
        augment = AudioAugment(self.media.noise) if augmented else None
        return AudioFrontEnd(augment, self.settings.sound_input())

    def embed(self, encoder: Encoder, rows: slice) -> np.ndarray:
        """See `ModalityKit`."""
        utterances, device = self.media.utterances, self.media.device
        return embed_audio(
            encoder,
            self.settings.sound_input().to(device),
            [utterances.audio_path(row) for row in range(*rows.indices(len(utterances)))],
            utterances.table["num_samples"].to_numpy()[rows],
            device,
            self.media.embed_seconds,
            self.media.workers,
        )

    def _views(self, groups: dict[str, AudioGroup]) -> AudioViews:
        wanted = {name: group for name, group in groups.items() if group.count}
        return AudioViews(self.media.utterances, wanted, self.media.noise)
