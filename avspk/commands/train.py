"""Train; the same command resumes.

avspk train --data data/own/manifest.parquet output=exp/own       a config for this number of utterances

avspk train [--config CONFIG] [key.path=value ...]                                       one process
accelerate launch -m avspk.cli train [--config CONFIG] [key.path=value ...]              many
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avspk.commands.console import add_config
from avspk.common.shipped import find_config

if TYPE_CHECKING:
    from avspk.pipeline.session import Session


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, build, run; 0, or the program ends with a line of error."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config(parser, default="demo; with --data: own")
    parser.add_argument(
        "--data",
        type=Path,
        help="a manifest; its size determines clusters, batches, epochs and modalities, all printed; missing trial "
        "lists are left out. Overrides take precedence",
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that differ from the file's")
    args = parser.parse_args(arguments)
    from torch.distributed.elastic.multiprocessing.errors import record

    # record makes the launcher show the error of the process that failed first
    config = args.config or Path("demo" if args.data is None else "own")
    record(_train)(config, args.overrides, args.data)
    return 0


def _train(config: Path, overrides: list[str], data: Path | None = None) -> None:
    run(build(config, overrides, data))


def run(session: Session) -> None:
    """Train. What has a traceback that says nothing ends the program with what to do: a full disk, a lost process, a
    loader process that a decoder ended.
    """
    from avspk import recipe
    from avspk.common import distributed
    from avspk.common.files import is_full_disk
    from avspk.data.reading_notes import read_last
    from avspk.data.worker_pool import decoder_fails

    try:
        recipe.run(session)
    except Exception as error:
        if is_full_disk(error):
            sys.exit(
                f"The disk of {session.config.output} is full ({error}). Free some space and repeat the command: "
                "the run continues from its last checkpoint"
            )
        if place := read_last(error):
            sys.exit(
                f"{place}: {decoder_fails('sound')}, and ended a loader process. Prepare the data again, or take this "
                "sound out of the manifest"
            )
        if not distributed.is_lost_connection(error):
            raise
        # Its traceback would only show the position of this process when the other one died.
        sys.exit(
            f"[rank {distributed.rank()}] stops: another process is gone. The cause is that process's error, or the "
            f"signal that killed it. ({str(error).splitlines()[0]})"
        )


def build(config: Path, overrides: list[str], data: Path | None = None) -> Session:
    """The run; errors in its settings or files end the program with one line, not with a traceback."""
    from avspk.config import ConfigError, load_config
    from avspk.pipeline.session import Session

    try:
        file = find_config(config)
        if data is not None:
            overrides = [*overrides, *_fitting(file, overrides, data)]
        return Session(load_config(file, overrides))
    except (ConfigError, ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _fitting(file: Path, overrides: list[str], data: Path) -> list[str]:
    """More overrides, for the size of a manifest, which are printed once. What the given overrides set is left out."""
    from avspk.common.settings_tree import overridden_keys
    from avspk.config import load_config
    from avspk.data.manifest import read_utterances
    from avspk.pipeline.scaling import scaled_settings

    utterances, config, given = read_utterances(data), load_config(file, overrides), overridden_keys(overrides)
    fitting = {**scaled_settings(utterances, config), "data.train": str(data)}
    scaled = [f"{key}={json.dumps(value)}" for key, value in fitting.items() if key not in given]
    scaled += [
        f"data.trials.{name}=null"
        for name, path in (config.data.trials or {}).items()
        if f"data.trials.{name}" not in given and not path.is_file()
    ]
    if os.environ.get("RANK", "0") == "0":
        print(f"{data}: {len(utterances)} utterances; {file.name} with", *scaled, sep="\n  ", flush=True)
    return scaled


if __name__ == "__main__":
    sys.exit(main())
