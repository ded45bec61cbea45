"""Fbank against torchaudio's Kaldi port, and physical properties."""

import math

import pytest
import torch
from pydantic import ValidationError
from torchaudio.compliance import kaldi

from avspk.frontend.fbank import LOG_FLOOR, Fbank, hertz_to_mel
from avspk.modalities.audio import FeatureSettings


def noise(num_rows: int, num_samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, num_samples, generator=torch.Generator().manual_seed(seed))


def kaldi_fbank(waveforms: torch.Tensor, **options: object) -> torch.Tensor:
    rows = [kaldi.fbank(row[None] * 2**15, dither=0.0, **options) for row in waveforms]
    return torch.stack(rows)


@pytest.mark.parametrize("window", ["hamming", "povey"])
@pytest.mark.parametrize("level", [1e-4, 0.1, 1.0], ids=["quiet", "normal", "clipped"])
@pytest.mark.parametrize("num_samples", [400, 559, 560, 16123])
def test_equals_kaldi(window: str, level: float, num_samples: int) -> None:
    waveforms = (noise(3, num_samples) * level).clamp(-1, 1)
    ours = Fbank(window=window, normalize_mean=False)(waveforms)
    expected = kaldi_fbank(waveforms, num_mel_bins=80, window_type=window)
    assert ours.shape == expected.shape
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("num_mels", "low", "high"), [(23, 20.0, 8000.0), (40, 64.0, 7600.0), (40, 0.0, 4000.0)])
def test_equals_kaldi_for_other_bands(num_mels: int, low: float, high: float) -> None:
    waveforms = noise(2, 8000) * 0.1
    ours = Fbank(num_mels=num_mels, low_freq=low, high_freq=high, normalize_mean=False)(waveforms)
    options = {"num_mel_bins": num_mels, "low_freq": low, "high_freq": high, "window_type": "hamming"}
    torch.testing.assert_close(ours, kaldi_fbank(waveforms, **options), atol=1e-3, rtol=0)


def test_settings_give_the_front_end_of_sherpa_onnx_but_for_its_edges() -> None:
    """Its frames have the same hop and begin 7.5 ms before ours, so each of ours lies between two of its frames."""
    waveforms = noise(2, 16000) * 0.1
    ours = FeatureSettings(window="povey", high_freq=7600)
    assert ours.model_dump() == {"num_mels": 80, "window": "povey", "high_freq": 7600}
    fbank = ours.build()
    fbank.normalize_mean = False
    expected = kaldi_fbank(waveforms, num_mel_bins=80, window_type="povey", high_freq=-400.0)
    torch.testing.assert_close(fbank(waveforms), expected, atol=1e-3, rtol=0)
    shifted = kaldi_fbank(waveforms, num_mel_bins=80, window_type="povey", high_freq=-400.0, snip_edges=False)
    moved = fbank(waveforms[:, 40:])  # its second frame begins at sample 160 / 2 - 400 / 2 + 160 = 40
    torch.testing.assert_close(moved[:, :90], shifted[:, 1:91], atol=1e-3, rtol=0)
    for wrong in (0, 2000, 9000):  # 80 filters below 2,000 Hz would be narrower than a bin
        with pytest.raises(ValidationError, match="high_freq"):
            FeatureSettings(high_freq=wrong)


def test_equals_kaldi_with_dc_offset() -> None:
    waveforms = noise(2, 8000) * 0.01 + 0.5
    expected = kaldi_fbank(waveforms, num_mel_bins=80, window_type="hamming")
    torch.testing.assert_close(Fbank(normalize_mean=False)(waveforms), expected, atol=1e-3, rtol=0)


def test_silence_is_the_floor_and_normalises_to_zero() -> None:
    silence = torch.zeros(2, 4000)
    floor = torch.full((2, 23, 80), math.log(LOG_FLOOR))
    torch.testing.assert_close(Fbank(normalize_mean=False)(silence), floor)
    torch.testing.assert_close(Fbank(normalize_mean=False)(silence), kaldi_fbank(silence, num_mel_bins=80))
    assert Fbank()(silence).abs().max() < 1e-5


def test_gain_vanishes_under_mean_normalisation() -> None:
    waveforms = noise(2, 16000) * 0.1
    fbank = Fbank()
    torch.testing.assert_close(fbank(waveforms), fbank(waveforms * 0.5), atol=1e-4, rtol=0)
    assert fbank(waveforms).mean(dim=1).abs().max() < 1e-5


@pytest.mark.parametrize("hertz", [200.0, 1000.0, 5000.0])
def test_tone_peaks_in_its_mel_band(hertz: float) -> None:
    tone = 0.3 * torch.sin(2 * math.pi * hertz * torch.arange(16000) / 16000)
    low, high, here = (float(hertz_to_mel(torch.tensor(value))) for value in (20.0, 8000.0, hertz))
    band = (here - low) / ((high - low) / 81) - 1
    peak = Fbank(normalize_mean=False)(tone[None])[0].mean(0).argmax()
    assert abs(float(peak) - band) <= 1


def test_num_frames_matches_output_and_row_does_not_see_batch() -> None:
    fbank = Fbank()
    for num_samples in (400, 559, 560, 32000, 48000):
        assert fbank(torch.zeros(1, num_samples)).shape[1] == fbank.num_frames(num_samples)
    assert fbank.num_frames(399) == 0
    waveforms = noise(9, 32000) * 0.1  # more than one pass
    alone = torch.cat([fbank(row[None]) for row in waveforms])
    torch.testing.assert_close(fbank(waveforms), alone, atol=1e-5, rtol=0)


def test_stays_float32_under_autocast() -> None:
    waveforms = noise(2, 8000) * 0.1
    fbank = Fbank()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = fbank(waveforms)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, fbank(waveforms))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="valid: hamming, povey"):
        Fbank(window="hann")
    with pytest.raises(ValueError, match="must lie within"):
        Fbank(high_freq=9000.0)
    with pytest.raises(ValueError, match=r"T >= 400"):
        Fbank()(torch.zeros(1, 399))
