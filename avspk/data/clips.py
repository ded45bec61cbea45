"""Clips of a tree or a list of recordings: the files of each clip, and its name.

VoxCeleb2: `mp4/<speaker>/<video>/<clip>.mp4`, sound in `aac/.../<clip>.m4a` or in the mp4. VoxCeleb1: `wav/...`, no
video. Any folders may precede the last three levels (`dev/`, `test/`, `wav/`). GRID: `<speaker>/video/<clip>.mpg`,
sound next to it, in it or in `<speaker>/audio/<clip>.wav`. Own data: any folders, or none.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from avspk.common.text_files import UNPRINTABLE, printable
from avspk.data.clip_list import Listed, read_clip_list
from avspk.data.manifest import is_utterance_id, utterance_of
from avspk.data.naming import (
    Name,
    Naming,
    NamingError,
    PathNames,
    PatternNames,
    VoxCelebNames,
    folded,
    is_voxceleb,
    same_for_one_clip,
)
from avspk.data.suffixes import AUDIO_SUFFIXES, MEDIA_SUFFIXES
from avspk.data.tree import Rejected, files_below
from avspk.data.video import VIDEO_SUFFIXES

logger = logging.getLogger(__name__)
_LONGEST_NAME = 255 - len("_0001.wav.part")  # bytes; the files made from a clip have its name
_LAST_NUMBER = re.compile(r"\d+$")


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording of one utterance, or of several if it is long, and its files, relative to the root.

    `sounds`: all its files in order of preference, the video last, for the sound in it; `video` is None if there is no
    picture. `speaker` is "" if unknown. `stem`: prefix of the names of its parts.
    """

    utterance: str
    sounds: tuple[str, ...]
    video: str | None
    speaker: str = ""
    recording: str = ""
    stem: str = ""

    def part(self, number: int) -> str:
        """Name of an utterance that is part of this recording, numbered from 1."""
        return f"{self.stem}{number:04d}"


class FoundClips(NamedTuple):
    """Clips ordered by utterance; files that belong to no clip, sorted; kind of clutter -> number of files.

    `voxceleb`: the tree was recognised as VoxCeleb, whose clips are known to be short and of one person.
    """

    clips: list[Clip]
    rejected: list[Rejected]
    ignored: Counter[str]
    voxceleb: bool = False


def find_clips(raw: Path, out: Path | None = None, speakers_from: str | None = None) -> FoundClips:
    """Clips of a tree, every other file with the reason why it belongs to none, and a count of known clutter.

    Files belong to one utterance if their names agree apart from the suffix, folders named after a kind of media
    (`audio`, `video`, `mp4`), upper and lower case, and the Unicode form of accents. A separate sound file and a video
    go together; of two files of the same kind the first path is used. `out` is not searched. `speakers_from`: see
    `PatternNames`; without it, a tree of VoxCeleb's shape is recognised, and in any other tree speakers are unknown.

    Raises: FileNotFoundError if `raw` is not a folder or holds no media files that can be named; NamingError for an
    invalid pattern; OSError if it cannot be read.
    """
    if not raw.is_dir():
        raise FileNotFoundError(f"{raw}: no such folder")
    naming: Naming | None = PatternNames(speakers_from) if speakers_from else None
    tree = files_below(raw, out)
    if tree.output is not None:
        logger.info("%s is the output folder: not searched", raw / tree.output)
    naming = naming or (VoxCelebNames() if is_voxceleb(tree.media) else PathNames())
    rejected = tree.rejected
    grouped = _Groups(rejected)
    for path in tree.media:
        grouped.add(path, naming)
    clips = grouped.clips()
    if not clips:
        raise FileNotFoundError(_nothing_found(raw, rejected))
    _say_what_is_known(raw, naming, clips)
    return FoundClips(clips, sorted(rejected), tree.ignored, isinstance(naming, VoxCelebNames))


def listed_clips(file: Path, raw: Path, speakers_from: str | None = None) -> FoundClips:
    """Clips of a list (`read_clip_list`), whose relative paths start from `raw`.

    If the list gives no names, they are the paths below the folder that all files have in common.

    Raises: ManifestError for an invalid list; FileNotFoundError if no file of it can be named; NamingError.
    """
    naming = PatternNames(speakers_from) if speakers_from else PathNames()
    listed = read_clip_list(file)
    places = [os.path.abspath(raw / one.path) for one in listed]
    _tell_repeated(file, places)
    common = os.path.commonpath([os.path.dirname(place) for place in places])
    rejected: list[Rejected] = []
    grouped = _Groups(rejected)
    for one, place in sorted(zip(listed, places, strict=True), key=lambda pair: pair[1]):
        grouped.add(os.path.relpath(place, common), _ToldNames(one, naming), os.path.relpath(place, raw))
    clips = grouped.clips()
    if not clips:
        raise FileNotFoundError(_nothing_found(file, rejected))
    _say_what_is_known(file, naming, clips)
    return FoundClips(clips, sorted(rejected), Counter())


def _tell_repeated(file: Path, places: list[str]) -> None:
    """One recording under two names is two utterances, which training takes for different recordings."""
    repeated = [place for place, count in Counter(places).items() if count > 1]
    if repeated:
        logger.warning("%s: %d files are listed more than once, the first is %s", file, len(repeated), repeated[0])


