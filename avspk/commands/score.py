"""Score sounds against enrolled speakers: a matrix of cosines (training mean subtracted) or AS-norm scores.

The enrolment is a file of lines `speaker path`; a speaker may have several. Instead of a list of sounds, you can give a
table from `avspk embed` (X.npy, X.ark); in an enrolment, its names are the speakers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from avspk.commands.console import add_model, finite, guarded, refuse
from avspk.commands.vectors import NOT_KEPT, TOP_N, Vectors, add_cohort, is_table, speaker_means


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Score and write; 0, 1 if some of the sounds could not be embedded, 2 with a line of error."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", help="sounds to score: wav.scp, a list, a manifest, a folder, a table or one sound")
    parser.add_argument("--enrolment", required=True, help="lines `speaker path`, or a table")
    add_model(parser)
    text = "lines `speaker sound score`, with tabs; X.npy: the matrix (sounds, speakers), with files of its names"
    parser.add_argument("--out", type=_out, required=True, metavar="X.tsv", help=text)
    parser.add_argument("--at-least", type=finite, metavar="T", help="write only scores of at least T, to X.tsv")
    add_cohort(parser)
    args = parser.parse_args(arguments)
    if args.at_least is not None and args.out.suffix == ".npy":
        parser.error("--at-least selects lines of X.tsv; a matrix has all scores")
    if not args.cohort:
        refuse(parser, args, ["--top-n"], "only AS-norm has it; give a --cohort")
    return guarded(run, args, NOT_KEPT)


def _out(text: str) -> Path:
    if Path(text).suffix not in {".npy", ".tsv"}:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .tsv or .npy")
    return Path(text)


def run(args: argparse.Namespace) -> int:
    """Check all that is given, embed, score, write."""
    from avspk.scoring.matrix import score_matrix

    top_n = args.top_n or TOP_N
    _check_out(args.out, [args.files, args.enrolment, *([args.cohort] if args.cohort else [])])
    vectors = Vectors(args)
    enrolment, given = vectors.read_enrolment(args.enrolment), vectors.read(args.files)
    others = vectors.read_cohort(args.cohort, top_n) if args.cohort else None
    _check_names([*enrolment.names, *given.names], args.out)
    mean = vectors.model.training_mean
    speakers, enrolled = speaker_means(*vectors.embed(enrolment), mean)
    sounds, rows = vectors.embed(given)
    cohort = vectors.embed(others)[1] - mean if others else None
    scores = score_matrix(rows - mean, enrolled, cohort, top_n)
    if args.out.suffix == ".npy":
        _write_matrix(args.out, sounds, speakers, scores)
    else:
        _write_lines(args.out, sounds, speakers, scores, args.at_least)
    kind = "AS-norm" if args.cohort else "cosine"
    print(f"{args.out}: {kind} of {len(sounds)} sounds and {len(speakers)} speakers")
    return int(vectors.failed > 0)


def _check_out(out: Path, sources: Sequence[str]) -> None:
    """Raises ValueError if an output is an input, OSError if it cannot be written."""
    from avspk.common.files import require_writable
    from avspk.inference.embedding_table import own_files

    outputs = [out, *_lists_of_names(out).values()] if out.suffix == ".npy" else [out]
    for source in sources:
        inputs = own_files(Path(source)) if is_table(source) else [Path(source)]
        if {path.resolve() for path in outputs} & {path.resolve() for path in inputs}:
            raise ValueError(f"--out {out} would overwrite {source}, which is read; choose another --out")
    for path in outputs:
        require_writable(path)


def _check_names(names: Iterable[str], out: Path) -> None:
    from avspk.inference.embedding_job import unusable_name

    for name in names:
        if reason := unusable_name(name, out):
            raise ValueError(f"{name!r}: {reason}")


def _lists_of_names(out: Path) -> dict[str, Path]:
    """The files with the names of the rows and the columns of a matrix."""
    return {kind: out.with_suffix(f".{kind}.tsv") for kind in ("sounds", "speakers")}


def _write_matrix(out: Path, sounds: Sequence[str], speakers: Sequence[str], scores: np.ndarray) -> None:
    from avspk.common.files import whole_or_absent

    with whole_or_absent(out) as part, part.open("wb") as file:
        np.save(file, scores)
    for path, names in zip(_lists_of_names(out).values(), (sounds, speakers), strict=True):
        with whole_or_absent(path) as part:
            part.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _write_lines(
    out: Path, sounds: Sequence[str], speakers: Sequence[str], scores: np.ndarray, at_least: float | None
) -> None:
    from avspk.common.files import whole_or_absent

    with whole_or_absent(out) as part, part.open("w", encoding="utf-8") as file:
        for sound, row in zip(sounds, scores, strict=True):
            chosen = range(len(row)) if at_least is None else np.flatnonzero(row >= at_least).tolist()
            file.writelines(f"{speakers[column]}\t{sound}\t{row[column]:.5f}\n" for column in chosen)
