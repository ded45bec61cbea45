"""Front end and encoder as one graph of plain operators, which any runtime has: a DFT written as a convolution."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from avspk.frontend.fbank import LOG_FLOOR, PREEMPHASIS, Fbank
from avspk.models.encoder import Encoder


class FrontEndGraph(nn.Module):
    """Waveforms (B, samples) in [-1, 1] -> features (B, frames, mels), as `Fbank` gives them.

    `Fbank` takes a frame x of N samples with mean m to w[i] ((x[i] - a x[i-1]) - (1 - a) m), with x[-1] = x[0], and
    then to its DFT. With the pre-emphasised waveform e[i] = x[i] - a x[i-1], where x[-1] is now the sample before the
    frame, the DFT is linear in three things, so it is a convolution over e and two products:

        Y[k] = sum over i >= 1 of w[i] c[i, k] e[i]  +  (1 - a) w[0] c[0, k] x[0]  -  (1 - a) (sum of w[i] c[i, k]) m

    where c[i, k] = cos(2 pi i k / K) for the real half of the channels and -sin for the other.
    """

    def __init__(self, fbank: Fbank) -> None:
        super().__init__()
        self.frame_length, self.hop_length = fbank.frame_length, fbank.hop_length
        self.normalize_mean = fbank.normalize_mean
        window = fbank.window.double().cpu()  # (N,)
        waves = _dft(fbank.frame_length, fbank.fft_length)  # (2 bins, N)
        taps = waves * window
        first, mean = (1 - PREEMPHASIS) * taps[:, 0], -(1 - PREEMPHASIS) * taps.sum(1)  # (2 bins,)
        taps[:, 0] = 0
        self.register_buffer("taps", taps.float()[:, None])  # (2 bins, 1, N)
        self.register_buffer("corrections", torch.stack([first, mean]).float())  # (2, 2 bins)
        self.register_buffer("triangles", fbank.triangles.cpu().clone())  # (bins, mels)

    taps: Tensor
    corrections: Tensor
    triangles: Tensor

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, samples) -> (B, frames, mels); at least one frame of samples."""
        x = waveforms - waveforms.mean(dim=1, keepdim=True)
        emphasised = functional.pad(x[:, 1:] - PREEMPHASIS * x[:, :-1], (1, 0))  # (B, samples)
        spectrum = functional.conv1d(emphasised[:, None], self.taps, stride=self.hop_length)  # (B, 2 bins, frames)
        means = functional.avg_pool1d(x[:, None], self.frame_length, self.hop_length)  # (B, 1, frames)
        starts = functional.avg_pool1d(x[:, None], 1, self.hop_length)[..., : means.shape[2]]  # (B, 1, frames)
        corrections = torch.cat([starts, means], dim=1).transpose(1, 2) @ self.corrections  # (B, frames, 2 bins)
        real, imaginary = (spectrum.transpose(1, 2) + corrections).chunk(2, dim=2)  # (B, frames, bins)
        features = ((real * real + imaginary * imaginary) @ self.triangles).clamp_min(LOG_FLOOR).log()
        return features - features.mean(dim=1, keepdim=True) if self.normalize_mean else features


def _dft(num_samples: int, length: int) -> Tensor:
    """Cosines, then negative sines, of the bins 0 .. length / 2: (2 bins, num_samples) float64."""
    bins, samples = torch.arange(length // 2 + 1), torch.arange(num_samples)
    angles = 2 * math.pi / length * (bins[:, None] * samples % length).double()  # exact before the rounding
    return torch.cat([angles.cos(), -angles.sin()])


class DeployedEncoder(nn.Module):
    """What an exported file computes: features (B, T, F), or waveforms (B, samples), -> embeddings (B, D).

    Args:
        encoder: features -> embeddings.
        front_end: waveforms -> features; None if features come in.
        mean: (D,) to subtract; None to give the embedding as the encoder does.
    """

    def __init__(self, encoder: Encoder, front_end: FrontEndGraph | None = None, mean: Tensor | None = None) -> None:
        super().__init__()
        self.encoder, self.front_end = encoder, front_end
        self.register_buffer("mean", mean)

    mean: Tensor | None

    def forward(self, inputs: Tensor) -> Tensor:
        """Features or waveforms -> embeddings (B, D)."""
        features = inputs if self.front_end is None else self.front_end(inputs)
        embeddings = self.encoder(features)
        return embeddings if self.mean is None else embeddings - self.mean
