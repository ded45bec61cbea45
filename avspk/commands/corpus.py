"""Make a small audio-visual speaker corpus: procedural talking heads with voices, in VoxCeleb's layout."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from avspk.data.demo_corpus import CorpusSettings, build_demo_corpus


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
    return parser.parse_args(arguments)


def main(given: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, build, run; 0, or the program ends with a line of error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = vars(parse(given, prog))
    root, workers = arguments.pop("out"), arguments.pop("workers")
    try:
        build_demo_corpus(root, CorpusSettings(**arguments), workers)
    except (FileExistsError, ValueError) as error:
        raise SystemExit(f"corpus: {error}") from None
    print(f"demo corpus in {root}: see contact_sheet.png, listen/ and corpus.json")
    return 0
