"""Front end against speechbrain: log mel features; reverberation and noise; on batches of the paper's crops.

An example is 2 crops of 3 s and 4 of 2 s. Features: `Fbank` with the mean over time subtracted, against speechbrain's
`Fbank` and sentence normalisation. The definitions differ (pre-emphasis, FFT of 512 or 400 points, edges of the bands
and of the file, decibels), so equality is checked elsewhere (frontend: Kaldi's). Augmentation: half of the crops get
an impulse response, the other half a noise at 0 to 15 dB: ours from the noise pack, theirs by `AddReverb` and
`AddNoise` from wav files of the same content in the page cache, cut to 3 s as in speechbrain's recipes. `AddReverb`
uses one response for the whole batch, ours one per crop. With one response both must give the same sound after the
length of the response: theirs wraps the end of a crop around to its beginning.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from avspk.data.media import SAMPLE_RATE
from avspk.data.noise import NoisePack, write_noise_pack
from avspk.frontend.audio_augment import AudioAugment
from avspk.frontend.fbank import Fbank
from benchmarks.figures import Figure
from benchmarks.measure import clock_on
from benchmarks.peers import compare_rate, missing, named, require_close
from benchmarks.per_utterance import CROPS

PEER = ("speechbrain",)
SNR = (0.0, 15.0)
Groups = list[Tensor]


@dataclass(frozen=True)
class Sizes:
    """Examples in a batch, numbers of noises and impulse responses."""

    batch: int = 16
    noises: int = 100
    turns: int = 5


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Features, then augmentation."""
    generator = torch.Generator().manual_seed(0)
    groups = [0.1 * torch.randn(sizes.batch * count, samples, generator=generator) for count, samples in CROPS]
    groups = [group.to(device) for group in groups]
    yield features(device, groups, sizes)
    with tempfile.TemporaryDirectory() as folder:
        yield from augmentation(device, groups, sizes, Path(folder))


def features(device: torch.device, groups: Groups, sizes: Sizes) -> Figure:
    """Rate of both."""
    fbank, theirs = Fbank().to(device), None if missing(PEER) else speechbrain_features(device)

    def apply(extract: Callable[[Tensor], Tensor]) -> Groups:
        return [extract(group) for group in groups]

    what = missing(PEER) or named(PEER, "Fbank, 80 mels, sentence normalisation")
    return compare_rate(
        "peers: fbank", sizes.batch, "examples", clock_on(device), sizes.turns, lambda: apply(fbank),
        (lambda: apply(theirs)) if theirs else None, what,
    )  # fmt: skip


def speechbrain_features(device: torch.device) -> Callable[[Tensor], Tensor]:
    """As in its ECAPA recipe."""
    from speechbrain.lobes.features import Fbank as TheirFbank
    from speechbrain.processing.features import InputNormalization

    fbank, normalise = TheirFbank(n_mels=80).to(device), InputNormalization(norm_type="sentence", std_norm=False)

    def extract(waveforms: Tensor) -> Tensor:
        with torch.no_grad():
            return normalise(fbank(waveforms), torch.ones(len(waveforms), device=waveforms.device))

    return extract


def augmentation(device: torch.device, groups: Groups, sizes: Sizes, folder: Path) -> Iterator[Figure]:
    """Reverberation or noise for every crop; theirs in batches, and crop by crop, where each has its own response."""
    pack, noise_csv, response_csv = write_sources(folder, sizes.noises)
    augment, plans = AudioAugment(pack).to(device), [plan(len(group), sizes.noises) for group in groups]
    theirs = None if missing(PEER) else speechbrain_augmentation(noise_csv, response_csv)
    if theirs:
        require_same_reverberation(augment, pack, groups[0][:4])

    def ours() -> Groups:
        return [augment(group, numbers) for group, numbers in zip(groups, plans, strict=True)]

    for way, parts in (
        ("a batch at once", groups),
        ("crop by crop", [pair for group in groups for pair in pairs(group)]),
    ):
        what = missing(PEER) or named(PEER, f"AddReverb and AddNoise, {way}")
        job = (lambda parts=parts: [theirs(part) for part in parts]) if theirs else None
        name = f"peers: reverberation and noise, theirs {way}"
        yield compare_rate(name, sizes.batch, "examples", clock_on(device), sizes.turns, ours, job, what)


