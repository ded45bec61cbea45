"""Figures of the optimisation: losses, entropies, centre norm, schedules, speed, against steps."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from avspk.evaluation.run_folder import stage_name
from avspk.report.style import LIGHT, modality_colour, panels, svg_figure, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVE_POINTS = 500  # of a curve; longer logs are averaged in bins
ENTROPIES = {"student_entropy": ("student", "teal"), "teacher_entropy": ("teacher", "purple"),
             "mean_entropy": ("mean target of the batch", "green")}  # fmt: skip
SCHEDULES = {"lr": "learning rate", "momentum": "teacher momentum (EMA)", "teacher_temperature": "teacher temperature"}


@svg_figure
def stage_one_course(steps: pd.DataFrame, modalities: Sequence[str], num_prototypes: int | None) -> "Figure":
    """Loss, entropies (nats) and centre norm of stage 1, one row per modality; the last row shows the schedules.

    Panels of figures that the objective does not have are left out. Without prototypes, the share of views that find
    their example takes the place of the entropies.

    `steps`: the step records of the pretrain stage. `num_prototypes` K draws ln K, the entropy of collapse to uniform.
    """
    middle = "entropy (nats)" if num_prototypes else "views that find their example (%)"
    figure, axes = panels(len(modalities) + 1, 3, 3.6, 2.05, sharex=True)
    for row, modality in enumerate(modalities):
        colour = modality_colour(modality)
        _curve(axes[row, 0], steps, f"{modality}/loss", color=colour)
        for key, (label, name) in ENTROPIES.items():
            _curve(axes[row, 1], steps, f"{modality}/{key}", color=LIGHT[name], label=label)
        if num_prototypes:
            limit = {"color": LIGHT["muted"], "linewidth": 1, "linestyle": ":", "label": "ln K, the maximum"}
            axes[row, 1].axhline(np.log(num_prototypes), **limit)
        _curve(axes[row, 1], steps, f"{modality}/found", scale=100, color=colour)
        axes[row, 1].set_ylim(bottom=0)
        _curve(axes[row, 2], steps, f"{modality}/center_norm", color=colour)
        for panel, title in zip(axes[row], ("loss", middle, "norm of the centre"), strict=True):
            panel.set_title(f"{modality}: {title}")
            panel.set_visible(bool(panel.lines))
    for panel, (key, title) in zip(axes[-1], SCHEDULES.items(), strict=True):
        _curve(panel, steps, key, color=LIGHT["ink"])
        panel.set(title=title, xlabel="step")
        panel.ticklabel_format(axis="y", useOffset=False)
        panel.set_visible(bool(panel.lines))
    if num_prototypes:
        figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


@svg_figure
def whole_run(stages: Mapping[str, pd.DataFrame], modalities: Sequence[str]) -> "Figure":
    """Loss per modality, learning rate, data-wait share and rate over the steps of all stages, one after another.

    `stages`: stage -> its step records, in the order they ran.
    """
    figure, axes = panels(4, 1, 10.8, 1.45, sharex=True)
    start, total = 0.0, sum(float(steps["step"].max()) for steps in stages.values())
    for number, (stage, steps) in enumerate(stages.items()):
        end = start + float(steps["step"].max())
        for modality in modalities:
            label = modality if number == 0 else None
            _curve(axes[0, 0], steps, f"{modality}/loss", start, color=modality_colour(modality), label=label)
        _curve(axes[1, 0], steps, "lr", start, color=LIGHT["ink"])
        _curve(axes[2, 0], steps, "data_wait", start, 100, color=LIGHT["red"])
        _curve(axes[3, 0], steps, "rate", start, color=LIGHT["green"])
        if number % 2:
            for panel in axes[:, 0]:
                panel.axvspan(start, end, color=LIGHT["grid"], alpha=0.45, linewidth=0)
        if end - start > 0.05 * total:  # otherwise its name would cover the next one
            axes[0, 0].annotate(stage_name(stage), ((start + end) / 2, 1), (0, 4), xycoords=("data", "axes fraction"),
                                textcoords="offset points", ha="center", color=LIGHT["muted"])  # fmt: skip
        start = end
    for panel, label in zip(axes[:, 0], ("loss", "learning rate", "data wait (%)", "utterances/s"), strict=True):
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
    axes[0, 0].set_xlim(0, start)
    _log_above(axes[1, 0], [steps["lr"] for steps in stages.values() if "lr" in steps])
    axes[-1, 0].set_xlabel("step, all stages")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    figure.align_ylabels()
    return figure


@svg_figure
def cluster_course(epochs: pd.DataFrame, modalities: Sequence[str]) -> "Figure":
    """NMI and purity of the clusters that stage 1 drew positives from, against epochs."""
    figure, ((axes,),) = panels(1, 1, 5.4, 2.4)
    for modality in modalities:
        style: dict[str, Any] = {"color": modality_colour(modality), "marker": "o", "markersize": 3.5}
        for key, line in (("nmi", "-"), ("purity", ":")):
            label = f"{modality} {key}"
            _curve(axes, epochs, f"{modality}/label/{key}", x="epoch", label=label, linestyle=line, **style)
    axes.set(ylim=(0, 1.02), xlabel="epoch")
    whole_numbers(axes.xaxis)
    axes.legend(loc="lower left", ncols=2)
    return figure


def _log_above(axes: "Axes", values: Sequence[pd.Series]) -> None:
    """A logarithmic axis, at most four decades below the largest value: schedules that end at zero leave it."""
    positive = [series[series > 0] for series in values if (series > 0).any()]
    if positive:
        top, bottom = max(series.max() for series in positive), min(series.min() for series in positive)
        axes.set_yscale("log")
        axes.set_ylim(max(bottom / 1.5, top / 1e4), 1.5 * top)


def _curve(axes: "Axes", records: pd.DataFrame, key: str, start: float = 0, scale: float = 1, x: str = "step",
           **style: Any) -> None:  # fmt: skip
    """Plot a logged key against `x`, averaged to CURVE_POINTS; keys that were not logged are not drawn."""
    if key not in records:
        return
    points = records[[x, key]].astype(float).dropna()
    if len(points) > CURVE_POINTS:
        points = points.groupby(np.arange(len(points)) * CURVE_POINTS // len(points)).mean()
    axes.plot(start + points[x], scale * points[key], **style)
