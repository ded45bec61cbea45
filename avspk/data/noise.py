"""The noise pack: additive noises and room impulse responses in the form that loaders and the device read fast."""

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd

SAMPLE_RATE = 16000
CATEGORIES = ("noise", "music", "speech")
COLUMNS = ("name", "category", "start", "num_samples")
SAMPLES_FILE, TABLE_FILE, RIRS_FILE = "samples.npy", "recordings.tsv", "rirs.npy"
RIR_SHARE = 0.25  # of a memory budget, at most


class NoisePackError(ValueError):
    """A noise pack that cannot be read or written; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class RecordingTable:
    """What drawing an augmentation needs to know of a pack: small, picklable, without samples.

    `num_samples` int64 (n,) lengths by recording; `order` int64 (n,) recordings sorted by category;
    `first`, `count` int64 (len(CATEGORIES),) where each category lies in `order`.
    """

    num_samples: np.ndarray
    order: np.ndarray
    first: np.ndarray
    count: np.ndarray

    @classmethod
    def from_recordings(cls, recordings: pd.DataFrame) -> "RecordingTable":
        """Table of a pack's `recordings` (columns category, num_samples)."""
        category = recordings["category"].map({name: k for k, name in enumerate(CATEGORIES)}).to_numpy(np.int64)
        count = np.bincount(category, minlength=len(CATEGORIES))
        first = np.cumsum(count) - count
        return cls(recordings["num_samples"].to_numpy(np.int64), np.argsort(category, kind="stable"), first, count)


