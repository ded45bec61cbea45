"""A look at many sounds before a long job, without decoding: which are missing, incomplete or shorter than expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from avspk.data.media import SAMPLE_RATE, MediaError, decoder_errors
from avspk.data.sound_check import too_few
from avspk.data.sound_decoding import sound_header
from avspk.data.sound_store import SoundStore, packed_at

_LOOKS, _LOOKS_AT_ONCE = 1024, 32
_PREPARED_HEADER = 44  # bytes before the 16-bit samples of a wav that preparation writes

Fault = tuple[Path, str]
"""The place of a sound, and why it cannot be used."""


def sound_faults(places: Sequence[Path], num_samples: Sequence[int]) -> list[Fault]:
    """The places without sound, or with less than these numbers of samples at 16 kHz (0: any), in their order.

    A file of exactly the size that preparation gives it is not opened. Of other files the header is read, of a pack the
    index. Sound whose length is only known by decoding it (mp3, m4a) is not found too short here. Uses many threads,
    because each look waits on network storage: a million take minutes one after the other.
    """
    sounds = SoundStore()

    def look(begin: int) -> list[Fault]:
        part = range(begin, min(begin + _LOOKS, len(places)))
        found = [(places[row], _fault(sounds, places[row], int(num_samples[row]))) for row in part]
        return [(place, reason) for place, reason in found if reason]

    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        return [fault for found in pool.map(look, range(0, len(places), _LOOKS)) for fault in found]


def _fault(sounds: SoundStore, place: Path, expected: int) -> str:
    """The reason; "" if nothing is wrong."""
    try:
        with decoder_errors():
            found = _at_most(sounds, place, expected)
    except MediaError as error:
        return str(error).removeprefix(f"{place}: ")
    return too_few(found, expected) if found < expected else ""


def _at_most(sounds: SoundStore, place: Path, expected: int) -> float:
    """Number of samples at 16 kHz that a place can have. Raises: MediaError; OSError."""
    if packed_at(place)[1] is not None:
        return sounds.num_samples(place)
    if expected and place.is_file() and place.stat().st_size == _PREPARED_HEADER + 2 * expected:
        return expected
    header = sound_header(place)
    return math.inf if header is None else math.ceil(header.frames * SAMPLE_RATE / header.samplerate)
