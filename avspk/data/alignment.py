"""Aligned face crops: turned, scaled and moved so that eyes, nose and mouth are where they are in every other crop."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Eyes, nose, mouth corners in a crop of 112 x 112 pixels: the places that ArcFace's public code (insightface) uses [S].
PLACES = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])

SCALES = (0.25, 4.0)  # of a face in a crop against these places; preparation's margins make 0.3 and more


def align(crop: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """A face crop uint8 (112, 112, 3), aligned by its landmarks (5, 2), x and y in its pixels. Outside it is black.

    A crop stays as it is if its landmarks cannot be those of a face in it: not finite, in one point, mirrored.
    """
    turn, shift = similarity(PLACES, landmarks.astype(np.float64))
    if not SCALES[0] < np.hypot(*turn[0]) < SCALES[1]:  # false for NaN
        return crop
    size = crop.shape[1], crop.shape[0]
    # PIL asks where a pixel of the result comes from: the rows of the map from the result to the crop.
    rows = np.concatenate([turn, shift[:, None]], 1).ravel()
    found = Image.fromarray(crop).transform(size, Image.Transform.AFFINE, tuple(rows), Image.Resampling.BILINEAR)
    return np.asarray(found)


def similarity(points: np.ndarray, goals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation with scale (2, 2) and shift (2,) that move points (n, 2) nearest to their goals (n, 2).

    The sum of squared distances is least (Umeyama 1991; in the plane without mirroring it is a division of complex
    numbers).
    """
    middle, goal = points.mean(0), goals.mean(0)
    here, there = (points - middle) @ [1, 1j], (goals - goal) @ [1, 1j]
    factor = np.vdot(here, there) / np.vdot(here, here).real
    turn = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return turn, goal - turn @ middle
