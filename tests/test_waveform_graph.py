"""The front end of exported files, against torchaudio's Kaldi filter bank."""

import numpy as np
import pytest
import torch
from small_model import voice
from torchaudio.compliance import kaldi

from avspk.frontend.fbank import Fbank
from avspk.inference.waveform_graph import FrontEndGraph


@pytest.mark.parametrize("silent", [0, 4000], ids=["sound", "digital silence at its end"])
@pytest.mark.parametrize("offset", [0.0, 0.02])
def test_features_are_kaldis(silent, offset):
    """Silence in a recording with an offset is the hard case: its rounding error is far from zero in the logarithm."""
    sound = np.concatenate([voice(1.2) + offset, np.zeros(silent)]).astype(np.float32)
    waveform = torch.from_numpy(sound)[None]
    wanted = kaldi.fbank(2.0**15 * waveform, num_mel_bins=80, window_type="hamming", dither=0.0, energy_floor=0.0)
    found = FrontEndGraph(Fbank(normalize_mean=False))(waveform)[0]
    whole = slice(0, 1 + (len(sound) - silent - 400) // 160)
    assert torch.allclose(found[whole], wanted[whole], atol=0.05)
    if silent:
        assert torch.allclose(found[-10:], wanted[-10:], atol=1e-3)
        assert torch.all(wanted[-10:] < -15.9)
