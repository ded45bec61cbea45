"""A source-filter speech synthesiser: a glottal pulse train and noise through a time-varying vocal tract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import convolve1d

from avspk.data.demo_corpus.phonemes import NEUTRAL_FORMANTS, PHONEMES, VOWELS, Phoneme, lexicon
from avspk.data.demo_corpus.settings import FRAME_RATE, SAMPLE_RATE, Nuisance

Array = NDArray[np.float32]

HOP = 80  # samples between two positions of the vocal tract: 5 ms
FFT_SIZE = 512
FRAMES_PER_SECOND = SAMPLE_RATE // HOP
FREQUENCIES: Array = fft.rfftfreq(FFT_SIZE, 1 / SAMPLE_RATE).astype(np.float32)
FORMANT_BANDWIDTHS = np.array([60, 85, 130, 200, 260, 350], np.float32)  # Hz
SPEECH_RMS = 0.08
NEUTRAL: Array = np.array(NEUTRAL_FORMANTS, np.float32)


@dataclass(frozen=True)
class Speaker:
    """The constant properties of a voice. Factors multiply the table values; frequencies in Hz, levels in dB."""

    pitch: float
    intonation: float  # slow wander of log pitch
    accent: float  # rise of log pitch on a stressed vowel
    declination: float  # fall of log pitch over a phrase
    vocal_tract: float  # factor on all formants: a shorter tract raises them
    formant_offsets: Array  # (6,) factors
    vowel_offsets: Mapping[str, Array]  # vowel -> (3,) factors
    centralisation: float  # vowel space: below 1 towards the neutral vowel
    bandwidth: float  # factor
    upper_formants: Array  # (3,) F4 to F6
    tilt: float  # dB per octave
    open_quotient: float  # open share of the glottal cycle
    breathiness: float
    jitter: float
    shimmer: float
    zero_frequency: float  # a side cavity's spectral zero ...
    zero_depth: float  # ... and its depth
    nasal_zero: float
    frication: float  # factor on the centre of noise bands
    frication_gain: float
    rate: float
    pauses: float  # probability of a pause after a word


@dataclass(frozen=True)
class Mood:
    """The properties of a voice that change from session to session: factors, and a tilt in dB per octave."""

    pitch: float
    vocal_tract: float
    rate: float
    breathiness: float
    tilt: float


def draw_speaker(rng: np.random.Generator, male: bool) -> Speaker:
    """A voice. Spreads are chosen so that mean spectra overlap and a trained encoder separates the speakers."""

    def spread(sd: float) -> float:
        return float(np.clip(rng.normal(0, sd), -2 * sd, 2 * sd))

    def factor(sd: float) -> float:
        return float(np.exp(spread(sd)))

    return Speaker(
        pitch=(122 if male else 200) * factor(0.15),
        intonation=0.10 + abs(spread(0.05)),
        accent=0.10 + abs(spread(0.06)),
        declination=-0.12 + spread(0.06),
        vocal_tract=(1.0 if male else 1.14) * factor(0.045),
        formant_offsets=np.exp(np.clip(rng.normal(0, 0.035, 6), -0.08, 0.08)).astype(np.float32),
        vowel_offsets={v: np.exp(np.clip(rng.normal(0, 0.045, 3), -0.1, 0.1)).astype(np.float32) for v in VOWELS},
        centralisation=1 + spread(0.12),
        bandwidth=factor(0.22),
        upper_formants=np.array([3500 * factor(0.05), 4500 * factor(0.05), 5700 * factor(0.05)], np.float32) * 0.93,
        tilt=-1.5 + spread(2.2),
        open_quotient=0.60 + spread(0.09),
        breathiness=0.05 * factor(0.6),
        jitter=0.010 * factor(0.5),
        shimmer=0.05 * factor(0.5),
        zero_frequency=4700 * factor(0.10),
        zero_depth=6 + spread(4),
        nasal_zero=900 * factor(0.12),
        frication=factor(0.12),
        frication_gain=factor(0.30),
        rate=factor(0.12),
        pauses=0.12 + abs(spread(0.08)),
    )


def draw_mood(rng: np.random.Generator, nuisance: Nuisance) -> Mood:
    """Difference between a session's voice and the speaker's usual voice."""
    return Mood(
        pitch=float(np.exp(rng.normal(0, nuisance.pitch_sd))),
        vocal_tract=float(np.exp(rng.normal(0, nuisance.vocal_tract_sd))),
        rate=float(np.exp(rng.normal(0, nuisance.rate_sd))),
        breathiness=float(np.exp(rng.normal(0, 0.3))),
        tilt=float(rng.normal(0, nuisance.tilt_sd_db)),
    )


@dataclass
class Tracks:
    """Position of the articulators every 5 ms: one row per frame."""

    formants: Array  # (frames, 3) Hz
    voicing: Array  # (frames,) amplitude of the glottal source
    aspiration: Array  # (frames,) noise at the glottis
    frication: Array  # (frames,) noise at a constriction ...
    noise_centre: Array  # (frames,) ... its centre in Hz ...
    noise_width: Array  # (frames,) ... and width
    nasality: Array  # (frames,)
    stress: Array  # (frames,)
    opening: Array  # (frames,) of the lips, 0 to 1

    @classmethod
    def at_rest(cls, num_frames: int) -> Tracks:
        """A neutral, silent vocal tract."""
        tracks = cls(*(np.zeros(num_frames, np.float32) for _ in fields(cls)))
        tracks.formants = np.tile(NEUTRAL, (num_frames, 1))  # (frames, 3)
        tracks.noise_centre += 4000
        tracks.noise_width += 2000
        return tracks

    def smoothed(self) -> Tracks:
        """Articulators have mass: every track but the noise bands is low-passed (widths in frames)."""
        return Tracks(
            formants=_smooth(self.formants, 11),
            voicing=_smooth(self.voicing, 7),
            aspiration=self.aspiration,
            frication=_smooth(self.frication, 5),
            noise_centre=self.noise_centre,
            noise_width=self.noise_width,
            nasality=_smooth(self.nasality, 5),
            stress=_smooth(self.stress, 25),
            opening=_smooth(self.opening * (self.voicing > 0.03), 13),
        )


def _smooth(track: Array, width: int) -> Array:
    kernel = np.hanning(width + 2)[1:-1]
    return convolve1d(track, (kernel / kernel.sum()).astype(np.float32), axis=0, mode="nearest")


def num_frames_of(num_samples: int) -> int:
    """Number of frames of `Tracks` that cover `num_samples`."""
    return num_samples // HOP + 1


def articulate(speaker: Speaker, mood: Mood, num_samples: int, rng: np.random.Generator) -> Tracks:
    """Random words of the shared lexicon, pronounced by this speaker."""
    tracks = Tracks.at_rest(num_frames_of(num_samples))
    rate = speaker.rate * mood.rate

    def duration(milliseconds: float) -> int:
        return max(2, int(milliseconds / 1000 * FRAMES_PER_SECOND / rate * np.exp(rng.normal(0, 0.15))))

    frame = int(rng.uniform(0, 20))
    while frame < len(tracks.voicing):
        word, stressed = lexicon()[rng.integers(len(lexicon()))], bool(rng.random() < 0.4)
        for name in word:
            sound = PHONEMES[name]
            length = duration(sound.duration + 45 * (stressed and sound.kind == "vowel"))
            burst = duration(18) if sound.kind == "plosive" else 0
            _pronounce(tracks, speaker, name, frame, length, burst, stressed)
            frame += length + burst
        if rng.random() < speaker.pauses:
            frame += duration(160)
    return tracks.smoothed()


def _pronounce(
    tracks: Tracks, speaker: Speaker, name: str, start: int, length: int, burst: int, stressed: bool
) -> None:
    """Write one sound into the tracks; a plosive is a closure of `length` frames, then a burst of noise."""
    sound, middle, end = PHONEMES[name], start + length, start + length + burst
    closure, release, whole = slice(start, middle), slice(middle, end), slice(start, end)
    tracks.opening[whole] = sound.opening
    tracks.voicing[closure] = sound.voicing
    tracks.nasality[whole] = sound.nasal
    if sound.kind in ("vowel", "sonorant"):
        tracks.formants[whole] = _formants(speaker, name, sound)
        tracks.stress[whole] = stressed and sound.kind == "vowel"
    else:
        centre, width, gain = sound.noise
        noisy = release if burst else whole
        tracks.frication[noisy] = gain * (1.2 if burst else speaker.frication_gain)
        tracks.noise_centre[noisy] = centre * speaker.frication
        tracks.noise_width[noisy] = width
        tracks.aspiration[release] = 0.3 * (sound.voicing == 0)


def _formants(speaker: Speaker, name: str, sound: Phoneme) -> Array:
    target = np.array(sound.formants, np.float32)
    if sound.kind == "sonorant":
        return target
    return NEUTRAL + (target * speaker.vowel_offsets[name] - NEUTRAL) * np.float32(speaker.centralisation)


def pitch_contour(speaker: Speaker, mood: Mood, tracks: Tracks, num_samples: int, rng: np.random.Generator) -> Array:
    """F0 in Hz for every sample: mean, declination over 1.7 s phrases, accents, slow wander and jitter."""
    num_frames = len(tracks.voicing)
    phrase = (np.arange(num_frames) / FRAMES_PER_SECOND) % 1.7 / 1.7 - 0.5
    wander = _smooth(rng.normal(0, 1, num_frames).astype(np.float32), 61) * 4.5  # about unit variance again
    log_pitch = np.log(speaker.pitch * mood.pitch) + speaker.declination * phrase
    log_pitch = log_pitch + speaker.accent * tracks.stress + speaker.intonation * wander
    jitter = np.interp(np.arange(num_samples), *_knots(num_samples, 110, rng))
    return (_per_sample(np.exp(log_pitch), num_samples) * (1 + speaker.jitter * jitter)).astype(np.float32)


def _knots(num_samples: int, spacing: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Positions and normal values of a random function to be interpolated linearly."""
    positions = np.arange(0, num_samples + spacing, spacing)
    return positions, rng.normal(0, 1, len(positions))


