"""Figures of the rounds: loss histograms with the gate, use and quality of labels, quality of gates, embedding maps."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from avspk.evaluation.run_folder import stage_name
from avspk.judges.loss_gate import LOSS_FLOOR
from avspk.report.style import CYCLE, LIGHT, modality_colour, panels, svg_figure, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HISTOGRAM_EPOCHS = 12  # panels of one histogram figure
HISTOGRAM_BINS = 48
PLANE_POINTS = 2000
FATES = {"trusted": "green", "confirmed": "blue", "corrected": "yellow", "dropped": "grey"}
QUALITIES = {
    "label/nmi": ("label NMI", "blue", "-"),
    "label/purity": ("label purity", "teal", "-"),
    "gate/precision": ("gate precision", "green", "-"),
    "gate/recall": ("gate recall", "green", ":"),
    "correction/precision": ("correction precision", "orange", "-"),
    "correction/confidence": ("correction confidence", "orange", ":"),
}
MARKERS = ["o", "s", "^", "D", "v", "P"]


@svg_figure
def gate_histograms(losses: Mapping[int, np.ndarray], epochs: pd.DataFrame, modality: str) -> "Figure":
    """Histograms of log losses of one modality, or "joint", one panel per epoch, with the gate then fitted to them.

    losses: epoch -> losses (N,) at its end, NaN = not seen. epochs: epoch records of the round; the gate of a record is
    the one used in that epoch, fitted to the losses of the epoch before.
    """
    shown = spread_over(sorted(losses), HISTOGRAM_EPOCHS)
    values = {epoch: log_losses(losses[epoch]) for epoch in shown}
    columns = min(len(shown), 4 if len(shown) < 9 else 6)
    rows = -(-len(shown) // columns)
    figure, axes = panels(rows, columns, 10.8 / max(columns, 4), 1.6, sharex=True, sharey=True)
    bins = np.linspace(*_histogram_range(list(values.values())), HISTOGRAM_BINS + 1)
    records = epochs.set_index("epoch").to_dict("index") if "epoch" in epochs else {}
    for panel, epoch in zip(axes.flat, shown, strict=False):
        fit = {str(key).removeprefix(f"{modality}/gate/"): value for key, value in records.get(epoch + 1, {}).items()}
        _gate_panel(panel, values[epoch], bins, fit, modality_colour(modality))
        note = {"fitted": "", "posterior": ": posterior 0.5", "kept": ": gate kept", "open": ": gate open",
                "share": ": share passes"}  # fmt: skip
        panel.set_title(f"{modality}, epoch {epoch}{note.get(str(fit.get('status')), ': no gate')}")
    for panel in axes.flat[len(shown) :]:
        panel.set_axis_off()
    for panel in axes[-1]:
        panel.set_xlabel("log loss")
    return figure


def _gate_panel(axes: "Axes", values: np.ndarray, bins: np.ndarray, fit: Mapping[str, object], colour: str) -> None:
    """One histogram as a density; the part above the threshold is grey."""
    density, _ = np.histogram(np.clip(values, bins[0], bins[-1]), bins, density=len(values) > 0)
    threshold = fit.get("threshold")
    gated = isinstance(threshold, int | float) and np.isfinite(threshold)
    below = (bins[:-1] + bins[1:]) / 2 <= float(threshold) if gated else np.ones(len(density), bool)  # type: ignore[arg-type]
    axes.stairs(density * below, bins, fill=True, color=colour, alpha=0.5)
    axes.stairs(density * ~below, bins, fill=True, color=LIGHT["grey"], alpha=0.75)
    x = np.linspace(bins[0], bins[-1], 120)
    for curve in mixture_densities(x, fit):
        axes.plot(x, curve, color=LIGHT["ink"], linewidth=1.1)
    if gated:
        axes.axvline(float(threshold), color=LIGHT["red"], linewidth=1.6)  # type: ignore[arg-type]
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)


def mixture_densities(x: np.ndarray, fit: Mapping[str, object]) -> list[np.ndarray]:
    """The weighted normal densities at x (n,) of a logged fit {weights, means, stds}, [] without a fit."""
    parameters = [fit.get(name) for name in ("weights", "means", "stds")]
    if not all(isinstance(values, list | tuple) for values in parameters):
        return []
    weights, means, stds = (np.asarray(values, float)[:, None] for values in parameters)
    densities = weights * np.exp(-0.5 * ((x - means) / stds) ** 2) / (stds * np.sqrt(2 * np.pi))
    return [density for density in densities if np.isfinite(density).all()]


@svg_figure
def loss_plane(
    losses: np.ndarray,
    gate: pd.DataFrame,
    modalities: Sequence[str],
    thresholds: Mapping[str, float],
    border: tuple[float, float, float] | None = None,
) -> "Figure":
    """Log losses of two modalities against each other, coloured by the use of the label.

    losses: (N, 2) that the last gate judged; rows without one of them are left out. gate: the table gate.parquet, N
    rows. thresholds: of the log loss, by modality. border: (a, b, c) of a joint gate, the line a x + b y = c.
    """
    figure, ((axes,),) = panels(1, 1, 5.4, 4.2)
    rows = np.flatnonzero(np.isfinite(losses).all(1))
    rows = rows[:: max(1, len(rows) // PLANE_POINTS)]
    x, y = log_losses(losses[rows, 0]), log_losses(losses[rows, 1])
    fate = label_fates(gate)[rows]
    for name, colour in reversed(FATES.items()):
        chosen = fate == name
        axes.plot(x[chosen], y[chosen], "o", ms=3, mew=0, alpha=0.7, color=LIGHT[colour], label=name)
    for modality, line in zip(modalities, (axes.axvline, axes.axhline), strict=True):
        if np.isfinite(thresholds.get(modality, np.nan)):
            line(thresholds[modality], color=LIGHT["red"], linewidth=1.4)
    if border is not None:
        a, b, c = border
        axes.axline((0, c / b), slope=-a / b, color=LIGHT["red"], linewidth=1.4)
    axes.set(xlabel=f"{modalities[0]}: log loss", ylabel=f"{modalities[1]}: log loss")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", handletextpad=0.2, reverse=True)
    return figure


def label_fates(gate: pd.DataFrame) -> np.ndarray:
    """Use of each label (N,), in the words of `FATES`, from the table gate.parquet."""
    replacement = np.where(gate["replacement"] == gate["label"], "confirmed", "corrected")
    return np.where(gate["trusted"], "trusted", np.where(gate["replaced"], replacement, "dropped"))


@svg_figure
def fates(rounds: Mapping[str, pd.DataFrame]) -> "Figure":
    """Percentage of labels that are trusted, confirmed, corrected and dropped: a bar per epoch, a panel per round."""
    figure, axes = panels(1, len(rounds), _round_width(rounds), 2.5, sharey=True)
    for panel, (stage, epochs) in zip(axes[0], rounds.items(), strict=True):
        bottom = np.zeros(len(epochs))
        for fate, name in FATES.items():
            share = 100 * _column(epochs, f"fraction/{fate}", 0)
            panel.bar(epochs["epoch"], share, 0.86, bottom=bottom, color=LIGHT[name], label=fate, linewidth=0)
            bottom += share
        panel.set(title=stage_name(stage), xlabel="epoch", ylim=(0, 100))
        panel.set_xlim(0.4, max(4, epochs["epoch"].max()) + 0.6)
        whole_numbers(panel.xaxis)
        panel.grid(visible=False, axis="x")
    axes[0, 0].set_ylabel("labels (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=4, borderpad=0)
    return figure


@svg_figure
def qualities(rounds: Mapping[str, pd.DataFrame]) -> "Figure":
    """Diagnostics against the true speakers: NMI and purity, precision and recall of gate and correction, per epoch."""
    figure, axes = panels(1, len(rounds), _round_width(rounds), 2.7, sharey=True)
    lowest = 1.0
    for panel, (stage, epochs) in zip(axes[0], rounds.items(), strict=True):
        for key, (label, name, line) in QUALITIES.items():
            values = _column(epochs, key, np.nan)
            lowest = min(lowest, np.nanmin(values, initial=1.0))
            panel.plot(epochs["epoch"], values, line, color=LIGHT[name], label=label, marker="o", markersize=2.5)
        panel.set(title=stage_name(stage), xlabel="epoch")
        whole_numbers(panel.xaxis)
    axes[0, 0].set_ylim(max(0.0, np.floor(10 * lowest - 0.5) / 10), 1.01)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    return figure


@svg_figure
def embedding_maps(maps: Mapping[str, np.ndarray], labels: np.ndarray) -> "Figure":
    """2-D maps, title -> points (n, 2), NaN = missing; a label is one colour and marker in every map. labels (n,)."""
    figure, axes = panels(1, len(maps), 5.4, 4.7)
    looks = [(colour, marker) for marker in MARKERS for colour in CYCLE]
    for panel, (title, points) in zip(axes[0], maps.items(), strict=True):
        for number, label in enumerate(np.unique(labels)):
            colour, marker = looks[number % len(looks)]
            x, y = points[labels == label].T
            panel.plot(x, y, marker, markersize=4.6, markeredgewidth=0, alpha=0.85, color=colour)
        panel.set(title=title, xticks=[], yticks=[])
        panel.set_aspect("equal", adjustable="datalim")
        panel.spines[:].set_visible(False)
    return figure


def log_losses(losses: np.ndarray) -> np.ndarray:
    """Natural logs of the losses, without utterances that were not seen."""
    losses = np.asarray(losses, np.float64)
    return np.log(np.maximum(losses[np.isfinite(losses)], LOSS_FLOOR))


def spread_over(epochs: Sequence[int], count: int) -> list[int]:
    """At most `count` of the epochs, evenly spread, the first and the last among them."""
    places = np.unique(np.linspace(0, len(epochs) - 1, min(count, len(epochs))).round().astype(int))
    return [epochs[place] for place in places]


def _histogram_range(values: Sequence[np.ndarray]) -> tuple[float, float]:
    pooled = np.concatenate(values)
    if not len(pooled):
        return 0.0, 1.0
    low, high = np.percentile(pooled, [1, 99])
    margin = 0.3 * (high - low) + 1e-3
    return float(max(low - margin, pooled.min() - 1e-3)), float(min(high + margin, pooled.max() + 1e-3))


def _round_width(rounds: Mapping[str, pd.DataFrame]) -> float:
    return 10.8 / max(2, len(rounds))


def _column(table: pd.DataFrame, key: str, missing: float) -> np.ndarray:
    values = table[key].astype(float) if key in table else pd.Series(np.nan, table.index)
    return values.fillna(missing).to_numpy()
