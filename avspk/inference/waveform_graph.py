"""Front end and encoder as one graph of plain operators, which every runtime has: a DFT written as a product."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from avspk.frontend.fbank import LOG_FLOOR, PREEMPHASIS, Fbank
from avspk.models.encoder import Encoder


class FrontEndGraph(nn.Module):
    """Waveforms (B, samples) in [-1, 1] -> features (B, frames, mels), as `Fbank` gives them.

    It processes each frame in Kaldi's order: mean off, pre-emphasis, window, DFT (a product with its matrix). So frames
    of digital silence become exactly zero for any offset of the recording. If a mean were subtracted later, rounding
    errors would remain, whose logarithm is far from that of zero. Frames are cut as slices of blocks of
    gcd(frame, hop) samples, because runtimes have no overlapping windows.
    """

    def __init__(self, fbank: Fbank) -> None:
        super().__init__()
        self.frame_length, self.hop_length = fbank.frame_length, fbank.hop_length
        self.block = math.gcd(fbank.frame_length, fbank.hop_length)
        self.normalize_mean = fbank.normalize_mean
        taps = fbank.window.double().cpu() * _dft(fbank.frame_length, fbank.fft_length)  # (2 bins, N)
        self.register_buffer("taps", taps.float().T.contiguous())  # (N, 2 bins)
        self.register_buffer("triangles", fbank.triangles.cpu().clone())  # (bins, mels)

    taps: Tensor
    triangles: Tensor

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, samples) -> (B, frames, mels); at least one frame of samples."""
        x = waveforms - waveforms.mean(dim=1, keepdim=True)
        frames = self._frames(x)  # (B, frames, N)
        frames = frames - frames.mean(dim=2, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
        spectrum = (frames - PREEMPHASIS * before) @ self.taps  # (B, frames, 2 bins)
        real, imaginary = spectrum.chunk(2, dim=2)  # (B, frames, bins)
        features = ((real * real + imaginary * imaginary) @ self.triangles).clamp_min(LOG_FLOOR).log()
        if self.normalize_mean:
            for _ in range(2):  # runtimes sum frame after frame: the second mean is the rounding error of the first
                features = features - features.mean(dim=1, keepdim=True)
        return features

    def _frames(self, waveforms: Tensor) -> Tensor:
        """(B, samples) -> (B, frames, N)."""
        whole = waveforms.shape[1] // self.block * self.block
        blocks = waveforms[:, :whole].reshape(waveforms.shape[0], -1, self.block)
        step = self.hop_length // self.block
        number = (waveforms.shape[1] - self.frame_length) // self.hop_length + 1
        slices = [blocks[:, k::step][:, :number] for k in range(self.frame_length // self.block)]
        return torch.cat(slices, dim=2)


def _dft(num_samples: int, length: int) -> Tensor:
    """Cosines, then negative sines, of the bins 0 .. length / 2: (2 bins, num_samples) float64."""
    bins, samples = torch.arange(length // 2 + 1), torch.arange(num_samples)
    angles = 2 * math.pi / length * (bins[:, None] * samples % length).double()  # exact before the rounding
    return torch.cat([angles.cos(), -angles.sin()])


class DeployedEncoder(nn.Module):
    """The computation of an exported file: features (B, T, F), or waveforms (B, samples), -> embeddings (B, D).

    Args:
        encoder: features -> embeddings.
        front_end: waveforms -> features; None if the input is features.
        mean: (D,) to subtract; None to return the encoder's embedding.
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
