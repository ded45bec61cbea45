"""`python -m avspk`: the program `avspk`, where its folder of programs is not on the path."""

import sys

from avspk.cli import main

if __name__ == "__main__":
    sys.exit(main())
