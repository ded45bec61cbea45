"""`python -m avspk` runs the command `avspk`, even if its script is not on the PATH."""

import sys

from avspk.cli import main

if __name__ == "__main__":
    sys.exit(main())
