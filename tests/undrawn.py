"""`avspk train` whose report has empty frames for figures: their drawing takes longer than tiny runs.

The report is written as ever, from the same files. What is drawn is in test_report.py and test_pipeline.py.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from avspk.commands.train import main
from avspk.report import embedding_map, style


def leave_undrawn(change: Callable[[Any, str, Any], None] = setattr) -> None:
    """Empty frames for figures, and maps of two of the dimensions. A test gives its monkeypatch's `setattr`."""
    change(style, "to_svg", lambda figure: "<svg></svg>")
    leave_unmapped(change)


def leave_unmapped(change: Callable[[Any, str, Any], None]) -> None:
    """Maps of two of the dimensions, because t-SNE takes longer than tiny runs."""
    change(embedding_map, "_tsne", lambda vectors: vectors[:, :2])


def train(arguments: Sequence[str] | None = None) -> int:
    leave_undrawn()
    return main(arguments)


if __name__ == "__main__":
    sys.exit(train())
