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
        pipeline = Pipeline(load_config(arguments.config, arguments.overrides))
    except (ConfigError, ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    try:
        pipeline.run()
    except Exception as error:
        if not distributed.is_lost_connection(error):
            raise
        # Its traceback would only show where this process was when the other one died.
        sys.exit(f"[rank {distributed.rank()}] stops: another process is gone. What it said, or the signal that killed "
                 f"it, is the cause. ({str(error).splitlines()[0]})")  # fmt: skip


if __name__ == "__main__":
    main()
