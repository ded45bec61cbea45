"""Train, or continue a training: `avspk train`, as a script of a checkout."""

import sys

from avspk.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
