"""Kaldi's log mel filter bank for whole batches on the training device."""

import math

import torch
from torch import Tensor, nn

PREEMPHASIS = 0.97
INT16_SCALE = 2.0**15  # Kaldi reads 16-bit integers, we hold waveforms in [-1, 1]
LOG_FLOOR = 1.1920928955078125e-07  # float32 epsilon: Kaldi's floor of a mel energy before the logarithm
WINDOWS = ("hamming", "povey")

# Waveform samples processed at once. On a CPU the intermediate tensors then stay in cache (measured: twice the rate
# of a whole batch); elsewhere this only bounds memory (about 10 bytes per sample and copy).
SAMPLES_PER_PASS = {"cpu": 1 << 17}
SAMPLES_PER_PASS_DEVICE = 1 << 26


def hertz_to_mel(hertz: Tensor) -> Tensor:
    """Kaldi's mel scale, 1127 ln(1 + f / 700); same shape as the argument."""
    return 1127.0 * torch.log1p(hertz / 700.0)


def mel_triangles(num_mels: int, fft_length: int, sample_rate: int, low_freq: float, high_freq: float) -> Tensor:
    """Triangular filters, straight in mel, with Kaldi's edges: (fft_length // 2 + 1, num_mels) float32.

    Computed in double precision; the Nyquist bin has weight 0 by Kaldi's convention.
    """
    bins = torch.arange(fft_length // 2, dtype=torch.float64) * (sample_rate / fft_length)
    mel = hertz_to_mel(bins)[:, None]
    low, high = hertz_to_mel(torch.tensor([low_freq, high_freq], dtype=torch.float64))
    edges = torch.linspace(float(low), float(high), num_mels + 2, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp_min(0.0)
    return nn.functional.pad(triangles, (0, 0, 0, 1)).float()  # (fft_length // 2 + 1, num_mels)


def make_window(kind: str, length: int) -> Tensor:
    """Symmetric analysis window (length,): "hamming", or Kaldi's own "povey" (Hann to the power 0.85)."""
    if kind == "hamming":
        return torch.hamming_window(length, periodic=False, dtype=torch.float64)
    if kind == "povey":
        return torch.hann_window(length, periodic=False, dtype=torch.float64).pow(0.85)
    raise ValueError(f"fbank window is {kind!r}; valid: {', '.join(WINDOWS)}")


class Fbank(nn.Module):
    """Waveforms (B, T) float32 in [-1, 1] -> log mel energies (B, frames, num_mels), float32.

    Equals `torchaudio.compliance.kaldi.fbank` with dither 0, edges snipped, no energy column (so that its
    `energy_floor` has no effect: mel energies are floored at float32 epsilon) on waveforms scaled to 16-bit integers.
    `normalize_mean` subtracts each crop's mean over time (per-crop mean normalisation).

    Framing, Kaldi's order: remove the frame's mean m, pre-emphasise, window:
        y[i] = w[i] ((x[i] - m) - a (x[i-1] - m)) = w[i] ((x[i] - a x[i-1]) - (1 - a) m)      for i >= 1
        y[0] = w[0] ((x[0] - m) - a (x[0] - m))   = w[0] (1 - a) (x[0] - m)
    so pre-emphasis runs once over the waveform instead of 2.5 times over overlapping frames, and frames are written
    once. The mean of a frame is a mean of blocks of gcd(frame, hop) samples, which overlapping frames share.
    """

    def __init__(
        self,
        num_mels: int = 80,
        sample_rate: int = 16000,
        frame_ms: float = 25.0,
        hop_ms: float = 10.0,
        low_freq: float = 20.0,
        high_freq: float | None = None,
        window: str = "hamming",
        normalize_mean: bool = True,
    ) -> None:
        super().__init__()
        self.frame_length = int(sample_rate * frame_ms / 1000)
        self.hop_length = int(sample_rate * hop_ms / 1000)
        self.fft_length = 1 << (self.frame_length - 1).bit_length()
        self.normalize_mean = normalize_mean
        high_freq = sample_rate / 2 if high_freq is None else high_freq
        if not 0 <= low_freq < high_freq <= sample_rate / 2:
            raise ValueError(f"fbank band is {low_freq}-{high_freq} Hz; it must lie within 0-{sample_rate / 2} Hz")
        triangles = mel_triangles(num_mels, self.fft_length, sample_rate, low_freq, high_freq)
        scaled_window = make_window(window, self.frame_length) * INT16_SCALE
        self.register_buffer("window", scaled_window.float(), persistent=False)
        self.register_buffer("triangles", triangles, persistent=False)

    window: Tensor
    triangles: Tensor

    def num_frames(self, num_samples: int) -> int:
        """Frames of a waveform of `num_samples`: only whole frames count (edges snipped)."""
        return max(0, 1 + (num_samples - self.frame_length) // self.hop_length)

    @torch.no_grad()
    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, T) float in [-1, 1] -> (B, frames, num_mels) float32; ValueError if T is shorter than one frame."""
        if waveforms.ndim != 2 or waveforms.shape[1] < self.frame_length:
            raise ValueError(f"fbank got shape {tuple(waveforms.shape)}; valid: (B, T) with T >= {self.frame_length}")
        budget = SAMPLES_PER_PASS.get(waveforms.device.type, SAMPLES_PER_PASS_DEVICE)
        rows = max(1, budget // waveforms.shape[1])
        with torch.autocast(waveforms.device.type, enabled=False):
            return torch.cat([self._features(part.float()) for part in waveforms.split(rows)])

    def _features(self, waveforms: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self._windowed_frames(waveforms), self.fft_length)  # (B, frames, bins)
        power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
        features = (power @ self.triangles).clamp_min_(LOG_FLOOR).log_()  # (B, frames, num_mels)
        return features - features.mean(dim=1, keepdim=True) if self.normalize_mean else features

    def _windowed_frames(self, waveforms: Tensor) -> Tensor:
        """(B, T) -> (B, frames, frame_length): mean removed, pre-emphasised, windowed; derivation in the class."""
        # Frames lose their mean anyway. Removing the crop's mean first keeps precision if there is a large offset.
        waveforms = waveforms - waveforms.mean(dim=1, keepdim=True)
        mean = self._frame_means(waveforms)
        emphasised = torch.empty_like(waveforms)
        emphasised[:, 0] = 0.0  # frame starts get their own formula below
        torch.sub(waveforms[:, 1:], waveforms[:, :-1], alpha=PREEMPHASIS, out=emphasised[:, 1:])
        frames = emphasised.unfold(1, self.frame_length, self.hop_length)  # (B, frames, frame_length), a view
        frames = torch.sub(frames, mean[..., None], alpha=1 - PREEMPHASIS)
        starts = waveforms[:, : 1 + self.hop_length * (mean.shape[1] - 1) : self.hop_length]  # (B, frames)
        frames[..., 0] = (1 - PREEMPHASIS) * (starts - mean)
        return frames.mul_(self.window)

    def _frame_means(self, waveforms: Tensor) -> Tensor:
        """(B, T) -> (B, frames): mean of each frame, from means of the blocks that frames share."""
        block = math.gcd(self.frame_length, self.hop_length)
        num_blocks = waveforms.shape[1] // block
        blocks = waveforms[:, : num_blocks * block].reshape(-1, num_blocks, block).mean(-1)  # (B, blocks)
        return blocks.unfold(1, self.frame_length // block, self.hop_length // block).mean(-1)  # (B, frames)
