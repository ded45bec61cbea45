"""How paths name utterances: VoxCeleb's levels, a pattern that tells speakers, or the path alone."""

from __future__ import annotations

import os
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from avspk.data.suffixes import MEDIA_SUFFIXES

# Folders named after the kind of files they hold; sound and picture of one clip are in different ones.
_KIND_FOLDERS = frozenset(suffix[1:] for suffix in MEDIA_SUFFIXES) | {
    *("audio", "audios", "sound", "sounds", "wavs", "speech", "video", "videos", "picture", "pictures", "movies"),
    *("mpg_6000", "mpg_vcd"),  # GRID's two qualities
}
_VOXCELEB = re.compile(r"(.*/)?id\d+/[^/]+/[^/]+")
_VOXCELEB_SHARE = 0.9  # of a tree's files, so that strays do not turn VoxCeleb into a folder of unknown speakers
_FIELD = re.compile(r"\{(\w+)\}")


class NamingError(ValueError):
    """A path gives no name, or a pattern is invalid; the message says why."""


class Name(NamedTuple):
    """Contents of a path: the utterance, its speaker ("" if not given) and the recording that it is a part of."""

    utterance: str
    speaker: str
    recording: str


class Naming(ABC):
    """Maps paths relative to the tree's folder, with `/`, to names."""

    @abstractmethod
    def names(self, path: str) -> Iterator[Name]:
        """Names for a path, the best one first; a later one is used if another file has the first.

        Raises: NamingError if the path can have none.
        """


class VoxCelebNames(Naming):
    """The last three levels: `<speaker>/<video>/<clip>`.

    If the first of them is named after a kind of media, it is not a speaker, and such folders are left out.
    """

    def names(self, path: str) -> Iterator[Name]:
        """See `Naming`."""
        parts = os.path.splitext(path)[0].split("/")
        if len(parts) < 3 or len(without_kinds(parts)) < 2:
            raise NamingError("not in three levels <speaker>/<video>/<clip>, as most of this tree is")
        named = without_kinds(parts)[-3:] if _is_kind(parts[-3]) else parts[-3:]
        yield Name("/".join(named), named[0], "/".join(named[:-1]))


class PathNames(Naming):
    """The whole path without folders named after a kind of media; with them if the name would not be unique.

    Gives no speakers.
    """

    def names(self, path: str) -> Iterator[Name]:
        """See `Naming`."""
        parts = os.path.splitext(path)[0].split("/")
        for name in ("/".join(without_kinds(parts)), "/".join(parts)):
            yield Name(name, "", name)


class PatternNames(PathNames):
    """Names as `PathNames`; a pattern like `{speaker}/{video}/{clip}` gives speakers, and recordings if it has {video}.

    The pattern must match the end of the name, from the beginning of a folder. A field is any text without `/`.
    """

    def __init__(self, pattern: str) -> None:
        """Raises: NamingError if the pattern has no {speaker}, or has a field twice."""
        fields = _FIELD.findall(pattern)
        if "speaker" not in fields or len(set(fields)) < len(fields) or re.search(r"[{}]", _FIELD.sub("", pattern)):
            raise NamingError(
                f"{pattern!r} is not a pattern for speakers: want fields in braces, each once, with {{speaker}}, "
                "as in {speaker}/{video}/{clip} or {speaker}_{clip}"
            )
        texts = _FIELD.split(pattern)  # text, field, text, field, ..., text
        parts = [f"(?P<{text}>[^/]+?)" if number % 2 else re.escape(text) for number, text in enumerate(texts)]
        self._pattern, self._regex = pattern, re.compile(f"(?:.*/)?{''.join(parts)}")

    def names(self, path: str) -> Iterator[Name]:
        """See `Naming`."""
        for name in super().names(path):
            found = self._regex.fullmatch(name.utterance)
            if found is None:
                raise NamingError(f"its name {name.utterance} does not match the pattern {self._pattern}")
            has_video = "video" in self._regex.groupindex
            recording = name.utterance[: found.end("video")] if has_video else name.utterance
            yield Name(name.utterance, found["speaker"], recording)


def is_voxceleb(paths: Sequence[str]) -> bool:
    """Whether a tree's media files are laid out as VoxCeleb: `.../id00012/<video>/<clip>`, apart from a few strays."""
    fitting = sum(_VOXCELEB.fullmatch(path) is not None for path in paths)
    return fitting > 0 and fitting >= _VOXCELEB_SHARE * len(paths)


def same_for_one_clip(utterance: str) -> tuple[str, ...]:
    """Equal for names of one clip in any spelling: macOS and Windows treat such names as one."""
    return tuple(without_kinds(folded(utterance).split("/")))


def folded(name: str) -> str:
    """Equal for names that some file systems treat as one: letter case and the form of accents do not count."""
    return unicodedata.normalize("NFC", name).lower()


def without_kinds(parts: list[str]) -> list[str]:
    """The components of a path without folders named after a kind of media."""
    return [part for part in parts[:-1] if not _is_kind(part)] + parts[-1:]


def _is_kind(folder: str) -> bool:
    return folder.lower() in _KIND_FOLDERS
