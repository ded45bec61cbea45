"""Content of a model folder: architecture, features, calibration, model card."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from avspk.commands.console import add_model, guarded, table

if TYPE_CHECKING:
    from avspk.scoring.calibration import Calibration


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Describe a model of any modality; 0, or 2 with a line of error."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    add_model(parser)
    return guarded(run, parser.parse_args(arguments))


def run(args: argparse.Namespace) -> int:
    """Print the table, then the card."""
    from avspk.inference.hub import find_model
    from avspk.inference.speaker_model import CARD, load_calibration, load_encoder

    folder = find_model(args.model)
    encoder, _, config = load_encoder(folder)
    calibration, card = load_calibration(folder), folder / CARD
    architecture = dict(config["architecture"])
    rows = [
        ("architecture", f"{architecture.pop('architecture')}  {_settings(architecture)}"),
        ("parameters", f"{sum(parameter.numel() for parameter in encoder.parameters()):,}"),
        ("embedding", f"{encoder.embedding_dim} numbers"),
        ("features", _input(config)),
        ("calibration", _line_of(calibration)),
    ]
    table(rows)
    if card.is_file():
        print(f"\n{card.read_text(encoding='utf-8').rstrip()}")
    return 0


def _input(config: dict[str, Any]) -> str:
    """The input of the encoder."""
    rate, takes = config.get("sample_rate"), config["input"]["takes"]
    if takes == "image":
        return "face crops, aligned" if config["features"].get("aligned") else "face crops"
    if takes == "waveform":
        return f"waveforms, {rate} Hz, a frame every {config['input']['hop_length']} samples"
    return f"log mel, {rate} Hz  {_settings(config['features'])}" if takes == "features" else str(takes)


def _line_of(calibration: Calibration | None) -> str:
    if calibration is None:
        return "none"
    weight, bias = calibration.weights[0], calibration.bias
    line = f"log-likelihood ratio = {weight:.3f} x cosine {bias:+.3f}; even at cosine {-bias / weight:.4f}"
    return f"{line}; fitted on {calibration.fitted_on}" if calibration.fitted_on else line


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
