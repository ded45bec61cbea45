"""Paint a `Face` under the light of a `Scene`: the head once, and eyes and mouth in every state they take."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avspk.data.demo_corpus.canvas import AXIS, PIXEL, SIZE, Canvas, Mask, row_of, smooth_step
from avspk.data.demo_corpus.face import Face, Scene

Array = NDArray[np.float32]

SIDES = (-1, 1)
GLASSES = ((0.205, 0.17), (0.225, 0.145), (0.19, 0.185))  # half axes of the lenses
NECK_SHADOW = 0.62
EARS_HIDDEN = ("long", "fringe", "afro")
ROSY = np.array([1.05, 0.72, 0.70], np.float32)  # factors on skin
EYE_WHITE = np.array([236, 232, 228], np.float32)
PUPIL = np.array([10, 8, 8], np.float32)
TEETH = np.array([232, 226, 216], np.float32)
MOUTH_INSIDE, TONGUE = (52, 18, 20), (150, 66, 70)


class Painter:
    """Paints one face in one scene; features shift against the head as it turns (parallax)."""

    def __init__(self, face: Face, scene: Scene) -> None:
        self.face, self.scene = face, scene
        self.dx, self.dy = 0.16 * scene.yaw, 0.12 * scene.pitch
        noise = np.random.default_rng(face.texture_seed).normal(0, 1, (SIZE // 4, SIZE // 2)).astype(np.float32)
        self.strands: Array = np.asarray(Image.fromarray(noise).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        self.light = self._light(AXIS[None, :], AXIS[:, None])[..., None]  # (SIZE, SIZE, 1)
        self.head = self._head_mask(AXIS[None, :], AXIS[:, None])  # (SIZE, SIZE)
        self.eye_rows = row_of(face.eye_y + self.dy - 0.23), row_of(face.eye_y + self.dy + 0.22)
        self.mouth_rows = row_of(face.mouth_y + self.dy - 0.12), row_of(face.mouth_y + self.dy + 0.34)
        self.canvas = self._portrait()

    # -- geometry and light ------------------------------------------------------------------------------------------

    def _light(self, x: Array, y: Array) -> Array:
        """Lambertian shading of an ellipsoid the size of the head, plus ambient light."""
        nx = np.clip(x / (self.face.half_width * 1.12), -1, 1)
        ny = np.clip(y / (self.face.half_height * 1.12), -1, 1)
        nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0.04, 1))
        direction = np.array([self.scene.light_x, self.scene.light_y, 1.0])
        direction /= np.linalg.norm(direction)
        lambert = np.clip(nx * direction[0] + ny * direction[1] + nz * direction[2], 0, 1)
        strength = self.scene.light_strength
        return (self.scene.ambient * (1 - strength) + 1.35 * strength * lambert + 0.10 * nz - 0.05).astype(np.float32)

    def _head_mask(self, x: Array, y: Array) -> Array:
        """Upper half an ellipse-like dome, lower half a superellipse that tapers to the chin."""
        face = self.face
        t = np.clip(y / face.half_height, -1, 1)
        dome = np.sqrt(1 - np.abs(t) ** 2.2)
        chin = (1 - np.abs(t) ** (2.0 + 1.2 * face.jaw)) ** (1 / (1.75 + 0.5 * face.jaw))
        taper = 1 - (0.24 - 0.30 * face.jaw) * np.clip(t, 0, 1)
        width = face.half_width * np.where(y > 0, chin * taper, dome)
        distance = np.maximum(np.abs(x) - width, np.abs(y) - face.half_height)
        return np.clip(0.5 - distance / (PIXEL * 1.6), 0, 1).astype(np.float32)

    def _at(self, canvas: Canvas, x: float, y: float, rx: float, ry: float, soft: float, angle: float = 0.0) -> Mask:
        """A spot at a place of the face (it moves with the features), cut off at the head's outline."""
        mask = canvas.spot(x + self.dx, y + self.dy, rx, ry, soft, angle)
        rows, columns = mask.window
        rows = slice(rows.start + canvas.first_row, rows.stop + canvas.first_row)
        return Mask(mask.window, mask.values * self.head[rows, columns])

    # -- the head ----------------------------------------------------------------------------------------------------

    def _portrait(self) -> Canvas:
        """Everything but the open eyes and the mouth, from back to front."""
        canvas = Canvas.filled(self.face.hair * 0.8)
        hair = self.face.hair * (1 + 0.07 * self.strands[..., None])
        self._paint_behind(canvas, hair)
        canvas.cover(canvas.everywhere(self.head), self.face.skin * self.light)
        self._paint_relief(canvas)
        self._paint_nose(canvas)
        self._paint_beard(canvas)
        for side in SIDES:
            self._paint_brow(canvas, side)
        if self.face.mole is not None:
            canvas.darken(self._at(canvas, *self.face.mole, 0.017, 0.017, 0.015), 0.6)
        canvas.blend(canvas.everywhere(self._front_hair(canvas)), hair * (0.55 + 0.5 * self.light))
        return canvas

    def _back_hair(self, canvas: Canvas) -> Array:
        face, x, y = self.face, canvas.x, canvas.y
        width, height, volume = face.half_width, face.half_height, face.hair_volume

        def dome(cx: float, cy: float, rx: float, ry: float) -> Array:
            values = np.zeros((SIZE, SIZE), np.float32)
            mask = canvas.spot(cx, cy, rx, ry)
            values[mask.window] = mask.values
            return values

        if face.style in ("long", "fringe"):
            fall = (np.abs(x) < width + volume) * smooth_step((y + 0.1) / 0.1) * smooth_step((1.15 - y) / 0.06)
            return np.maximum(dome(0, -0.05, width + volume + 0.06, height + volume * 0.8), fall)
        if face.style == "afro":
            return dome(0, -0.28, width + volume + 0.22, height * 0.8 + volume + 0.1)
        if face.style == "bun":
            knot = dome(0.1, -1.12, 0.28, 0.22)
            return np.maximum(dome(0, -0.1, width + volume * 0.6, height + volume * 0.7), knot) * (y < 0.15)
        if face.style == "bald":
            return np.zeros((SIZE, SIZE), np.float32)
        return dome(0, -0.12, width + volume * 0.75, height * 0.98 + volume) * smooth_step((0.12 - y) / 0.12)

    def _paint_behind(self, canvas: Canvas, hair: Array) -> None:
        face, scene = self.face, self.scene
        canvas.cover(canvas.everywhere(self._back_hair(canvas)), hair * (0.46 + 0.38 * self.light))
        neck = (np.abs(canvas.x - 0.2 * self.dx) < 0.51 * face.half_width) & (canvas.y > 0.5)
        canvas.cover(canvas.everywhere(neck), face.skin * np.float32(NECK_SHADOW * scene.ambient))
        canvas.cover(canvas.spot(0, 1.62, 1.25, 0.52, 2 * PIXEL), scene.shirt * np.float32(0.9 * scene.ambient))
        if face.style in EARS_HIDDEN:
            return
        for side in SIDES:
            x = side * face.half_width - 0.3 * self.dx
            ear = canvas.spot(x, 0.02, 0.075 * face.ear_width, face.ear_height * 1.25)
            canvas.cover(ear, face.skin * 0.88 * self.light)
            inner = canvas.spot(x + 0.01 * side, 0.02, 0.04 * face.ear_width, face.ear_height * 0.8, 4 * PIXEL)
            canvas.blend(inner, face.skin * 0.55, 0.4)

    def _paint_relief(self, canvas: Canvas) -> None:
        """Eye sockets, cheeks and forehead."""
        face = self.face
        for side in SIDES:
            canvas.darken(self._at(canvas, side * face.eye_x, face.eye_y - 0.03, 0.22, 0.16, 0.16), 0.16)
            canvas.darken(self._at(canvas, side * face.half_width * 0.86, 0.32, 0.16, 0.42, 0.25), 0.14)
            canvas.blend(self._at(canvas, side * 0.38, 0.24, 0.16, 0.11, 0.16), face.skin * ROSY, 0.25 * face.blush)
            canvas.lighten(self._at(canvas, side * 0.36, 0.14, 0.13, 0.08, 0.14), 9)
        canvas.lighten(self._at(canvas, 0, -0.45, 0.34, 0.16, 0.25), 8)

    def _paint_nose(self, canvas: Canvas) -> None:
        face, relief = self.face, self.face.nose_relief
        length, width, bridge = face.nose_length, face.nose_width, face.bridge_width
        tip_x, tip_y, middle = 0.55 * self.dx, face.eye_y + 0.10 + length, face.eye_y + 0.05 + length / 2
        shadow_side = 1 if self.scene.light_x < 0 else -1
        canvas.lighten(self._at(canvas, tip_x / 2, middle, bridge, length * 0.62, 0.05), 20 * relief)
        for side, amount in ((shadow_side, 0.16), (-shadow_side, 0.07)):
            x = tip_x / 2 + side * (bridge + 0.035)
            canvas.darken(self._at(canvas, x, middle + 0.03, 0.028, length / 2, 0.06), amount * relief)
        canvas.lighten(self._at(canvas, tip_x, tip_y - 0.02, width * 0.55, 0.05, 0.05), 22 * relief)
        for side in SIDES:
            canvas.darken(self._at(canvas, tip_x + side * width, tip_y, 0.035, 0.045, 0.04), 0.26 * relief)
            canvas.darken(self._at(canvas, tip_x + side * width * 0.52, tip_y + 0.045, 0.030, 0.017, 0.02), 0.62)
        canvas.darken(self._at(canvas, tip_x, tip_y + 0.075, width, 0.028, 0.05), 0.22)
        canvas.darken(self._at(canvas, 0.6 * tip_x, face.mouth_y - 0.10, 0.022, 0.05, 0.03), 0.10)

    def _paint_beard(self, canvas: Canvas) -> None:
        face = self.face
        colour = face.hair * 0.7 * self.light
        stubble = np.clip(0.78 + 0.2 * self.strands, 0, 1)
        if face.beard:
            area = self.head * smooth_step((canvas.y - self.dy - 0.22) / 0.25)
            for cheek_or_lips in (
                canvas.spot(self.dx, self.dy + 0.28, 0.40, 0.26, 0.10),
                canvas.spot(self.dx, self.dy + face.mouth_y, face.mouth_width * 0.95, 0.085, 0.04),
            ):
                area[cheek_or_lips.window] *= 1 - cheek_or_lips.values
            canvas.blend(canvas.everywhere(area * stubble), colour, face.beard)
        if face.moustache:
            mask = self._at(canvas, 0, face.mouth_y - 0.095, face.mouth_width * 0.95, 0.042, 0.03)
            canvas.blend(Mask(mask.window, mask.values * stubble[mask.window]), colour, face.moustache)

    def _paint_brow(self, canvas: Canvas, side: int) -> None:
        face = self.face
        outward = (canvas.x - self.dx) * side - face.eye_x
        bend = 0.5 * face.brow_tilt * outward + 0.35 * face.brow_curve * (outward / face.brow_length) ** 2 - 0.012
        height = canvas.y - self.dy - (face.eye_y - face.brow_height) - bend
        thickness = face.brow_thickness * (1.15 - 0.275 * np.clip(outward / face.brow_length + 1, 0, 2))
        mask = np.clip(0.5 - (np.abs(height) - thickness) / 0.022, 0, 1)
        mask = mask * smooth_step((face.brow_length - np.abs(outward)) / 0.05) * self.head
        colour = np.minimum(face.hair, face.skin * 0.72) * 0.62
        canvas.blend(canvas.everywhere(mask * np.clip(0.92 + 0.15 * self.strands, 0, 1)), colour, face.brow_strength)

    def _front_hair(self, canvas: Canvas) -> Array:
        face, x, y, strands = self.face, canvas.x, canvas.y, self.strands
        line = face.hairline
        if face.style in ("short", "cropped"):
            edge = smooth_step((line + 0.06 * np.sin(3 * x + 4 * face.parting) - 0.025 * strands - y) / 0.05)
        elif face.style in ("long", "fringe"):
            top, depth = {
                "long": (line + 0.46 * np.abs(x - 0.5 * face.parting) ** 1.6 - y, 0.9),
                "fringe": (-0.40 + 0.05 * np.cos(5 * x) + 0.03 * strands - y, 0.5),
            }[face.style]
            sides = smooth_step((np.abs(x) - face.half_width * 0.82) / 0.03) * smooth_step((depth - y) / 0.1)
            edge = np.maximum(smooth_step(top / 0.035), sides)
        elif face.style == "afro":
            edge = smooth_step((line + 0.04 + 0.03 * strands - y) / 0.05)
        elif face.style == "bun":
            edge = smooth_step((line - 0.02 + 0.25 * x * x - y) / 0.04)
        else:
            return np.zeros((SIZE, SIZE), np.float32)
        return self.head * edge

    # -- parts that move ---------------------------------------------------------------------------------------------

    def eyes(self, openness: float) -> Canvas:
        """The rows `eye_rows` with eyes open by `openness`, 0 to 1."""
        canvas = self.canvas.rows(*self.eye_rows)
        for side in SIDES:
            self._paint_eye(canvas, side, openness)
        if self.face.glasses:
            self._paint_glasses(canvas)
        return canvas

    def _paint_eye(self, canvas: Canvas, side: int, openness: float) -> None:
        face, dark = self.face, np.minimum(self.face.hair, 60) * 0.45 + 8
        x, y, size, tilt = side * face.eye_x, face.eye_y, face.eye_size, face.eye_tilt * side
        height = size * face.eye_aspect * max(openness, 0.06) * (1 - 0.25 * face.lid)
        lash = self._at(canvas, x, y - 0.012, size * 1.13, height * 1.30 + 0.014, 3 * PIXEL, tilt)
        upper = canvas.y[lash.window[0]] - self.dy < y + 0.01 + 0.2 * height
        canvas.blend(Mask(lash.window, lash.values * upper), dark, 0.75)
        rim = self._at(canvas, x, y + 0.012, size * 1.05, height * 1.12 + 0.01, 3 * PIXEL, tilt)
        canvas.blend(rim, face.skin * 0.55, 0.35)
        white = self._at(canvas, x, y, size, height, 1.4 * PIXEL, tilt)
        light = np.clip(self.light[slice(*self.eye_rows)], 0.6, 1.1)
        canvas.blend(white, EYE_WHITE * light)
        shade = smooth_step((y - 0.35 * height - (canvas.y[white.window[0]] - self.dy)) / (height + 0.01))
        canvas.darken(Mask(white.window, white.values * shade), 0.35)
        self._paint_iris(canvas, x + 0.03 * self.scene.yaw, y, size * face.iris_size * 0.78, white)

    def _paint_iris(self, canvas: Canvas, x: float, y: float, radius: float, white: Mask) -> None:
        """Iris, pupil and a glint, all visible only where the eye is open."""
        visible = np.zeros(canvas.opacity.shape, np.float32)
        visible[white.window] = white.values
        for size, lift, colour in (
            (radius, 0.004, self.face.iris * 0.55),
            (radius * 0.82, 0.002, self.face.iris),
            (radius * 0.45, 0.004, PUPIL),
        ):
            spot = self._at(canvas, x, y - lift, size, size, 1.6 * PIXEL)
            canvas.blend(Mask(spot.window, spot.values * visible[spot.window]), colour)
        glint = self._at(canvas, x - 0.018, y - 0.026, 0.015, 0.015, 1.4 * PIXEL)
        canvas.blend(Mask(glint.window, glint.values * visible[glint.window]), (250, 250, 250))

    def _paint_glasses(self, canvas: Canvas) -> None:
        face, frame = self.face, np.full(3, self.face.glasses_grey, np.float32)
        rx, ry = GLASSES[face.glasses - 1]
        for side in SIDES:
            outer = canvas.spot(side * face.eye_x + self.dx, face.eye_y + 0.01 + self.dy, rx + 0.018, ry + 0.018)
            inner = canvas.spot(side * face.eye_x + self.dx, face.eye_y + 0.01 + self.dy, rx - 0.008, ry - 0.008)
            ring = np.zeros(canvas.opacity.shape, np.float32)
            ring[outer.window] = outer.values
            ring[inner.window] -= inner.values
            canvas.blend(canvas.everywhere(ring), frame, 0.92)
            canvas.blend(inner, (230, 240, 255), 0.05)
        x, y = canvas.x - self.dx, canvas.y - self.dy - face.eye_y
        canvas.blend(canvas.everywhere((np.abs(x) < face.eye_x - 0.19) & (np.abs(y + 0.02) < 0.014)), frame, 0.9)

    def mouth(self, opening: float) -> Canvas:
        """The rows `mouth_rows` with the lips parted by `opening`, 0 to 1; an opening mouth gets narrower."""
        face, canvas = self.face, self.canvas.rows(*self.mouth_rows)
        x, y = canvas.x - 1.05 * self.dx, canvas.y - self.dy
        light = self.light[slice(*self.mouth_rows)]
        width, gap = face.mouth_width * (1 - 0.13 * opening), 0.006 + 0.115 * opening
        lip = (face.lip * face.lip_colour + face.skin * (1 - face.lip_colour) * 0.85) * light
        across = np.clip(np.abs(x) / width, 0, 1)
        arch = 1 - across**2
        line = face.mouth_y + face.mouth_curve * (across**2 - 0.4)
        upper, lower = line - 0.35 * gap * arch, line + gap * arch
        cupid = 1.05 - 0.30 * np.exp(-((x / 0.045) ** 2))
        ends = smooth_step((width - np.abs(x)) / 0.03)

        def band(top: Array, bottom: Array) -> Array:
            edge = 1.5 * PIXEL
            return np.clip(0.5 + (y - top) / edge, 0, 1) * np.clip(0.5 + (bottom - y) / edge, 0, 1) * ends

        canvas.darken(self._at(canvas, 0, face.mouth_y + gap + face.lower_lip + 0.055, width * 0.62, 0.028, 0.06), 0.24)
        canvas.blend(canvas.everywhere(band(upper - face.upper_lip * arch**0.7 * cupid, upper)), lip * 0.86)
        canvas.blend(canvas.everywhere(band(lower, lower + face.lower_lip * arch**0.6)), lip * 1.06)
        canvas.lighten(self._at(canvas, 0, face.mouth_y + gap + face.lower_lip / 2, width * 0.4, 0.014, 0.03), 18)
        inside = band(upper, lower)
        canvas.blend(canvas.everywhere(inside), MOUTH_INSIDE)
        if opening <= 0.15:
            canvas.blend(canvas.everywhere(band(line - 0.008, line + 0.008)), lip * 0.45)
            return canvas
        teeth = inside * np.clip(0.5 + (upper + 0.012 + 0.038 * min(1, 1.6 * opening) - y) / (1.5 * PIXEL), 0, 1)
        canvas.blend(canvas.everywhere(teeth * (np.abs(x) < 0.78 * width)), TEETH * np.clip(light, 0.6, 1.1))
        tongue = self._at(canvas, 0, face.mouth_y + 1.05 * gap, width * 0.5, gap * 0.5 + 0.01, 3 * PIXEL)
        canvas.blend(Mask(tongue.window, tongue.values * inside[tongue.window]), TONGUE, 0.7)
        return canvas
