"""Front end against speechbrain and torch-audiomentations: log mel features; reverberation and noise.

The batches have the paper's crops: an example is 2 crops of 3 s and 4 of 2 s. Features: `Fbank` with the mean over time
subtracted, against speechbrain's `Fbank` and sentence normalisation. The definitions differ (pre-emphasis, FFT of 512
or 400 points, edges of the bands and of the file, decibels), so equality is checked elsewhere (frontend: Kaldi's).
Augmentation: half of the crops get an impulse response, the other half a noise at 0 to 15 dB: ours from the noise pack,
speechbrain's by `AddReverb` and `AddNoise` from wav files of the same content in the page cache, cut to 3 s as in its
recipes. `AddReverb` uses one response for the whole batch, ours one per crop. With one response both must give the same
sound after the length of the response: theirs wraps the end of a crop around to its beginning. torch-audiomentations
does the same task as ours, with a response or a noise for each crop, from the same files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
AUDIOMENTATIONS = ("torch-audiomentations",)
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
    other = None if missing(AUDIOMENTATIONS) else audiomentations(noise_csv.parent, response_csv.parent)
    if other:
        require_same_sound(augment, pack, response_csv.parent / "0.wav", groups[0][:4])
    yield compare_rate(
        "peers: reverberation and noise, theirs one for each crop", sizes.batch, "examples", clock_on(device),
        sizes.turns, ours, (lambda: [other(group) for group in groups]) if other else None,
        missing(AUDIOMENTATIONS) or named(AUDIOMENTATIONS, "ApplyImpulseResponse, AddBackgroundNoise"),
    )  # fmt: skip


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


def soundfile_reader() -> Any:
    """torch-audiomentations' `Audio`, reading with soundfile.

    Release 0.12 reads with `torchaudio.info` and `torchaudio.load`. torchaudio 2.11 does not have the former, and needs
    another package for the latter.
    """
    from torch_audiomentations.utils.io import Audio

    class Reader(Audio):
        @staticmethod
        def get_audio_metadata(file_path: Path | str) -> tuple[int, int]:
            found = soundfile.info(str(file_path))
            return found.frames, found.samplerate

        def __call__(self, file: Path | str, sample_offset: int = 0, num_samples: int | None = None) -> Tensor:
            frames = -1 if num_samples is None else num_samples
            sound, _ = soundfile.read(str(file), frames, sample_offset, dtype="float32", always_2d=True)
            return torch.from_numpy(sound.T)

    return Reader(sample_rate=SAMPLE_RATE, mono=True)


def impulse_response(responses: Path) -> Any:
    """`ApplyImpulseResponse` for every crop."""
    from torch_audiomentations import ApplyImpulseResponse

    reverb = ApplyImpulseResponse(str(responses), p=1.0, sample_rate=SAMPLE_RATE, output_type="tensor")
    reverb.audio = soundfile_reader()
    return reverb


def audiomentations(noises: Path, responses: Path) -> Callable[[Tensor], Tensor]:
    """The same halves."""
    from torch_audiomentations import AddBackgroundNoise

    reverb, low, high = impulse_response(responses), *SNR
    noise = AddBackgroundNoise(str(noises), low, high, p=1.0, sample_rate=SAMPLE_RATE, output_type="tensor")
    noise.audio = reverb.audio

    def augment(waveforms: Tensor) -> Tensor:
        half = len(waveforms) // 2
        return torch.cat([reverb(waveforms[:half, None]), noise(waveforms[half:, None])])[:, 0]

    return augment


def require_same_sound(augment: AudioAugment, pack: NoisePack, response: Path, waveforms: Tensor) -> None:
    """Raise RuntimeError unless the response of the file, the first of the pack, gives the same sound on both sides."""
    mine = augment(waveforms, only_first_response(len(waveforms), len(pack.rirs)))
    other = impulse_response(response)(waveforms[:, None])[:, 0]
    require_equal_crops(mine, other)


def only_first_response(rows: int, count: int) -> dict[str, Tensor]:
    """Parameters of `AudioAugment`: the first response for every row, and no noise."""
    return plan(rows, count) | {
        "rir": torch.zeros(rows, dtype=torch.int64), "noise": torch.full((rows, 1), -1),
    }  # fmt: skip


def require_same_reverberation(augment: AudioAugment, pack: NoisePack, waveforms: Tensor) -> None:
    """Raise RuntimeError unless one response gives the same sound on both sides, up to the level."""
    from speechbrain.processing.signal_processing import reverberate

    mine = augment(waveforms, only_first_response(len(waveforms), len(pack.rirs)))
    response = torch.from_numpy(np.array(pack.rirs[:1]))[..., None].to(waveforms.device)
    other = reverberate(waveforms[..., None], response, rescale_amp="avg").squeeze(-1)
    behind = response.shape[1]
    require_equal_crops(mine[:, behind:], other[:, behind:])


def require_equal_crops(mine: Tensor, other: Tensor) -> None:
    """Raise RuntimeError unless crops (B, samples) are equal up to the level."""
    cosine = torch.nn.functional.cosine_similarity(mine, other, dim=1)
    require_close("reverberant crops (1 - cosine)", float((1 - cosine).max()), 1e-4)
