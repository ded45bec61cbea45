"""The report of a run, finished or not, as one page: results, each stage, settings and machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from avspk.commands.console import complain


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Write report.html into run folders; 0, or 2 with a line of error for each folder that is not a run."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder, such as exp/demo")
    args = parser.parse_args(arguments)
    from avspk.inference.checkpoint import CheckpointError
    from avspk.report.build import write_report
    from avspk.run import RunFolder

    status = 0
    for run in args.runs:
        try:
            files = RunFolder(run)
            if run.is_dir() and not files.config.exists() and not files.log.exists():
                raise FileNotFoundError(f"{run} is not a run folder: it has neither config.yaml nor log.jsonl")
            print(write_report(run))
        except (OSError, ValueError, CheckpointError) as error:
            complain("error", error)
            status = 2
    return status
