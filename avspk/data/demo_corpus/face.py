"""Parameters of a procedural face (identity) and of its view (scene), drawn at random.

Face coordinates: origin in the middle of the head, x to the right, y down; the head reaches to about x = 0.7, y = 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from avspk.data.demo_corpus.settings import Nuisance

Array = NDArray[np.float32]

SKIN = np.array(
    [[62, 38, 26], [92, 58, 40], [125, 82, 58], [158, 108, 78], [190, 138, 104], [213, 164, 130], [232, 188, 156],
     [244, 208, 182]], np.float32
)  # fmt: skip
HAIR = np.array(
    [[18, 14, 13], [40, 27, 20], [72, 46, 28], [110, 72, 40], [160, 118, 66], [200, 166, 108], [140, 60, 30],
     [128, 124, 120], [205, 202, 198]], np.float32
)  # fmt: skip
DARK_HAIR = HAIR[[0, 0, 1, 1, 7]]
IRIS = np.array(
    [[52, 32, 20], [88, 56, 30], [104, 96, 52], [66, 98, 72], [74, 106, 140], [98, 112, 122]], np.float32
)  # fmt: skip
LIP = np.array([168, 84, 84], np.float32)
STYLES = ("short", "cropped", "long", "fringe", "afro", "bun", "bald")
STYLE_SHARES = {True: (0.28, 0.24, 0.08, 0.07, 0.12, 0.02, 0.19), False: (0.12, 0.06, 0.32, 0.22, 0.10, 0.17, 0.01)}


@dataclass(frozen=True)
class Face:
    """An identity's face. Lengths in face coordinates, colours RGB 0 to 255, angles in radians."""

    male: bool
    skin: Array  # (3,)
    hair: Array  # (3,)
    iris: Array  # (3,)
    lip: Array  # (3,)
    half_width: float
    half_height: float
    jaw: float  # larger is squarer
    ear_height: float
    ear_width: float  # factor
    eye_x: float
    eye_y: float
    eye_size: float  # half width
    eye_aspect: float
    eye_tilt: float
    iris_size: float  # share of the eye's half width
    lid: float  # how far the lid hangs, 0 to 1
    brow_height: float  # above the eye
    brow_length: float
    brow_thickness: float
    brow_tilt: float
    brow_curve: float
    brow_strength: float
    nose_length: float
    nose_width: float
    bridge_width: float
    nose_relief: float
    mouth_y: float
    mouth_width: float  # half
    upper_lip: float
    lower_lip: float
    lip_colour: float  # 0 = skin, 1 = lip
    mouth_curve: float
    style: str  # one of STYLES
    hairline: float
    hair_volume: float
    parting: float
    beard: float  # opacity
    moustache: float  # opacity
    mole: tuple[float, float] | None
    glasses: int  # 0 = none, else index into painting.GLASSES, from 1
    glasses_grey: float
    blush: float
    texture_seed: int


@dataclass(frozen=True)
class Scene:
    """View of a face in a clip. Shifts are fractions of half the image; angles in degrees, yaw and pitch in radians."""

    scale: float
    roll: float
    shift_x: float
    shift_y: float
    yaw: float
    pitch: float
    sway: float  # size of the head's slow movement
    sway_phase: Array  # (7,)
    light_x: float
    light_y: float
    light_strength: float
    ambient: float
    tint: Array  # (3,) factors on RGB
    gamma: float
    blur: float  # Gaussian sigma in image pixels
    grain: float  # standard deviation of the sensor noise, grey levels
    shirt: Array  # (3,)
    background_seed: int
    background_shift: tuple[float, float]  # 0 to 1: visible part of the background


