"""The noise pack: additive noises and room impulse responses in a form that loaders and the device read fast."""

import itertools
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from avspk.common.extras import explained
from avspk.common.files import content_digest, sync
from avspk.data.media import SAMPLE_RATE
from avspk.data.preparation_settings import CATEGORIES
from avspk.data.synthetic_sounds import coloured_noise, exponential_rir, tonal_music

with explained():
    import pandas as pd

COLUMNS = ("name", "category", "start", "num_samples")
SAMPLES_FILE, TABLE_FILE, RIRS_FILE = "samples.npy", "recordings.tsv", "rirs.npy"
PROBES = 256  # samples that the digest of a pack looks at, in each of its arrays
RIR_SHARE = 0.25  # of a memory budget, at most

Recording = tuple[str, str, np.ndarray]
"""Name, category, and a waveform (n,) at 16 kHz: float in [-1, 1] or int16."""


class NoisePackError(ValueError):
    """A noise pack that cannot be read or written; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class RecordingTable:
    """The part of a pack that drawing an augmentation needs: small, picklable, without samples.

    `num_samples` int64 (n,) lengths by recording; `order` int64 (n,) recordings sorted by category;
    `first`, `count` int64 (len(CATEGORIES),): start and number of each category's entries in `order`.
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
    """Concatenated recordings, and impulse responses.

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

    @cached_property
    def digest(self) -> str:
        """A name for the content: the table, and some samples and responses, spread evenly over all.

        It takes the same moment for any size. A change of single samples of a recording may go unnoticed.
        """
        table = self.recordings.to_csv(sep="\t", index=False, lineterminator="\n").encode()
        arrays = (
            (f"{values.dtype.str} {values.shape}".encode(), _probes(values)) for values in (self.samples, self.rirs)
        )
        return content_digest(table, *itertools.chain.from_iterable(arrays))

    @property
    def starts(self) -> np.ndarray:
        """First sample of each recording, int64 (n,)."""
        return self.recordings["start"].to_numpy(np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """Samples of each recording, int64 (n,)."""
        return self.recordings["num_samples"].to_numpy(np.int64)


def _probes(values: np.ndarray) -> bytes:
    """Some numbers of an array, spread evenly."""
    flat = values.reshape(-1)
    return flat[np.linspace(0, max(0, len(flat) - 1), min(PROBES, len(flat))).astype(np.int64)].tobytes()


def read_noise_pack(folder: Path | str, max_gigabytes: float | None = None) -> NoisePack:
    """Open and validate a pack; with `max_gigabytes`, a copy that fits (see `fit_to_memory`).

    Raises NoisePackError naming the file and what is wrong with it.
    """
    folder = Path(folder)
    for name in (SAMPLES_FILE, TABLE_FILE, RIRS_FILE):
        if not (folder / name).is_file():
            raise NoisePackError(f"{folder} has no {name}; make a noise pack with `avspk noise`")
    # "c": copy on write, because torch requires writable arrays
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
        raise NoisePackError(f"{where}: recordings are empty or not contiguous; prepare the pack again")
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

    RIRs are thinned evenly to at most a quarter of the budget. Categories share the rest equally; what one does not
    need goes to the others. Within a category the longest recordings are cut to one common length around their middle:
    variety helps augmentation, more minutes of the same file do not.
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


class _GrowingArray:
    """A .npy file written row by row, so it need not fit into memory; its header is completed on exit."""

    def __init__(self, path: Path, dtype: str, row_shape: tuple[int, ...] = ()) -> None:
        self.path, self.dtype, self.row_shape, self.num_rows = path, dtype, row_shape, 0

    def __enter__(self) -> "_GrowingArray":
        self.file = self.path.open("wb")
        self.data_start = self._write_header()
        return self

    def __exit__(self, *_: object) -> None:
        data_start = self._write_header()
        self.file.close()
        if data_start != self.data_start:  # numpy pads headers so that they can be rewritten with more rows
            raise NoisePackError(f"{self.path}: the .npy header grew with its shape; this numpy is not supported")

    def _write_header(self) -> int:
        self.file.seek(0)
        shape = (self.num_rows, *self.row_shape)
        header = {"descr": self.dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)
        return self.file.tell()

    def append(self, rows: np.ndarray) -> None:
        """Add rows (n, *row_shape) at the end."""
        self.file.write(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())
        self.num_rows += len(rows)


def _write_samples(path: Path, recordings: Iterable[Recording]) -> pd.DataFrame:
    """Write recordings one after the other, one in memory at a time; returns their table."""
    rows: list[tuple[str, str, int, int]] = []
    with _GrowingArray(path, "<i2") as samples:
        for name, category, waveform in recordings:
            if category not in CATEGORIES:
                raise NoisePackError(f"{name} has category {category!r}; valid: {CATEGORIES}")
            if len(waveform) == 0:
                raise NoisePackError(f"{name} is empty; leave it out")
            rows.append((name, category, samples.num_rows, len(waveform)))
            samples.append(to_int16(waveform))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"start": np.int64, "num_samples": np.int64})


def _write_rirs(path: Path, rirs: Iterable[np.ndarray]) -> int:
    """Write responses of one length, one in memory at a time; returns their number."""
    rows = iter(rirs)
    first = next(rows, None)
    with _GrowingArray(path, "<f4", (1 if first is None else len(first),)) as array:
        while first is not None:
            if first.shape != array.row_shape:
                raise NoisePackError(f"RIR {array.num_rows} is {first.shape}, the previous ones are {array.row_shape}")
            array.append(first[None])
            first = next(rows, None)
    return array.num_rows


def write_noise_pack(folder: Path | str, recordings: Iterable[Recording], rirs: Iterable[np.ndarray]) -> NoisePack:
    """Write a pack and return it as read back; an existing one is replaced only after the new one is complete.

    `rirs` yields rows of one length, made by `align_rir`. Both are consumed lazily, so a corpus larger than memory
    can be packed.
    Raises NoisePackError for an unknown category, an empty recording, or a result without any sound.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        table = _write_samples(partial / SAMPLES_FILE, recordings)
        num_rirs = _write_rirs(partial / RIRS_FILE, rirs)
        if table.empty and num_rirs == 0:
            raise NoisePackError(f"nothing to write to {folder}: no recordings and no impulse responses")
        table.to_csv(partial / TABLE_FILE, sep="\t", index=False)
        read_noise_pack(partial)
        replace_folder(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return read_noise_pack(folder)


def replace_folder(source: Path, target: Path) -> None:
    """Flush the files of `source` to disk and rename it to `target`, replacing an existing one."""
    for path in source.iterdir():
        sync(path)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def generated_recordings(seed: int, category: str, number: int, seconds: float) -> Iterator[Recording]:
    """Procedural "noise" or "music" for `write_noise_pack`; a pure function of its arguments."""
    make = {"noise": coloured_noise, "music": tonal_music}[category]
    for k, child in enumerate(np.random.SeedSequence([seed, CATEGORIES.index(category)]).spawn(number)):
        yield f"{category}-{k:04d}", category, make(np.random.default_rng(child), int(seconds * SAMPLE_RATE))


def generated_rirs(seed: int, number: int, seconds: float) -> Iterator[np.ndarray]:
    """Procedural impulse responses for `write_noise_pack`; a pure function of its arguments."""
    for child in np.random.SeedSequence([seed, len(CATEGORIES)]).spawn(number):
        yield exponential_rir(np.random.default_rng(child), int(seconds * SAMPLE_RATE))


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
    """Write a procedural pack for users without MUSAN and RIRS_NOISES; the same arguments give the same bytes.

    `speech` yields 16 kHz waveforms (n,) for babble: utterances of the training set. Without it the pack has no
    speech category. The sounds come from `avspk.data.synthetic_sounds`. All [C].
    """
    recordings = itertools.chain(
        generated_recordings(seed, "noise", num_noises, seconds),
        generated_recordings(seed, "music", num_music, seconds),
        ((f"speech-{k:04d}", "speech", waveform) for k, waveform in enumerate(speech)),
    )
    return write_noise_pack(folder, recordings, generated_rirs(seed, num_rirs, rir_seconds))
