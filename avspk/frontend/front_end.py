"""Raw views of one modality -> encoder inputs, on the training device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avspk.data.batch import Views
from avspk.frontend.audio_augment import AudioAugment
from avspk.frontend.image_augment import ImageAugment
from avspk.frontend.waveform import SoundInput


class AudioFrontEnd(nn.Module):
    """int16 segments -> reverberation, noise, equaliser -> encoder inputs. Without `augment`, only clean views."""

    def __init__(self, augment: AudioAugment | None, sound_input: SoundInput) -> None:
        super().__init__()
        self.augment = augment
        self.sound_input = sound_input

    @torch.no_grad()
    def forward(self, name: str, group: Views[Tensor], augmented: bool = True) -> Tensor:
        """Signal int16 (B, n, T) -> features (n * B, frames, mels) or waveforms (n * B, T), view-major.

        `augmented` False: the clean view.
        """
        waveforms = view_major(group.signal).float() / 32768  # (n * B, T)
        if augmented and group.augmentation is not None:
            assert self.augment is not None
            waveforms = self.augment(waveforms, {key: view_major(value) for key, value in group.augmentation.items()})
        inputs: Tensor = self.sound_input(waveforms)
        return inputs


class FaceFrontEnd(nn.Module):
    """uint8 face crops -> cropped, flipped, recoloured, blurred and normalised images; one image size per group."""

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        self.augments = nn.ModuleDict({name: ImageAugment(size) for name, size in sizes.items()})

    @torch.no_grad()
    def forward(self, name: str, group: Views[Tensor], augmented: bool = True) -> Tensor:
        """Signal uint8 (B, n, H, W, 3) -> images (n * B, 3, S, S), view-major; `augmented` False: resized only."""
        images = view_major(group.signal)  # (n * B, H, W, 3)
        if not augmented or group.augmentation is None:
            return self.augments[name](images, None)
        return self.augments[name](images, {key: view_major(value) for key, value in group.augmentation.items()})


def view_major(value: Tensor) -> Tensor:
    """(B, n, ...) -> (n * B, ...): all examples' first views, then all second views."""
    return value.transpose(0, 1).flatten(0, 1)
