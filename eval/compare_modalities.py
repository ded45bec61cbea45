"""Compare methods over seeds: `avspk compare`, as a script of a checkout."""

import sys

from avspk.commands.compare import main

if __name__ == "__main__":
    sys.exit(main())
