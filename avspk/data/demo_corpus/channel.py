"""From a mouth to a recording: room, background noise, microphone colouring, level."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from avspk.data.demo_corpus.settings import SAMPLE_RATE, Nuisance, generator
from avspk.data.demo_corpus.voice import articulate, draw_mood, draw_speaker, synthesise

Array = NDArray[np.float32]

NOISES = ("steady", "babble", "fluctuating", "music")
RECORDING_RMS = 0.07
BABBLE_TALKERS, BABBLE_SECONDS = 12, 4.0


@dataclass(frozen=True)
class Channel:
    """How one session was recorded."""

    noise: str  # one of NOISES
    snr_db: float
    noise_slope: float  # dB per octave
    room: Array  # impulse response, direct sound 1 at sample 0
    ripple_db: Array  # (7,) amplitudes of the cosines over mel that colour the sound ...
    ripple_phase: Array  # (7,) ... and their phases
    low_cut: float  # Hz; 0 = none
    high_cut: float  # Hz; infinity = none


def draw_channel(rng: np.random.Generator, nuisance: Nuisance) -> Channel:
    """The recording conditions of one session."""
    ripple = rng.normal(0, 1, 7) / np.sqrt(np.arange(1, 8))
    size = nuisance.equaliser_db * abs(1 + 0.35 * rng.normal())
    return Channel(
        noise=NOISES[rng.integers(len(NOISES))],
        snr_db=rng.uniform(*nuisance.snr_db),
        noise_slope=rng.uniform(-8, 0),
        room=room_response(rng.uniform(*nuisance.rt60_s), rng.uniform(*nuisance.direct_db), rng),
        # Cosines of a whole number of half periods are orthogonal: the variance is half the sum of squares.
        ripple_db=(ripple * size / np.sqrt(np.sum(ripple**2) / 2)).astype(np.float32),
        ripple_phase=rng.uniform(0, 2 * np.pi, 7).astype(np.float32),
        low_cut=rng.uniform(60, 180) if nuisance.band_limited else 0.0,
        high_cut=rng.uniform(4500, 8500) if nuisance.band_limited else np.inf,
    )


def room_response(rt60: float, direct_db: float, rng: np.random.Generator) -> Array:
    """Direct sound, then noise falling by 60 dB in `rt60` seconds; `direct_db` = energy of direct over reverberant."""
    time = np.arange(1, max(2, int(rt60 * SAMPLE_RATE))) / SAMPLE_RATE
    tail = rng.normal(0, 1, len(time)) * 10 ** (-3 * time / rt60)
    tail *= 10 ** (-direct_db / 20) / np.sqrt(np.sum(tail**2))
    return np.concatenate([[1.0], tail]).astype(np.float32)


def colouring_db(channel: Channel, frequencies: NDArray[np.floating]) -> NDArray[np.floating]:
    """Gain of the recording chain in dB at the given frequencies (Hz)."""
    mel = np.log1p(frequencies / 700) / np.log1p(SAMPLE_RATE / 2 / 700)
    orders = np.arange(1, 8)[:, None]
    ripple = channel.ripple_db @ np.cos(np.pi * orders * mel + channel.ripple_phase[:, None])
    low = 24 * np.clip((channel.low_cut - frequencies) / 120, 0, 1)
    high = 30 * np.clip((frequencies - channel.high_cut) / 1500, 0, 1)
    return ripple - low - high


def background_noise(channel: Channel, num_samples: int, rng: np.random.Generator) -> Array:
    """The session's kind of noise: float32 (num_samples,), level arbitrary."""
    if channel.noise == "babble":
        return _babble(num_samples, rng)
    steady = _sloped_noise(num_samples, channel.noise_slope, rng)
    if channel.noise == "fluctuating":
        knots = np.arange(0, num_samples + 3200, 3200)
        level = np.interp(np.arange(num_samples), knots, rng.normal(0, 1, len(knots)))
        return (steady * (0.3 + np.abs(level))).astype(np.float32)
    if channel.noise == "music":
        return (0.2 * steady / steady.std() + _melody(num_samples, rng)).astype(np.float32)
    return steady


