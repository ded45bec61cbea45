"""Evaluate a model or score files on trial lists: `avspk evaluate`, as a script of a checkout."""

import sys

from avspk.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
