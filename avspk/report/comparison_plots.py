"""Figures that compare methods: EER per stage, differences with intervals, labels per round."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from avspk.evaluation.run_folder import stage_name
from avspk.report.evaluation_plots import draw_intervals, log_percent_axis, points_and_bars
from avspk.report.round_plots import FATES
from avspk.report.style import CYCLE, LIGHT, panels, svg_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUALITIES = {"label/nmi": "label NMI", "label/purity": "label purity", "gate/precision": "gate precision",
             "correction/precision": "correction precision"}  # fmt: skip


@svg_figure
def eer_by_stage(errors: pd.DataFrame) -> "Figure":
    """EER with its interval: panels are lists, lines are methods, faint dots are single runs. `Comparison.errors`."""
    lists, stages = list(errors["trials"].unique()), list(errors["stage"].unique())
    colours = method_colours(errors)
    figure, axes = panels(1, len(lists), max(4.2, 0.95 * len(stages)), 3.6, sharey=True)
    floor = log_percent_axis(axes[0, 0], errors[["eer_low", "eer", "eer_high"]].to_numpy())
    for panel, trials in zip(axes[0], lists, strict=True):
        for offset, (method, colour) in zip(_offsets(len(colours)), colours.items(), strict=True):
            rows = errors[(errors["trials"] == trials) & (errors["method"] == method)]
            x = np.array([stages.index(stage) for stage in rows["stage"]]) + offset
            draw_intervals(panel, x, rows, floor, colour, method)
            for left, eers in zip(x, rows["eers"], strict=True):
                if len(eers) > 1:
                    panel.plot([left] * len(eers), eers, "o", ms=3, mew=0, alpha=0.5, color=LIGHT["muted"])
        panel.set_title(trials)
        panel.set_xticks(range(len(stages)), [stage.replace(" (", "\n(") for stage in stages])
        panel.tick_params(axis="x", length=0)
        panel.grid(visible=False, axis="x")
    axes[0, 0].set_ylabel("EER (%), logarithmic")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=min(4, len(colours)))
    return figure


@svg_figure
def last_errors(errors: pd.DataFrame) -> "Figure":
    """EER after the last stage, one row per method, one panel per list. `Comparison.last_errors`."""
    lists, methods = list(errors["trials"].unique()), list(errors["method"].unique())
    figure, axes = panels(1, len(lists), 5.0, 0.8 + 0.33 * len(methods), sharey=True)
    for panel, trials in zip(axes[0], lists, strict=True):
        rows = errors[errors["trials"] == trials].set_index("method").reindex(methods)
        floor = log_percent_axis(panel, rows[["eer_low", "eer", "eer_high"]].to_numpy(), "x")
        eer, lengths = points_and_bars(rows, floor)
        y = np.arange(len(methods))[::-1]
        panel.errorbar(eer, y, xerr=lengths, fmt="o", ms=6, color=LIGHT["blue"], elinewidth=2)
        for height, value, shown in zip(y, eer, rows["eer"], strict=True):
            if np.isfinite(shown):
                panel.annotate(f"{shown:.2f}", (value, height), (0, 5), textcoords="offset points", ha="center", size=8)
        for height, eers in zip(y, rows["eers"], strict=True):
            if isinstance(eers, list) and len(eers) > 1:
                panel.plot(np.maximum(eers, floor), [height - 0.28] * len(eers), "o", ms=3, mew=0, color=LIGHT["muted"])
        panel.set(title=trials, xlabel="EER (%), logarithmic", ylim=(-0.7, len(methods) - 0.4))
        _rows_named(panel, methods)
    return figure


@svg_figure
def last_differences(table: pd.DataFrame) -> "Figure":
    """EER after the last stage minus the reference's: rows are methods, panels lists. `Comparison.last_differences`."""
    names = [f"{row['method']} minus {row['reference']}" for row in table.to_dict("records")]
    rows, lists = table.assign(row=names), list(table["trials"].unique())
    methods = list(rows["row"].unique())
    figure, axes = panels(1, len(lists), 5.6, 0.8 + 0.33 * len(methods), sharex=True, sharey=True)
    for panel, trials in zip(axes[0], lists, strict=True):
        _intervals(panel, rows[rows["trials"] == trials], methods, "row")
        panel.set(title=trials, xlabel="difference of EER (percentage points)")
    return figure


