"""`avspk train` whose report has empty frames for figures: their drawing takes longer than tiny runs.

The report is written as ever, from the same files. What is drawn is in test_report.py and test_pipeline.py.
"""

import sys
from collections.abc import Sequence

import pytest

from avspk.commands.train import main
from avspk.report import embedding_map, style


def leave_undrawn(patch: pytest.MonkeyPatch) -> None:
    """Empty frames for figures, and maps of two of the dimensions."""
    patch.setattr(style, "to_svg", lambda figure: "<svg></svg>")
    leave_unmapped(patch)


def leave_unmapped(patch: pytest.MonkeyPatch) -> None:
    """Maps of two of the dimensions, because t-SNE takes longer than tiny runs."""
    patch.setattr(embedding_map, "_tsne", lambda vectors: vectors[:, :2])


def train(arguments: Sequence[str] | None = None) -> int:
    leave_undrawn(pytest.MonkeyPatch())
    return main(arguments)


if __name__ == "__main__":
    sys.exit(train())
