"""Draw the figure of the method for the README: `python eval/figures/draw_method.py`."""

import io
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from avspk.report.style import LIGHT

OUT = Path(__file__).parent / "method.png"
AUDIO, FACE, JOINT = LIGHT["blue"], LIGHT["orange"], LIGHT["green"]
TOP, MIDDLE, BOTTOM = 34.0, 23.0, 12.0
"""Heights of the audio row, of the shared parts, and of the face row."""


def draw(path: Path) -> None:
    """Write the figure, 1,600 pixels wide, on white: readable at half the size and in a dark page."""
    figure = Figure(figsize=(10, 4.5), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 100), ylim=(0, 45))
    axes.set_axis_off()
    _stages(axes)
    _inputs(axes)
    _encoders(axes)
    _round(axes)
    _scoring(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=160)
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)  # a third of the bytes


def _stages(axes: Axes) -> None:
    stages = {"1. Pretraining": (15.5, 17.5), "2. Rounds": (36.5, 43), "3. Result": (83, 16)}
    for title, (left, width) in stages.items():
        box = FancyBboxPatch((left, 2.5), width, 40, boxstyle="round,pad=0,rounding_size=1.2", fc="#f6f5f2", ec="none")
        axes.add_patch(box)
        axes.text(left + 1.3, 40.3, title, va="center", fontsize=11.5, weight="bold", color=LIGHT["ink"])


def _inputs(axes: Axes) -> None:
    times = np.linspace(0, 1, 160)
    sound = np.sin(70 * times) * (0.35 + np.abs(np.sin(7 * times))) * np.sin(np.pi * times)
    axes.plot(2.5 + 8 * times, TOP + 2.2 * sound, color=AUDIO, lw=1.1)
    axes.text(6.5, TOP - 4.6, "sound", ha="center", fontsize=11, color=AUDIO)
    for shift in (1.2, 0.6, 0.0):
        box = FancyBboxPatch((3.4 + shift, BOTTOM - 2.6 + shift), 5, 5.4, boxstyle="square,pad=0", fc="white", ec=FACE)
        axes.add_patch(box)
    axes.plot(5.9, BOTTOM + 0.9, "o", ms=9, mfc="none", mec=FACE)
    angles = np.linspace(0.12, 0.88, 20) * np.pi
    axes.plot(5.9 + 1.8 * np.cos(angles), BOTTOM - 2.4 + 1.6 * np.sin(angles), color=FACE, lw=1)
    axes.text(6.5, BOTTOM - 4.9, "face crops", ha="center", fontsize=11, color=FACE)
    axes.text(
        6.5, MIDDLE, "videos without\nspeaker labels", ha="center", va="center", fontsize=10, color=LIGHT["muted"]
    )
    for height, colour in ((TOP, AUDIO), (BOTTOM, FACE)):
        _arrow(axes, (11.6, height), (17, height), colour)


def _encoders(axes: Axes) -> None:
    for height, colour, name in ((TOP, AUDIO, "Audio encoder"), (BOTTOM, FACE, "Face encoder")):
        _box(axes, 24.2, height, 14, f"{name}\nDINO: student,\nmean teacher", colour, 8.4)
        _arrow(axes, (31.4, height), (38.2, MIDDLE + (height - MIDDLE) / 5), colour)
    axes.text(24.2, MIDDLE, "each modality\non its own", ha="center", va="center", fontsize=10, color=LIGHT["muted"])


def _round(axes: Axes) -> None:
    _box(axes, 44.2, MIDDLE, 12, "Joint\nclustering:\npseudo labels", JOINT, 9)
    judge = FancyBboxPatch(
        (65.1, MIDDLE - 7.3), 14.2, 14.6, boxstyle="round,pad=0,rounding_size=0.9", fc="none", ec=JOINT
    )
    axes.add_patch(judge).set_linestyle("--")
    _box(axes, 72.2, MIDDLE + 3.8, 12.4, "Loss gate:\ntrusted labels", JOINT, 5.6)
    _box(axes, 72.2, MIDDLE - 3.8, 12.4, "Correction of\nthe others", JOINT, 5.6)
    _arrow(axes, (72.2, MIDDLE + 1.0), (72.2, MIDDLE - 0.9), JOINT)
    for side, colour, name in ((1, AUDIO, "Audio classifier"), (-1, FACE, "Face classifier")):
        height = TOP if side == 1 else BOTTOM
        _box(axes, 58, height, 15, f"{name}\nAAM-softmax", colour, 6.6)
        _arrow(axes, (50.2, MIDDLE + 2 * side), (53, height - 3.4 * side), JOINT)
        _arrow(axes, (65.6, height - 1.6 * side), (70.2, MIDDLE + 7.4 * side), colour)
        _line(axes, [(65.1, MIDDLE), (58, MIDDLE)], JOINT)
        _arrow(axes, (58, MIDDLE), (58, height - 3.4 * side), JOINT)
    axes.text(61.3, MIDDLE + 0.7, "targets", ha="center", fontsize=10, color=JOINT)
    _line(axes, [(58, BOTTOM - 3.4), (58, 6.4), (44.2, 6.4)], LIGHT["muted"])
    _arrow(axes, (44.2, 6.4), (44.2, MIDDLE - 4.6), LIGHT["muted"])
    axes.text(51.1, 4.2, "new encoders, next round", ha="center", fontsize=10, color=LIGHT["muted"])


def _scoring(axes: Axes) -> None:
    _box(axes, 91, TOP, 13, "Audio encoder\nlarge margin", AUDIO, 6.6)
    _arrow(axes, (65.7, TOP), (84.3, TOP), AUDIO)
    _box(axes, 91, MIDDLE - 4.2, 13, "Cosine of two\nrecordings", AUDIO, 5.6)
    _arrow(axes, (91, TOP - 3.5), (91, MIDDLE - 1.3), AUDIO)
    axes.text(91, MIDDLE - 11.2, "audio only:\nEER, minDCF", ha="center", fontsize=10, color=LIGHT["muted"])


def _box(axes: Axes, x: float, y: float, width: float, text: str, colour: str, height: float) -> None:
    style = "round,pad=0,rounding_size=0.9"
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, fc="white", ec=colour, lw=1.6))
    axes.text(x, y, text, ha="center", va="center", fontsize=11, color=LIGHT["ink"], linespacing=1.35)


def _line(axes: Axes, points: list[tuple[float, float]], colour: str) -> None:
    axes.plot(*zip(*points, strict=True), color=colour, lw=1.5, solid_joinstyle="round")


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.5, "shrinkA": 0, "shrinkB": 0}
    )


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
