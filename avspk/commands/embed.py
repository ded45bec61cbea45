"""Speaker embeddings of files, as the encoder gives them: no mean subtracted."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from avspk.commands.console import add_model, complain, guarded
from avspk.data.files import whole_or_absent


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Embed; 0, 1 if some of the files could not be embedded, 2 with a line of error."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    add_model(parser)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument(
        "--out", type=_npy, required=True, help="X.npy, (files, dimension) float32; X.tsv names the rows"
    )
    return guarded(run, parser.parse_args(arguments))


def _npy(text: str) -> Path:
    if not text.endswith(".npy"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .npy")
    return Path(text)


def run(args: argparse.Namespace) -> int:
    """Write the embeddings of all files that have one; name the others."""
    from avspk.inference.speaker_model import load_model

    model = load_model(args.model, args.device)
    rows, names = [], []
    for path in args.files:
        try:
            rows.append(model.embed(path))
            names.append(str(path))
        except (ValueError, OSError) as error:
            complain("error", error)
    if not rows:
        raise ValueError(f"none of the {len(args.files)} files could be embedded; nothing was written")
    with whole_or_absent(args.out) as part, part.open("wb") as file:
        np.save(file, np.stack(rows))
    with whole_or_absent(args.out.with_suffix(".tsv")) as part:
        part.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    print(f"{args.out}: {len(rows)} of {len(args.files)} files, {len(rows[0])} numbers each")
    return int(len(rows) < len(args.files))
