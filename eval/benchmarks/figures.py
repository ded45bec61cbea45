"""Figures: ours against a named baseline, printed as lines of a table and kept in benchmark.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avspk.common.files import whole_or_absent

KEYS = ("name", "ours", "baseline", "ratio", "unit", "baseline_is")


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    `baseline_is` names the baseline or, without one, gives a remark. `spread`: lowest and highest
    ratio of single turns, or of our figure if there is no baseline.
    """

    name: str
    ours: float
    unit: str
    baseline: float | None = None
    baseline_is: str | None = None
    more_is_better: bool = False
    spread: tuple[float, float] | None = None

    @property
    def ratio(self) -> float | None:
        """Above 1: ours is better."""
        if self.baseline is None:
            return None
        return self.ours / self.baseline if self.more_is_better else self.baseline / self.ours

    def record(self) -> dict[str, Any]:
        """The record for benchmark.json, figures with five digits."""
        numbers = {"ours": self.ours, "baseline": self.baseline, "ratio": self.ratio}
        rounded = {key: None if value is None else float(f"{value:.5g}") for key, value in numbers.items()}
        return {"name": self.name, **rounded, "unit": self.unit, "baseline_is": self.baseline_is}

    def line(self) -> str:
        """A line of the table."""
        baseline = "" if self.baseline is None else f"{self.baseline:.4g}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        spread = "" if self.spread is None else f"{self.spread[0]:.3g} to {self.spread[1]:.3g}"
        return _columns(self.name, f"{self.ours:.4g}", baseline, self.unit, ratio, spread, self.baseline_is or "")


def header() -> str:
    """The first line of the table."""
    return _columns("", "ours", "baseline", "unit", "ratio", "spread", "baseline is")


def _columns(name: str, ours: str, baseline: str, unit: str, ratio: str, spread: str, baseline_is: str) -> str:
    return f"{name:<58} {ours:>10} {baseline:>10} {unit:<16} {ratio:>7} {spread:>16}  {baseline_is}".rstrip()


def cost(
    name: str, unit: str, ours: Sequence[float], baseline: Sequence[float] = (), baseline_is: str | None = None
) -> Figure:
    """Seconds (or gigabytes) of one or more turns, less is better: medians, and their ratio."""
    spread = [theirs / mine for mine, theirs in zip(ours, baseline, strict=True)] if baseline else list(ours)
    median = statistics.median(baseline) if baseline else None
    return Figure(name, statistics.median(ours), unit, median, baseline_is, False, _ends(spread))


def rate(
    name: str,
    amount: float,
    unit: str,
    ours: Sequence[float],
    baseline: Sequence[float] = (),
    baseline_is: str | None = None,
) -> Figure:
    """`amount` per second from the seconds of one or more turns, more is better: medians, and their ratio."""
    ratios = [theirs / mine for mine, theirs in zip(ours, baseline, strict=True)] if baseline else []
    median = amount / statistics.median(baseline) if baseline else None
    spread = ratios if baseline else [amount / seconds for seconds in ours]
    return Figure(name, amount / statistics.median(ours), unit, median, baseline_is, True, _ends(spread))


def _ends(values: Sequence[float]) -> tuple[float, float] | None:
    return (min(values), max(values)) if len(values) > 1 else None


class ResultsError(ValueError):
    """A benchmark.json that is not one of ours."""


class Results:
    """benchmark.json of a folder: a list of records by name. Existing records stay until measured again."""

    def __init__(self, folder: Path) -> None:
        """Raises ResultsError if the file exists but is not a list of records."""
        self.path = folder / "benchmark.json"
        self.records: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            try:
                records = json.loads(self.path.read_text(encoding="utf-8"))
                self.records = {record["name"]: record for record in records}
            except (ValueError, TypeError, KeyError) as error:
                raise ResultsError(
                    f"{self.path} is not a list of figures: remove it or choose another --out"
                ) from error

    def add(self, figure: Figure) -> None:
        """Add the figure and write the file atomically."""
        self.records[figure.name] = figure.record()
        lines = ",\n".join(" " + json.dumps(record) for record in self.records.values())
        with whole_or_absent(self.path) as part:
            part.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