@dataclass(frozen=True)
class NoisePack:
    """Recordings end to end, and impulse responses.

    `samples` int16 (S,) at 16 kHz, memory-mapped when read whole; `recordings` a table with the columns name,
    category (one of CATEGORIES), start, num_samples, in the order of `samples`; `rirs` float32 (R, L), each of
    unit energy with its direct path at sample 0, so that convolution neither delays nor, on average, amplifies.
    """

    samples: np.ndarray
    recordings: pd.DataFrame
    rirs: np.ndarray

    @cached_property
    def table(self) -> RecordingTable:
        """The light part that workers need for drawing."""
        return RecordingTable.from_recordings(self.recordings)

    @property
    def starts(self) -> np.ndarray:
        """First sample of each recording, int64 (n,)."""
        return self.recordings["start"].to_numpy(np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """Samples of each recording, int64 (n,)."""
        return self.recordings["num_samples"].to_numpy(np.int64)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_noise_pack(folder: Path | str, max_gigabytes: float | None = None) -> NoisePack:
    """Open and validate a pack; with `max_gigabytes`, a version of it that fits (see `fit_to_memory`).

    Raises NoisePackError naming the file and what is wrong with it.
    """
    folder = Path(folder)
    for name in (SAMPLES_FILE, TABLE_FILE, RIRS_FILE):
        if not (folder / name).is_file():
            raise NoisePackError(f"{folder} has no {name}; make a noise pack with tools/prepare_noise.py")
    # "c": copy on write, because torch wants arrays it could write to
    samples = np.load(folder / SAMPLES_FILE, mmap_mode="c", allow_pickle=False)
    rirs = np.load(folder / RIRS_FILE, mmap_mode="c", allow_pickle=False)
    recordings = pd.read_csv(folder / TABLE_FILE, sep="\t", dtype={"name": str, "category": str}, keep_default_na=False)
    pack = NoisePack(samples, recordings, rirs)
    validate(pack, str(folder))
    return pack if max_gigabytes is None else fit_to_memory(pack, max_gigabytes)


def validate(pack: NoisePack, where: str = "noise pack") -> None:
    """Raise NoisePackError unless the table describes the samples exactly and the arrays have their types."""
    if pack.samples.dtype != np.int16 or pack.samples.ndim != 1:
        raise NoisePackError(f"{where}: samples are {pack.samples.dtype} {pack.samples.shape}; valid: int16 (S,)")
    if pack.rirs.dtype != np.float32 or pack.rirs.ndim != 2:
        raise NoisePackError(f"{where}: RIRs are {pack.rirs.dtype} {pack.rirs.shape}; valid: float32 (R, L)")
    if tuple(pack.recordings.columns) != COLUMNS:
        raise NoisePackError(f"{where}: table has columns {list(pack.recordings.columns)}; valid: {list(COLUMNS)}")
    unknown = pack.recordings.loc[~pack.recordings["category"].isin(CATEGORIES), "category"]
    if len(unknown):
        raise NoisePackError(f"{where}: category {unknown.iloc[0]!r} in row {unknown.index[0]}; valid: {CATEGORIES}")
    ends = np.cumsum(pack.lengths)
    if np.any(pack.lengths <= 0) or np.any(pack.starts != ends - pack.lengths):
        raise NoisePackError(f"{where}: recordings are empty or not end to end; prepare the pack again")
    described = int(ends[-1]) if len(ends) else 0
    if described != len(pack.samples):
        raise NoisePackError(f"{where}: table describes {described} samples, file has {len(pack.samples)}")


def water_level(amounts: np.ndarray, budget: float) -> float:
    """The cap c for which sum(min(amounts, c)) equals `budget`; infinity if everything fits."""
    left = budget
    ordered = np.sort(amounts)
    for k, amount in enumerate(ordered):
        level = left / (len(ordered) - k)
        if amount >= level:
            return level if np.sum(amounts) > budget else np.inf
        left -= amount
    return np.inf


def fit_to_memory(pack: NoisePack, max_gigabytes: float) -> NoisePack:
    """A copy of at most `max_gigabytes` (10^9 bytes) that keeps as many different sounds as possible.

    RIRs are thinned evenly to at most a quarter of the budget. Categories share the rest equally (one that needs less
    leaves it to the others), and within a category the longest recordings are cut, to one common length around their
    middle: variety helps augmentation, more minutes of the same file do not.
    """
    if pack.samples.nbytes + pack.rirs.nbytes <= max_gigabytes * 1e9:
        return pack
    num_rirs = min(len(pack.rirs), int(max_gigabytes * 1e9 * RIR_SHARE) // max(1, 4 * pack.rirs.shape[1]))
    rirs = pack.rirs[np.linspace(0, len(pack.rirs) - 1, num_rirs).round().astype(np.int64)]
    budget = (max_gigabytes * 1e9 - rirs.nbytes) / 2  # samples
    category = pack.recordings["category"].to_numpy()
    totals = np.array([pack.lengths[category == name].sum() for name in CATEGORIES])
    share = water_level(totals, budget)
    lengths = pack.lengths.copy()
    for name in CATEGORIES:
        members = category == name
        lengths[members] = np.minimum(lengths[members], int(max(1.0, min(water_level(lengths[members], share), 2**62))))
    starts = pack.starts + (pack.lengths - lengths) // 2
    samples = np.concatenate([pack.samples[s : s + n] for s, n in zip(starts, lengths, strict=True)])
    recordings = pack.recordings.assign(start=np.cumsum(lengths) - lengths, num_samples=lengths)
    return NoisePack(samples, recordings, rirs)


# --- writing ---------------------------------------------------------------------------------------------------------


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """Float (n,) in [-1, 1] -> int16, clipped; int16 passes through."""
    if waveform.dtype == np.int16:
        return waveform
    return np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)


def align_rir(rir: np.ndarray, num_samples: int) -> np.ndarray:
    """Impulse response (n,) -> float32 (num_samples,): from its highest peak (the direct path) on, unit energy.

    Raises NoisePackError for a response without energy.
    """
    peak = int(np.argmax(np.abs(rir))) if len(rir) else 0
    aligned = np.zeros(num_samples)
    aligned[: len(rir) - peak] = rir[peak : peak + num_samples]
    energy = float(np.sum(aligned**2))
    if not np.isfinite(energy) or energy <= 0:
        raise NoisePackError("impulse response has no energy or is not finite")
    return (aligned / np.sqrt(energy)).astype(np.float32)


def _write_header(file: BinaryIO, num_samples: int) -> int:
    """Write the .npy header of an int16 vector at the file's start; its size does not depend on `num_samples`."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "<i2", "fortran_order": False, "shape": (num_samples,)})
    return file.tell()


def _write_samples(path: Path, recordings: Iterable[tuple[str, str, np.ndarray]]) -> pd.DataFrame:
    """Stream recordings into one .npy file, one in memory at a time; returns their table."""
    rows: list[tuple[str, str, int, int]] = []
    total = 0
    with path.open("wb") as file:
        header = _write_header(file, 0)
        for name, category, waveform in recordings:
            if category not in CATEGORIES:
                raise NoisePackError(f"{name} has category {category!r}; valid: {CATEGORIES}")
            if len(waveform) == 0:
                raise NoisePackError(f"{name} is empty; leave it out")
            file.write(np.ascontiguousarray(to_int16(waveform), dtype="<i2").tobytes())
            rows.append((name, category, total, len(waveform)))
            total += len(waveform)
        if _write_header(file, total) != header:
            raise NoisePackError(f"{path}: .npy header grew with its shape; this numpy version is not supported")
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"start": np.int64, "num_samples": np.int64})


def write_noise_pack(
    folder: Path | str, recordings: Iterable[tuple[str, str, np.ndarray]], rirs: Iterable[np.ndarray]
) -> NoisePack:
    """Write a pack and return it as read back; an existing one is replaced only once the new one is complete.

    `recordings` yields (name, category, waveform (n,) float in [-1, 1] or int16, 16 kHz), `rirs` yields rows of one
    length as `align_rir` makes them. Both are consumed lazily, so a corpus larger than memory can be packed.
    Raises NoisePackError for an unknown category, an empty recording, or a result without any sound.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    table = _write_samples(partial / SAMPLES_FILE, recordings)
    rows = list(rirs)
    np.save(partial / RIRS_FILE, np.stack(rows).astype(np.float32) if rows else np.zeros((0, 1), np.float32))
    if table.empty and not rows:
        shutil.rmtree(partial)
        raise NoisePackError(f"nothing to write to {folder}: no recordings and no impulse responses")
    table.to_csv(partial / TABLE_FILE, sep="\t", index=False)
    validate(read_noise_pack(partial), str(partial))
    _replace_folder(partial, folder)
    return read_noise_pack(folder)


def _replace_folder(source: Path, target: Path) -> None:
    """Flush `source` to disk and rename it to `target`, whatever stood there before."""
    for path in source.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


# --- generating ------------------------------------------------------------------------------------------------------


def _smooth_walk(rng: np.random.Generator, num_points: int, num_samples: int) -> np.ndarray:
    """A standard normal value at each of `num_points`, joined by cosine ramps: (num_samples,)."""
    points = rng.standard_normal(num_points)
    position = np.linspace(0, num_points - 1, num_samples)
    left = np.minimum(position.astype(np.int64), num_points - 2)
    ramp = 0.5 - 0.5 * np.cos(np.pi * (position - left))
    return points[left] * (1 - ramp) + points[left + 1] * ramp


def _peak_normalize(waveform: np.ndarray, peak: float = 0.5) -> np.ndarray:
    return waveform * (peak / np.max(np.abs(waveform)))


def coloured_noise(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Noise of a 1/f^b spectrum, b in 0..2, uneven by 6 dB, its level swaying by up to 6 dB (deviation): (n,)."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    frequency = np.maximum(np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE), 20.0)
    unevenness = 6.0 * _smooth_walk(rng, 12, len(frequency))
    spectrum *= frequency ** (-rng.uniform(0, 2) / 2) * 10 ** (unevenness / 20)
    swells = max(2, int(rng.uniform(0.5, 8) * num_samples / SAMPLE_RATE))
    sway = rng.uniform(0, 6) * _smooth_walk(rng, swells, num_samples)  # dB
    return _peak_normalize(np.fft.irfft(spectrum, num_samples) * 10 ** (sway / 20))


def tonal_music(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Plucked notes of a pentatonic scale in two or three voices at one tempo: (num_samples,)."""
    beat = int(SAMPLE_RATE / rng.uniform(1.5, 5))
    root = 110 * 2 ** rng.uniform(0, 1)
    harmonics = np.arange(1, 9)
    timbre = harmonics ** -rng.uniform(0.7, 2.0)
    time = np.arange(4 * beat) / SAMPLE_RATE
    pluck = np.minimum(1.0, time / 0.01) * np.exp(-time * rng.uniform(1, 6))
    music = np.zeros(num_samples + len(time))
    for onset in range(0, num_samples, beat):
        for step in rng.choice(np.array([0, 2, 4, 7, 9, 12, 14, 16]), size=rng.integers(1, 4), replace=False):
            pitch = root * 2 ** (step / 12) * harmonics
            audible = timbre * (pitch < SAMPLE_RATE / 2)
            music[onset : onset + len(time)] += pluck * (audible @ np.sin(2 * np.pi * pitch[:, None] * time))
    return _peak_normalize(music[:num_samples])


def exponential_rir(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """A direct path and a decaying noise tail: float32 (num_samples,), unit energy.

    RT60 is uniform in 0.05-0.6 s (amplitude exp(-6.91 t / RT60) is 60 dB down at RT60), the tail starts 1-10 ms after
    the direct path, and the direct-to-reverberant energy ratio is uniform in -3..12 dB.
    """
    rt60 = rng.uniform(0.05, 0.6)
    delay = int(rng.uniform(0.001, 0.01) * SAMPLE_RATE)
    time = np.arange(num_samples - delay) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * np.exp(-np.log(1000.0) * time / rt60)
    tail *= 10 ** (-rng.uniform(-3, 12) / 20) / np.sqrt(np.sum(tail**2))
    rir = np.zeros(num_samples)
    rir[0] = 1.0
    rir[delay:] += tail
    return (rir / np.sqrt(np.sum(rir**2))).astype(np.float32)


def generate_noise_pack(
    folder: Path | str,
    seed: int,
    speech: Iterable[np.ndarray] = (),
    num_noises: int = 60,
    num_music: int = 30,
    num_rirs: int = 300,
    seconds: float = 8.0,
    rir_seconds: float = 0.6,
) -> NoisePack:
    """Write a procedural pack for those without MUSAN and RIRS_NOISES; the same arguments give the same bytes.

    `speech` yields 16 kHz waveforms (n,), for babble: utterances of the training set. Without it the pack has no
    speech category. The sounds: `coloured_noise`, `tonal_music`, `exponential_rir`. All [C].
    """
    seeds = np.random.SeedSequence(seed).spawn(3)
    noise_rng, music_rng, rir_rng = (np.random.default_rng(child) for child in seeds)
    num_samples = int(seconds * SAMPLE_RATE)

    def recordings() -> Iterator[tuple[str, str, np.ndarray]]:
        for k in range(num_noises):
            yield f"noise-{k:04d}", "noise", coloured_noise(noise_rng, num_samples)
        for k in range(num_music):
            yield f"music-{k:04d}", "music", tonal_music(music_rng, num_samples)
        for k, waveform in enumerate(speech):
            yield f"speech-{k:04d}", "speech", waveform

    rirs = (exponential_rir(rir_rng, int(rir_seconds * SAMPLE_RATE)) for _ in range(num_rirs))
    return write_noise_pack(folder, recordings(), rirs)