class _ToldNames(Naming):
    """Name and speaker that a list gives for one file, and another naming for what is missing."""

    def __init__(self, told: Listed, naming: Naming) -> None:
        self._told, self._naming = told, naming

    def names(self, path: str) -> Iterator[Name]:
        if not self._told.name:
            yield from (one._replace(speaker=self._told.speaker or one.speaker) for one in self._naming.names(path))
            return
        name = utterance_of(self._told.name)
        if not is_utterance_id(name):
            raise NamingError(f"{name!r} cannot name an utterance: it must be a relative path a/b/c without suffix")
        # The added suffix keeps the pattern from taking a dot in the name for the start of a suffix.
        speaker = self._told.speaker or next(self._naming.names(f"{name}.wav")).speaker
        yield Name(name, speaker, name)


class _File(NamedTuple):
    """Path of a file, its suffix, and its possible names, the best first."""

    place: str
    suffix: str
    names: list[Name]


class _Groups:
    """Files by the clip that they belong to; files that belong to none are rejected."""

    def __init__(self, rejected: list[Rejected]) -> None:
        self._files: list[_File] = []
        self._rejected = rejected

    def add(self, path: str, naming: Naming, place: str | None = None) -> None:
        """Add a file under the names of `path`; `place` is its location if that differs."""
        place = place or path
        try:
            require_nameable(path)
            self._files.append(_File(place, os.path.splitext(path)[1].lower(), list(naming.names(path))))
        except NamingError as error:
            self._rejected.append(Rejected(printable(place), str(error)))

    def clips(self) -> list[Clip]:
        """The clips, ordered by utterance."""
        clips = [clip for group in _grouped(self._files, 0) for clip in self._clips(group)]
        return list(_with_stems(sorted(clips, key=lambda clip: clip.utterance)))

    def _clips(self, files: list[_File], level: int = 0) -> Iterator[Clip]:
        """Clips of files that have one name. If two are of one kind, their next names separate them, if they have any.

        It never guesses which of two people's sounds belongs to a picture.
        """
        of_suffix: dict[str, _File] = {}
        for file in files:
            first = of_suffix.setdefault(file.suffix, file)
            if first is file:
                continue
            if all(len(one.names) > level + 1 for one in files):
                for group in _grouped(files, level + 1):
                    yield from self._clips(group, level + 1)
                return
            reason = f"duplicate id {file.names[0].utterance}: {first.place} is used"
            self._rejected.append(Rejected(file.place, reason))
        yield self._clip(of_suffix, level)

    def _clip(self, files: dict[str, _File], level: int) -> Clip:
        """Videos beyond the first are rejected."""
        sounds = [files[suffix] for suffix in AUDIO_SUFFIXES if suffix in files]
        videos = [files[suffix] for suffix in VIDEO_SUFFIXES if suffix in files]
        for file in videos[1:]:
            reason = f"another video of this clip, {videos[0].place}, is used"
            self._rejected.append(Rejected(file.place, reason))
        name = (videos + sounds)[0].names[level]
        paths = tuple(file.place for file in sounds + videos[:1])
        return Clip(name.utterance, paths, videos[0].place if videos else None, name.speaker, name.recording)


def _grouped(files: list[_File], level: int) -> Iterator[list[_File]]:
    """Files with one name at this level. Only best names leave out folders named after a kind of media."""
    groups: dict[tuple[str, ...], list[_File]] = defaultdict(list)
    for file in files:
        name = file.names[level].utterance
        groups[tuple(folded(name).split("/")) if level else same_for_one_clip(name)].append(file)
    yield from groups.values()


def require_nameable(path: str) -> None:
    """Raises: NamingError if no utterance can be made from a file with this path, in any tree."""
    stem, suffix = os.path.splitext(path.rsplit("/", 1)[-1])
    if UNPRINTABLE.search(path):
        raise NamingError("the name holds control characters or is not UTF-8")
    if "\\" in path:
        raise NamingError("the name holds a backslash")
    if suffix.lower() not in MEDIA_SUFFIXES:
        raise NamingError(f"{suffix} is not a known suffix of sound or video" if suffix else "the name has no suffix")
    if os.path.splitext(stem)[1].lower() in MEDIA_SUFFIXES:
        raise NamingError("the name has two media suffixes")
    if len(stem.encode()) > _LONGEST_NAME:
        raise NamingError(f"the name is too long: {len(stem.encode())} bytes without suffix, at most {_LONGEST_NAME}")


def _with_stems(clips: list[Clip]) -> Iterator[Clip]:
    """Names of parts are stem and number: stems are unique and give no name of a whole clip."""
    taken = {_LAST_NUMBER.sub("", folded(clip.utterance)) for clip in clips}
    for clip in clips:
        stem = f"{clip.utterance}_"
        while folded(stem) in taken:
            stem += "_"
        taken.add(folded(stem))
        yield replace(clip, stem=stem)


def _say_what_is_known(source: Path, naming: Naming, clips: Iterable[Clip]) -> None:
    speakers = {clip.speaker for clip in clips} - {""}
    if isinstance(naming, VoxCelebNames):
        logger.info("%s: recognised as VoxCeleb, id.../<video>/<clip>; its names give speakers", source)
    elif speakers:
        logger.info("%s: %d speakers are known, used for diagnostics only", source, len(speakers))
    else:
        logger.info("%s: speakers are not known; give --speakers-from if you want diagnostics", source)


def _nothing_found(raw: Path, rejected: list[Rejected]) -> str:
    suffixes = " ".join((*AUDIO_SUFFIXES[:2], ".m4a", *VIDEO_SUFFIXES[:2]))
    text = f"{raw}: no sound or video that can be used; known suffixes are {suffixes} ..."
    if rejected:
        text += f"; {len(rejected)} files were left out, the first is {rejected[0].path}: {rejected[0].reason}"
    return text
