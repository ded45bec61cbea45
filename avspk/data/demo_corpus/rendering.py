"""Turn a painted face into video frames: develop the painting once, then only place it in every frame."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from avspk.data.demo_corpus.canvas import EXTENT, PIXEL, SIZE, Canvas
from avspk.data.demo_corpus.face import Face, Scene
from avspk.data.demo_corpus.painting import Painter
from avspk.data.demo_corpus.settings import FRAME_RATE

Image8 = NDArray[np.uint8]

DETAIL = 2  # texture pixels per painted pixel: fine enough that nearest-neighbour sampling shows no steps
MARGIN = 8  # painted rows kept around a moving part, so that blurring it meets its surroundings
VISIBLE_BLUR = 0.25  # image pixels
MOUTH_LEVELS = 10
HEAD_SHARE = 0.40  # of the image's width covered by one face coordinate unit at scale 1
SWAY_RATES = np.array([1.1, 2.3, 1.4, 2.9, 0.9, 2.1, 0.7])  # rad/s: two each for x, y and roll, one for the scale
BLINK = (0.5, 1.0, 1.0, 0.5)  # how far the eyes are closed, frame by frame


class TalkingHead:
    """A face in a scene, in front of a background: `frame(time, opening, blink)` gives RGB pictures.

    Sampling a texture of twice the resolution by nearest neighbour costs a twentieth of bilinear sampling.
    """

    def __init__(self, face: Face, scene: Scene, background: Image.Image) -> None:
        self.scene, self.background, self.size = scene, background, background.width
        self._painter = Painter(face, scene)
        self._base = self._develop(self._painter.canvas, 0, SIZE)
        self._parts: dict[tuple[str, float], Image8] = {}
        self._textures: dict[tuple[float, float], Image.Image] = {}

    def _develop(self, canvas: Canvas, first: int, last: int) -> Image8:
        """Rows `first` to `last` of a painting as a graded, blurred RGBA texture: ((last - first) 2, SIZE 2, 4)."""
        picture = np.concatenate([grade(canvas.colour, self.scene), canvas.opacity[..., None] * 255], axis=-1)
        image = Image.fromarray(picture.astype(np.uint8), "RGBA")
        if self.scene.blur >= VISIBLE_BLUR:
            painted_per_image_pixel = 1 / (self.scene.scale * HEAD_SHARE * self.size * PIXEL)
            image = image.filter(ImageFilter.GaussianBlur(self.scene.blur * painted_per_image_pixel))
        box = (0, first, SIZE, last)
        return np.asarray(image.resize((SIZE * DETAIL, (last - first) * DETAIL), Image.Resampling.BILINEAR, box))

    def _part(self, name: str, level: float) -> tuple[slice, Image8]:
        """A moving part in one state, with the texture rows it belongs to."""
        rows = self._painter.eye_rows if name == "eyes" else self._painter.mouth_rows
        if (name, level) not in self._parts:
            paint = self._painter.eyes if name == "eyes" else self._painter.mouth
            first, last = max(0, rows[0] - MARGIN), min(SIZE, rows[1] + MARGIN)
            canvas = self._painter.canvas.rows(first, last)
            inner = slice(rows[0] - first, rows[1] - first)
            canvas.colour[inner] = paint(level).colour
            self._parts[name, level] = self._develop(canvas, inner.start, inner.stop)
        return slice(rows[0] * DETAIL, rows[1] * DETAIL), self._parts[name, level]

    def _texture(self, opening: float, openness: float) -> Image.Image:
        if (opening, openness) not in self._textures:
            texture = self._base.copy()
            for name, level in (("eyes", openness), ("mouth", opening)):
                rows, pixels = self._part(name, level)
                texture[rows] = pixels
            self._textures[opening, openness] = Image.fromarray(texture, "RGBA")
        return self._textures[opening, openness]

    def placement(self, time: float) -> NDArray[np.float64]:
        """(2, 3) matrix from image pixels (x, y, 1) to face coordinates at `time` seconds: the head sways slowly."""
        scene, phase = self.scene, self.scene.sway_phase
        waves = np.sin(SWAY_RATES * time + phase)
        x = self.size / 2 * (1 + scene.shift_x + scene.sway * (0.020 * waves[0] + 0.012 * waves[1]))
        y = self.size / 2 * (1.04 + scene.shift_y + scene.sway * (0.014 * waves[2] + 0.010 * waves[3]))
        angle = np.deg2rad(scene.roll + scene.sway * (2.2 * waves[4] + waves[5]))
        unit = scene.scale * (1 + 0.015 * scene.sway * waves[6]) * HEAD_SHARE * self.size  # pixels
        c, s = np.cos(angle) / unit, np.sin(angle) / unit
        return np.array([[c, s, -c * x - s * y], [-s, c, s * x - c * y]])

    def frame(self, time: float, opening: float = 0.0, blink: float = 0.0) -> Image.Image:
        """The picture at `time` seconds, lips parted by `opening` and eyes closed by `blink`, both 0 to 1; no grain."""
        texture = self._texture(round(float(opening) * MOUTH_LEVELS) / MOUTH_LEVELS, 1.0 - blink)
        matrix = self.placement(time)
        matrix[:, 2] += EXTENT
        matrix *= DETAIL / PIXEL
        head = texture.transform(
            self.background.size, Image.Transform.AFFINE, tuple(matrix.ravel()), Image.Resampling.NEAREST
        )
        picture = self.background.copy()
        picture.paste(head, (0, 0), head)
        return picture


def grade(colour: NDArray[np.floating], scene: Scene) -> NDArray[np.float32]:
    """Colour cast and gamma of the camera, on 0 to 255."""
    tinted = np.clip(colour * (scene.tint / 255), 0, 1)
    return (255 * tinted ** np.float32(scene.gamma)).astype(np.float32)


def paint_background(scene: Scene, size: int) -> Image.Image:
    """A wall with a gradient, and on it clouds, boxes, a curtain or nothing: out of focus, RGB, size x size."""
    rng = np.random.default_rng(scene.background_seed)
    full = int(size * 1.3)
    top, bottom = rng.uniform(30, 220, (2, 3))
    ramp = np.linspace(0, 1, full)[:, None, None]
    wall = np.tile(top * (1 - ramp) + bottom * ramp, (1, full, 1)).astype(np.float32)  # (full, full, 3)
    kind = rng.choice(("plain", "clouds", "boxes", "curtain"))
    if kind == "clouds":
        clouds = Image.fromarray(rng.normal(0, 35, (6, 6)).astype(np.float32))
        wall += np.asarray(clouds.resize((full, full), Image.Resampling.BICUBIC))[..., None]
    elif kind == "boxes":
        for x, y, width, height in rng.integers(0, full, (7, 4)):
            wall[y : y + height // 2 + 8, x : x + width // 3 + 8] = rng.uniform(20, 235, 3)
    elif kind == "curtain":
        for x, width in zip(rng.integers(0, full, 6), rng.integers(4, 40, 6), strict=True):
            wall[:, x : x + width] *= rng.uniform(0.6, 1.3)
    image = Image.fromarray(np.clip(wall, 0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(1.5, 4) + scene.blur))
    x, y = (int(shift * (full - size)) for shift in scene.background_shift)
    return image.crop((x, y, x + size, y + size))


def blinks(num_frames: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How far the eyes are closed in every frame: a blink every two to five seconds."""
    closed = np.zeros(num_frames + 5 * FRAME_RATE)
    frame = int(rng.uniform(0, 3) * FRAME_RATE)
    while frame < num_frames:
        closed[frame : frame + len(BLINK)] = BLINK
        frame += int(rng.uniform(2, 5) * FRAME_RATE)
    return closed[:num_frames]


def film(head: TalkingHead, openings: NDArray[np.floating], grain: float, rng: np.random.Generator) -> Iterator[Image8]:
    """One (size, size, 3) RGB frame for each mouth opening, with blinks and sensor noise."""
    pictures = (
        np.asarray(head.frame(number / FRAME_RATE, opening, closed))
        for number, (opening, closed) in enumerate(zip(openings, blinks(len(openings), rng), strict=True))
    )
    return add_grain(pictures, head.size, grain, rng)


def add_grain(
    pictures: Iterator[Image8], size: int, grain: float, rng: np.random.Generator, spare: int = 64
) -> Iterator[Image8]:
    """Grey noise of `grain` levels: one sheet of it, cut at a random place for every frame."""
    grey = np.rint(rng.normal(0, grain, (size + spare, size + spare, 1))).astype(np.int16)
    sheet = np.repeat(grey, 3, axis=2)  # broadcasting over a last axis of three would cost four times as much
    for picture in pictures:
        x, y = rng.integers(0, spare, 2)
        yield np.clip(picture + sheet[y : y + size, x : x + size], 0, 255).astype(np.uint8)
