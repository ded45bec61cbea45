"""Configs that come with the package, found by name from anywhere."""

from __future__ import annotations

from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"


def find_config(path: Path) -> Path:
    """`path` if it is a file, else the shipped config of that name, given as `demo` or `configs/demo.yaml`.

    Any other path is returned unchanged; `load_config` then reports that it does not exist.
    """
    shipped = CONFIGS / f"{path.name.removesuffix('.yaml')}.yaml"
    return shipped if not path.is_file() and shipped.is_file() and path.parent.name in {"", "configs"} else path


def find_study(path: Path) -> Path:
    """`path` if it is a file, else the shipped study of that name, given as `demo` or `study/demo.yaml`."""
    shipped = CONFIGS / "study" / f"{path.name.removesuffix('.yaml')}.yaml"
    return shipped if not path.is_file() and shipped.is_file() else path


def shipped_names() -> list[str]:
    """Names of the shipped configs."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))
