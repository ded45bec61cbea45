"""Draws the parameters of each view's augmentation by a policy from an explicit generator.

`avspk.frontend` applies them on the training device; this file touches no samples or pixels.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from avspk.common.settings import Count, NotNegative, PositiveRange, Probability, Range, Settings, ordered
from avspk.data.noise import RecordingTable
from avspk.data.preparation_settings import CATEGORIES


class AudioPolicy(Settings):
    """Augmentation of one audio crop.

    With `one_of` a view gets reverberation, noise, or neither, never both; the two probabilities then sum to at most
    1. Each crop, with probability 1, gets reverberation or one of the additive noises [S]; without `one_of` they are
    independent [C]. SNR ranges in dB [S]. `voices` recordings of speech are summed to babble (range, inclusive).
    `category_weights` are relative chances of (noise, music, speech) [C]; categories that the pack lacks get none.
    `equaliser_db`: standard deviation of a smooth random gain curve over `equaliser_points` frequencies, 0 = off [C].
    """

    reverberation: Probability = 0.5
    noise: Probability = 0.5
    one_of: bool = True
    noise_snr: Range = (0.0, 15.0)
    music_snr: Range = (5.0, 15.0)
    speech_snr: Range = (10.0, 30.0)
    voices: Annotated[tuple[Count, Count], AfterValidator(ordered)] = (3, 6)
    category_weights: tuple[NotNegative, NotNegative, NotNegative] = (1.0, 1.0, 1.0)
    equaliser_db: NotNegative = 0.0
    equaliser_points: int = Field(8, ge=2)

    @property
    def num_parts(self) -> int:
        """Largest number of recordings summed for one view's noise: the constant P of the drawn arrays."""
        return self.voices[1]

    @model_validator(mode="after")
    def _consistent(self) -> AudioPolicy:
        if self.one_of and self.reverberation + self.noise > 1 + 1e-9:
            raise ValueError(f"one_of needs reverberation + noise <= 1, got {self.reverberation} + {self.noise}")
        if max(self.category_weights) == 0:
            raise ValueError("one of category_weights must be positive")
        return self


class ImagePolicy(Settings):
    """Augmentation of one face crop; global and local views have two policies. All [C].

    `scale`: range of the crop's share of the image's area; `ratio`: range of width over height; `brightness`,
    `contrast`, `saturation` s: factors uniform in 1 - s .. 1 + s, drawn with probability `jitter`; `grey`, `blur`,
    `flip`: probabilities; `blur_sigma`: range in output pixels.
    """

    scale: PositiveRange = (0.4, 1.0)
    ratio: PositiveRange = (3 / 4, 4 / 3)
    flip: Probability = 0.5
    jitter: Probability = 0.8
    brightness: Probability = 0.4
    contrast: Probability = 0.4
    saturation: Probability = 0.2
    grey: Probability = 0.2
    blur: Probability = 0.5
    blur_sigma: PositiveRange = (0.1, 2.0)

    @model_validator(mode="after")
    def _consistent(self) -> ImagePolicy:
        if self.scale[1] > 1:
            raise ValueError(f"scale is {self.scale}; it is a share of the area, at most 1")
        if not self.ratio[0] <= 1 <= self.ratio[1]:
            raise ValueError(f"ratio is {self.ratio}; valid: low <= 1 <= high")
        return self


def draw_audio(
    rng: np.random.Generator, policy: AudioPolicy, pack_table: RecordingTable, num_rirs: int, num_views: int
) -> dict[str, np.ndarray]:
    """Parameters of `AudioAugment`, one row per view: rir (N,), noise and noise_offset (N, P), snr (N,), equaliser (N,
    E).

    Always takes the same amount of randomness from `rng`. Raises ValueError if the policy asks for
    reverberation or noise that the pack does not have.
    """
    reverberant, noisy = _choose_kind(rng, policy, num_views)
    if policy.reverberation > 0 and num_rirs == 0:
        raise ValueError("policy has reverberation, the noise pack has no RIRs; add some or set reverberation to 0")
    rir = np.where(reverberant, rng.integers(0, max(1, num_rirs), num_views), -1)
    category = _choose_category(rng, policy, pack_table, num_views)
    low, high = np.array([policy.noise_snr, policy.music_snr, policy.speech_snr])[category].T
    snr = low + (high - low) * rng.random(num_views)
    noise, offset = _choose_recordings(rng, policy, pack_table, category)
    return {
        "rir": rir,
        "noise": np.where(noisy[:, None], noise, -1),
        "noise_offset": np.where(noisy[:, None], offset, 0),
        "snr": snr.astype(np.float32),
        "equaliser": _draw_equaliser(rng, policy, num_views),
    }


