"""Settings of a demo corpus: its size, its difficulty, and the only source of its randomness."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

from avspk.data.media import SAMPLE_RATE

FRAME_RATE = 25
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAME_RATE
MOST_IDENTITIES = 9999  # id00001 to id09999, and id10001 to id19999


@dataclass(frozen=True)
class Nuisance:
    """Differences between recordings of one person. Pairs are ranges, drawn from uniformly; `sd` are normal spreads.

    Sound, from one session (a recorded video) to the next:

    equaliser_db       size of the smooth colouring of microphone and codec, dB (standard deviation over mel)
    band_limited       also cut the lowest and highest frequencies, at a place drawn per session
    snr_db             speech over noise (steady, babble, fluctuating or music)
    rt60_s             reverberation time of the room, seconds
    direct_db          direct sound over reverberation
    pitch_sd           natural log of the mean pitch
    tilt_sd_db         spectral tilt of the voice source, dB per octave
    vocal_tract_sd     natural log of the vocal tract's length (posture, vocal effort)
    rate_sd            natural log of the speaking rate
    level_sd_db        recording level, from clip to clip

    Picture, all as multiples of a natural amount: pose, light, blur, grain.
    """

    equaliser_db: float = 2.2
    band_limited: bool = False
    snr_db: tuple[float, float] = (15.0, 30.0)
    rt60_s: tuple[float, float] = (0.05, 0.2)
    direct_db: tuple[float, float] = (0.0, 12.0)
    pitch_sd: float = 0.08
    tilt_sd_db: float = 1.5
    vocal_tract_sd: float = 0.01
    rate_sd: float = 0.08
    level_sd_db: float = 3.0
    pose: float = 1.0
    light: float = 1.0
    blur: float = 1.0
    grain: float = 1.0


@dataclass(frozen=True)
class CorpusSettings:
    """Size, seed and difficulty of a demo corpus. The same settings always give the same bytes.

    training_* identities are written as talking-head mp4 files, test_* identities as wav files (VoxCeleb1's video was
    never released). `bad_clips` is the number of deliberately unusable training clips *of each kind*.
    `nontargets_per_target` holds for both trial lists; all target trials are used.
    """

    seed: int = 0
    training_identities: int = 60
    training_sessions: int = 4
    training_clips: int = 4
    test_identities: int = 40
    test_sessions: int = 4
    test_clips: int = 3
    clip_seconds: tuple[float, float] = (2.5, 3.5)
    image_size: int = 224
    bad_clips: int = 1
    nontargets_per_target: int = 4
    nuisance: Nuisance = field(default_factory=Nuisance)

    def __post_init__(self) -> None:
        limits = {
            "seed": (0, None),
            "training_identities": (2, MOST_IDENTITIES),
            "training_sessions": (1, None),
            "training_clips": (1, None),
            "test_identities": (2, MOST_IDENTITIES),
            "test_sessions": (2, None),  # for cross-session trials
            "test_clips": (1, None),
            "image_size": (64, None),
            "bad_clips": (0, None),
            "nontargets_per_target": (1, None),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value < least or (most is not None and value > most):
                raise ValueError(
                    f"{name} is {value}; it must be {least} or more" + (f", {most} at most" if most else "")
                )
        if self.image_size % 2:
            raise ValueError(f"image_size is {self.image_size}; H.264 in 4:2:0 needs an even number")
        if not 0.5 <= self.clip_seconds[0] <= self.clip_seconds[1]:
            raise ValueError(
                f"clip_seconds is {self.clip_seconds}; give (shortest, longest), with shortest at least 0.5"
            )


def generator(seed: int, *key: str | int) -> np.random.Generator:
    """The random stream of `key`: a draw does not depend on other draws or on their order."""
    words = (zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key)
    return np.random.default_rng([seed, *words])
