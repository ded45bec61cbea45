"""Make the demo corpus: `avspk corpus`, as a script of a checkout."""

import sys

from avspk.commands.corpus import main

if __name__ == "__main__":
    sys.exit(main())
