"""Waveforms of any usual sampling rate to 16 kHz, whole or piece by piece with the same result."""

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from avspk.data.media import SAMPLE_RATE, MediaError

LOWEST_RATE, HIGHEST_RATE = 1_000, 384_000  # Hz; a header with a rate outside is damaged


def require_rate(rate: int) -> None:
    """Raises: MediaError for an impossible sampling rate, whose filter would not fit into memory."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise MediaError(f"sampling rate of {rate} Hz; valid is {LOWEST_RATE} to {HIGHEST_RATE} Hz")


def resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Waveform (n,) at `rate` to float32 (ceil(n x 16000 / rate),) at 16 kHz.

    Raises: MediaError for an impossible rate.
    """
    from scipy.signal import resample_poly  # slow to import, and most files are at 16 kHz

    require_rate(rate)
    if rate == SAMPLE_RATE:
        return waveform.astype(np.float32, copy=False)
    up, down = _ratio(rate)
    window: Any = _low_pass(max(up, down)) if waveform.dtype == np.float32 else ("kaiser", 5.0)
    return resample_poly(waveform, up, down, window=window).astype(np.float32)


def resampled(pieces: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """`resample` of the joined pieces: each is filtered with the sound around it that the filter reaches."""
    require_rate(rate)
    if rate == SAMPLE_RATE:
        yield from pieces
        return
    up, down = _ratio(rate)
    reach = math.ceil(10 * max(up, down) / up)  # half the length of resample_poly's filter, in input samples
    context = down * math.ceil(reach / down)  # whole periods: a cut here keeps the output at the same instants
    held, done = np.zeros(0, np.float32), 0  # the first `done` samples of `held` are context only
    for piece in pieces:
        held = np.concatenate([held, piece])
        ready = (len(held) - context) // down * down
        if ready > done:
            yield resample(held[: ready + context], rate)[done * up // down : ready * up // down]
            kept = max(0, ready - context)
            held, done = held[kept:], ready - kept
    if len(held) > done:
        yield resample(held, rate)[done * up // down :]


def _ratio(rate: int) -> tuple[int, int]:
    common = math.gcd(SAMPLE_RATE, rate)
    return SAMPLE_RATE // common, rate // common


@lru_cache(4)
def _low_pass(max_rate: int) -> np.ndarray:
    """The filter that resample_poly designs for float32. Cached: a rate without common factors takes seconds."""
    from scipy.signal import firwin

    return firwin(20 * max_rate + 1, 1 / max_rate, window=("kaiser", 5.0)).astype(np.float32)
