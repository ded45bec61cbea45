"""The only check of sound: preparation, embedding, evaluation and training reject sound with the same messages."""

import math

import numpy as np

from avspk.data.media import SAMPLE_RATE, MediaError

SILENCE_DB = -70.0  # [C] of full scale; the level below which a recording is silent
LOUDEST = 4.0  # [C] of full scale; lossy codings overshoot full scale, undivided integers exceed it by far
FULL_SCALE = 0.999  # a sample at or beyond it counts as clipped
CANCELLED = 0.02  # [C] share of power that the mean keeps; it is 1 / number for independent channels
EMPTY = "no samples: the sound is empty"
NOT_FINITE = "not finite: some samples are NaN or infinite"
_FRAME = SAMPLE_RATE // 40  # samples


class SoundCheck:
    """Receives a recording part by part, at 16 kHz; at the end it raises MediaError if the recording cannot be used.

    Nothing is raised earlier, so if the decoder fails later, every command reports the decoder's reason.

    Attributes:
        num_samples: seen so far.
        num_clipped: those at full scale or beyond.
    """

    def __init__(self, min_seconds: float = 0.0, silence_db: float = SILENCE_DB) -> None:
        self.min_seconds, self.silence_db = min_seconds, silence_db
        self.num_samples = self.num_clipped = 0
        self._finite, self._peak = True, 0.0
        self._sum = 0.0
        self._powers: list[np.ndarray] = []  # of the complete frames seen, without their means
        self._held = np.zeros(0, np.float32)  # the incomplete frame

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
        """Mean power of the frames in dB without the outer frames, because a resampled constant rings there."""
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
    # The product is the fastest check of all samples; if it overflows float32, each sample is checked.
    with np.errstate(over="ignore", invalid="ignore"):
        power = float(np.dot(samples, samples))
    return math.isfinite(power) or bool(np.isfinite(samples).all())


def require_length(samples: np.ndarray, expected: int) -> None:
    """Raises: MediaError if there are no samples (n,), or fewer than expected."""
    if len(samples) == 0:
        raise MediaError(EMPTY)
    if len(samples) < expected:
        raise MediaError(too_few(len(samples), expected))


def too_few(found: int | float, expected: int) -> str:
    """The reason for sound that is shorter than its manifest says."""
    return f"truncated: expected {expected} samples, found {found}"


class ChannelSum:
    """Averages channels, and detects at the end whether they cancelled each other."""

    def __init__(self) -> None:
        self._apart = self._mixed = 0.0  # energies of the mean: expected for independent channels, and actual

    def mix(self, samples: np.ndarray) -> np.ndarray:
        """The mean of the channels of float samples (n, channels): (n,)."""
        if samples.shape[1] == 1:
            return samples[:, 0]
        with np.errstate(over="ignore", invalid="ignore"):  # `SoundCheck` rejects the result
            mean: np.ndarray = samples.mean(axis=1)
            self._apart += float(np.vdot(samples, samples)) / samples.shape[1] ** 2
            self._mixed += float(np.vdot(mean, mean))
        return mean

    def finish(self) -> None:
        """Raises: MediaError if the mean keeps almost nothing of the channels."""
        if self._mixed < CANCELLED * self._apart:
            raise MediaError("the channels cancel each other when they are averaged; keep one of them")
