"""`avspk train` whose report has empty frames for figures: their drawing takes longer than tiny runs.

The report is written as ever, from the same files. What is drawn is in test_report.py and test_pipeline.py.
"""

import sys
from collections.abc import Sequence

from avspk.commands.train import main
from avspk.report import style


def train(arguments: Sequence[str] | None = None) -> int:
    style.to_svg = lambda figure: "<svg></svg>"
    return main(arguments)


if __name__ == "__main__":
    sys.exit(train())
