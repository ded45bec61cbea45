"""The gates of a round: the losses that they judged, their thresholds, and the last verdicts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from avspk.evaluation.run_folder import Run
from avspk.judges.loss_gate import LOSS_FLOOR, GateSettings, joint_losses, scaling
from avspk.report import round_plots
from avspk.report.page import absent, figure_block

JOINT = "joint"
Losses = Mapping[int, np.ndarray]


def gate_blocks(run: Run, stage: str) -> str:
    """HTML of the histograms and of the plane; a sentence if the round wrote no losses."""
    losses, epochs = run.epoch_losses(stage), run.records("epoch", stage)
    if not losses:
        return absent("No loss histograms: no epoch of this stage has finished.")
    labels = run.table(stage, "labels")
    if f"{JOINT}/gate/status" in epochs and labels is not None and len(labels) == len(losses[min(losses)]):
        return _joint_gate(run, stage, losses, epochs, (labels["label"] >= 0).to_numpy())
    return _gates_by_modality(run, stage, losses, epochs)


# One gate for all modalities.


def _joint_gate(run: Run, stage: str, losses: Losses, epochs: pd.DataFrame, used: np.ndarray) -> str:
    window = _averaged_epochs(run)
    joint = {
        epoch: joint_losses(averaged_log_losses(losses, epoch, window), used)[used]
        for epoch in round_plots.spread_over(sorted(losses), round_plots.HISTOGRAM_EPOCHS)
    }
    caption = (
        f"Input of the gate: the geometric mean of the modalities' losses, each averaged over the last {window} "
        "epochs, with its logs scaled to mean 0 and variance 1. The gate needs two humps with the red threshold in the "
        "valley between them: clean labels left, wrong ones right (grey: gated in the next epoch); the "
        "curves are the two fitted components. If the losses do not split, or too few would pass, the threshold "
        "passes a fixed share, and there are no curves."
    )
    drawing = round_plots.gate_histograms(joint, epochs, JOINT)
    return figure_block("Joint log losses and the gate", caption, drawing) + _joint_plane(
        run, stage, losses, epochs, used
    )


def _joint_plane(run: Run, stage: str, losses: Losses, epochs: pd.DataFrame, used: np.ndarray) -> str:
    """The last gate's verdicts in the plane of its inputs; its threshold is a line there."""
    gate, last = run.table(stage, "gate"), max(losses) - 1
    if gate is None or last not in losses or losses[last].shape[1] != 2 or len(losses[last]) != len(gate):
        return ""
    averages = averaged_log_losses(losses, last, _averaged_epochs(run))
    mean, std = scaling(averages, used)
    threshold = epochs.iloc[-1].get(f"{JOINT}/gate/threshold")
    border = None
    if threshold is not None and np.isfinite(threshold):  # the mean of two scaled log losses is the threshold
        border = (1 / std[0], 1 / std[1], float(2 * threshold + (mean / std).sum()))
    caption = (
        "The averaged log losses of both modalities. Labels to the lower left of the red line, the threshold of their "
        "scaled mean, are trusted. Far from the diagonal, one modality disagrees with the other."
    )
    rows = np.where(used[:, None], averages, np.nan)
    plane = round_plots.loss_plane(np.exp(rows), gate, run.modalities[:2], {}, border)
    return figure_block("Last epoch: one modality against the other", caption, plane)


def averaged_log_losses(losses: Losses, epoch: int, window: int) -> np.ndarray:
    """(N, M) mean of ln losses over the `window` epochs up to `epoch`, the input of the joint gate."""
    kept = [np.asarray(losses[number]) for number in range(epoch - window + 1, epoch + 1) if number in losses]
    logs = np.log(np.maximum(np.stack(kept).astype(np.float64), LOSS_FLOOR))
    seen = ~np.isnan(logs)
    counts = seen.sum(0)
    return np.where(counts > 0, np.nansum(logs, axis=0) / counts.clip(min=1), np.nan)


def _averaged_epochs(run: Run) -> int:
    node = run.config
    for part in ("refine", "judge", "gate"):
        node = node.get(part) or {}
    return int(node.get("average_epochs", GateSettings().average_epochs))


# A gate for each modality.


def _gates_by_modality(run: Run, stage: str, losses: Losses, epochs: pd.DataFrame) -> str:
    drawings = []
    for column, modality in enumerate(run.modalities[: losses[min(losses)].shape[1]]):
        by_epoch = {epoch: np.asarray(matrix[:, column]) for epoch, matrix in losses.items()}
        drawings.append(round_plots.gate_histograms(by_epoch, epochs, modality))
    caption = (
        "The gate needs two humps with the red threshold in the valley between them: clean labels left, wrong "
        "ones right (grey: gated in the next epoch); the curves are the two fitted components."
    )
    return figure_block("Log losses and the gate", caption, *drawings) + _plane(run, stage, losses, epochs)


def _plane(run: Run, stage: str, losses: Losses, epochs: pd.DataFrame) -> str:
    """The last gates' verdicts at the losses that they used: those of the epoch before."""
    gate, before = run.table(stage, "gate"), losses.get(max(losses) - 1)
    columns = {modality: f"{modality}/gate/threshold" for modality in run.modalities[:2]}
    if gate is None or before is None or before.shape[1] < 2 or len(before) != len(gate):
        return ""
    thresholds = {name: float(epochs[column].iloc[-1]) for name, column in columns.items() if column in epochs}
    if not thresholds:
        return ""  # no gate was fitted yet
    caption = (
        "Labels with low losses in both modalities are to the lower left of both thresholds. Far from the diagonal, "
        "one modality disagrees with the other."
    )
    plane = round_plots.loss_plane(np.asarray(before[:, :2]), gate, run.modalities[:2], thresholds)
    return figure_block("Last epoch: one modality against the other", caption, plane)
