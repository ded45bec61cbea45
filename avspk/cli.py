"""`avspk`: verify two recordings, embed files, look at a model, export it."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avspk.data.files import whole_or_absent
from avspk.extras import MissingExtraError, explained
from avspk.scoring.calibration import Calibration
from avspk.scoring.metrics import bayes_threshold


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: 0 when all went well, 1 when some of the files could not be embedded, 2 with a line of error."""
    args = parse(argv)
    # Here and in the commands, since torch takes seconds to import: --help and a mistyped option need not wait.
    from avspk.checkpoint import CheckpointError
    from avspk.export import ExportError
    from avspk.model import AudioWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", AudioWarning)
        warnings.showwarning = lambda message, *_: _complain("warning", message)
        try:
            with explained():
                return args.command(args)
        except (ValueError, OSError, CheckpointError, ExportError, MissingExtraError) as error:
            _complain("error", error)
            return 2


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; SystemExit with status 2 and the usage if it is none of ours."""
    parser = argparse.ArgumentParser(prog="avspk", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--model", type=Path, required=True, metavar="DIR", help="model folder, as exp/demo/model")
        sub.set_defaults(command=command)
        return sub

    sub = add("verify", verify, "Are two recordings of one speaker? Score, probability and decision.")
    sub.add_argument("first", type=Path, help="any format, any sample rate; channels are averaged")
    sub.add_argument("second", type=Path)
    sub.add_argument("--prior", type=_prior, default=0.5, help="probability of one speaker before listening (0.5)")
    sub = add("embed", embed, "Speaker embeddings of files, as the encoder gives them: no mean subtracted.")
    sub.add_argument("files", type=Path, nargs="+", metavar="FILE")
    sub.add_argument("--out", type=_npy, required=True, help="X.npy, (files, dimension) float32; X.tsv names the rows")
    add("info", info, "What a model folder holds.")
    sub = add("export", export, "The encoder as ONNX: features (batch, frames, mels) -> embedding (batch, dimension).")
    sub.add_argument("--out", type=Path, required=True, metavar="X.onnx")
    return parser.parse_args(argv)


def _prior(text: str) -> float:
    try:
        bayes_threshold(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return float(text)


def _npy(text: str) -> Path:
    if not text.endswith(".npy"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .npy")
    return Path(text)


def verify(args: argparse.Namespace) -> int:
    """Print what two recordings say about being of one speaker."""
    from avspk.model import load_model

    model = load_model(args.model)
    score = model.compare(args.first, args.second)
    _table(_verdict(score, model.calibration, args.prior, args.model))
    return 0


def _verdict(score: float, calibration: Calibration | None, prior: float, folder: Path) -> list[tuple[str, str]]:
    rows = [("cosine score", f"{score:.4f}")]
    if calibration is None:
        return [*rows, ("decision", f"none; {folder} has no calibration, so no threshold is known to be right")]
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


def embed(args: argparse.Namespace) -> int:
    """Write the embeddings of all files that have one; name the others."""
    from avspk.model import load_model

    model = load_model(args.model)
    rows, names = [], []
    for path in args.files:
        try:
            rows.append(model.embed(path))
            names.append(str(path))
        except (ValueError, OSError) as error:
            _complain("error", error)
    if not rows:
        raise ValueError(f"none of the {len(args.files)} files could be embedded; nothing was written")
    with whole_or_absent(args.out) as part, part.open("wb") as file:
        np.save(file, np.stack(rows))
    with whole_or_absent(args.out.with_suffix(".tsv")) as part:
        part.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    print(f"{args.out}: {len(rows)} of {len(args.files)} files, {len(rows[0])} numbers each")
    return int(len(rows) < len(args.files))


def info(args: argparse.Namespace) -> int:
    """Print architecture, features, calibration and card of a model of any modality."""
    from avspk.model import CARD, load_calibration, load_encoder

    encoder, _, config = load_encoder(args.model)
    calibration, card = load_calibration(args.model), args.model / CARD
    architecture = dict(config["architecture"])
    rate = config.get("sample_rate")
    rows = [
        ("architecture", f"{architecture.pop('architecture')}  {_settings(architecture)}"),
        ("parameters", f"{sum(parameter.numel() for parameter in encoder.parameters()):,}"),
        ("embedding", f"{encoder.embedding_dim} numbers"),
        ("features", f"log mel, {rate} Hz  {_settings(config['features'])}" if config["features"] else "face crops"),
        ("calibration", _line_of(calibration)),
    ]
    _table(rows)
    if card.is_file():
        print(f"\n{card.read_text(encoding='utf-8').rstrip()}")
    return 0


def _line_of(calibration: Calibration | None) -> str:
    if calibration is None:
        return "none"
    weight, bias = calibration.weights[0], calibration.bias
    return f"log-likelihood ratio = {weight:.3f} x cosine {bias:+.3f}; even at cosine {-bias / weight:.4f}"


def export(args: argparse.Namespace) -> int:
    """Write the encoder as ONNX and print how far it is from PyTorch."""
    from avspk.export import CHECKED_SHAPES, export_onnx
    from avspk.model import load_model

    difference = export_onnx(load_model(args.model, "cpu"), args.out)
    shapes = ", ".join(f"{batch} x {frames}" for batch, frames in CHECKED_SHAPES)
    print(f"{args.out}: largest difference from PyTorch {difference:.1e}, on batches x frames {shapes}")
    return 0


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _table(rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        print(f"{name:{width}}{value}")


def _complain(kind: str, message: object) -> None:
    print(f"{kind}: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
