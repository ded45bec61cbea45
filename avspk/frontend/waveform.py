"""The front end of an encoder that takes waveforms."""

from __future__ import annotations

from torch import Tensor, nn

from avspk.frontend.fbank import Fbank


class Waveform(nn.Module):
    """Waveforms (B, T) float32 in [-1, 1], unchanged.

    Attributes:
        frame_length: samples that the encoder needs for its first frame.
        hop_length: samples between consecutive frames.
    """

    def __init__(self, frame_length: int, hop_length: int) -> None:
        super().__init__()
        self.frame_length, self.hop_length = frame_length, hop_length

    def num_frames(self, num_samples: int) -> int:
        """Frames of a waveform of `num_samples`: only whole frames count."""
        return max(0, 1 + (num_samples - self.frame_length) // self.hop_length)

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, T) -> (B, T); ValueError if T is shorter than one frame."""
        if waveforms.ndim != 2 or waveforms.shape[1] < self.frame_length:
            raise ValueError(f"got waveforms {tuple(waveforms.shape)}; valid: (B, T) with T >= {self.frame_length}")
        return waveforms


SoundInput = Fbank | Waveform
"""Waveforms (B, T) -> audio encoder inputs; has `frame_length`, `hop_length` and `num_frames`."""
