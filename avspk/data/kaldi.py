"""Kaldi's binary float vectors in ark files: name, blank, NUL B, "FV ", byte 4, D as int32, D float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HEADER_SIZE = 10


def ark_entry(name: str, vector: NDArray[np.float32]) -> tuple[bytes, int]:
    """Bytes of a vector (D,) under this name, and the offset in them that an scp points to."""
    key = f"{name} ".encode()
    size = np.array([len(vector)], "<i4").tobytes()
    return key + b"\0BFV \4" + size + vector.astype("<f4").tobytes(), len(key)
