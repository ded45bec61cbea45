"""Prepare VoxCeleb, or any tree of clips: `avspk prepare`, as a script of a checkout."""

import sys

from avspk.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main())
