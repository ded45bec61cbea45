"""Reverberation, equaliser and additive noise for whole batches of waveforms on the training device."""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from avspk.frontend.fbank import hertz_to_mel

SAMPLE_RATE = 16000
EQUALISER_TAIL = 1024  # samples (64 ms) kept free for the ringing of the zero-phase equaliser
QUIET = 0.5  # root mean square, in steps of 16 bits; a quieter piece of a recording counts as silence

# Rows processed at once: few rows fit a CPU's cache, many rows keep another device busy.
ROWS_PER_PASS = {"cpu": 8}
ROWS_PER_PASS_DEVICE = 256


class NoiseBank(Protocol):
    """The part of a noise pack used here: samples int16 (S,), starts and lengths int64 (n,), rirs float32 (R, L)."""

    @property
    def samples(self) -> np.ndarray: ...  # noqa: D102
    @property
    def rirs(self) -> np.ndarray: ...  # noqa: D102
    @property
    def starts(self) -> np.ndarray: ...  # noqa: D102
    @property
    def lengths(self) -> np.ndarray: ...  # noqa: D102


def smooth_length(minimum: int) -> int:
    """The smallest 5-smooth integer (2^a 3^b 5^c) that is even and at least `minimum`: FFTs of it are fast."""
    best = 1 << max(1, (minimum - 1).bit_length())
    power_of_five = 1
    while power_of_five < best:
        odd = power_of_five
        while odd < best:
            length = 2 * odd
            while length < minimum:
                length *= 2
            best = min(best, length)
            odd *= 3
        power_of_five *= 5
    return best


