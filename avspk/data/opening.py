"""Opens a media file with FFmpeg, and only this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avspk.data.media import MediaError

_PLAYLISTS = frozenset({"concat", "hls", "dash", "imf", "sdp", "rtsp", "webm_dash_manifest"})  # FFmpeg's names


def open_media(source: Path | Any, options: dict[str, str] | None = None) -> Any:
    """A PyAV container of a path, or of a file-like object.

    FFmpeg takes a name with a colon, such as 12:30.m4a, for an address, unless it is told that it is a file. Titles may
    be in any encoding; they are not used here.

    Raises: MediaError for a list of other files, whose sound and pictures FFmpeg would give as those of this one;
    FFmpeg's errors.
    """
    import av

    name = f"file:{source}" if isinstance(source, Path) else source
    container = av.open(name, options=options, metadata_errors="replace")
    if container.format.name in _PLAYLISTS:
        container.close()
        raise MediaError("a list of other files, not sound or video; give the files that it names")
    return container