@svg_figure
def differences(table: pd.DataFrame) -> "Figure":
    """EER minus the reference's, stage by stage: rows are methods, columns lists. `Comparison.stage_differences`."""
    lists, methods = list(table["trials"].unique()), list(table["method"].unique())
    stages = list(table["stage"].unique())
    figure, axes = panels(len(methods), len(lists), 4.8, 0.75 + 0.33 * len(stages), sharex=True, sharey=True)
    for (row, method), (column, trials) in ((r, c) for r in enumerate(methods) for c in enumerate(lists)):
        panel = axes[row, column]
        rows = table[(table["method"] == method) & (table["trials"] == trials)]
        _intervals(panel, rows, stages, "stage")
        reference = table.loc[table["method"] == method, "reference"].iloc[0]
        panel.set_title(f"{method} minus {reference}, {trials}")
    for panel in axes[-1]:
        panel.set_xlabel("difference of EER (percentage points)")
    return figure


def _intervals(axes: "Axes", rows: pd.DataFrame, names: Sequence[str], column: str) -> None:
    """One line per row of the table, at the height of its name in `column`, coloured by its reading."""
    axes.axvline(0, color=LIGHT["ink"], linewidth=1)
    for row in rows.to_dict("records"):
        y = len(names) - 1 - names.index(row[column])
        colour = LIGHT[{"better": "green", "worse": "red"}.get(row["reading"], "muted")]
        axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2)
        axes.plot([row["difference"]], [y], "o", markersize=6, color=colour)
    axes.set_ylim(-0.6, len(names) - 0.4)
    _rows_named(axes, names)


def _rows_named(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")


@svg_figure
def label_quality(labels: pd.DataFrame) -> "Figure":
    """Quality of labels, gate and correction at the end of each round, one line per method. `Comparison.labels`."""
    stages, colours = list(labels["stage"].unique()), method_colours(labels)
    figure, axes = panels(1, len(QUALITIES), 2.7, 2.7)
    for panel, (key, title) in zip(axes[0], QUALITIES.items(), strict=True):
        for method, colour in colours.items():
            rows = labels[labels["method"] == method]
            x = [stages.index(stage) for stage in rows["stage"]]
            panel.plot(x, rows[key], marker="o", markersize=5, color=colour, label=method)
        panel.set_title(title)
        panel.set_xticks(range(len(stages)), [stage_name(stage) for stage in stages])
        panel.set_xlim(-0.4, len(stages) - 0.6)
        panel.set_ylim(top=min(1.005, panel.get_ylim()[1]))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=min(4, len(colours)))
    return figure


@svg_figure
def fates(labels: pd.DataFrame) -> "Figure":
    """Use of the labels in the last epoch of each round, one bar per method and round."""
    rows = labels[::-1].reset_index(drop=True)
    figure, ((axes,),) = panels(1, 1, 8.5, 0.9 + 0.3 * len(rows))
    left = np.zeros(len(rows))
    for fate, name in FATES.items():
        share = 100 * rows[f"fraction/{fate}"].fillna(0).to_numpy()
        axes.barh(rows.index, share, 0.72, left=left, color=LIGHT[name], label=fate)
        left += share
    names = [f"{row['method']}, {stage_name(row['stage']).lower()}" for row in rows.to_dict("records")]
    axes.set_yticks(rows.index, names)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 100), xlabel="labels (%)")
    axes.grid(visible=False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


def method_colours(table: pd.DataFrame) -> dict[str, str]:
    """A colour for each method, in order of appearance."""
    return {method: CYCLE[place % len(CYCLE)] for place, method in enumerate(table["method"].unique())}


def _offsets(number: int) -> np.ndarray:
    """Shifts that place the marks of a group next to each other."""
    return 0.5 / max(number, 3) * (np.arange(number) - (number - 1) / 2)
