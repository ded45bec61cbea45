"""Layout of MUSAN, RIRS_NOISES and plain folders of recordings on disk, and their conversion to a noise pack."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from avspk.common.progress import track
from avspk.common.text_files import printable
from avspk.data.file_results import results_of
from avspk.data.media import MediaError
from avspk.data.noise import NoisePackError, Recording, align_rir
from avspk.data.preparation_settings import CATEGORIES
from avspk.data.sound import read_first_channel, read_sound
from avspk.data.suffixes import MEDIA_SUFFIXES
from avspk.data.tree import media_below

_SUFFIXES_SHOWN = " ".join(sorted(MEDIA_SUFFIXES))
SHORTEST_SECONDS = 0.1  # a shorter recording would only buzz when it repeats


@dataclass(frozen=True)
class SoundFile:
    """A recording to pack: its name in the pack, its category, its path."""

    name: str
    category: str
    path: Path


@dataclass
class Rejections:
    """Files that could not be used, with the reason, in the order of reading."""

    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: Path, reason: object) -> None:
        """Note one file; reasons are kept on one line."""
        self.rows.append((printable(str(path)), " ".join(str(reason).split())))

    def to_tsv(self) -> str:
        """Lines `path reason`, tab-separated, under a header."""
        return "".join(f"{path}\t{reason}\n" for path, reason in [("path", "reason"), *self.rows])


def find_sounds(folder: Path, category: str) -> list[SoundFile]:
    """Every sound file under `folder`, sorted, as recordings of one category; NoisePackError if there is none."""
    if category not in CATEGORIES:
        raise NoisePackError(f"category {category!r} for {folder}; valid: {', '.join(CATEGORIES)}")
    if not folder.is_dir():
        raise NoisePackError(f"no folder {folder}, which should hold recordings of {category}")
    paths = media_below(folder)
    if not paths:
        raise NoisePackError(f"{folder} has no sound files ({_SUFFIXES_SHOWN})")
    return [SoundFile(path.relative_to(folder.parent).as_posix(), category, path) for path in paths]


def find_musan(root: Path) -> list[SoundFile]:
    """MUSAN's recordings, {noise,music,speech}/**; `root` is `musan` or the folder around it."""
    root = root / "musan" if (root / "musan").is_dir() else root
    missing = [category for category in CATEGORIES if not (root / category).is_dir()]
    if missing:
        raise NoisePackError(f"{root} is not MUSAN: it has no folder {', '.join(missing)}")
    return [sound for category in CATEGORIES for sound in find_sounds(root / category, category)]


def find_rirs(root: Path) -> list[Path]:
    """Impulse responses of RIRS_NOISES (`root` is it or the folder around it), or of a folder of sound files.

    From RIRS_NOISES: `simulated_rirs/**`, and the files of `real_rirs_isotropic_noises` that are not isotropic noises.
    """
    if not root.is_dir():
        raise NoisePackError(f"no folder {root}, which should hold impulse responses")
    root = root / "RIRS_NOISES" if (root / "RIRS_NOISES").is_dir() else root
    simulated, real = root / "simulated_rirs", root / "real_rirs_isotropic_noises"
    folders = [folder for folder in (simulated, real) if folder.is_dir()] or [root]
    paths = [path for folder in folders for path in media_below(folder) if "noise" not in path.name.lower()]
    if not paths:
        raise NoisePackError(f"{root} has no impulse responses ({_SUFFIXES_SHOWN})")
    return sorted(paths)


def read_sounds(sounds: Sequence[SoundFile], rejections: Rejections) -> Iterator[Recording]:
    """Decode recordings to 16 kHz mono, one at a time; unreadable, silent and very short ones are rejected."""
    plain = [sound for sound in sounds if sound.name == printable(sound.name)]
    for sound in sounds:
        if sound.name != printable(sound.name):
            rejections.add(sound.path, "the name holds control characters or is not UTF-8")
    waveforms = _tracked(_read_recording, [sound.path for sound in plain], "recordings")
    for sound, waveform in zip(plain, waveforms, strict=True):
        if isinstance(waveform, MediaError):
            rejections.add(sound.path, waveform)
        else:
            yield sound.name, sound.category, waveform


def _read_recording(path: Path) -> np.ndarray:
    return read_sound(path, SHORTEST_SECONDS)


def read_rirs(paths: Sequence[Path], num_samples: int, rejections: Rejections) -> Iterator[np.ndarray]:
    """Impulse responses at 16 kHz as rows of a pack, float32 (num_samples,); unusable ones are rejected.

    The first channel of a microphone array is taken: averaging the channels would comb-filter the room.
    """

    def read(path: Path) -> np.ndarray:
        try:
            return align_rir(read_first_channel(path), num_samples)
        except NoisePackError as error:
            raise MediaError(str(error)) from error

    for path, response in zip(paths, _tracked(read, paths, "impulse responses"), strict=True):
        if isinstance(response, MediaError):
            rejections.add(path, response)
        else:
            yield response


def _tracked(read: Callable[[Path], np.ndarray], paths: Sequence[Path], name: str) -> Iterator[np.ndarray | MediaError]:
    """`results_of`, with a display of progress."""
    return track(results_of(read, paths), name, len(paths), "files")
