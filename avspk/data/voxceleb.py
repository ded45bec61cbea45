"""Trees of recordings as people have them, to clips: what VoxCeleb and corpora of its shape look like on disk.

VoxCeleb2: `mp4/<speaker>/<video>/<clip>.mp4`, sound in `aac/.../<clip>.m4a` or in the mp4. VoxCeleb1: `wav/...`, no
video. Whatever lies above the last three levels (`dev/`, `test/`, `wav/`) is free. GRID: `<speaker>/video/<clip>.mpg`,
sound beside it, in it or in `<speaker>/audio/<clip>.wav`.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from avspk.data.suffixes import AUDIO_SUFFIXES, MEDIA_SUFFIXES
from avspk.data.tree import Rejected, files_below
from avspk.data.video import VIDEO_SUFFIXES
from avspk.text_files import UNPRINTABLE, printable

logger = logging.getLogger(__name__)
# Folders that say what kind of files they hold; sound and picture of one clip lie in different ones.
_KIND_FOLDERS = frozenset(suffix[1:] for suffix in MEDIA_SUFFIXES) | {
    *("audio", "audios", "sound", "sounds", "wavs", "speech", "video", "videos", "picture", "pictures", "movies"),
    *("mpg_6000", "mpg_vcd"),  # GRID's two qualities
}
_LONGEST_NAME = 255 - len(".wav.part")  # bytes; what is made of a clip bears its name


@dataclass(frozen=True, slots=True)
class Clip:
    """One utterance and the files it can be made of, relative to the tree's folder.

    `sounds`: all its files in order of preference, the video last, for its own sound; `video` is None where there is no
    picture.
    """

    utterance: str
    sounds: tuple[str, ...]
    video: str | None


class FoundClips(NamedTuple):
    """Clips ordered by utterance; files that are in none of them, sorted; kind of clutter -> number of files."""

    clips: list[Clip]
    rejected: list[Rejected]
    ignored: Counter[str]


def find_clips(raw: Path, out: Path | None = None) -> FoundClips:
    """Clips of a tree, every other file of it with the reason why it is in none, and a count of known clutter.

    Files of one utterance are those whose last three path components agree but for the suffix, folders that are named
    for a kind of media (`audio`, `video`, `mp4`), upper and lower case, and the Unicode form of accents. A separate
    sound file and a video go together; of two files of the same kind the first path is used. `out` is not searched.

    Raises: FileNotFoundError if `raw` is no folder or holds no media files in three levels; OSError if it cannot be
    read.
    """
    if not raw.is_dir():
        raise FileNotFoundError(f"{raw}: no such folder")
    tree = files_below(raw, out)
    if tree.output is not None:
        logger.info("%s is where results go: not searched", raw / tree.output)
    rejected = tree.rejected
    groups: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for path in tree.media:
        if problem := _name_problem(path):
            rejected.append(Rejected(printable(path), problem))
            continue
        first = groups[_same_for_one_clip(path)].setdefault(os.path.splitext(path)[1].lower(), path)
        if first != path:
            rejected.append(Rejected(path, f"duplicate id {_utterance(path)}: {first} is used"))
    if not groups:
        raise FileNotFoundError(_nothing_found(raw, rejected))
    clips = [_clip(files, rejected) for files in groups.values()]
    return FoundClips(sorted(clips, key=lambda clip: clip.utterance), sorted(rejected), tree.ignored)


def _clip(files: dict[str, str], rejected: list[Rejected]) -> Clip:
    """The clip that files of one group make; videos beyond the first are rejected."""
    sounds = [files[suffix] for suffix in AUDIO_SUFFIXES if suffix in files]
    videos = [files[suffix] for suffix in VIDEO_SUFFIXES if suffix in files]
    rejected += [Rejected(path, f"another video of this clip, {videos[0]}, is used") for path in videos[1:]]
    return Clip(_utterance((videos + sounds)[0]), tuple(sounds + videos[:1]), videos[0] if videos else None)


def _utterance(path: str) -> str:
    """The id: the last three levels without suffix, `<speaker>/<video>/<clip>`.

    Where the first of them is named for a kind of media, it is no speaker, and such folders are left out.
    """
    parts = os.path.splitext(path)[0].split("/")
    return "/".join(_without_kinds(parts)[-3:] if _is_kind(parts[-3]) else parts[-3:])


def _same_for_one_clip(path: str) -> tuple[str, ...]:
    """Equal for files of one clip, whoever spelled their names: macOS and Windows take such names for one."""
    name = unicodedata.normalize("NFC", _utterance(path)).lower()
    return tuple(_without_kinds(name.split("/")))


def _without_kinds(parts: list[str]) -> list[str]:
    return [part for part in parts[:-1] if not _is_kind(part)] + parts[-1:]


def _is_kind(folder: str) -> bool:
    return folder.lower() in _KIND_FOLDERS


def _name_problem(path: str) -> str | None:
    """Why no utterance can be made of a file with this path."""
    parts = path.split("/")
    stem = os.path.splitext(parts[-1])[0]
    if UNPRINTABLE.search(path):
        return "the name holds control characters or is not UTF-8"
    if "\\" in path:
        return "the name holds a backslash"
    if len(parts) < 3 or len(_without_kinds(parts)) < 2:
        return "not in three levels <speaker>/<video>/<clip>, so it has no utterance id"
    if os.path.splitext(stem)[1].lower() in MEDIA_SUFFIXES:
        return "the name has two media suffixes"
    if len(stem.encode()) > _LONGEST_NAME:
        return f"the name is too long: {len(stem.encode())} bytes without suffix, at most {_LONGEST_NAME}"
    return None


def _nothing_found(raw: Path, rejected: list[Rejected]) -> str:
    text = (
        f"{raw}: no media in three levels; expected .../<speaker>/<video>/<clip> with a suffix of sound or video: "
        f"{' '.join((*AUDIO_SUFFIXES[:2], '.m4a', *VIDEO_SUFFIXES[:2]))} ..."
    )
    if rejected:
        text += f"; {len(rejected)} files were left out, the first is {rejected[0].path}: {rejected[0].reason}"
    return text
