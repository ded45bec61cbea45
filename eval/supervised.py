"""Train the SUPERVISED upper bound of a comparison, as a script of a checkout. No command of `avspk` does this."""

import sys

from avspk.commands.supervised import main

if __name__ == "__main__":
    sys.exit(main())
