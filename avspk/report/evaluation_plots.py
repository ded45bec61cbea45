"""Figures of the evaluation: EER per system with intervals, DET curves."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtri

from avspk.report.style import CYCLE, LIGHT, panels, percent_ticks, svg_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EER_TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
DET_TICKS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40]


class DetCurve(NamedTuple):
    """Operating points of one system on one list, as fractions: false alarms and misses (n,), and the EER."""

    p_fa: np.ndarray
    p_miss: np.ndarray
    eer: float


@svg_figure
def eer_per_system(metrics: pd.DataFrame) -> "Figure":
    """EER with its interval for every system, one line per trial list; `metrics` has the columns of metrics.json."""
    systems, lists = list(metrics["system"].unique()), list(metrics["trials"].unique())
    figure, ((axes,),) = panels(1, 1, max(5.2, 1.35 * len(systems)), 3.5)
    floor = log_percent_axis(axes, metrics[["eer_low", "eer", "eer_high"]].to_numpy(float))
    offsets = 0.16 * (np.arange(len(lists)) - (len(lists) - 1) / 2)
    for trials, offset, colour in zip(lists, offsets, [LIGHT["teal"], LIGHT["purple"], *CYCLE], strict=False):
        rows = metrics[metrics["trials"] == trials].set_index("system").reindex(systems)
        x = np.arange(len(systems)) + offset
        draw_intervals(axes, x, rows, floor, colour, trials)
        for left, eer in zip(x, rows["eer"], strict=True):
            side = -1 if offset < 0 else 1
            # Lines fall to the right, so there is room below left and above right of a point.
            axes.annotate(f"{eer:.2f}", (left, max(eer, floor)), (5 * side, 7 * side), textcoords="offset points",
                          fontsize=8.5, ha="right" if side < 0 else "left", va="center", color=colour)  # fmt: skip
    axes.set_xticks(range(len(systems)), systems)
    axes.set_xlim(-0.6, len(systems) - 0.4)
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("EER (%), logarithmic")
    axes.legend(ncols=len(lists), loc="upper right")
    return figure


def log_percent_axis(axes: "Axes", values: np.ndarray, which: str = "y") -> float:
    """A logarithmic axis for rows (low, eer, high) in percent: equal steps are equal ratios. Returns its lower end.

    An interval that reaches 0, or an EER of 0, does not extend the axis; draw it at the lower end.
    """
    positive = values[:, 1][values[:, 1] > 0]
    smallest = positive.min() if len(positive) else 1.0
    low, high = max(np.nanmin(values), smallest / 3) / 1.25, max(np.nanmax(values), smallest) * 1.25
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    ticks = [tick for tick in EER_TICKS if low <= tick <= high]
    percent_ticks(axes.xaxis if which == "x" else axes.yaxis, ticks, ticks)
    return float(low)


def draw_intervals(axes: "Axes", x: np.ndarray, rows: pd.DataFrame, floor: float, colour: str, label: str) -> None:
    """Points `eer` at x with their bars, joined by a faint line; nothing is below `floor`."""
    eer, lengths = points_and_bars(rows, floor)
    axes.plot(x, eer, color=colour, linewidth=1, alpha=0.4)
    axes.errorbar(x, eer, yerr=lengths, fmt="o", ms=5, color=colour, elinewidth=1.8, label=label)


def points_and_bars(rows: pd.DataFrame, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Points `eer` (n,), and the lengths (2, n) of their bars down to `eer_low` and up to `eer_high`.

    A point without an interval has none. Intervals of few replicates may lie beside their point.
    """
    low, eer, high = np.maximum(rows[["eer_low", "eer", "eer_high"]].to_numpy(float), floor).T
    return eer, np.fmax([eer - low, high - eer], 0)


@svg_figure
def det_curves(curves: Mapping[str, Mapping[str, DetCurve]]) -> "Figure":
    """Detection error trade-off, one panel per trial list, one curve per system, probit-scaled axes in percent."""
    figure, axes = panels(1, len(curves), 4.9, 4.4)
    systems = list(dict.fromkeys(system for systems in curves.values() for system in systems))
    styles = system_styles(systems)
    low = _det_floor(curves)
    for column, (trials, by_system) in enumerate(curves.items()):
        panel = axes[0, column]
        panel.plot([-4, 1], [-4, 1], color=LIGHT["grid"], linewidth=1)
        for system, curve in by_system.items():
            drawn = (curve.p_fa > 0) & (curve.p_fa < 1) & (curve.p_miss > 0) & (curve.p_miss < 1)
            panel.plot(ndtri(curve.p_fa[drawn]), ndtri(curve.p_miss[drawn]), label=system, **styles[system])
            equal = ndtri(curve.eer)
            panel.plot([equal], [equal], "o", markersize=4.5, color=styles[system]["color"])
        ticks = [tick for tick in DET_TICKS if tick >= low]
        for axis in (panel.xaxis, panel.yaxis):
            percent_ticks(axis, ticks, list(ndtri(np.array(ticks) / 100)))
        panel.set(xlim=ndtri([low / 100, 0.6]), ylim=ndtri([low / 100, 0.6]), aspect="equal")
        panel.set(title=trials, xlabel="false alarms (%)", ylabel="misses (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def system_styles(systems: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Line style of each system, in order: the baseline grey and dashed, the last one dark, colours between."""
    styles: dict[str, dict[str, Any]]
    styles = {system: {"color": CYCLE[i % len(CYCLE)]} for i, system in enumerate(systems[1:-1])}
    if len(systems) > 1:
        styles[systems[0]] = {"color": LIGHT["muted"], "linestyle": "--"}
    styles[systems[-1]] = {"color": LIGHT["ink"], "linewidth": 2.2}
    return styles


def _det_floor(curves: Mapping[str, Mapping[str, DetCurve]]) -> float:
    """The lowest useful tick (percent): a tenth of the best EER, but not below one error in the trials."""
    shown = [curve for by_system in curves.values() for curve in by_system.values()]
    rates = np.concatenate([np.concatenate([curve.p_fa, curve.p_miss]) for curve in shown])
    wanted = 100 * max(min(curve.eer for curve in shown) / 10, rates[rates > 0].min())
    return max([tick for tick in DET_TICKS if tick <= wanted], default=DET_TICKS[0])