def _sloped_noise(num_samples: int, slope: float, rng: np.random.Generator) -> Array:
    size = fft.next_fast_len(num_samples, real=True)
    spectrum = fft.rfft(rng.standard_normal(size, np.float32))
    octaves = np.log2(np.maximum(fft.rfftfreq(size, 1 / SAMPLE_RATE), 50) / 500)
    return fft.irfft(spectrum * (10 ** (slope * octaves / 20)).astype(np.float32), size)[:num_samples]


def _melody(num_samples: int, rng: np.random.Generator, note_seconds: float = 0.4) -> NDArray[np.float64]:
    """Plucked notes of two octaves above 220 Hz, each with four partials."""
    time = np.arange(num_samples) / SAMPLE_RATE
    note = (time / note_seconds).astype(np.int64)
    pitch = 220 * 2 ** (rng.integers(0, 24, note[-1] + 1) / 12)
    decay = np.exp(-4 * (time - note * note_seconds))
    return decay * sum(np.sin(2 * np.pi * partial * pitch[note] * time) / partial for partial in (1, 2, 3, 5))


@lru_cache(maxsize=1)
def _talkers() -> Array:
    """Voices that belong to nobody in the corpus, for babble: (talkers, samples). The same in every corpus."""
    num_samples = int(BABBLE_SECONDS * SAMPLE_RATE)

    def talk(number: int) -> Array:
        rng = generator(0, "babble", number)
        speaker, mood = draw_speaker(rng, male=number % 2 == 0), draw_mood(rng, Nuisance())
        return synthesise(speaker, mood, articulate(speaker, mood, num_samples, rng), num_samples, rng)

    return np.stack([talk(number) for number in range(BABBLE_TALKERS)])


def _babble(num_samples: int, rng: np.random.Generator) -> Array:
    """Four of the talkers at once, each from a random place on, wrapping around."""
    talkers = _talkers()
    chosen = rng.choice(len(talkers), 4, replace=False)
    offsets = rng.integers(talkers.shape[1], size=4)
    samples = (offsets[:, None] + np.arange(num_samples)) % talkers.shape[1]  # (4, T)
    return talkers[chosen[:, None], samples].sum(axis=0)


def add_noise(speech: Array, noise: Array, snr_db: float) -> Array:
    """Speech plus noise, scaled so that the ratio of their energies is `snr_db`."""
    gain = np.sqrt(np.mean(speech**2) / (np.mean(noise**2) + 1e-12)) * 10 ** (-snr_db / 20)
    return speech + noise * np.float32(gain)


def record(speech: Array, channel: Channel, nuisance: Nuisance, rng: np.random.Generator) -> Array:
    """`speech` as this channel records it: float32, same length, no delay, within [-1, 1]."""
    size = fft.next_fast_len(len(speech) + len(channel.room), real=True)
    reverberant = fft.irfft(fft.rfft(speech, size) * fft.rfft(channel.room, size), size)[: len(speech)]
    noisy = add_noise(reverberant, background_noise(channel, len(speech), rng), channel.snr_db)
    coarse = np.linspace(0, SAMPLE_RATE / 2, 257)
    gain = 10 ** (np.interp(fft.rfftfreq(size, 1 / SAMPLE_RATE), coarse, colouring_db(channel, coarse)) / 20)
    coloured = fft.irfft(fft.rfft(noisy, size) * gain.astype(np.float32), size)[: len(speech)]
    level = RECORDING_RMS * 10 ** (rng.normal(0, nuisance.level_sd_db) / 20)
    return np.clip(coloured * np.float32(level / (np.sqrt(np.mean(coloured**2)) + 1e-9)), -1, 1)
