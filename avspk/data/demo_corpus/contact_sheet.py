"""A picture of the corpus as it lies on disk: people by sessions, each with one frame of one clip."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def contact_sheet(rows: list[list[Path]], tile: int = 112, frame_number: int = 20) -> NDArray[np.uint8]:
    """One row of tiles per list of mp4 files, two people side by side: uint8 (height, width, 3)."""
    strips = [np.hstack([_thumbnail(path, tile, frame_number) for path in row]) for row in rows]
    half = -(-len(strips) // 2)
    gap = np.full((half * tile, tile // 8, 3), 255, np.uint8)
    left, right = np.vstack(strips[:half]), np.vstack(strips[half:])
    right = np.pad(right, ((0, len(left) - len(right)), (0, 0), (0, 0)), constant_values=255)
    return np.hstack([left, gap, right])


def _thumbnail(path: Path, tile: int, frame_number: int) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            picture = frame
            if number == frame_number:
                break
    return picture.to_ndarray(format="rgb24", width=tile, height=tile)
