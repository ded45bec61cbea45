"""Decoded frames to pictures as a player shows them: square pixels, upright, one size."""

from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

# Ratios beyond the first come from damaged headers; a difference below the last one is invisible.
_MOST_STRETCHED = 8
_SQUARE = 0.005


def square_size(width: int, height: int, pixel_aspect: Fraction | None, max_side: int | None) -> tuple[int, int]:
    """Width and height of a picture in square pixels, no side longer than `max_side`.

    `pixel_aspect`: width of a pixel over its height, None or 0 if unknown. The shorter side of a pixel becomes the new
    side, so no detail is lost.
    """
    wide, high = float(width), float(height)
    aspect = float(pixel_aspect or 1)
    if 1 / _MOST_STRETCHED <= aspect <= _MOST_STRETCHED and abs(aspect - 1) > _SQUARE:
        wide, high = wide * max(1.0, aspect), high / min(1.0, aspect)
    scale = min(1.0, max_side / max(wide, high)) if max_side else 1.0
    return max(1, round(wide * scale)), max(1, round(high * scale))


class PictureMaker:
    """Makes decoded frames (av.VideoFrame) of one video into uint8 (H, W, 3) RGB, all of the first one's size.

    If a video changes its shape, frames are fitted into that size with black around them.
    """

    def __init__(self, pixel_aspect: Fraction | None, max_side: int | None):
        from av.video.reformatter import VideoReformatter

        self._pixel_aspect, self._max_side = pixel_aspect, max_side
        self._converter = VideoReformatter()
        self._shape: tuple[int, ...] | None = None

    def __call__(self, frame: Any) -> np.ndarray:
        """One picture."""
        width, height = square_size(frame.width, frame.height, self._pixel_aspect, self._max_side)
        coloured = self._converter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
        picture = _upright(coloured, _display_matrix(frame))
        self._shape = self._shape or picture.shape
        return picture if picture.shape == self._shape else _fitted(picture, self._shape)


def _display_matrix(frame: Any) -> np.ndarray | None:
    """The linear part (2, 2) of the container's display transformation, None if it has none.

    A pixel at (x, y) is shown at (x, y) @ matrix (ISO/IEC 14496-12, 6.2.2).
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32, 9).reshape(3, 3)[:2, :2]


def _upright(picture: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Turned by the nearest multiple of 90 degrees, and mirrored, as `matrix` asks."""
    if matrix is None:
        return picture
    (a, b), (c, d) = matrix.astype(float)
    if abs(a) + abs(d) < abs(b) + abs(c):
        picture, a, d = picture.swapaxes(0, 1), c, b  # now x is shown at c, y at b
    return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _fitted(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    scale = min(shape[0] / picture.shape[0], shape[1] / picture.shape[1])
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    canvas = np.zeros(shape, np.uint8)
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    scaled = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
    canvas[top : top + height, left : left + width] = np.asarray(scaled)
    return canvas
