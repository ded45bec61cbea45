"""Shared by the benchmarks against other packages: presence, versions, and turns of both sides.

The packages are optional (`pip install 'avspk[bench]'`). If one is missing, only our figure is given, with a remark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from benchmarks.figures import Figure, cost, rate
from benchmarks.measure import Clock, take_turns

Job = Callable[[], object]


def found(package: str) -> str | None:
    """Name and version of a package, None if it is not installed."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None


def missing(packages: Sequence[str]) -> str | None:
    """Reason for a missing baseline; None if all packages are installed."""
    lacking = [package for package in packages if found(package) is None]
    return f"no baseline: {', '.join(lacking)} not installed; pip install 'avspk[bench]'" if lacking else None


def named(packages: Sequence[str], what: str) -> str:
    """Name of a baseline: packages with versions, and the part of them that is used."""
    return f"{', '.join(filter(None, map(found, packages)))}: {what}"


def compare_rate(
    name: str, amount: float, what: str, clock: Clock, turns: int, ours: Job, theirs: Job | None, baseline_is: str
) -> Figure:
    """`amount` a second of both sides, in turns; only ours if `theirs` is None."""
    taken = take_turns({"ours": ours} | ({"theirs": theirs} if theirs else {}), turns, clock)
    return rate(name, amount, f"{what}/{clock.unit}", taken["ours"], taken.get("theirs", ()), baseline_is)


def compare_cost(
    name: str, clock: Clock, turns: int, ours: Job, theirs: Job | None, baseline_is: str, scale: float = 1.0
) -> Figure:
    """Seconds of both sides, in turns; theirs are multiplied by `scale` if only a part of the work is timed."""
    taken = take_turns({"ours": ours} | ({"theirs": theirs} if theirs else {}), turns, clock)
    return cost(name, clock.unit, taken["ours"], [scale * one for one in taken.get("theirs", ())], baseline_is)


def require_close(what: str, difference: float, limit: float) -> None:
    """Raise RuntimeError if both sides should give the same result but do not: then times cannot be compared."""
    if not difference <= limit:
        raise RuntimeError(f"{what} of both sides differ by {difference:.2g}, at most {limit:g} was expected")
