"""Procedural noises, music and room impulse responses for users without MUSAN and RIRS_NOISES. All [C]."""

import numpy as np

from avspk.data.media import SAMPLE_RATE


def _smooth_walk(rng: np.random.Generator, num_points: int, num_samples: int) -> np.ndarray:
    """A standard normal value at each of `num_points`, joined by cosine ramps: (num_samples,)."""
    points = rng.standard_normal(num_points)
    position = np.linspace(0, num_points - 1, num_samples)
    left = np.minimum(position.astype(np.int64), num_points - 2)
    ramp = 0.5 - 0.5 * np.cos(np.pi * (position - left))
    return points[left] * (1 - ramp) + points[left + 1] * ramp


def _peak_normalize(waveform: np.ndarray, peak: float = 0.5) -> np.ndarray:
    return waveform * (peak / np.max(np.abs(waveform)))


def coloured_noise(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Noise of a 1/f^b spectrum, b in 0..2, uneven by 6 dB, its level varying by up to 6 dB (deviation): (n,)."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    frequency = np.maximum(np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE), 20.0)
    unevenness = 6.0 * _smooth_walk(rng, 12, len(frequency))
    spectrum *= frequency ** (-rng.uniform(0, 2) / 2) * 10 ** (unevenness / 20)
    swells = max(2, int(rng.uniform(0.5, 8) * num_samples / SAMPLE_RATE))
    sway = rng.uniform(0, 6) * _smooth_walk(rng, swells, num_samples)  # dB
    return _peak_normalize(np.fft.irfft(spectrum, num_samples) * 10 ** (sway / 20))


def tonal_music(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Plucked notes of a pentatonic scale in two or three voices at one tempo: (num_samples,)."""
    beat = int(SAMPLE_RATE / rng.uniform(1.5, 5))
    root = 110 * 2 ** rng.uniform(0, 1)
    harmonics = np.arange(1, 9)
    timbre = harmonics ** -rng.uniform(0.7, 2.0)
    time = np.arange(4 * beat) / SAMPLE_RATE
    pluck = np.minimum(1.0, time / 0.01) * np.exp(-time * rng.uniform(1, 6))
    music = np.zeros(num_samples + len(time))
    for onset in range(0, num_samples, beat):
        for step in rng.choice(np.array([0, 2, 4, 7, 9, 12, 14, 16]), size=rng.integers(1, 4), replace=False):
            pitch = root * 2 ** (step / 12) * harmonics
            audible = timbre * (pitch < SAMPLE_RATE / 2)
            music[onset : onset + len(time)] += pluck * (audible @ np.sin(2 * np.pi * pitch[:, None] * time))
    return _peak_normalize(music[:num_samples])


def exponential_rir(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """A direct path and a decaying noise tail: float32 (num_samples,), unit energy.

    RT60 is uniform in 0.05-0.6 s (amplitude exp(-6.91 t / RT60) is 60 dB down at RT60), the tail starts 1-10 ms after
    the direct path, and the direct-to-reverberant energy ratio is uniform in -3..12 dB.
    """
    rt60 = rng.uniform(0.05, 0.6)
    delay = int(rng.uniform(0.001, 0.01) * SAMPLE_RATE)
    time = np.arange(num_samples - delay) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * np.exp(-np.log(1000.0) * time / rt60)
    tail *= 10 ** (-rng.uniform(-3, 12) / 20) / np.sqrt(np.sum(tail**2))
    rir = np.zeros(num_samples)
    rir[0] = 1.0
    rir[delay:] += tail
    return (rir / np.sqrt(np.sum(rir**2))).astype(np.float32)