def _choose_kind(rng: np.random.Generator, policy: AudioPolicy, num_views: int) -> tuple[np.ndarray, np.ndarray]:
    """Views that get reverberation, and views that get noise: two bool (N,)."""
    first, second = rng.random((2, num_views))
    if policy.one_of:
        return first < policy.reverberation, (first >= policy.reverberation) & (
            first < policy.reverberation + policy.noise
        )
    return first < policy.reverberation, second < policy.noise


def _choose_category(
    rng: np.random.Generator, policy: AudioPolicy, table: RecordingTable, num_views: int
) -> np.ndarray:
    """Index into CATEGORIES by weight among those present: int64 (N,)."""
    weights = np.asarray(policy.category_weights) * (table.count > 0)
    draws = rng.random(num_views)
    if weights.sum() == 0:
        if policy.noise > 0:
            raise ValueError("policy has noise, the pack has none of its categories; add recordings or set noise to 0")
        return np.zeros(num_views, np.int64)
    edges = np.cumsum(weights) / weights.sum()
    return np.searchsorted(edges, draws, side="right")


def _choose_recordings(
    rng: np.random.Generator, policy: AudioPolicy, table: RecordingTable, category: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Recordings and their first samples, int64 (N, P) each: one, or `voices` of speech; -1 and 0 where unused."""
    shape = (len(category), policy.num_parts)
    low, high = policy.voices
    voices = np.where(category == CATEGORIES.index("speech"), rng.integers(low, high + 1, len(category)), 1)
    which, where = rng.random((2, *shape))
    used = np.arange(policy.num_parts) < voices[:, None]
    if len(table.order) == 0:
        return np.full(shape, -1), np.zeros(shape, np.int64)
    rank = table.first[category, None] + (which * table.count[category, None]).astype(np.int64)
    recording = table.order[np.minimum(rank, len(table.order) - 1)]
    offset = (where * table.num_samples[recording]).astype(np.int64)
    return np.where(used, recording, -1), np.where(used, offset, 0)


def _draw_equaliser(rng: np.random.Generator, policy: AudioPolicy, num_views: int) -> np.ndarray:
    """Gains in dB, float32 (N, E): white normal values smoothed by (1, 2, 1) / sqrt(6), which keeps their variance."""
    if policy.equaliser_db == 0:
        return np.zeros((num_views, policy.equaliser_points), np.float32)
    white = rng.standard_normal((num_views, policy.equaliser_points + 2))
    smooth = (white[:, :-2] + 2 * white[:, 1:-1] + white[:, 2:]) / np.sqrt(6.0)
    return (policy.equaliser_db * smooth).astype(np.float32)


def draw_image(rng: np.random.Generator, policy: ImagePolicy, num_views: int) -> dict[str, np.ndarray]:
    """Parameters of `ImageAugment` by view: box (N, 4); flip, brightness, contrast, saturation, grey, blur (N,)."""
    jittered = rng.random(num_views) < policy.jitter
    strengths = np.array([policy.brightness, policy.contrast, policy.saturation])[:, None]
    factors = np.where(jittered, 1 + strengths * rng.uniform(-1, 1, (3, num_views)), 1.0).astype(np.float32)
    blurred = rng.random(num_views) < policy.blur
    return {
        "box": _draw_boxes(rng, policy, num_views),
        "flip": (rng.random(num_views) < policy.flip).astype(np.int64),
        "brightness": factors[0],
        "contrast": factors[1],
        "saturation": factors[2],
        "grey": (rng.random(num_views) < policy.grey).astype(np.int64),
        "blur": np.where(blurred, rng.uniform(*policy.blur_sigma, num_views), 0.0).astype(np.float32),
    }


def _draw_boxes(rng: np.random.Generator, policy: ImagePolicy, num_views: int) -> np.ndarray:
    """Crop boxes x0 y0 x1 y1 in unit coordinates, float32 (N, 4), all inside the image.

    A box of area a and ratio r is sqrt(a r) wide and sqrt(a / r) high; both are at most 1 exactly when r lies in
    [a, 1 / a], so the ratio is drawn log-uniformly from the feasible part of its range, without rejection.
    """
    area = rng.uniform(*policy.scale, num_views)
    low, high = np.maximum(policy.ratio[0], area), np.minimum(policy.ratio[1], 1 / area)
    ratio = np.exp(rng.uniform(np.log(low), np.log(high)))
    size = np.minimum(np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], axis=1), 1.0)  # (N, 2)
    corner = rng.random((num_views, 2)) * (1 - size)
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)  # (N, 4)
