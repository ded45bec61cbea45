"""Pack noises and room impulse responses: `avspk noise`, as a script of a checkout."""

import sys

from avspk.commands.noise import main

if __name__ == "__main__":
    sys.exit(main())
