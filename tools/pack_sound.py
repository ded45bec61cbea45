"""Pack the sound of a manifest: `avspk pack`, as a script of a checkout."""

import sys

from avspk.commands.pack import main

if __name__ == "__main__":
    sys.exit(main())
