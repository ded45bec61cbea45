"""What MUSAN, RIRS_NOISES and plain folders of recordings look like on disk, and how they become a noise pack."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from avspk.data.media import SAMPLE_RATE, MediaError, require_file
from avspk.data.noise import CATEGORIES, NoisePackError, Recording, align_rir
from avspk.data.sound import read_audio, resample

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".m4a"})
SHORTEST = SAMPLE_RATE // 10  # samples; a shorter recording would only buzz when it repeats
QUIETEST = 1e-4  # peak of full scale under which a recording is silent


@dataclass(frozen=True)
class SoundFile:
    """A recording to pack: its name in the pack, its category, where it lies."""

    name: str
    category: str
    path: Path


@dataclass
class Rejections:
    """Files that could not be used, with the reason, in the order met."""

    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: Path, reason: object) -> None:
        """Note one file; reasons are kept on one line."""
        self.rows.append((str(path), " ".join(str(reason).split())))

    def to_tsv(self) -> str:
        """Lines `path reason`, tab-separated, under a header."""
        return "".join(f"{path}\t{reason}\n" for path, reason in [("path", "reason"), *self.rows])


def find_sounds(folder: Path, category: str) -> list[SoundFile]:
    """Every sound file under `folder`, sorted, as recordings of one category; NoisePackError if there is none."""
    if category not in CATEGORIES:
        raise NoisePackError(f"category {category!r} for {folder}; valid: {', '.join(CATEGORIES)}")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not paths:
        raise NoisePackError(f"{folder} has no sound files ({', '.join(sorted(AUDIO_SUFFIXES))})")
    return [SoundFile(path.relative_to(folder.parent).as_posix(), category, path) for path in paths]


def find_musan(root: Path) -> list[SoundFile]:
    """MUSAN's recordings, {noise,music,speech}/**; `root` is `musan` or the folder around it."""
    root = root / "musan" if (root / "musan").is_dir() else root
    missing = [category for category in CATEGORIES if not (root / category).is_dir()]
    if missing:
        raise NoisePackError(f"{root} is not MUSAN: it has no folder {', '.join(missing)}")
    return [sound for category in CATEGORIES for sound in find_sounds(root / category, category)]


def find_rirs(root: Path) -> list[Path]:
    """Impulse responses of RIRS_NOISES, `root` being it or the folder around it, or of a folder of plain wav files.

    From RIRS_NOISES: `simulated_rirs/**`, and from `real_rirs_isotropic_noises` what is not an isotropic noise.
    """
    root = root / "RIRS_NOISES" if (root / "RIRS_NOISES").is_dir() else root
    simulated, real = root / "simulated_rirs", root / "real_rirs_isotropic_noises"
    folders = [folder for folder in (simulated, real) if folder.is_dir()] or [root]
    paths = sorted(path for folder in folders for path in folder.rglob("*.wav") if "noise" not in path.name.lower())
    if not paths:
        raise NoisePackError(f"{root} has no impulse responses (*.wav)")
    return paths


def read_sounds(sounds: Iterable[SoundFile], rejections: Rejections) -> Iterator[Recording]:
    """Decode recordings to 16 kHz mono, one at a time; unreadable, silent and very short ones are rejected."""
    for sound in sounds:
        try:
            waveform = read_audio(sound.path)
        except MediaError as error:
            rejections.add(sound.path, error)
            continue
        if len(waveform) < SHORTEST:
            rejections.add(sound.path, f"{len(waveform)} samples at 16 kHz; at least {SHORTEST} are needed")
        elif not np.abs(waveform).max() > QUIETEST:
            rejections.add(sound.path, "silent or not finite")
        else:
            yield sound.name, sound.category, waveform


def read_rirs(paths: Iterable[Path], num_samples: int, rejections: Rejections) -> Iterator[np.ndarray]:
    """Impulse responses at 16 kHz as rows of a pack, float32 (num_samples,); unusable ones are rejected."""
    for path in paths:
        try:
            yield align_rir(_first_channel(path), num_samples)
        except (MediaError, NoisePackError) as error:
            rejections.add(path, error)


def _first_channel(path: Path) -> np.ndarray:
    """The first microphone at 16 kHz: averaging an array's channels would comb-filter the room."""
    require_file(path)
    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise MediaError(str(error)) from error
    return samples[:, 0] if rate == SAMPLE_RATE else resample(samples[:, 0], rate)