def draw_face(rng: np.random.Generator, male: bool) -> Face:
    """A face; sex moves jaw, brows, hair style and beard."""

    def spread(sd: float) -> float:
        return float(np.clip(rng.normal(0, sd), -2.2 * sd, 2.2 * sd))

    tone = rng.uniform(0, len(SKIN) - 1)
    skin = SKIN[int(tone)] + (SKIN[int(tone) + 1] - SKIN[int(tone)]) * (tone % 1) + rng.normal(0, 5, 3)
    darkness = 1 - skin.mean() / 230
    hair = HAIR[rng.choice(9, p=[0.2, 0.2, 0.17, 0.1, 0.09, 0.07, 0.05, 0.07, 0.05])]
    hair = DARK_HAIR[rng.integers(5)] if darkness >= 0.5 else hair
    return Face(
        male=male,
        skin=skin.astype(np.float32),
        hair=(hair + rng.normal(0, 6, 3)).clip(0, 255).astype(np.float32),
        iris=(IRIS[rng.integers(len(IRIS))] + rng.normal(0, 8, 3)).astype(np.float32),
        lip=(LIP * (1 - 0.45 * darkness) + rng.normal(0, 14, 3)).astype(np.float32),
        half_width=0.70 + 0.03 * male + spread(0.045),
        half_height=0.98 + spread(0.045),
        jaw=0.30 + 0.16 * male + spread(0.10),
        ear_height=0.13 + spread(0.03),
        ear_width=rng.uniform(0.6, 1.2),
        eye_x=0.30 + spread(0.03),
        eye_y=-0.10 + spread(0.035),
        eye_size=0.125 + spread(0.014),
        eye_aspect=0.52 + spread(0.07),
        eye_tilt=spread(0.10),
        iris_size=0.60 + spread(0.05),
        lid=rng.uniform(0, 0.35),
        brow_height=0.185 + spread(0.028),
        brow_length=0.185 + spread(0.022),
        brow_thickness=0.026 + 0.014 * male + spread(0.008),
        brow_tilt=spread(0.16),
        brow_curve=0.10 + spread(0.06),
        brow_strength=rng.uniform(0.55, 0.95),
        nose_length=0.235 + spread(0.04),
        nose_width=0.098 + spread(0.020),
        bridge_width=0.040 + spread(0.010),
        nose_relief=rng.uniform(0.6, 1.2),
        mouth_y=0.50 + spread(0.035),
        mouth_width=0.245 + spread(0.034),
        upper_lip=0.040 + spread(0.010),
        lower_lip=0.056 + spread(0.014),
        lip_colour=rng.uniform(0.35, 0.9),
        mouth_curve=spread(0.035),
        style=str(rng.choice(STYLES, p=STYLE_SHARES[male])),
        hairline=-0.60 + spread(0.06),
        hair_volume=0.10 + rng.uniform(0, 0.14),
        parting=spread(0.35),
        beard=rng.uniform(0.25, 0.95) if male and rng.random() < 0.5 else 0.0,
        moustache=rng.uniform(0.4, 0.95) if male and rng.random() < 0.4 else 0.0,
        mole=(spread(0.3), 0.2 + spread(0.2)) if rng.random() < 0.3 else None,
        glasses=int(rng.choice(4, p=[0.72, 0.1, 0.1, 0.08])),
        glasses_grey=float(rng.choice([20, 60, 110])),
        blush=rng.uniform(0, 0.5),
        texture_seed=int(rng.integers(2**31)),
    )


def draw_scene(rng: np.random.Generator, nuisance: Nuisance) -> Scene:
    """The set of one session: camera, light, background, and where the person sits."""
    pose, light = nuisance.pose, nuisance.light
    return Scene(
        scale=rng.uniform(0.86, 1.12) ** pose,
        roll=rng.normal(0, 5) * pose,
        shift_x=rng.normal(0, 0.06) * pose,
        shift_y=rng.normal(0, 0.04) * pose,
        yaw=float(np.clip(rng.normal(0, 0.3) * pose, -0.6, 0.6)),
        pitch=float(np.clip(rng.normal(0, 0.2) * pose, -0.4, 0.4)),
        sway=rng.uniform(0.4, 1.0) * pose,
        sway_phase=rng.uniform(0, 2 * np.pi, 7).astype(np.float32),
        light_x=rng.uniform(-1, 1) * light,
        light_y=rng.uniform(-0.9, 0.2),
        light_strength=rng.uniform(0.12, 0.42) * light,
        ambient=rng.uniform(0.78, 1.05),
        tint=(1 + rng.normal(0, 0.06, 3) * light).astype(np.float32),
        gamma=float(np.exp(rng.normal(0, 0.14) * light)),
        blur=abs(rng.normal(0, 0.8)) * nuisance.blur,
        grain=rng.uniform(0, 2.5) * nuisance.grain,
        shirt=rng.uniform(20, 230, 3).astype(np.float32),
        background_seed=int(rng.integers(2**31)),
        background_shift=(0.5, 0.5),
    )


def vary_scene(scene: Scene, rng: np.random.Generator, nuisance: Nuisance) -> Scene:
    """Another clip of the same session: the person has moved, the camera a little, the light has not."""
    pose = nuisance.pose
    return replace(
        scene,
        scale=scene.scale * float(np.exp(rng.normal(0, 0.04) * pose)),
        roll=scene.roll + rng.normal(0, 3) * pose,
        shift_x=scene.shift_x + rng.normal(0, 0.04) * pose,
        shift_y=scene.shift_y + rng.normal(0, 0.03) * pose,
        yaw=float(np.clip(scene.yaw + rng.normal(0, 0.18) * pose, -0.7, 0.7)),
        pitch=float(np.clip(scene.pitch + rng.normal(0, 0.12) * pose, -0.5, 0.5)),
        sway_phase=rng.uniform(0, 2 * np.pi, 7).astype(np.float32),
        background_shift=(float(rng.uniform()), float(rng.uniform())),
    )