def _per_sample(track: NDArray[np.floating], num_samples: int) -> Array:
    return np.interp(np.arange(num_samples), np.arange(len(track)) * HOP, track).astype(np.float32)


def glottal_source(speaker: Speaker, mood: Mood, pitch: Array, noise: Array, rng: np.random.Generator) -> Array:
    """Derivative of Rosenberg's glottal pulse x^2 - x^3 (JASA 49, 1971) over the open phase, and breath noise."""
    cycles = np.cumsum(pitch / SAMPLE_RATE, dtype=np.float64)
    cycle = cycles.astype(np.int64)
    x = ((cycles - cycle) / speaker.open_quotient).astype(np.float32)
    is_open = x < 1
    pulse = np.where(is_open, 3 * (2 * x - 3 * x * x), np.float32(0))
    pulse -= pulse.mean()
    loudness = 1 + speaker.shimmer * rng.normal(0, 1, cycle[-1] + 1).astype(np.float32)
    breath = noise * np.float32(2 * speaker.breathiness * mood.breathiness) * np.where(is_open, 1.0, 0.3)
    return (pulse * loudness[cycle] + breath).astype(np.float32)


def vocal_tract_response(speaker: Speaker, mood: Mood, tracks: Tracks) -> NDArray[np.complex64]:
    """Six resonances in cascade, then tilt, a side cavity's zero and the nasal zero: (frames, 257).

    A resonance at F with bandwidth B has the response a / (a - f^2 + i f B), a = F^2 + B^2 / 4.
    """
    scale = np.float32(speaker.vocal_tract * mood.vocal_tract)
    upper = np.broadcast_to(speaker.upper_formants, (len(tracks.formants), 3))
    centres = np.concatenate([tracks.formants, upper], axis=1) * speaker.formant_offsets * scale  # (frames, 6)
    response = np.ones((len(centres), len(FREQUENCIES)), np.complex64)
    resonance = np.empty_like(response)
    for centre, width in zip(centres.T, FORMANT_BANDWIDTHS * np.float32(speaker.bandwidth), strict=True):
        a = (centre**2 + width**2 / 4)[:, None]
        resonance.real = 1 - FREQUENCIES**2 / a
        resonance.imag = FREQUENCIES * width / a
        response *= resonance
    np.reciprocal(response, out=response)
    nasal_dip = 0.85 * np.exp(-0.5 * ((FREQUENCIES - speaker.nasal_zero) / 200) ** 2)
    nasal_loss = (1 - tracks.nasality[:, None] * nasal_dip) * (1 - 0.5 * tracks.nasality[:, None] * (FREQUENCIES > 500))
    return response * (_voice_colour(speaker, mood, float(scale)) * nasal_loss).astype(np.float32)


