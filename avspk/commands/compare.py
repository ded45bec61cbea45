"""Compare single- with multi-modal training, with paired intervals of the EER difference.

Runs that are finished; the first one is the reference:

    avspk compare --runs exp/audio exp/av
    avspk compare --runs "audio=exp/audio_s*" "audio + face=exp/av_s*"     # several seeds each

Configs to train, with their references (--variants): stage 1 only, no gate, gate only, a supervised upper
bound. Stage 1 is trained once per seed; if it clusters the modalities together, once for each set of modalities.
After an interruption the same command continues:

    avspk compare --configs demo_audio_only demo --seeds 0 1 2 \\
        --out exp/comparison [key.path=value ...]

A ladder of methods from one file, whose rungs may have different starts (format: avspk/pipeline/study.py):

    avspk compare --study demo --seeds 0 1 2 --out exp/study

Prints Markdown; writes comparison.html, comparison.md and a figure, comparison.svg. Protocol: eval/README.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avspk.commands.console import at_least, refuse
from avspk.common.files import require_writable_folder, whole_or_absent
from avspk.common.shipped import find_config, find_study
from avspk.pipeline.variants import VARIANTS

if TYPE_CHECKING:
    from avspk.evaluation.comparison import Method
    from avspk.pipeline.comparison_runs import PlannedRun


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run one comparison; 0 when it was printed, 2 with an error of a few lines."""
    args = parse(arguments, prog)
    from avspk.evaluation.comparison import compare, read_methods
    from avspk.pipeline.comparison_runs import RunError
    from avspk.report.comparison_page import comparison_page, markdown
    from avspk.report.comparison_plots import last_errors
    from avspk.report.style import standalone

    try:
        require_writable_folder(args.out)
        methods = read_methods(args.runs) if args.runs else trained(args)
        comparison = compare(methods, args.bootstrap, args.bootstrap_seed, tell)
        pages = {
            "comparison.html": comparison_page(comparison),
            "comparison.md": markdown(comparison),
            "comparison.svg": standalone(last_errors(comparison.last_errors)),
        }
        for name, text in pages.items():
            with whole_or_absent(args.out / name) as part:
                part.write_text(text, encoding="utf-8")
    except (ValueError, OSError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(pages["comparison.md"])
    print(f"written to {args.out}: {', '.join(pages)}")
    return 0


def trained(args: argparse.Namespace) -> tuple[Method, ...]:
    """Train the missing runs, unless told not to; returns the methods, their runs in the order of the seeds."""
    from avspk.evaluation.comparison import Method
    from avspk.evaluation.run_folder import Run
    from avspk.pipeline.comparison_runs import plan_runs, train_all
    from avspk.pipeline.study import plan_study

    if args.study:
        runs = plan_study(find_study(args.study), args.seeds, args.out, args.overrides)
    else:
        configs = [find_config(path) for path in args.configs]
        runs = plan_runs(configs, args.seeds, args.variants, args.out, args.overrides)
    reference = next(run.method for run in runs if run.against is None)
    if args.no_training:
        runs = [run for run in runs if run.finished]
        if reference not in {run.method for run in runs}:
            raise ValueError(f"the reference, {reference}, is not finished under {args.out}: train it first")
    train_all(runs, args.launch, tell)
    grouped: dict[str, list[PlannedRun]] = {}
    for run in runs:
        if run.shown:
            grouped.setdefault(run.method, []).append(run)
    methods = [
        Method(name, tuple(Run(run.settings.output) for run in group), group[0].against)
        for name, group in grouped.items()
    ]
    if len(methods) < 2:
        raise ValueError(f"a comparison needs two methods or more, {len(methods)} are finished under {args.out}")
    # The reference is shown first. Stage 1 alone is trained first and shown last.
    return tuple(sorted(methods, key=lambda method: grouped[method.name][0].settings.rounds == 0))


def tell(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None, prog: str | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--runs", nargs="+", metavar="[NAME=]FOLDER[,FOLDER...]", help="finished runs, one per method")
    source.add_argument("--configs", nargs="+", type=Path, metavar="CONFIG", help="configs to train, one per method")
    source.add_argument("--study", type=Path, metavar="STUDY", help="a file of rungs to train, or a shipped study")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the trainings of --configs and --study")
    parser.add_argument(
        "--variants", nargs="*", choices=VARIANTS, default=VARIANTS, help="references for the configs; default: all"
    )
    parser.add_argument(
        "--no-training", action="store_true", help="compare the finished runs of --configs, train nothing"
    )
    text = "for accelerate, after an equals sign: --launch=--multi_gpu, or --launch='--num_processes 4'"
    parser.add_argument("--launch", default="", metavar="OPTIONS", help=text)
    parser.add_argument("--out", type=Path, default=Path("exp/comparison"), help="folder of page, table and trainings")
    parser.add_argument("--bootstrap", type=at_least(2), default=1000, help="replicates of the 95 %% intervals")
    parser.add_argument("--bootstrap-seed", type=at_least(0), default=0)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings of all trainings")
    args = parser.parse_args(arguments)
    if args.runs and args.overrides:
        parser.error(f"finished runs take no settings: {' '.join(args.overrides)}")
    if args.runs:
        refuse(parser, args, ["--seeds", "--variants", "--no-training", "--launch"], "finished runs are not trained")
    if args.study:
        refuse(parser, args, ["--variants"], "the rungs of a study are in its file")
    return args
