"""One style for all figures: colours that follow the reader's light or dark theme, and figures as inline SVG."""

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from avspk.common.extras import explained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# name -> (light, dark). Figures are drawn in the light colour; to_svg replaces it by the CSS variable of that name.
PALETTE = {
    "ink": ("#1d1d1b", "#ecebe7"),
    "muted": ("#716f69", "#a19f98"),
    "grid": ("#e6e4de", "#373631"),
    "surface": ("#fefefe", "#1f1e1c"),
    "blue": ("#2a6fb0", "#6db0ee"),
    "orange": ("#d2691e", "#f29d5c"),
    "green": ("#2e8b62", "#5fc594"),
    "yellow": ("#dba41a", "#ecc453"),
    "purple": ("#7a4fb0", "#b795ea"),
    "teal": ("#1f9aa0", "#58cbd0"),
    "red": ("#c0394b", "#f0808c"),
    "grey": ("#b3b1aa", "#66645d"),
    "olive": ("#7d8a22", "#b9c65a"),
    "brown": ("#8c5a3c", "#c99a7c"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
MODALITY_COLOURS = {"audio": LIGHT["blue"], "face": LIGHT["orange"]}
CYCLE = [LIGHT[name] for name in ("blue", "orange", "green", "purple", "teal", "red", "yellow", "olive", "brown")]

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's own font
    "svg.hashsalt": "avspk",  # the same run gives the same bytes
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 6,
    "axes.labelsize": 9,
    "axes.labelcolor": LIGHT["muted"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.edgecolor": LIGHT["grey"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["grey"],
    "ytick.color": LIGHT["grey"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.minor.visible": False,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.constrained_layout.use": True,
}

Arguments = ParamSpec("Arguments")


def svg_figure(draw: Callable[Arguments, "Figure"]) -> Callable[Arguments, str]:
    """Make a function that draws a Figure return inline SVG, in STYLE regardless of matplotlib's settings."""

    @wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> str:
        with explained():
            import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            return to_svg(draw(*args, **kwargs))

    return drawn


def panels(rows: int, columns: int, width: float, height: float, **kwargs: Any) -> tuple["Figure", np.ndarray]:
    """A figure of `width` x `height` inches (of each panel) and its axes, an object array (rows, columns)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height))
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def to_svg(figure: "Figure") -> str:
    """The figure as an <svg> element with the colours and font of the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9]+(?:\.\w+)*_\d+"', "", svg)  # figure_1, text_7, ...: would repeat within a page
    svg = re.sub(r"(font: [^;'\"]*)'DejaVu Sans'[^;\"]*", r"\1var(--font)", svg)
    svg = re.sub(r' (?:d|x|y)="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), svg)
    width, height = figure.get_size_inches()
    size = f"width: {width:.2f}in; min-width: min({width:.2f}in, 620px)"
    svg = re.sub(r"^<svg [^>]*>", f'<svg viewBox="0 0 {72 * width:g} {72 * height:g}" style="{size}">', svg)
    for name, light in LIGHT.items():
        svg = svg.replace(light, f"var(--{name})")
    return re.sub(r"\n\s*", "\n", svg)


def standalone(svg: str) -> str:
    """The <svg> element of a page as a separate file: fixed colours on white."""
    for name, light in LIGHT.items():
        svg = svg.replace(f"var(--{name})", light)
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = svg.replace("<svg ", f"<svg {names} ", 1).replace('style="', 'style="background: white; ', 1)
    return svg.replace("var(--font)", "sans-serif")


def modality_colour(modality: str) -> str:
    """The colour of a modality, the same in all figures."""
    return MODALITY_COLOURS.get(modality, LIGHT["purple"])


def whole_numbers(axis: Any) -> None:
    """Put ticks of an axis of epochs at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def percent_ticks(axis: Any, ticks: Sequence[float], positions: Sequence[float]) -> None:
    """Put percentages (0.5, 20, ...) as labels at `positions` of an x or y axis, with no minor ticks."""
    axis.set_ticks(positions, labels=[f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)