def pairs(group: Tensor) -> list[Tensor]:
    """Pairs of a crop for reverberation and one for noise, for all crops."""
    half = len(group) // 2
    return [torch.stack(pair) for pair in zip(group[:half], group[half:], strict=True)]


def write_sources(folder: Path, count: int) -> tuple[NoisePack, Path, Path]:
    """Noises of 3 s and responses of half a second: as a pack, and as wav files with speechbrain's lists of them."""
    rng = np.random.default_rng(0)
    noises = rng.integers(-3000, 3000, (count, 3 * SAMPLE_RATE), dtype=np.int16)
    decay = np.exp(-np.arange(SAMPLE_RATE // 2) / 1600)
    responses = (0.1 * rng.standard_normal((count, len(decay))) * decay).astype(np.float32)
    responses[:, 0] = 1.0  # the direct sound
    pack = write_noise_pack(folder / "pack", [(f"n{k}", "noise", row) for k, row in enumerate(noises)], responses)
    return pack, _listed(folder / "noises", noises), _listed(folder / "responses", responses)


def _listed(folder: Path, sounds: np.ndarray) -> Path:
    """Wav files, and speechbrain's csv for them."""
    folder.mkdir()
    lines = ["ID,duration,wav,wav_format,wav_opts"]
    for number, sound in enumerate(sounds):
        path = folder / f"{number}.wav"
        soundfile.write(path, sound, SAMPLE_RATE, subtype="PCM_16" if sound.dtype == np.int16 else "FLOAT")
        lines.append(f"{number},{len(sound) / SAMPLE_RATE},{path},wav,")
    (folder / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "list.csv"


def plan(rows: int, count: int) -> dict[str, Tensor]:
    """The parameters of `AudioAugment`: the first half reverberant, the second noisy, no equaliser."""
    rng, reverberant = np.random.default_rng(1), np.arange(rows) < rows // 2
    drawn = rng.integers(count, size=rows)
    return {
        "rir": torch.from_numpy(np.where(reverberant, drawn, -1)),
        "equaliser": torch.zeros(rows, 8),
        "noise": torch.from_numpy(np.where(reverberant, -1, drawn))[:, None],
        "noise_offset": torch.from_numpy(rng.integers(3 * SAMPLE_RATE, size=(rows, 1))),
        "snr": torch.from_numpy(rng.uniform(*SNR, rows).astype(np.float32)),
    }


def speechbrain_augmentation(noise_csv: Path, response_csv: Path) -> Callable[[Tensor], Tensor]:
    """The same halves."""
    from speechbrain.augment.time_domain import AddNoise, AddReverb

    reverb = AddReverb(str(response_csv))
    noise = AddNoise(str(noise_csv), snr_low=SNR[0], snr_high=SNR[1])

    def augment(waveforms: Tensor) -> Tensor:
        half = len(waveforms) // 2
        noisy = noise(waveforms[half:], torch.ones(len(waveforms) - half, device=waveforms.device))
        return torch.cat([reverb(waveforms[:half]), noisy])

    return augment


def require_same_reverberation(augment: AudioAugment, pack: NoisePack, waveforms: Tensor) -> None:
    """Raise RuntimeError unless one response gives the same sound on both sides, up to the level."""
    from speechbrain.processing.signal_processing import reverberate

    rows = len(waveforms)
    numbers = plan(rows, len(pack.rirs)) | {
        "rir": torch.zeros(rows, dtype=torch.int64), "noise": torch.full((rows, 1), -1),
    }  # fmt: skip
    mine = augment(waveforms, numbers)
    response = torch.from_numpy(np.array(pack.rirs[:1]))[..., None].to(waveforms.device)
    other = reverberate(waveforms[..., None], response, rescale_amp="avg").squeeze(-1)
    behind = response.shape[1]
    cosine = torch.nn.functional.cosine_similarity(mine[:, behind:], other[:, behind:], dim=1)
    require_close("reverberant crops (1 - cosine)", float((1 - cosine).max()), 1e-4)
