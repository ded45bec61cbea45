"""A picture of the corpus on disk: people by sessions, each with one frame of one clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avspk.data.video import read_frames


def contact_sheet(rows: list[list[Path]], tile: int = 112) -> NDArray[np.uint8]:
    """One row of tiles per person, from a list of mp4 files; people in two columns: uint8 (height, width, 3)."""
    strips = [np.hstack([_thumbnail(path, tile) for path in row]) for row in rows]
    half = -(-len(strips) // 2)
    left, right = np.vstack(strips[:half]), np.vstack(strips[half:])
    right = np.pad(right, ((0, len(left) - len(right)), (0, 0), (0, 0)), constant_values=255)
    gap = np.full((len(left), tile // 8, 3), 255, np.uint8)
    return np.hstack([left, gap, right])


def _thumbnail(path: Path, tile: int, frame_number: int = 10) -> NDArray[np.uint8]:
    picture = Image.fromarray(read_frames(path, [frame_number])[0])
    return np.asarray(picture.resize((tile, tile), Image.Resampling.BILINEAR))
