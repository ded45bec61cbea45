"""Score sounds against enrolled speakers: a matrix of cosines (training mean subtracted) or AS-norm scores.

The enrolment is a file of lines `speaker path`; a speaker may have several. Instead of a list of sounds, you can give a
table from `avspk embed` (X.npy, X.ark); in an enrolment, its names are the speakers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from avspk.commands.console import add_model, count, finite, guarded
from avspk.commands.vectors import Vectors, speaker_means


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Score and write; 0, 1 if some of the sounds could not be embedded, 2 with a line of error."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", help="sounds to score: wav.scp, a list, a manifest, a folder, a table or one sound")
    parser.add_argument("--enrolment", required=True, help="lines `speaker path`, or a table")
    add_model(parser)
    text = "lines `speaker sound score`; X.npy: the matrix (sounds, speakers), with a file of its names"
    parser.add_argument("--out", type=_out, required=True, metavar="X.tsv", help=text)
    parser.add_argument("--at-least", type=finite, metavar="T", help="write only scores of at least T, to X.tsv")
    parser.add_argument("--cohort", help="other speakers' sounds: scores become AS-norm")
    parser.add_argument("--top-n", type=count, default=300, help="cohort scores that AS-norm keeps (%(default)s)")
    args = parser.parse_args(arguments)
    if args.at_least is not None and args.out.suffix == ".npy":
        parser.error("--at-least selects lines of X.tsv; a matrix has all scores")
    return guarded(run, args)


def _out(text: str) -> Path:
    if Path(text).suffix not in {".npy", ".tsv"}:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .tsv or .npy")
    return Path(text)


def run(args: argparse.Namespace) -> int:
    """Embed all sides, score, write."""
    from avspk.scoring.matrix import score_matrix

    vectors = Vectors(args)
    enrolment, given = vectors.read_enrolment(args.enrolment), vectors.read(args.files)
    others = vectors.read(args.cohort) if args.cohort else None
    mean = vectors.model.training_mean
    speakers, enrolled = speaker_means(*vectors.embed(enrolment), mean)
    sounds, rows = vectors.embed(given)
    cohort = vectors.embed(others)[1] - mean if others else None
    scores = score_matrix(rows - mean, enrolled, cohort, args.top_n)
    if args.out.suffix == ".npy":
        _write_matrix(args.out, sounds, speakers, scores)
    else:
        _write_lines(args.out, sounds, speakers, scores, args.at_least)
    kind = "AS-norm" if args.cohort else "cosine"
    print(f"{args.out}: {kind} of {len(sounds)} sounds and {len(speakers)} speakers")
    return int(vectors.failed > 0)


def _write_matrix(out: Path, sounds: Sequence[str], speakers: Sequence[str], scores: np.ndarray) -> None:
    from avspk.common.files import whole_or_absent

    with whole_or_absent(out) as part, part.open("wb") as file:
        np.save(file, scores)
    for kind, names in (("sounds", sounds), ("speakers", speakers)):
        with whole_or_absent(out.with_suffix(f".{kind}.tsv")) as part:
            part.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _write_lines(
    out: Path, sounds: Sequence[str], speakers: Sequence[str], scores: np.ndarray, at_least: float | None
) -> None:
    from avspk.common.files import whole_or_absent

    with whole_or_absent(out) as part, part.open("w", encoding="utf-8") as file:
        for sound, row in zip(sounds, scores, strict=True):
            chosen = range(len(row)) if at_least is None else np.flatnonzero(row >= at_least).tolist()
            file.writelines(f"{speakers[column]} {sound} {row[column]:.5f}\n" for column in chosen)
