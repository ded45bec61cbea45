"""Figures of scored trial lists as PNG files: detection error trade-off, histograms of scores."""

from collections.abc import Mapping
from inspect import unwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from avspk.common.extras import explained
from avspk.common.files import whole_or_absent
from avspk.report.evaluation_plots import DetCurve, det_curves
from avspk.report.style import LIGHT, STYLE, panels
from avspk.scoring.metrics import det_curve, eer, eer_threshold

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scored = Mapping[str, Mapping[str, pd.DataFrame]]  # list -> system -> columns score, label
BINS = 80


def save_score_figures(scored: Scored, folder: Path) -> None:
    """Write det.png and histograms.png of list -> system -> scored trials into `folder`."""
    with explained():
        import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE | {"savefig.facecolor": "white", "savefig.dpi": 160})
        curves = {
            trials: {system: _curve(table) for system, table in systems.items()} for trials, systems in scored.items()
        }
        _save(unwrap(det_curves)(curves), folder / "det.png")
        _save(score_histograms(scored), folder / "histograms.png")


def _curve(table: pd.DataFrame) -> DetCurve:
    pair = table["score"], table["label"]
    return DetCurve(*det_curve(*pair), eer(*pair))


def _save(figure: "Figure", path: Path) -> None:
    with whole_or_absent(path) as part:
        figure.savefig(part, format="png")


def score_histograms(scored: Scored, thresholds: Mapping[str, float] | None = None) -> "Figure":
    """Densities of target and non-target scores, one panel per list and system; a line at the EER threshold.

    Rows are lists and columns are systems; with one system, all panels are in one row. `thresholds`: name -> score of
    additional lines.
    """
    systems = list(dict.fromkeys(system for by_system in scored.values() for system in by_system))
    figure, axes = panels(len(scored), len(systems), 4.2, 2.6)
    if len(systems) == 1:
        figure, axes = panels(1, len(scored), 4.2, 2.6)
        axes = axes.T
    for row, (trials, by_system) in enumerate(scored.items()):
        for column, system in enumerate(systems):
            if system in by_system:
                _draw_histogram(axes[row, column], by_system[system], thresholds or {})
                axes[row, column].set_title(f"{trials}, {system}")
            else:
                axes[row, column].set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper")
    return figure


def _draw_histogram(axes: "Axes", table: pd.DataFrame, thresholds: Mapping[str, float]) -> None:
    finite = table[np.isfinite(table["score"])]
    edges = np.histogram_bin_edges(finite["score"], BINS)
    for label, name, colour in ((0, "non-target", LIGHT["orange"]), (1, "target", LIGHT["blue"])):
        scores = finite.loc[finite["label"] == label, "score"]
        if len(scores):
            axes.hist(scores, edges.tolist(), density=True, histtype="stepfilled", alpha=0.55, color=colour, label=name)
    threshold = eer_threshold(table["score"], table["label"])
    if np.isfinite(threshold):
        axes.axvline(threshold, color=LIGHT["ink"], linewidth=1, linestyle="--", label="threshold at EER")
    for (name, value), colour in zip(thresholds.items(), (LIGHT["green"], LIGHT["purple"], LIGHT["red"]), strict=False):
        axes.axvline(value, color=colour, linewidth=1.4, label=f"calibrated, {name}")
    axes.set(xlabel="score", ylabel="density")
