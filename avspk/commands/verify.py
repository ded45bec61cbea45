"""Do two recordings have the same speaker? Score, probability and decision."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avspk.commands.console import add_model, guarded, share, table

if TYPE_CHECKING:
    from avspk.scoring.calibration import Calibration


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Print score and decision for two recordings; 0, or 2 with a line of error."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("first", type=Path, help="any format, any sample rate; channels are averaged")
    parser.add_argument("second", type=Path)
    add_model(parser)
    parser.add_argument("--prior", type=share, default=0.5, help="probability of one speaker before listening (0.5)")
    return guarded(run, parser.parse_args(arguments))


def run(args: argparse.Namespace) -> int:
    """Score the pair, and judge it by the model's calibration."""
    from avspk.inference.speaker_model import load_model

    model = load_model(args.model, args.device)
    score = model.compare(args.first, args.second)
    table(_verdict(score, model.calibration, args.prior, args.model))
    return 0


def _verdict(score: float, calibration: Calibration | None, prior: float, name: str) -> list[tuple[str, str]]:
    from avspk.scoring.metrics import bayes_threshold

    rows = [("cosine score", f"{score:.4f}")]
    if calibration is None:
        return [*rows, ("decision", f"none; {name} has no calibration, so no threshold is known to be right")]
    ratio, threshold = float(calibration.llr([score])[0]), bayes_threshold(prior) + 0.0  # -0.0 would print a sign
    same = ratio >= threshold
    cosine = (threshold - calibration.bias) / calibration.weights[0]
    return [
        *rows,
        ("log-likelihood ratio", f"{ratio:.2f}  (natural log, calibrated on training data)"),
        ("probability", f"{calibration.probability([score], prior)[0]:.4f}  of one speaker, prior {prior:g}"),
        (
            "decision",
            f"{'same speaker' if same else 'different speakers'}: {ratio:.2f} {'reaches' if same else 'is below'} "
            f"{threshold:.2f} (cosine {cosine:.4f}), the Bayes threshold for this prior, both errors equally costly",
        ),
    ]
