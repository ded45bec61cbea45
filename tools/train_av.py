"""Train; the same command resumes: `accelerate launch tools/train_av.py [--config CONFIG] [key.path=value ...]`."""

import argparse
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from avspk import distributed
from avspk.config import ConfigError, load_config
from avspk.pipeline import Pipeline


@record  # the launcher then shows the error of the process that failed first
def main() -> None:
    """Parse, build, run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that differ from the file's")
    arguments = parser.parse_args()
    try:
        build(arguments.config, arguments.overrides).run()
    except Exception as error:
        if not distributed.is_lost_connection(error):
            raise
        # Its traceback would only show where this process was when the other one died.
        sys.exit(
            f"[rank {distributed.rank()}] stops: another process is gone. What that one said, or the signal that "
            f"killed it, is the cause. ({str(error).splitlines()[0]})"
        )


def build(config: Path, overrides: list[str]) -> Pipeline:
    """The run; what is wrong with its settings or files ends the program with one line, not with a traceback."""
    try:
        return Pipeline(load_config(config, overrides))
    except (ConfigError, ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
