"""Make a small audio-visual speaker corpus: procedural talking heads with voices, in VoxCeleb's layout."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from avspk.data.demo_corpus.settings import CorpusSettings, Nuisance


def parse(arguments: Sequence[str] | None, prog: str | None) -> argparse.Namespace:
    """Command line; the sizes default to CorpusSettings."""
    defaults = CorpusSettings()
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("data/demo"), help="folder of the corpus")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    for name in ("seed", "training_identities", "training_sessions", "training_clips", "test_identities"):
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=int, default=getattr(defaults, name), help=name.replace("_", " "))
    usual = "; ".join(f"{name}={_as_text(value)}" for name, value in asdict(defaults.nuisance).items())
    parser.add_argument(
        "--nuisance",
        nargs="+",
        type=_nuisance_value,
        default=argparse.SUPPRESS,
        metavar="KEY=VALUE",
        help=f"how far recordings of one person differ; a range is LOW,HIGH. Usual values: {usual}",
    )
    return parser.parse_args(arguments)


def _as_text(value: float | tuple[float, float]) -> str:
    return f"{value[0]:g},{value[1]:g}" if isinstance(value, tuple) else f"{value:g}"


def _nuisance_value(text: str) -> tuple[str, float | bool | tuple[float, float]]:
    """`snr_db=10,25` -> ("snr_db", (10.0, 25.0)). Raises ArgumentTypeError that names the valid keys and forms."""
    usual = asdict(Nuisance())
    key, _, value = text.partition("=")
    if key not in usual:
        raise argparse.ArgumentTypeError(f"{key!r} is no nuisance; valid ones are {', '.join(usual)}")
    expected = usual[key]
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if isinstance(expected, tuple):
        if len(numbers) == 2 and numbers[0] <= numbers[1]:
            return key, (numbers[0], numbers[1])
        raise argparse.ArgumentTypeError(f"{text!r}: {key} is a range, such as {key}={_as_text(expected)}")
    if len(numbers) == 1:
        return key, bool(numbers[0]) if isinstance(expected, bool) else numbers[0]
    raise argparse.ArgumentTypeError(f"{text!r}: {key} is a number, such as {key}={_as_text(expected)}")


def main(given: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, build, run; 0, or the program ends with a line of error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = vars(parse(given, prog))
    root, workers = arguments.pop("out"), arguments.pop("workers")
    arguments["nuisance"] = Nuisance(**dict(arguments.get("nuisance", ())))
    from avspk.data.demo_corpus.build import build_demo_corpus

    try:
        build_demo_corpus(root, CorpusSettings(**arguments), workers)
    except (FileExistsError, ValueError) as error:
        raise SystemExit(f"corpus: {error}") from None
    print(f"demo corpus in {root}: see contact_sheet.png, listen/ and corpus.json")
    return 0