@lru_cache(maxsize=32)
def equaliser_basis(num_points: int, fft_length: int, device: torch.device) -> Tensor:
    """Linear interpolation in mel from `num_points` gains (0 Hz .. 8 kHz) to FFT bins: (num_points, bins) float32."""
    bins = torch.linspace(0, SAMPLE_RATE / 2, fft_length // 2 + 1, dtype=torch.float64)
    mel = hertz_to_mel(bins)
    position = mel / mel[-1] * (num_points - 1)
    distance = (position - torch.arange(num_points, dtype=torch.float64)[:, None]).abs()
    return (1 - distance).clamp_min(0).float().to(device)  # (num_points, bins)


class AudioAugment(nn.Module):
    """Waveforms (N, T) and one row of parameters for each -> augmented waveforms (N, T) float32.

    Built from a noise pack, whose int16 samples and RIRs move with the module (`.to(device)`; on a CPU they stay the
    memory-mapped file). `augmentation` holds, per row:

    - `rir` int64 (N,): impulse response, -1 = none. Applied without delay, cut to T.
    - `equaliser` float32 (N, E): gains in dB at E frequencies evenly spaced in mel from 0 to 8 kHz, linear in mel
      between them, applied as a zero-phase filter; 0 = none.
    - `noise`, `noise_offset` int64 (N, P): recordings (-1 = unused) and first samples; a recording shorter than
      needed starts again. Several are scaled to equal power and summed (babble).
    - `snr` float32 (N,): power in dB of the signal, after reverberation and equaliser, over that of the summed noise,
      both measured over the crop.

    A row's output depends only on that row; rows without augmentation are returned bit-identical. Silent rows stay
    silent, silent noise adds nothing. Pass the parameters as CPU tensors: then choosing rows needs no synchronisation.
    """

    def __init__(self, bank: NoiseBank) -> None:
        super().__init__()
        self.register_buffer("samples", torch.from_numpy(bank.samples), persistent=False)
        self.register_buffer("rirs", torch.from_numpy(bank.rirs), persistent=False)
        self._starts = torch.from_numpy(np.array(bank.starts))
        self._lengths = torch.from_numpy(np.array(bank.lengths))

    samples: Tensor
    rirs: Tensor

    @torch.no_grad()
    def forward(self, waveforms: Tensor, augmentation: Mapping[str, Tensor]) -> Tensor:
        """(N, T) float in [-1, 1], or int16, -> (N, T) float32. Raises ValueError for indices outside the pack."""
        waveforms = waveforms.float() / 32768 if waveforms.dtype == torch.int16 else waveforms.float().clone()
        plan = {name: value.cpu() for name, value in augmentation.items()}
        self._check(plan, len(waveforms))
        with torch.autocast(waveforms.device.type, enabled=False):
            for rows in _passes((plan["rir"] >= 0) | plan["equaliser"].any(dim=1), waveforms.device):
                here = _move(rows, waveforms.device)
                filtered = self._filter(waveforms.index_select(0, here), plan["rir"][rows], plan["equaliser"][rows])
                waveforms.index_copy_(0, here, filtered)
            for rows in _passes((plan["noise"] >= 0).any(dim=1), waveforms.device):
                here = _move(rows, waveforms.device)
                noise = self._sum_noise(plan["noise"][rows], plan["noise_offset"][rows], waveforms.shape[1])
                gain = _level(waveforms.index_select(0, here)) * 10 ** (-_move(plan["snr"][rows], noise.device) / 20)
                waveforms.index_add_(0, here, noise.mul_(gain[:, None]))  # deterministic, because no row repeats
        return waveforms

    def _check(self, plan: Mapping[str, Tensor], num_rows: int) -> None:
        for name, count in (("rir", len(self.rirs)), ("noise", len(self._starts))):
            if len(plan[name]) != num_rows:
                raise ValueError(f"{num_rows} waveforms came with {len(plan[name])} rows of {name!r}")
            if plan[name].numel() and int(plan[name].max()) >= count:
                raise ValueError(f"{name} index {int(plan[name].max())} is not in this noise pack, which has {count}")

    def _filter(self, waveforms: Tensor, rir: Tensor, equaliser: Tensor) -> Tensor:
        """Convolve (n, T) with the rows' RIRs and equalisers as one spectrum: one forward and one inverse FFT."""
        device, num_samples = waveforms.device, waveforms.shape[1]
        fft_length = smooth_length(num_samples + max(self.rirs.shape[1] - 1, EQUALISER_TAIL))
        spectrum = torch.fft.rfft(waveforms, fft_length)  # (n, bins)
        reverberant = torch.nonzero(rir >= 0).flatten()
        if len(reverberant):
            responses = torch.fft.rfft(self.rirs[_move(rir[reverberant], device)].float(), fft_length)
            _multiply_rows(spectrum, reverberant, responses)
        equalised = torch.nonzero(equaliser.any(dim=1)).flatten()
        if len(equalised):
            basis = equaliser_basis(equaliser.shape[1], fft_length, device)
            decibel = _move(equaliser[equalised], device) @ basis  # (n, bins)
            _multiply_rows(spectrum, equalised, torch.exp(decibel * (math.log(10.0) / 20)))
        return torch.fft.irfft(spectrum, fft_length)[:, :num_samples]  # (n, T)

    def _sum_noise(self, noise: Tensor, noise_offset: Tensor, num_samples: int) -> Tensor:
        """Sum of each row's recordings at equal power, itself of mean square 1: (n, P), (n, P) -> (n, num_samples)."""
        total = torch.zeros(len(noise), num_samples, device=self.samples.device)
        for part in range(noise.shape[1]):
            used = torch.nonzero(noise[:, part] >= 0).flatten()
            if len(used):
                cut = self._cut(noise[used, part], noise_offset[used, part], num_samples)
                total.index_add_(0, _move(used, total.device), _to_unit_power(cut))
        return _to_unit_power(total)

    def _cut(self, recording: Tensor, offset: Tensor, num_samples: int) -> Tensor:
        """Samples of each recording from its offset on, wrapping at its end: (n, num_samples) float32."""
        start, length = self._starts[recording], self._lengths[recording]
        first = start + offset % length
        cut = torch.empty(len(recording), num_samples, device=self.samples.device)
        if cut.device.type == "cpu":
            _copy_slices(self.samples, start, length, first, cut)
        else:
            _gather(self.samples, start, length, first, cut)
        return cut


def _copy_slices(samples: Tensor, start: Tensor, length: Tensor, first: Tensor, out: Tensor) -> None:
    """Fill `out` (n, T) from the recordings at `start` (n,), from the samples `first` (n,) on, wrapping at their ends.

    The form for a CPU: a slice is copied several times as fast as it is gathered.
    """
    for row, begin, size, here in zip(out, start.tolist(), length.tolist(), first.tolist(), strict=True):
        done = 0
        while done < len(row):
            piece = samples[here : min(here + len(row) - done, begin + size)]
            row[done : done + len(piece)] = piece
            done, here = done + len(piece), begin


def _gather(samples: Tensor, start: Tensor, length: Tensor, first: Tensor, out: Tensor) -> None:
    """As `_copy_slices`, with a few large operations for a GPU."""
    num_samples, device = out.shape[1], out.device
    inside = first + num_samples <= start + length
    whole, wrapped = (torch.nonzero(mask).flatten() for mask in (inside, ~inside))
    if len(whole):  # rows of an overlapping view: avoids an index as large as the data
        windows = samples.unfold(0, num_samples, 1)
        out.index_copy_(0, _move(whole, device), windows[_move(first[whole], device)].float())
    if len(wrapped):
        begin, ahead, period = (_move(x[wrapped], device)[:, None] for x in (start, first - start, length))
        position = begin + (ahead + torch.arange(num_samples, device=device)) % period
        values = samples.index_select(0, position.flatten()).float()
        out.index_copy_(0, _move(wrapped, device), values.view(-1, num_samples))


def _move(numbers: Tensor, device: torch.device) -> Tensor:
    """Move parameters that select rows to the device; the CPU does not wait for the transfer."""
    return numbers.to(device, non_blocking=True)


def _passes(chosen: Tensor, device: torch.device) -> list[Tensor]:
    """Indices of the chosen rows (bool (N,), on the CPU), split evenly into passes."""
    rows = torch.nonzero(chosen).flatten()
    limit = ROWS_PER_PASS.get(device.type, ROWS_PER_PASS_DEVICE)
    return list(rows.tensor_split(math.ceil(len(rows) / limit))) if len(rows) else []


def _multiply_rows(spectrum: Tensor, rows: Tensor, factor: Tensor) -> None:
    """Multiply the given rows of (n, bins) in place; without a copy if these are all rows."""
    if len(rows) == len(spectrum):
        spectrum.mul_(factor)
    else:
        spectrum[_move(rows, spectrum.device)] *= factor


def _level(waveforms: Tensor) -> Tensor:
    """Root mean square over time: (n, T) -> (n,)."""
    return torch.linalg.vector_norm(waveforms, dim=1) / math.sqrt(waveforms.shape[1])


def _to_unit_power(waveforms: Tensor) -> Tensor:
    """Scale (n, T) in place to mean square 1; silent rows become exact zeros."""
    level = _level(waveforms)
    return waveforms.mul_(torch.where(level > QUIET, 1 / level.clamp_min(QUIET), 0.0)[:, None])
