"""Speaker embeddings of files from the encoder, without mean subtraction.

Sounds come from files, folders (at any depth) and lists. Existing rows of --out are kept and not computed again: the
same command continues after an interruption, and several commands may add to one file, one after the other. A file
that cannot be embedded has no row, and is named here and in X.failed.tsv.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avspk.commands.console import add_model, complain, count, guarded
from avspk.common.machine import num_cores
from avspk.common.progress import Progress

if TYPE_CHECKING:
    from avspk.inference.embedding_job import EmbeddingJob, Outcome
    from avspk.inference.many_files import Embedded


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Embed; 0, 1 if some of the files could not be embedded, 2 if none could or with a line of error."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="sounds of any format, and folders of them")
    add_model(parser)
    parser.add_argument("--list", nargs="+", default=[], metavar="LIST", dest="lists",
                        help="a path a line (- is standard input), wav.scp, a table with a column path, "
                             "manifest.parquet or a folder")  # fmt: skip
    parser.add_argument("--out", type=_out, required=True,
                        help="X.npy, (files, dimension) float32, names in X.tsv; or X.ark, with X.scp")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="start again; existing content of --out is removed")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto",
                        help="auto: as the rows in --out, else bfloat16 if the device is faster with it")  # fmt: skip
    parser.add_argument("--workers", type=count, help="processes that read and decode")
    parser.add_argument("--shard", type=_shard, help="slice i/n of the list; default: accelerate launch's process")
    args = parser.parse_args(arguments)
    if not args.files and not args.lists:
        parser.error("no sounds: name files or folders, or a --list")
    return guarded(run, args, "finished embeddings are kept; the same command continues")


def _out(text: str) -> Path:
    if Path(text).suffix not in {".npy", ".ark"}:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .npy or .ark")
    return Path(text)


def _shard(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with i from 1 to n, such as 1/4")
    return int(number), int(of)


def run(args: argparse.Namespace) -> int:
    """Find, embed, write, print the result."""
    from avspk.data.file_lists import named_sounds
    from avspk.inference.embedding_job import EmbeddingJob, Outcome, failures_path
    from avspk.inference.embedding_table import own_files
    from avspk.inference.hub import find_model
    from avspk.inference.speaker_model import model_digest

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in args.lists:
        if Path(name).resolve() in map(Path.resolve, own_files(args.out)):
            raise ValueError(f"--out {args.out} would write {name}, which is a list of sounds; choose another --out")
    sounds, folder = named_sounds(args.files, args.lists), find_model(args.model)
    shard = _slice_of(args)
    job, outcome, start = EmbeddingJob(args.out, model_digest(folder), shard), Outcome(), time.monotonic()
    share = job.share(sounds)
    _embed(args, folder, job, share, outcome)
    if outcome.failures and not (outcome.embedded or outcome.there):
        raise ValueError(f"none of the {len(share)} files could be embedded; see {failures_path(job.path)}")
    joined = job.join(sounds)
    _summary(args.out if joined else job.path, outcome, len(share), time.monotonic() - start)
    if not joined:
        print("the last slice to end joins all of them")
    return int(bool(outcome.failures))


def _slice_of(args: argparse.Namespace) -> tuple[int, int]:
    from avspk.inference.embedding_job import discard

    shard = args.shard or (int(os.environ.get("RANK", "0")) + 1, int(os.environ.get("WORLD_SIZE", "1")))
    if args.overwrite:
        if shard[1] > 1:
            raise ValueError("--overwrite in slices: one would remove another's results; remove the files by hand")
        discard(args.out)
    return shard


def _embed(
    args: argparse.Namespace, folder: Path, job: EmbeddingJob, share: Mapping[str, Path], outcome: Outcome
) -> None:
    """Embed files that have no row yet; failures are named immediately."""
    from avspk.inference.embedding_job import unusable_name

    known, noted = job.known(), job.precision(args.precision)
    outcome.there = sum(name in known for name in share)
    for name in share:
        if reason := unusable_name(name, args.out):
            outcome.failures[name] = reason
            complain("error", f"{name!r}: {reason}")
    missing = {name: path for name, path in share.items() if name not in known and name not in outcome.failures}
    device, precision = _device_and_precision(args, noted) if missing else ("", "")
    results = _results(args, folder, list(missing.values()), device, precision == "bfloat16")
    with Progress("embed", len(share), shown=job.shard[0] == 1) as progress:
        progress.resume(len(share) - len(missing))
        for result in job.write(list(missing), results, outcome, precision):
            for warning in result.warnings:
                complain("warning", warning)
            if result.error is not None:
                complain("error", result.error)
            progress.advance()


def _device_and_precision(args: argparse.Namespace, noted: str) -> tuple[str, str]:
    """Where and in what precision to compute; `noted` is that of the existing rows."""
    import torch

    from avspk.inference.many_files import bfloat16_is_fast
    from avspk.inference.speaker_model import find_device

    device = args.device or (f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")
    if args.precision != "auto" or noted:
        return device, noted or args.precision
    return device, "bfloat16" if bfloat16_is_fast(find_device(device)) else "float32"


def _results(
    args: argparse.Namespace, folder: Path, paths: Sequence[Path], device: str, half: bool
) -> Iterator[list[Embedded]]:
    """Load the model only if there is work."""
    if not paths:
        return
    import torch

    from avspk.inference.many_files import embed_many
    from avspk.inference.speaker_model import load_model

    model = load_model(folder, device)
    cores = num_cores()
    readers = args.workers or (max(1, cores // 2) if model.device.type == "cpu" else min(cores, 8))
    yield from embed_many(model, paths, readers, torch.get_num_threads(), half)


def _summary(out: Path, outcome: Outcome, total: int, seconds: float) -> None:
    from avspk.inference.embedding_job import failures_path

    text = f"{out}: {outcome.embedded} of {total} files in {seconds:.1f} s, {outcome.embedded / seconds:.1f} files/s"
    if outcome.there:
        text += f"; {outcome.there} were there already"
    if outcome.failures:
        text += f"; {len(outcome.failures)} failed, see {failures_path(out)}"
    print(text)
