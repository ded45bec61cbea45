"""Train; the same command resumes.

avspk train [--config CONFIG] [key.path=value ...]                                       one process
accelerate launch -m avspk.cli train [--config CONFIG] [key.path=value ...]              many
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from avspk import distributed, recipe
from avspk.commands.console import add_config
from avspk.config import ConfigError, load_config
from avspk.session import Session
from avspk.shipped import find_config


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, build, run; 0, or the program ends with a line of error."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config(parser, default="demo")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that differ from the file's")
    args = parser.parse_args(arguments)
    _train(args.config, args.overrides)
    return 0


@record  # the launcher then shows the error of the process that failed first
def _train(config: Path, overrides: list[str]) -> None:
    try:
        recipe.run(build(config, overrides))
    except Exception as error:
        if not distributed.is_lost_connection(error):
            raise
        # Its traceback would only show where this process was when the other one died.
        sys.exit(
            f"[rank {distributed.rank()}] stops: another process is gone. What that one said, or the signal that "
            f"killed it, is the cause. ({str(error).splitlines()[0]})"
        )


def build(config: Path, overrides: list[str]) -> Session:
    """The run; what is wrong with its settings or files ends the program with one line, not with a traceback."""
    try:
        return Session(load_config(find_config(config), overrides))
    except (ConfigError, ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.exit(main())
