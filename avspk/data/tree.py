"""All files below a folder: sound and video by their names, known clutter, and the rest, each with a reason."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from avspk.common.text_files import printable
from avspk.data.suffixes import MEDIA_SUFFIXES

logger = logging.getLogger(__name__)
PLAN = "preparation.json"
"""File that marks a folder as the output of a preparation."""

_SYSTEM = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_SYSTEM_FOLDERS = {"__macosx", "$recycle.bin", "system volume information", "lost+found", "@eadir", "#recycle"}
_TEXT = re.compile(r"(readme|licen[cs]e|copying|notice|authors|citation|changelog)([-_. ].*)?|.*\.(txt|md|rst)", re.I)
_CHECKSUMS = re.compile(r".*\.(md5|sha1|sha224|sha256|sha384|sha512|sfv)(sums?)?|(md5|sha[0-9]*)sums?", re.I)
_ARCHIVES = frozenset((".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar"))
_UNFINISHED = frozenset((".part", ".partial", ".crdownload", ".download", ".filepart", ".tmp", ".aria2", ".ytdl"))


@dataclass(frozen=True, slots=True, order=True)
class Rejected:
    """A file or folder that was left out: its path relative to the tree's folder, printable, and why."""

    path: str
    reason: str


@dataclass
class TreeFiles:
    """Files below a folder, with paths relative to it.

    `media`: sorted paths with the suffix of a sound or video file. `rejected`: files that are neither media nor
    clutter. `unreadable`: those of them that may be media, but the system does not let read. `ignored`: kind of clutter
    -> number of files or folders. `output`: path of the folder that was not searched, None if it is not below.
    """

    media: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    unreadable: list[Rejected] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    output: str | None = None


def media_below(root: Path) -> list[Path]:
    """Sound and video files below a folder, sorted; [] if it is not one. A warning names what cannot be read; the log
    names the first of the other files that are neither media by their names nor clutter.

    Preparation looks at the same files, but here outputs of other preparations are taken, too.

    Raises: OSError if the folder cannot be listed.
    """
    if not root.is_dir():
        return []
    found = files_below(root, prepared=True)
    for one in found.unreadable:
        logger.warning("%s/%s is left out: %s", root, one.path, one.reason)
    if others := sorted(set(found.rejected) - set(found.unreadable)):
        text = "%s: %d other files are left out, the first is %s: %s"
        logger.info(text, root, len(others), others[0].path, others[0].reason)
    return sorted(root / path for path in found.media)


def files_below(root: Path, output: Path | None = None, prepared: bool = False) -> TreeFiles:
    """Look at every file below `root`, but not into `output`, nor, unless `prepared`, into that of another preparation.

    Links are followed, but no folder is entered twice: its real path is preferred to links, links are used in their
    order; the other paths are rejected. The result depends only on the names in the tree.

    Raises: OSError if `root` itself cannot be listed.
    """
    os.scandir(root).close()
    search = _Search(str(root), output, prepared)
    search.enter([""])
    while search.links:
        links, search.links = sorted(search.links), []
        search.enter([link for link in links if not search.leads_to_output(link)])
    search.found.media.sort()
    return search.found


class _Search:
    def __init__(self, root: str, output: Path | None, prepared: bool) -> None:
        self.root, self.prepared = root, prepared
        self.output = _identity(str(output)) if output is not None and output.is_dir() else None
        if self._lies_in_output(""):  # then links into it may point to inputs as well as results
            self.output = None
        self.entered: dict[object, str] = {}
        self.links: list[str] = []
        self.found = TreeFiles()

    def enter(self, folders: list[str]) -> None:
        """Read these folders and the real folders below them; links to folders are kept for later."""
        pending = folders[::-1]
        while pending:
            folder = pending.pop()
            try:
                if self._is_to_enter(folder):
                    with os.scandir(self._place(folder)) as entries:
                        inside = [self._take(folder, entry) for entry in sorted(entries, key=lambda entry: entry.name)]
                    pending += [path for path in reversed(inside) if path is not None]
            except OSError as error:
                self._reject(folder, f"folder cannot be read: {error.strerror}", unreadable=True)

    def leads_to_output(self, link: str) -> bool:
        """Whether a link to a folder points to the output or into it."""
        if not self._lies_in_output(link):
            return False
        self.found.output = link
        return True

    def _lies_in_output(self, path: str) -> bool:
        if self.output is None:
            return False
        place = Path(os.path.realpath(self._place(path)))
        return self.output in {_identity(str(folder)) for folder in (place, *place.parents)}

    def _place(self, path: str) -> str:
        return os.path.join(self.root, path)

    def _is_to_enter(self, folder: str) -> bool:
        identity = _identity(self._place(folder))
        if identity == self.output:
            self.found.output = folder
            return False
        first = self.entered.setdefault(identity, folder)
        if first != folder:
            self._reject(folder, f"the same folder as {first or '--raw'}, which is searched")
        elif folder and not self.prepared and os.path.isfile(self._place(f"{folder}/{PLAN}")):
            self._reject(folder, f"the output of a preparation: it holds {PLAN}")
            return False
        return first == folder

    def _take(self, folder: str, entry: os.DirEntry[str]) -> str | None:
        """Record one entry; returns its path if it is a folder to search now."""
        path = f"{folder}/{entry.name}" if folder else entry.name
        try:
            is_folder = entry.is_dir()
            if kind := _clutter(entry.name, is_folder):
                self.found.ignored[kind] += 1
            elif is_folder and entry.is_symlink():
                self.links.append(path)
            elif is_folder:
                return path
            elif _suffix(entry.name) in MEDIA_SUFFIXES:
                self.found.media.append(path)
            else:
                self._reject(path, _why_not(entry))
        except OSError as error:  # for example a link to itself
            self._reject(path, f"cannot be read: {error.strerror}", unreadable=True)
        return None

    def _reject(self, path: str, reason: str, unreadable: bool = False) -> None:
        rejected = Rejected(printable(path), printable(reason))
        self.found.rejected.append(rejected)
        if unreadable:
            self.found.unreadable.append(rejected)


def _identity(folder: str) -> object:
    """Equal for all paths of a folder. Some network file systems have no file numbers: then its real path is used."""
    status = os.stat(folder)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _clutter(name: str, is_folder: bool) -> str | None:
    """The kind of clutter that a name indicates; None for files that a user may have meant to use."""
    if name.startswith("."):
        return "hidden"
    if name.lower() in (_SYSTEM_FOLDERS if is_folder else _SYSTEM):
        return "system"
    if is_folder or _suffix(name) in MEDIA_SUFFIXES:
        return None
    if _CHECKSUMS.fullmatch(name):
        return "checksums"
    return "text" if _TEXT.fullmatch(name) else None


def _why_not(entry: os.DirEntry[str]) -> str:
    """Reason why a file that is neither media by its name nor clutter is not used."""
    suffix = _suffix(entry.name)
    if entry.is_symlink() and not os.path.exists(entry.path):
        return "broken link"
    if not entry.is_file():
        return "not a regular file"
    if suffix in _ARCHIVES:
        return "an archive: unpack it"
    if suffix in _UNFINISHED:
        return "an unfinished download"
    return f"{printable(suffix)} is not a known suffix of sound or video" if suffix else "no suffix of sound or video"
