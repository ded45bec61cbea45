"""The sounds of the procedural language: formant targets, noise bands and a lexicon that all speakers share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

# Hz: a uniform tube of 17 cm, F_k = (2k - 1) c / 4L
NEUTRAL_FORMANTS = (500.0, 1500.0, 2500.0)


@dataclass(frozen=True)
class Phoneme:
    """One sound for the synthesiser; frequencies in Hz of a male vocal tract, durations in milliseconds.

    noise = (centre, width, gain) of the turbulence; opening = how far the lips part, 0 to 1.
    """

    kind: Literal["vowel", "sonorant", "fricative", "plosive"]
    voicing: float
    duration: float
    opening: float
    formants: tuple[float, float, float] = NEUTRAL_FORMANTS
    noise: tuple[float, float, float] = (4000.0, 2000.0, 0.0)
    nasal: bool = False


def _vowel(f1: float, f2: float, f3: float) -> Phoneme:
    # An open jaw raises F1, so F1 gives the opening.
    return Phoneme("vowel", 1.0, 95, float(np.clip((f1 - 230) / 480, 0.15, 1)), (f1, f2, f3))


def _sonorant(f1: float, f2: float, f3: float, nasal: bool = False, opening: float = 0.2) -> Phoneme:
    return Phoneme("sonorant", 0.55 if nasal else 0.75, 65, opening, (f1, f2, f3), nasal=nasal)


def _fricative(centre: float, width: float, gain: float, voiced: bool = False) -> Phoneme:
    return Phoneme("fricative", 0.45 * voiced, 85, 0.12, noise=(centre, width, gain))


def _plosive(centre: float, width: float, gain: float, voiced: bool = False, opening: float = 0.12) -> Phoneme:
    return Phoneme("plosive", 0.15 * voiced, 55, opening, noise=(centre, width, gain))


# Vowels: men of Peterson and Barney (1952), rounded. Consonants: schematic loci and noise bands.
PHONEMES: dict[str, Phoneme] = {
    "i": _vowel(280, 2250, 2950),
    "I": _vowel(400, 1950, 2550),
    "e": _vowel(530, 1850, 2480),
    "E": _vowel(600, 1750, 2450),
    "ae": _vowel(690, 1660, 2450),
    "a": _vowel(730, 1150, 2440),
    "o": _vowel(570, 880, 2410),
    "U": _vowel(440, 1030, 2250),
    "u": _vowel(310, 900, 2250),
    "V": _vowel(620, 1200, 2400),
    "3": _vowel(490, 1350, 1690),
    "@": _vowel(500, 1500, 2500),
    "m": _sonorant(250, 1000, 2200, nasal=True, opening=0.0),
    "n": _sonorant(250, 1600, 2600, nasal=True),
    "N": _sonorant(250, 2100, 2700, nasal=True),
    "l": _sonorant(360, 1200, 2750),
    "r": _sonorant(350, 1150, 1600),
    "w": _sonorant(300, 650, 2200),
    "j": _sonorant(260, 2200, 3000),
    "s": _fricative(6200, 1500, 1.0),
    "S": _fricative(3400, 1200, 0.9),
    "f": _fricative(5200, 4000, 0.35),
    "T": _fricative(5800, 3500, 0.3),
    "h": _fricative(1500, 3000, 0.25),
    "z": _fricative(6000, 1500, 0.55, voiced=True),
    "v": _fricative(4500, 4000, 0.2, voiced=True),
    "Z": _fricative(3300, 1200, 0.5, voiced=True),
    "p": _plosive(900, 1500, 0.5, opening=0.0),
    "t": _plosive(4200, 2000, 0.8),
    "k": _plosive(1900, 1000, 0.7),
    "b": _plosive(800, 1200, 0.3, voiced=True, opening=0.0),
    "d": _plosive(3800, 2000, 0.4, voiced=True),
    "g": _plosive(1800, 1000, 0.4, voiced=True),
}
VOWELS = [name for name, phoneme in PHONEMES.items() if phoneme.kind == "vowel"]
CONSONANTS = [name for name, phoneme in PHONEMES.items() if phoneme.kind != "vowel"]


def _syllable(rng: np.random.Generator) -> list[str]:
    onset = [str(rng.choice(CONSONANTS))] if rng.random() < 0.85 else []
    coda = [str(rng.choice(CONSONANTS))] if rng.random() < 0.45 else []
    return [*onset, str(rng.choice(VOWELS)), *coda]


@lru_cache(maxsize=1)
def lexicon(num_words: int = 300) -> tuple[tuple[str, ...], ...]:
    """Words of one to three syllables, the same for every speaker, so that the words do not identify the speaker."""
    rng = np.random.default_rng(5)
    syllables = rng.choice([1, 2, 3], size=num_words, p=[0.4, 0.4, 0.2])
    return tuple(tuple(sound for _ in range(count) for sound in _syllable(rng)) for count in syllables)
