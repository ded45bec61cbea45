"""Train; the same command resumes: `accelerate launch tools/train_av.py [--config CONFIG] [key.path=value ...]`."""

import argparse
import sys
from pathlib import Path

from avspk.config import ConfigError, load_config
from avspk.pipeline import Pipeline


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
    pipeline.run()


if __name__ == "__main__":
    main()
