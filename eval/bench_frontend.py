"""Speed of the front ends against the per-utterance CPU way, on one thread each.

    python eval/bench_frontend.py [--turns 5] [--out FILE.json]

One example is the paper's: 2 crops of 3 s and 4 of 2 s, each with reverberation or one noise, then log mel features.
The baseline treats crop by crop: soundfile, scipy.signal.fftconvolve, torchaudio's Kaldi fbank; noise comes from whole
wav files as long as MUSAN's (in a warm page cache), or from arrays cut beforehand. Ours is `AudioAugment` and `Fbank`
on batches. Both get the same numbers and must give the same features, which is checked first. Faces: 2 global and 4
local crops of an example against torchvision's transforms, image by image.
CPU seconds are counted, not those on the wall, so that other work on the machine does not matter much; turns alternate,
the figures are medians, ratios above 1 are in our favour.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.signal
import soundfile
import torch
from torch import Tensor
from torchaudio.compliance import kaldi
from torchvision.transforms import v2

from avspk.config import AudioPolicy, ImagePolicy
from avspk.data.augmentation import draw_audio, draw_image
from avspk.data.media import SAMPLE_RATE
from avspk.data.noise import CATEGORIES, NoisePack, generated_rirs, write_noise_pack
from avspk.frontend.audio_augment import AudioAugment
from avspk.frontend.fbank import Fbank
from avspk.frontend.image_augment import ImageAugment

Record = dict[str, Any]
Groups = list[tuple[np.ndarray, dict[str, np.ndarray]]]
"""Crops of one length, int16 (n, T), with the numbers of their augmentation."""

BATCH = 16  # examples
CROPS = ((2, 3 * SAMPLE_RATE), (4, 2 * SAMPLE_RATE))  # number, samples
FACES = ((2, 112, (0.4, 1.0)), (4, 64, (0.15, 0.4)))  # number, size, share of the area
# MUSAN: recordings and their mean seconds. Chances go by recordings, and there is one in a noise: no babble.
MUSAN = {"noise": (930, 23), "music": (660, 232), "speech": (426, 510)}
POLICY = AudioPolicy(voices=(1, 1), category_weights=(930.0, 660.0, 426.0))
FILES_PER_CATEGORY = 3


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        records = compare_audio(Path(folder), args.turns)
    records.append(compare_faces(args.turns))
    for record in records:
        line = "{name:40s} ours {ours:8.1f}  baseline {baseline:8.1f} {unit}  ratio {ratio:5.2f}  ({baseline_is})"
        print(line.format(**record))
    if args.out:
        args.out.write_text(json.dumps(records, indent=1))


def write_noises(folder: Path) -> NoisePack:
    """Write recordings of MUSAN's mean lengths as wav files, and the pack of the same samples."""
    rng = np.random.default_rng(0)
    recordings = []
    for category, (_, seconds) in MUSAN.items():
        for k in range(FILES_PER_CATEGORY):
            samples = rng.integers(-3000, 3000, seconds * SAMPLE_RATE, dtype=np.int16)
            recordings.append((f"{category}-{k}", category, samples))
            soundfile.write(folder / f"{category}-{k}.wav", samples, SAMPLE_RATE)
    return write_noise_pack(folder / "pack", recordings, generated_rirs(0, 50, seconds=1.0))


def draw_examples(pack: NoisePack, seed: int) -> Groups:
    """Return a batch of examples, each drawn on its own as a loader does."""
    rng = np.random.default_rng(seed)
    groups = []
    for count, num_samples in CROPS:
        crops = rng.normal(0, 1000, (BATCH * count, num_samples)).astype(np.int16)
        drawn = [draw_audio(rng, POLICY, pack.table, len(pack.rirs), count) for _ in range(BATCH)]
        groups.append((crops, {name: np.concatenate([one[name] for one in drawn]) for name in drawn[0]}))
    return groups


class PerUtterance:
    """The baseline: every crop on its own, as toolkits do it in their loaders."""

    def __init__(self, folder: Path, rirs: np.ndarray) -> None:
        self.rirs = np.array(rirs)
        self.files = [folder / f"{category}-{k}.wav" for category in CATEGORIES for k in range(FILES_PER_CATEGORY)]

    def features(self, groups: Groups, noise_piece: Callable[[int, int, int], np.ndarray]) -> list[Tensor]:
        """Augment each crop and return its (frames, 80); `noise_piece` takes a recording, an offset and a length."""
        features = []
        for crops, numbers in groups:
            for k, crop in enumerate(crops):
                samples = crop.astype(np.float32) / 32768
                if numbers["rir"][k] >= 0:
                    samples = scipy.signal.fftconvolve(samples, self.rirs[numbers["rir"][k]])[: len(samples)]
                else:
                    piece = noise_piece(numbers["noise"][k, 0], numbers["noise_offset"][k, 0], len(samples))
                    power_ratio = np.mean(samples**2) / np.mean(piece**2)
                    samples = samples + piece * np.sqrt(power_ratio * 10 ** (-numbers["snr"][k] / 10))
                features.append(kaldi_features(samples.astype(np.float32)))
        return features

    def read_and_cut(self, recording: int, offset: int, num_samples: int) -> np.ndarray:
        """Read a whole wav file for a piece of it."""
        samples = soundfile.read(self.files[recording], dtype="float32")[0]
        piece = samples[offset : offset + num_samples]
        return piece if len(piece) == num_samples else np.concatenate([piece, samples[: num_samples - len(piece)]])


