"""Which settings may change after a run has begun. Each setting declares its first reader; see `FirstReader`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic.fields import FieldInfo

from avspk.common.settings import FirstReader, Settings
from avspk.common.settings_tree import Differences
from avspk.config import Config


def first_reader(key: str, config: Config) -> FirstReader:
    """The first reader of the setting at this dotted key, in a run of this config.

    The innermost declaration on the path to the key holds. The default is stage 1, the strictest answer.
    """
    node: Any = config
    found = FirstReader.STAGE_ONE
    for part in key.split("."):
        field = type(node).model_fields.get(part) if isinstance(node, Settings) else None
        if field is None:  # an entry of a free dictionary, or a setting of another kind
            break
        node = getattr(node, part)
        found = declared(field, node) or found
    if found is FirstReader.JOINT_CLUSTERING:
        return FirstReader.STAGE_ONE if config.stage_one_is_joint else FirstReader.ROUNDS
    return found


def declared(field: FieldInfo, value: Any) -> FirstReader | None:
    """The first reader from the field's annotation, else from the section of settings that is its value."""
    said = [mark for mark in field.metadata if isinstance(mark, FirstReader)]
    if said:
        return said[0]
    return value.first_reader if isinstance(value, Settings) else None


def already_read(differing: Differences, config: Config, is_begun: Callable[[str], bool]) -> Differences:
    """The differing settings that a stage has already read. They may not change.

    `is_begun`: whether the stage with a folder of this name has begun. Stage 1 has begun as soon as there is a run.
    """
    readers = {key: first_reader(key, config) for key in differing}
    begun = {one for one in (FirstReader.ROUNDS, FirstReader.FINAL, FirstReader.LARGE_MARGIN) if is_begun(one.value)}
    return {key: values for key, values in differing.items() if readers[key] in {FirstReader.STAGE_ONE, *begun}}


def change_results(differing: Differences, config: Config) -> bool:
    """Whether a differing setting affects the results of a run."""
    return any(first_reader(key, config) is not FirstReader.NOTHING for key in differing)
