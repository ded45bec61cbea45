"""What VoxCeleb's trees and trial lists look like: folders to clips, list names and counts.

VoxCeleb2: `mp4/<speaker>/<video>/<clip>.mp4`, sound in `aac/.../<clip>.m4a` or in the mp4. VoxCeleb1: `wav/...`, no
video. Whatever lies above the last three levels (`dev/`, `test/`, `wav/`) is free.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".m4v", ".avi", ".webm")
# In order of preference: what can be used where it lies comes first.
AUDIO_SUFFIXES = (".wav", ".flac", ".m4a", ".ogg", ".opus", ".mp3", ".aac")
_SUFFIXES = (*AUDIO_SUFFIXES, *VIDEO_SUFFIXES)

# Trials of the official lists (voxceleb.org): (name, number) -> what it is.
OFFICIAL_LISTS = {
    37_611: "VoxCeleb1-O (cleaned)",
    37_720: "VoxCeleb1-O (old list)",
    579_818: "VoxCeleb1-E (cleaned)",
    581_480: "VoxCeleb1-E (old list)",
    550_894: "VoxCeleb1-H (cleaned)",
    552_536: "VoxCeleb1-H (old list)",
}
_OFFICIAL_NAMES = {
    "veri_test2": 37_611,
    "veri_test": 37_720,
    "list_test_all2": 579_818,
    "list_test_all": 581_480,
    "list_test_hard2": 550_894,
    "list_test_hard": 552_536,
}


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance and the files it can be made of, relative to the tree's folder.

    `sounds` in order of preference, the video's own sound last; `video` is None where there is no picture.
    """

    utterance: str
    sounds: tuple[str, ...]
    video: str | None


@dataclass(frozen=True, slots=True, order=True)
class Rejected:
    """A file that was left out: its path relative to the tree's folder, and why."""

    path: str
    reason: str


def find_clips(raw: Path) -> tuple[list[Clip], list[Rejected]]:
    """Clips of a tree, ordered by utterance, and the media files that cannot belong to one.

    Files of one utterance are those whose last three path components agree but for the suffix: a separate sound file
    and a video go together; two files of the same kind are a duplicate, and the first path is used.

    Raises: FileNotFoundError if `raw` is no folder or holds no media files in three levels.
    """
    if not raw.is_dir():
        raise FileNotFoundError(f"{raw}: no such folder")
    rejected: list[Rejected] = []
    files: dict[str, dict[str, str]] = defaultdict(dict)
    for path in sorted(_media_files(str(raw), rejected)):
        parts = path.split("/")
        if problem := _name_problem(path, parts):
            rejected.append(Rejected(_printable(path), problem))
            continue
        stem, suffix = os.path.splitext("/".join(parts[-3:]))
        first = files[stem].setdefault(suffix.lower(), path)
        if first != path:
            rejected.append(Rejected(path, f"duplicate id {stem}: {first} is used"))
    if not files:
        raise FileNotFoundError(
            f"{raw}: no media in three levels; expected .../<speaker>/<video>/<clip> with one of {' '.join(_SUFFIXES)}"
        )
    return [_clip(utterance, files[utterance]) for utterance in sorted(files)], sorted(rejected)


def describe_trials(path: Path, trials: pd.DataFrame) -> str:
    """One line that tells which list this is: its name, number of trials, and the official list it equals in size.

    A file that bears an official name with another number of trials is pointed out.
    """
    official = OFFICIAL_LISTS.get(len(trials))
    text = f"{path.name}: {len(trials):,} trials" + (f", {official}" if official else "")
    expected = _OFFICIAL_NAMES.get(path.stem)
    if expected not in (None, len(trials)):
        text += f"; the official {path.stem} has {expected:,}: this is another list, or a part of it"
    return text


def missing_utterances(trials: pd.DataFrame, available: Iterable[str]) -> list[str]:
    """Utterances that a trial list (columns enroll, test) names and `available` lacks, sorted."""
    from avspk.data.manifest import utterance_of  # brings pandas, which preparing does without

    named = set(trials["enroll"].map(utterance_of)) | set(trials["test"].map(utterance_of))
    return sorted(named - set(available))


def _media_files(folder: str, rejected: list[Rejected]) -> Iterator[str]:
    """Paths below `folder`, links followed but no folder entered twice; unreadable folders are rejected."""
    pending, entered = [""], set()
    while pending:
        inside = pending.pop()
        try:
            status = os.stat(os.path.join(folder, inside))
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            entries = list(os.scandir(os.path.join(folder, inside)))
        except OSError as error:
            rejected.append(Rejected(_printable(inside), f"folder cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            path = f"{inside}/{entry.name}" if inside else entry.name
            if entry.is_dir():
                pending.append(path)
            elif os.path.splitext(entry.name)[1].lower() in _SUFFIXES:
                yield path


def _name_problem(path: str, parts: list[str]) -> str | None:
    if len(parts) < 3:
        return "not in three levels <speaker>/<video>/<clip>, so it has no utterance id"
    if _printable(path) != path:
        return "the name holds control characters or is not UTF-8"
    if "\\" in path:
        return "the name holds a backslash"
    if os.path.splitext(os.path.splitext(path)[0])[1].lower() in _SUFFIXES:
        return "the name has two media suffixes"
    return None


def _printable(path: str) -> str:
    """The path with what no table can hold escaped: control characters and bytes that are not UTF-8."""
    return "".join(
        f"\\x{ord(character) & 0xFF:02x}" if ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 else character
        for character in path
    )


def _clip(utterance: str, files: dict[str, str]) -> Clip:
    sounds = [files[suffix] for suffix in AUDIO_SUFFIXES if suffix in files]
    videos = [files[suffix] for suffix in VIDEO_SUFFIXES if suffix in files]
    return Clip(utterance, tuple(sounds + videos[:1]), videos[0] if videos else None)
