"""The scores of the last model: histograms with the thresholds, and the cost of its calibration."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np

from avspk.evaluation.run_folder import Run
from avspk.report.page import absent, figure_block, table_block
from avspk.report.score_figures import score_histograms
from avspk.report.style import svg_figure
from avspk.scoring.metrics import bayes_threshold

PRIORS = (0.5, 0.05, 0.01)


def score_blocks(run: Run) -> str:
    """HTML of both; a sentence if the run has no scores."""
    if not run.last_scores:
        return absent("No score histograms: evaluation/ has no score files of the last model.")
    thresholds = cosine_thresholds(run)
    caption = (
        "The further apart the humps, the better. Trials left of a threshold are rejected, trials right of it accepted."
    )
    if thresholds:
        caption += (
            " The calibration, fitted on training data, places the threshold of each prior probability of the same "
            "speaker. If that of 0.5 is far from the threshold at the EER, the calibration does not fit these "
            "trials."
        )
    scored = {trials: {system: table} for (system, trials), table in run.last_scores.items()}
    body = figure_block("Scores of the last model", caption, svg_figure(score_histograms)(scored, thresholds))
    return body + _calibration(run)


def cosine_thresholds(run: Run) -> dict[str, float]:
    """Name -> cosine at which the calibrated log-likelihood ratio reaches the Bayes threshold of a prior."""
    calibration = run.calibration
    if calibration is None:
        return {}
    weight, bias = calibration.weights[0], calibration.bias
    return {f"prior {prior:g}": (bayes_threshold(prior) - bias) / weight for prior in PRIORS}


def _calibration(run: Run) -> str:
    title = "<h3>Calibration</h3>"
    if run.calibration is None:
        return title + absent("The model has no calibration: its scores are cosines, not likelihood ratios.")
    rows = [_cost_cells(trials, costs) for trials, costs in run.calibration_costs.items()]
    header = ["list", "Cllr", "lowest Cllr", "actDCF(0.05)", "minDCF(0.05)", "actDCF(0.01)", "minDCF(0.01)"]
    lead = (
        "Cllr: cost of the likelihood ratios in bits per trial; a system without information has 1. The lowest "
        "Cllr is that of the same scores after calibration on these trials. actDCF: cost at the calibrated threshold; "
        "minDCF: at the best one."
    )
    return title + f"<p class=muted>{escape(lead)}</p>" + table_block(header, rows)


def _cost_cells(trials: str, costs: Mapping[str, float]) -> list[str]:
    keys = ("cllr", "min_cllr", "act_dcf_0.05", "min_dcf_0.05", "act_dcf_0.01", "min_dcf_0.01")
    return [escape(trials), *(f"{costs[key]:.3f}" if np.isfinite(costs[key]) else "∞" for key in keys)]
