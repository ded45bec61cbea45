"""Base class of all settings, and types of their numbers. Each part of the package defines its own settings."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def ordered(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    """The pair, if its first value is at most its second. Raises: ValueError."""
    if pair[0] > pair[1]:
        raise ValueError(f"range {pair} must be (low, high) with low <= high")
    return pair


Range = Annotated[tuple[float, float], AfterValidator(ordered)]
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(ordered)]


def DefaultKind(kind: str, key: str = "kind") -> BeforeValidator:  # noqa: N802 - stands among pydantic's annotations
    """Set the default of `key`, which chooses between the members of a union."""
    return BeforeValidator(lambda value: {key: kind, **value} if isinstance(value, dict) else value)


def kind_title(kind: str) -> str:
    """A kind as a reader expects it: acronyms such as DINO in capitals."""
    return kind.upper() if len(kind) <= 4 else kind


class FirstReader(Enum):
    """The first reader of a setting in a run. Later, the setting may not change; see avspk/pipeline/resume.py.

    A section declares it in its attribute `first_reader`, a single setting in its annotation:
    `Annotated[int, FirstReader.ROUNDS]`. Without a declaration, the reader of the enclosing section holds. The values
    of stages are the names of their folders.
    """

    STAGE_ONE = "pretrain"
    JOINT_CLUSTERING = "the first clustering of all modalities together, in stage 1 or in a round"
    ROUNDS = "round1"
    FINAL = "final"
    LARGE_MARGIN = "large_margin"
    RESULTS = "no stage, but results depend on it"
    NOTHING = "neither stages nor results depend on it: where things are, how the loop runs"


class ConfigError(ValueError):
    """A setting that cannot be used. The message fits one screen and says what to do."""


class Settings(BaseModel):
    """Base of every node: unknown keys and numbers that are not finite fail, values never change after loading.

    Attributes:
        first_reader: first reader of the settings in this section; None: that of the enclosing section.
    """

    first_reader: ClassVar[FirstReader | None] = None

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