def _voice_colour(speaker: Speaker, mood: Mood, scale: float) -> Array:
    """Constant gain over frequency: tilt, spectral zero, and the lift of the missing higher poles."""
    tilt = (speaker.tilt + mood.tilt) * np.log2(np.maximum(FREQUENCIES, 60) / 500)
    zero = speaker.zero_depth * np.exp(-0.5 * ((FREQUENCIES - speaker.zero_frequency * scale) / 450) ** 2)
    higher_poles = 11 * np.minimum(FREQUENCIES / 4000, 1.6) ** 1.1
    return (10 ** ((tilt - zero + higher_poles) / 20)).astype(np.float32)


def _filtered(signal: Array, response: NDArray[np.complexfloating] | Array) -> Array:
    """Time-varying filter: Hann windows of two hops (they sum to one), each through its own response, overlap-added."""
    num_frames, blocks = len(response), -(-FFT_SIZE // HOP)
    padded = np.zeros((num_frames + 1) * HOP, np.float32)
    padded[HOP : HOP + len(signal)] = signal
    frames = np.lib.stride_tricks.sliding_window_view(padded, 2 * HOP)[::HOP]  # (frames, 160)
    window = np.hanning(2 * HOP + 1)[:-1].astype(np.float32)
    pieces = np.zeros((num_frames, blocks * HOP), np.float32)
    pieces[:, :FFT_SIZE] = fft.irfft(fft.rfft(frames * window, FFT_SIZE) * response, FFT_SIZE)
    output = np.zeros((num_frames + blocks, HOP), np.float32)
    for block in range(blocks):
        output[block : block + num_frames] += pieces[:, block * HOP : (block + 1) * HOP]
    return output.ravel()[HOP : HOP + len(signal)]


def synthesise(speaker: Speaker, mood: Mood, tracks: Tracks, num_samples: int, rng: np.random.Generator) -> Array:
    """Sound of the tracks: float32 (num_samples,) at SPEECH_RMS. ValueError if the tracks have another length."""
    if len(tracks.voicing) != num_frames_of(num_samples):
        needed = num_frames_of(num_samples)
        raise ValueError(f"{len(tracks.voicing)} frames of tracks; {num_samples} samples need {needed}")
    noise = rng.standard_normal(num_samples, np.float32)
    pitch = pitch_contour(speaker, mood, tracks, num_samples, rng)
    source = glottal_source(speaker, mood, pitch, noise, rng) * _per_sample(tracks.voicing, num_samples)
    source += 0.5 * noise * _per_sample(tracks.aspiration, num_samples)
    distance = (FREQUENCIES - tracks.noise_centre[:, None]) / (0.7 * tracks.noise_width[:, None])
    turbulence = tracks.frication[:, None] * np.exp(-0.5 * distance**2)
    sound = 0.12 * _filtered(source, vocal_tract_response(speaker, mood, tracks)) + 0.22 * _filtered(noise, turbulence)
    return sound * np.float32(SPEECH_RMS / (np.sqrt(np.mean(sound**2)) + 1e-6))


def mouth_opening(tracks: Tracks, num_video_frames: int) -> Array:
    """Opening of the lips, 0 to 1, at the middle of each video frame: float32 (num_video_frames,)."""
    opening = tracks.opening * np.clip(1.2 * tracks.voicing, 0, 1)
    times = (np.arange(num_video_frames) + 0.5) / FRAME_RATE
    return np.clip(np.interp(times * FRAMES_PER_SECOND, np.arange(len(opening)), opening), 0, 1).astype(np.float32)
