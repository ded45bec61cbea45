"""Settings of a preparation that its commands show, in a module that is imported fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FaceTracked = Literal["auto", "yes", "no"]
PackFormat = Literal["int16", "flac"]
CATEGORIES = ("noise", "music", "speech")
"""Kinds of recordings of a noise pack."""
MAX_SECONDS = 20.0  # [C] longest utterance for data other than VoxCeleb


@dataclass(frozen=True)
class FaceSettings:
    """Settings of finding and cutting faces; sizes in pixels of the video.

    `crops_per_clip` frames are taken at even distances in time. The detector looks at all of them, or at
    `tracked_looks` of them if the clip is already a face track (like VoxCeleb2's 224 x 224 clips); boxes between these
    looks are interpolated. "auto" takes square videos for tracks.
    """

    crops_per_clip: int = 10
    face_tracked: FaceTracked = "auto"
    tracked_looks: int = 3
    detection_scale: float = 0.5
    min_face: int = 40
    tracked_min_face: int = 56
    min_probability: float = 0.9
    margin: float = 0.3
    max_side: int = 720
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name in ("crops_per_clip", "tracked_looks", "min_face", "tracked_min_face", "max_side", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.face_tracked not in ("auto", "yes", "no"):
            raise ValueError(f"face_tracked is {self.face_tracked!r}, must be auto, yes or no")
        if not 0 < self.detection_scale <= 1:
            raise ValueError(f"detection_scale is {self.detection_scale}, must be above 0 and at most 1")
        if not 0 <= self.margin <= 3:
            raise ValueError(f"margin is {self.margin}, must be from 0 to 3 (a share of the face's size)")
