"""The one judge of sound: what preparation, embedding, evaluation and training cannot use, in the same words."""

import math

import numpy as np

from avspk.data.media import SAMPLE_RATE, MediaError

SILENCE_DB = -70.0  # [C] of full scale; the level below which a recording is silent
LOUDEST = 4.0  # [C] of full scale; lossy codings overshoot it, integers that were not divided exceed it by far
FULL_SCALE = 0.999  # a sample at or beyond it counts as clipped
CANCELLED = 0.02  # [C] share of what independent channels leave of their power in their mean, which is 1 / number
EMPTY = "no samples: the sound is empty"
NOT_FINITE = "not finite: some samples are NaN or infinite"
_FRAME = SAMPLE_RATE // 40  # samples


class SoundCheck:
    """Sees a recording part by part, at 16 kHz; in the end it raises MediaError if the recording cannot be used.

    Nothing is raised before, so that of a recording whose decoder fails later, everybody gives that reason.

    Attributes:
        num_samples: seen so far.
        num_clipped: of them at full scale or beyond.
    """

    def __init__(self, min_seconds: float = 0.0, silence_db: float = SILENCE_DB) -> None:
        self.min_seconds, self.silence_db = min_seconds, silence_db
        self.num_samples = self.num_clipped = 0
        self._finite, self._peak = True, 0.0
        self._sum = 0.0
        self._powers: list[np.ndarray] = []  # of the whole frames seen, without their means
        self._held = np.zeros(0, np.float32)  # the frame that is not yet whole

    @property
    def hopeless(self) -> bool:
        """Whether `finish` will raise, whatever comes."""
        return not self._finite or self._peak > LOUDEST

    def see(self, part: np.ndarray) -> None:
        """The next samples (n,)."""
        if len(part) == 0 or not self._finite:
            return
        self._finite = _finite(part)
        peak = max(-float(part.min()), float(part.max()))
        # The reason names the peak of the whole recording, not that of one part: callers cut the parts differently.
        self._peak = max(self._peak, peak)
        if self.hopeless:
            return
        if peak >= FULL_SCALE:
            self.num_clipped += int(np.count_nonzero(np.abs(part) >= FULL_SCALE))
        self.num_samples += len(part)
        self._sum += float(part.sum(dtype=np.float64))
        samples = np.concatenate([self._held, part])
        whole = len(samples) // _FRAME * _FRAME
        self._powers.append(samples[:whole].reshape(-1, _FRAME).var(axis=1))
        self._held = samples[whole:]

    def finish(self) -> None:
        """No more samples. Raises: MediaError if they cannot be used; see `SoundCheck` and the constants above."""
        if not self._finite:
            raise MediaError(NOT_FINITE)
        if self._peak > LOUDEST:
            raise MediaError(
                f"too loud: the peak is {self._peak:.3g}, full scale is 1; divide 16-bit integers by 32768"
            )
        if self.num_samples == 0:
            raise MediaError(EMPTY)
        seconds = self.num_samples / SAMPLE_RATE
        if seconds < self.min_seconds:
            raise MediaError(f"too short: {seconds:.2f} s of sound, at least {self.min_seconds:g} s are needed")
        level, offset = self._level(), abs(self._sum / self.num_samples)
        if level < self.silence_db and offset > 10 ** (self.silence_db / 20):
            raise MediaError(f"constant: the samples stay near {self._sum / self.num_samples:.2g}")
        if level < self.silence_db:
            raise MediaError(f"silent: {level:.0f} dB of full scale")

    def _level(self) -> float:
        """Mean power of the frames in dB, the outer ones left out: there a resampled constant rings."""
        powers = np.concatenate(self._powers)
        if len(powers) == 0:
            powers = self._held.var(keepdims=True)
        return 10 * math.log10(float(powers[1:-1].mean() if len(powers) > 2 else powers.mean()) + 1e-20)


def check_sound(waveform: np.ndarray, min_seconds: float = 0.0, silence_db: float = SILENCE_DB) -> None:
    """`SoundCheck` of a whole recording (n,) at 16 kHz. Raises: MediaError."""
    check = SoundCheck(min_seconds, silence_db)
    check.see(waveform)
    check.finish()


def require_finite(samples: np.ndarray) -> None:
    """Raises: MediaError if samples (n,) hold a NaN or an infinite value."""
    if not _finite(samples):
        raise MediaError(NOT_FINITE)


def _finite(samples: np.ndarray) -> bool:
    # The product is the fastest look at all of them; where it is too large for a float32, each is looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        power = float(np.dot(samples, samples))
    return math.isfinite(power) or bool(np.isfinite(samples).all())


def require_length(samples: np.ndarray, expected: int) -> None:
    """Raises: MediaError if samples (n,) are none, or fewer than expected."""
    if len(samples) == 0:
        raise MediaError(EMPTY)
    if len(samples) < expected:
        raise MediaError(f"truncated: {expected} samples should be there, {len(samples)} are")


class ChannelSum:
    """Averages channels, and knows in the end whether they cancelled each other."""

    def __init__(self) -> None:
        self._apart = self._mixed = 0.0  # energies of the mean: if the channels were independent, and as it is

    def mix(self, samples: np.ndarray) -> np.ndarray:
        """The mean of the channels of float samples (n, channels): (n,)."""
        if samples.shape[1] == 1:
            return samples[:, 0]
        mean = samples.mean(axis=1)
        self._apart += float(np.vdot(samples, samples)) / samples.shape[1] ** 2
        self._mixed += float(np.vdot(mean, mean))
        return mean

    def finish(self) -> None:
        """Raises: MediaError if next to nothing of the channels is left in their mean."""
        if self._mixed < CANCELLED * self._apart:
            raise MediaError("the channels cancel each other when they are averaged; keep one of them")
