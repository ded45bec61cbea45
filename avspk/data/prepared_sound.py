"""Output of preparation for the sound of a unit of clips: one file per utterance, or a shard of a pack."""

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from avspk.common.files import whole_or_absent
from avspk.data.preparation_settings import PackFormat
from avspk.data.sound import is_plain_audio, to_int16, write_wav
from avspk.data.sound_store import SoundWriter

FOLDER = "sound"


class PreparedSound(ABC):
    """Stores the sound of one utterance after the other."""

    @abstractmethod
    def put(self, utterance: str, source: Path, waveform: np.ndarray, whole: bool = True) -> str:
        """Store the sound that was read from `source`, all of it or a part; returns its place for the manifest.

        Raises: OSError.
        """

    @abstractmethod
    def sync(self) -> None:
        """Wait until everything stored so far is on the disk."""

    @abstractmethod
    def close(self) -> None:
        """Close; stored sound is kept."""


class PreparedFiles(PreparedSound):
    """The source itself if it needs no conversion, else a new wav file, which is synced when it is written."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def put(self, utterance: str, source: Path, waveform: np.ndarray, whole: bool = True) -> str:
        """See `PreparedSound`."""
        if whole and is_plain_audio(source):
            return str(source.absolute())
        target = f"audio/{utterance}.wav"
        with whole_or_absent(self._out / target) as part:
            write_wav(part, waveform)
        return target

    def sync(self) -> None:
        """Do nothing: files are synced when written."""

    def close(self) -> None:
        """Do nothing: no file is open."""


class PreparedPack(PreparedSound):
    """The shard `name` of a pack, with the samples of the files; entries after the first `keep` are cut off."""

    def __init__(self, out: Path, name: str, packed: PackFormat, keep: int) -> None:
        self._writer = SoundWriter(out / FOLDER / name, packed, keep)

    def put(self, utterance: str, source: Path, waveform: np.ndarray, whole: bool = True) -> str:
        """See `PreparedSound`."""
        kept = waveform if is_plain_audio(source) else to_int16(waveform) / np.float32(32768)
        return f"{FOLDER}/{self._writer.append(kept)}"

    def sync(self) -> None:
        """See `PreparedSound`."""
        self._writer.shard.sync()

    def close(self) -> None:
        """See `PreparedSound`."""
        self._writer.shard.close()


def prepared_sound(out: Path, name: str, packed: PackFormat | None, keep: int) -> PreparedSound:
    """The output of the unit `name`, of which `keep` utterances are done."""
    return PreparedPack(out, name, packed, keep) if packed else PreparedFiles(out)
