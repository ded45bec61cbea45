"""`avspk train` whose report has empty frames for figures: their drawing takes longer than tiny runs.

The report is written as ever, from the same files. What is drawn is in test_report.py and test_pipeline.py.
"""

import sys

from avspk.commands.train import main
from avspk.report import style

if __name__ != "__mp_main__":  # of loader workers
    style.to_svg = lambda figure: "<svg></svg>"

if __name__ == "__main__":
    sys.exit(main())