def kaldi_features(waveform: np.ndarray) -> Tensor:
    """Kaldi fbank of one crop, mean over time subtracted: (frames, 80)."""
    samples = torch.from_numpy(waveform)[None] * 2**15
    features = kaldi.fbank(samples, num_mel_bins=80, dither=0.0, window_type="hamming")
    return features - features.mean(dim=0)


def compare_audio(folder: Path, turns: int) -> list[Record]:
    """Compare the whole audio front end, with noise from whole files and cut beforehand, and the fbank alone."""
    pack = write_noises(folder)
    augment, fbank, baseline = AudioAugment(pack), Fbank(), PerUtterance(folder, pack.rirs)
    cut = np.random.default_rng(0).normal(0, 0.1, CROPS[0][1]).astype(np.float32)

    def ours(groups: Groups) -> list[Tensor]:
        return [fbank(augment(torch.from_numpy(crops), as_tensors(numbers))) for crops, numbers in groups]

    check_equal(ours(draw_examples(pack, 0)), baseline.features(draw_examples(pack, 0), baseline.read_and_cut))
    rows = []
    for turn in range(turns):
        groups = draw_examples(pack, turn)
        waveforms = [torch.from_numpy(crops) / 32768 for crops, _ in groups]
        jobs: tuple[Callable[[], object], ...] = (
            lambda: ours(groups),  # noqa: B023 (called at once)
            lambda: baseline.features(groups, baseline.read_and_cut),  # noqa: B023
            lambda: baseline.features(groups, lambda _, __, num_samples: cut[:num_samples]),  # noqa: B023
            lambda: [fbank(crops) for crops in waveforms],  # noqa: B023
            lambda: [kaldi_features(crop.numpy()) for crops in waveforms for crop in crops],  # noqa: B023
        )
        rows.append([cpu_seconds(job) for job in jobs])
    both, whole_files, cut_before, our_fbank, kaldi_fbank = zip(*rows, strict=True)
    return [
        record("audio, whole noise files", both, whole_files, "soundfile, scipy, Kaldi fbank, crop by crop"),
        record("audio, noise cut beforehand", both, cut_before, "scipy, Kaldi fbank, crop by crop"),
        record("fbank alone", our_fbank, kaldi_fbank, "Kaldi fbank, crop by crop"),
    ]


def check_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Stop unless both ways gave the same features."""
    pairs = zip([row for group in ours for row in group], theirs, strict=True)
    worst = max(float((mine - other).abs().max()) for mine, other in pairs)
    print(f"largest difference of features between the two ways: {worst:.1e}")
    if worst > 2e-2:
        raise SystemExit("the two ways do not compute the same features: their times cannot be compared")


def compare_faces(turns: int) -> Record:
    """Compare the face front end with torchvision's transforms of the same kinds and rates."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 112, 112, 3), dtype=np.uint8)
    ours = [(ImageAugment(size), ImagePolicy(scale=scale), count) for count, size, scale in FACES]
    theirs = [(torchvision_transform(size, scale), count) for count, size, scale in FACES]

    def batched() -> None:
        for augment, policy, count in ours:
            drawn = [draw_image(rng, policy, count) for _ in range(BATCH)]
            numbers = {name: np.concatenate([one[name] for one in drawn]) for name in drawn[0]}
            augment(torch.from_numpy(images.repeat(count, axis=0)), as_tensors(numbers))

    def one_by_one() -> None:
        for transform, count in theirs:
            for image in images:
                for _ in range(count):
                    transform(torch.from_numpy(image).permute(2, 0, 1))

    batched()
    rows = [(cpu_seconds(batched), cpu_seconds(one_by_one)) for _ in range(turns)]
    mine, baseline = zip(*rows, strict=True)
    return record("faces", mine, baseline, "torchvision v2, image by image")


def torchvision_transform(size: int, scale: tuple[float, float]) -> v2.Transform:
    """Return the transforms that an image policy's defaults stand for."""
    return v2.Compose([
        v2.RandomResizedCrop(size, scale, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(17, (0.1, 2.0))], p=0.5),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip


def as_tensors(numbers: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Return the same numbers as tensors."""
    return {name: torch.from_numpy(value) for name, value in numbers.items()}


def cpu_seconds(function: Callable[[], object]) -> float:
    """Return the CPU time of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def record(name: str, ours: tuple[float, ...], baseline: tuple[float, ...], baseline_is: str) -> Record:
    """Return one line of the table from the seconds a batch took in each turn."""
    ratio = statistics.median(theirs / mine for mine, theirs in zip(ours, baseline, strict=True))
    return {"name": f"front end, {name}", "ours": BATCH / statistics.median(ours),
            "baseline": BATCH / statistics.median(baseline), "ratio": ratio, "unit": "examples/CPU s",
            "baseline_is": baseline_is}  # fmt: skip


if __name__ == "__main__":
    main()
