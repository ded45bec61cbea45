"""Front ends: reverberation, noise and fbank against crop by crop; faces against torchvision, image by image.

One example is the paper's: 2 crops of 3 s and 4 of 2 s, each with reverberation or one noise, then log mel features.
Ours is `AudioAugment` and `Fbank` on batches, the baseline `per_utterance`. Both get the same parameters and must give
the same features, which is checked first. Faces: 2 global and 4 local crops of an example with `ImageAugment` against
torchvision's transforms of the same kinds and rates. On a CPU one thread each and CPU seconds; on a GPU ours runs
there, the baseline on one core, in wall time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avspk.data.augmentation import ImagePolicy, draw_image
from avspk.frontend.audio_augment import AudioAugment
from avspk.frontend.fbank import Fbank
from avspk.frontend.image_augment import ImageAugment
from benchmarks.figures import Figure, rate
from benchmarks.measure import clock_on, take_turns, threads
from benchmarks.per_utterance import CROPS, Group, PerUtterance, draw_examples, kaldi_features, write_noises

FACES = ((2, 112, (0.4, 1.0)), (4, 64, (0.15, 0.4)))  # number, size, share of the area


@dataclass(frozen=True)
class Sizes:
    """Examples in a batch, noise files of each kind and the share of MUSAN's length that they have."""

    batch: int = 16
    files_per_category: int = 3
    noise_share: float = 1.0
    turns: int = 5


def run(device: torch.device, sizes: Sizes) -> Iterator[Figure]:
    """Examples a second of the audio front end, of the fbank alone, and of the face front end."""
    clock = clock_on(device)
    unit = f"examples/{clock.unit}"
    with threads(1), tempfile.TemporaryDirectory() as folder:
        jobs = audio_jobs(Path(folder), device, sizes)
        taken = take_turns(jobs, sizes.turns, clock)
        crop_by_crop = "scipy, Kaldi fbank, crop by crop"
        figures = {
            "front end: audio, whole noise files": ("ours", "whole files", f"soundfile, {crop_by_crop}"),
            "front end: audio, noise cut beforehand": ("ours", "cut beforehand", crop_by_crop),
            "front end: fbank alone": ("fbank", "Kaldi fbank", "Kaldi fbank, crop by crop"),
        }
        for name, (ours, baseline, baseline_is) in figures.items():
            yield rate(name, sizes.batch, unit, taken[ours], taken[baseline], baseline_is)
        taken = take_turns(face_jobs(device, sizes.batch), sizes.turns, clock)
        named = "torchvision v2, image by image"
        yield rate("front end: faces", sizes.batch, unit, taken["ours"], taken["baseline"], named)


def audio_jobs(folder: Path, device: torch.device, sizes: Sizes) -> dict[str, Callable[[], object]]:
    """The jobs to time: ours, the baseline with either kind of noise, and both ways of making features alone."""
    pack, files = write_noises(folder, sizes.files_per_category, sizes.noise_share)
    augment, fbank = AudioAugment(pack).to(device), Fbank().to(device)
    cut = np.random.default_rng(0).normal(0, 0.1, CROPS[0][1]).astype(np.float32)
    whole, beforehand = PerUtterance(pack.rirs, files), PerUtterance(pack.rirs, files, cut)
    examples = draw_examples(pack, sizes.batch, seed=0)
    waveforms = [torch.from_numpy(crops) / 32768 for crops, _ in examples]

    def ours(groups: list[Group] = examples) -> list[Tensor]:
        return [fbank(augment(torch.from_numpy(crops).to(device), as_tensors(numbers))) for crops, numbers in groups]

    check_equal(ours(), whole.features(examples))
    return {
        "ours": ours,
        "whole files": lambda: whole.features(examples),
        "cut beforehand": lambda: beforehand.features(examples),
        "fbank": lambda: [fbank(crops.to(device)) for crops in waveforms],
        "Kaldi fbank": lambda: [kaldi_features(crop.numpy()) for crops in waveforms for crop in crops],
    }


def check_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Raise RuntimeError unless both ways gave the same features."""
    pairs = zip([row for group in ours for row in group.cpu()], theirs, strict=True)
    worst = max(float((mine - other).abs().max()) for mine, other in pairs)
    if worst > 2e-2:
        raise RuntimeError(f"the two front ends differ by up to {worst:.2g}: their times cannot be compared")


def face_jobs(device: torch.device, batch: int) -> dict[str, Callable[[], object]]:
    """Ours in batches with parameters drawn per image; torchvision image by image."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, 112, 112, 3), dtype=np.uint8)
    ours = [(ImageAugment(size).to(device), ImagePolicy(scale=scale), count) for count, size, scale in FACES]
    theirs = [(torchvision_transform(size, scale), count) for count, size, scale in FACES]

    def batched() -> None:
        for augment, policy, count in ours:
            drawn = [draw_image(rng, policy, count) for _ in range(batch)]
            numbers = {name: np.concatenate([one[name] for one in drawn]) for name in drawn[0]}
            augment(torch.from_numpy(images.repeat(count, axis=0)).to(device), as_tensors(numbers))

    def one_by_one() -> None:
        for transform, count in theirs:
            for image in images:
                for _ in range(count):
                    transform(torch.from_numpy(image).permute(2, 0, 1))

    return {"ours": batched, "baseline": one_by_one}


def torchvision_transform(size: int, scale: tuple[float, float]) -> Any:
    """The torchvision transforms equivalent to an image policy's defaults."""
    from torchvision.transforms import v2

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
    """The same parameters as tensors."""
    return {name: torch.from_numpy(value) for name, value in numbers.items()}
