"""A float picture in face coordinates, and soft-edged shapes to paint on it through."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]

SIZE = 208  # pixels of the painted square ...
EXTENT = 1.45  # ... which covers face coordinates -EXTENT to EXTENT
PIXEL = 2 * EXTENT / SIZE
AXIS = ((np.arange(SIZE) + 0.5) * PIXEL - EXTENT).astype(np.float32)


class Mask(NamedTuple):
    """Opacities of a part of the canvas."""

    window: tuple[slice, slice]
    values: Array


def row_of(y: float) -> int:
    """Row of the canvas at face coordinate y."""
    return int(np.clip((y + EXTENT) / PIXEL, 0, SIZE))


def smooth_step(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """0 below 0, 1 above 1, cubic in between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


class Canvas:
    """Some rows of a picture in face coordinates: `colour` (rows, SIZE, 3) of 0 to 255 and `opacity` (rows, SIZE)."""

    def __init__(self, colour: Array, opacity: Array, first_row: int = 0) -> None:
        self.colour, self.opacity, self.first_row = colour, opacity, first_row
        self.x, self.y = AXIS[None, :], AXIS[first_row : first_row + len(colour), None]

    @classmethod
    def filled(cls, colour: Array) -> Canvas:
        """A whole canvas of one colour, transparent."""
        return cls(np.tile(colour, (SIZE, SIZE, 1)).astype(np.float32), np.zeros((SIZE, SIZE), np.float32))

    def rows(self, first: int, last: int) -> Canvas:
        """A copy of some rows, to paint a variant on."""
        return Canvas(self.colour[first:last].copy(), self.opacity[first:last].copy(), first)

    def spot(self, cx: float, cy: float, rx: float, ry: float, soft: float = PIXEL, angle: float = 0.0) -> Mask:
        """An ellipse with half axes rx, ry whose edge is `soft` wide; `angle` in radians, clockwise."""
        reach = 1 + soft / (2 * min(rx, ry))
        half_x = reach * np.hypot(rx * np.cos(angle), ry * np.sin(angle))
        half_y = reach * np.hypot(rx * np.sin(angle), ry * np.cos(angle))
        rows = slice(*np.searchsorted(self.y[:, 0], (cy - half_y, cy + half_y)))
        columns = slice(*np.searchsorted(self.x[0], (cx - half_x, cx + half_x)))
        x, y = self.x[:, columns] - np.float32(cx), self.y[rows] - np.float32(cy)
        if angle:
            c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
            x, y = c * x + s * y, c * y - s * x
        distance = (np.sqrt((x / rx) ** 2 + (y / ry) ** 2) - 1) * min(rx, ry)
        return Mask((rows, columns), np.clip(0.5 - distance / soft, 0, 1).astype(np.float32))

    def everywhere(self, values: NDArray[np.generic]) -> Mask:
        """A mask over the whole canvas."""
        return Mask((slice(None), slice(None)), np.broadcast_to(values, self.opacity.shape).astype(np.float32))

    def blend(self, mask: Mask, colour: ArrayLike, strength: float = 1.0) -> None:
        """Paint `colour`, one or one per pixel of the canvas, through the mask."""
        paint = np.asarray(colour, np.float32)
        if paint.ndim == 3:
            paint = paint[mask.window]
        region = self.colour[mask.window]
        region += (mask.values * np.float32(strength))[..., None] * (paint - region)

    def cover(self, mask: Mask, colour: ArrayLike) -> None:
        """Paint through the mask and make it opaque there."""
        self.blend(mask, colour)
        np.maximum(self.opacity[mask.window], mask.values, out=self.opacity[mask.window])

    def darken(self, mask: Mask, amount: float) -> None:
        """Multiply by 1 - amount inside the mask."""
        self.colour[mask.window] *= (1 - mask.values * np.float32(amount))[..., None]

    def lighten(self, mask: Mask, amount: float) -> None:
        """Add `amount` grey levels inside the mask."""
        self.colour[mask.window] += (mask.values * np.float32(amount))[..., None]
