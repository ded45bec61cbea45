"""Trees of settings: YAML files with `inherit`, `key.path=value` overrides, comparison, and errors for a user.

These functions work for any settings class. avspk/config.py calls them for the settings of a run.

Dictionaries with free keys (`data.trials`) are inherited entry by entry. `name: null` takes one entry out, and
`data.trials: null` takes all out, in a file and in an override. A group whose `kind` or `architecture` changes to one
with other settings starts anew, in both.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from avspk.common.settings import ConfigError, Settings
from avspk.common.text_files import read_text

Tree = dict[str, Any]
"""Nested settings, as YAML holds them."""
Differences = dict[str, tuple[Any, Any]]
"""Dotted key -> its two values."""
Node = TypeVar("Node", bound=Settings)
KIND_NAMES = ("kind", "architecture")
"""Settings that choose between classes of settings with different keys."""


def read_tree(model: type[Settings], path: Path, overrides: Iterable[str] = ()) -> Tree:
    """Read a YAML file and the files that it inherits; then set `key.path=value` overrides.

    Raises: ConfigError on a missing file, bad YAML, an override of another form, or a null for an entry that is not
        inherited.
    """
    free = free_dictionaries(model)
    tree = _read_yaml(path, model)
    for key, value in _parse_overrides(overrides):
        _set(tree, _split(key, free), value, key, model)
    return tree


def overridden_keys(overrides: Iterable[str]) -> set[str]:
    """Dotted keys that `key.path=value` overrides set, those inside a group too."""
    return {leaf for key, value in _parse_overrides(overrides) for leaf, _ in _leaves(value, key)}


def validate(model: type[Node], tree: Tree, source: str) -> Node:
    """The settings of a tree. Raises: ConfigError that lists all bad settings, and the nearest known key."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(model, item) for item in error.errors()]
        raise ConfigError(
            f"{source} has {len(lines)} bad setting(s):\n" + "\n".join(f"  {line}" for line in lines)
        ) from None


def differing_keys(old: Settings, new: Settings) -> Differences:
    """Keys with different values, sorted. A key that one of the two lacks has the value None there."""
    before, after = dict(_leaves(old.model_dump(mode="json"))), dict(_leaves(new.model_dump(mode="json")))
    pairs = {key: (before.get(key), after.get(key)) for key in sorted(before.keys() | after.keys())}
    return {key: (first, second) for key, (first, second) in pairs.items() if first != second}


def describe(differences: Differences) -> list[str]:
    """`key: old -> new`, a line each."""
    return [f"{key}: {first!r} -> {second!r}" for key, (first, second) in differences.items()]


def flat_settings(settings: Settings) -> dict[str, str | int | float | bool]:
    """Dotted key -> value of every setting. A value that is neither a number nor a text becomes a text."""
    leaves = _leaves(settings.model_dump(mode="json"))
    return {key: value if isinstance(value, (str, int, float)) else str(value) for key, value in leaves}


@cache
def free_dictionaries(model: type[Settings]) -> tuple[str, ...]:
    """Dotted keys of the settings that are dictionaries with free keys, or these or a word such as "auto"."""
    return tuple(
        key
        for key, field in _fields(model)
        if any(get_origin(one) is dict for one in (field.annotation, *get_args(field.annotation)))
    )


class KindGroup(NamedTuple):
    """A group of settings with a `kind` or `architecture`: its default name, and the names of each of its classes."""

    default: str | None
    classes: list[set[str]]


@cache
def kind_groups(model: type[Settings]) -> dict[str, KindGroup]:
    """Dotted key -> group, of all groups with a `kind` or `architecture`."""
    groups: dict[str, KindGroup] = {}
    for key, field in _fields(model):
        classes = [set(names) for node in _nodes(field.annotation) if (names := _names(node))]
        if classes:
            default = field.get_default(call_default_factory=True)
            name = next(filter(None, (getattr(default, name, None) for name in KIND_NAMES)), None)
            groups[key] = KindGroup(name, classes)
    return groups


def _parse_overrides(overrides: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Key and value of each override."""
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {override!r} is not of the form key.path=value, e.g. pretrain.epochs=10")
        yield key, _parse_yaml(value, f"override {override!r}")


def _read_yaml(path: Path, model: type[Settings], seen: tuple[Path, ...] = ()) -> Tree:
    if path.resolve() in seen:
        raise ConfigError(f"{path} inherits from itself")
    if not path.exists():
        raise ConfigError(f"no config file at {path}; see configs/ for the ones that are shipped")
    tree = _parse_yaml(read_text(path, "config", ConfigError), str(path)) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold `key: value` settings, not a {type(tree).__name__}")
    parent = tree.pop("inherit", None)
    base: Tree = {}
    if parent is not None:
        if not isinstance(parent, str):
            raise ConfigError(f"{path}: inherit is {parent!r}, must be the path of one config, relative to this one")
        base = _read_yaml(path.parent / parent, model, (*seen, path.resolve()))
    return _merge(base, tree, str(path), model)


class _UniqueKeys(yaml.SafeLoader):
    """Rejects a key that is given twice, of which YAML's reader would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See yaml.SafeLoader."""
        places: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and places.setdefault(key.value, key) is not key:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _UniqueKeys)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from None


def _merge(base: Tree, top: Tree, source: str, model: type[Settings], prefix: str = "") -> Tree:
    """`base` with the values of `top`, node by node; see `_put` for nulls. A group of another kind starts anew."""
    merged = dict(base)
    for key, value in top.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            node = base.get(key)
            kept = node if isinstance(node, dict) and not _other_kind(node, value, path, model) else {}
            merged[key] = _merge(kept, value, source, model, f"{path}.")
        else:
            _put(merged, key, value, path, source, free_dictionaries(model))
    return merged


def _other_kind(old: Tree, new: Tree, path: str, model: type[Settings]) -> bool:
    """Whether `new` names a kind or architecture of the group at `path` that is of another class than that of `old`."""
    group = kind_groups(model).get(path)
    if group is None:
        return False
    changes = [{old.get(name, group.default), new[name]} for name in KIND_NAMES if name in new]
    return any(len(names) > 1 and not any(names <= known for known in group.classes) for names in changes)


def _put(node: Tree, key: Any, value: Any, path: str, source: str, free: Collection[str]) -> None:
    """Set `key`, whose dotted path is `path`. Null takes out a free dictionary or an entry of one."""
    if key == path and "." in path:  # a dotted key in a file is unknown, also if it is null
        free = ()
    if value is None and path in free:
        node.pop(key, None)
    elif value is None and path.removesuffix(f".{key}") in free:
        if key not in node:
            raise ConfigError(
                f"{source}: {path}: null takes an inherited entry out, but there is none of this name; "
                f"inherited: {', '.join(map(str, node)) or 'none'}"
            )
        del node[key]
    else:
        node[key] = value


def _split(key: str, free: Collection[str]) -> list[str]:
    """Parts of an override's key; names in a free dictionary may hold dots."""
    for one in free:
        if key.startswith(f"{one}."):
            return [*one.split("."), key.removeprefix(f"{one}.")]
    return key.split(".")


def _set(tree: Tree, keys: Sequence[str], value: Any, path: str, model: type[Settings]) -> None:
    """Set a value. Another kind of a group replaces the group."""
    above: Tree = {}
    node = tree
    for key in keys[:-1]:
        above, node = node, node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {path}: {key} is a value, not a group of settings")
    if keys[-1] in KIND_NAMES and _other_kind(node, {keys[-1]: value}, ".".join(keys[:-1]), model):
        node = above[keys[-2]] = {}
    _put(node, keys[-1], value, path, "override", free_dictionaries(model))


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


class _Place(NamedTuple):
    """Dotted key of an error, the class of settings that holds it, and all classes that may stand in this place."""

    key: str
    chosen: type[BaseModel] | None
    choices: list[type[BaseModel]]


def _place(model: type[Settings], loc: Sequence[Any]) -> _Place:
    """The place of an error. pydantic's `loc` also names the chosen member of a union, which is no part of the key."""
    choices: list[type[BaseModel]] = [model]
    chosen, keys = choices, []
    for part in loc:
        tagged = [node for node in choices if part in _names(node)]
        if tagged and part not in chosen[0].model_fields:
            chosen = tagged
        elif not _is_type(part):
            keys.append(str(part))
            if part is not loc[-1]:
                fields = [node.model_fields[part] for node in chosen if part in node.model_fields]
                choices = [node for field in fields for node in _nodes(field.annotation)]
                chosen = choices
    return _Place(".".join(keys), chosen[0] if len(chosen) == 1 else None, choices)


def _is_type(part: Any) -> bool:
    """Whether a part of pydantic's `loc` is a type instead of a key: constrained-int, literal['auto'], dict[...]."""
    return isinstance(part, str) and ("[" in part or part.startswith("constrained-"))


def _names(node: type[BaseModel]) -> tuple[str, ...]:
    """The values of `kind` or `architecture` that choose this class."""
    return tuple(
        name for key in KIND_NAMES if key in node.model_fields for name in get_args(node.model_fields[key].annotation)
    )


def _explain(model: type[Settings], item: Any) -> str:
    """A line for one of pydantic's errors."""
    place = _place(model, item["loc"])
    key = place.key
    if item["type"] != "extra_forbidden":
        shown = "" if item["type"] == "missing" or not key else f" (got {str(item['input'])[:80]!r})"
        return f"{key or 'config'}: {item['msg'].removeprefix('Value error, ')}{shown}"
    if place.chosen is not None and _names(place.chosen):
        return f"{key}: {_explain_choice(place.chosen, place.choices, key.split('.')[-1])}"
    return f"{key}: unknown key{_nearest(model, key)}"


def _explain_choice(chosen: type[BaseModel], choices: Sequence[type[BaseModel]], last: str) -> str:
    """Why a part that is chosen by its kind does not have the setting `last`, and which settings it has."""
    own = [name for name in chosen.model_fields if name not in KIND_NAMES]
    others = [name for node in choices if last in node.model_fields for name in _names(node)]
    below = {key.split(".")[-1]: key for key, _ in _fields(chosen)}
    nearest = difflib.get_close_matches(last, below, n=1)
    hint = f"; did you mean {below[nearest[0]]}?" if nearest else ""
    hint = f"; {', '.join(others)} would have it" if others else hint
    return f"unknown key of {_names(chosen)[0]}, which has {', '.join(own) or 'none'}{hint}"


def _nearest(model: type[Settings], key: str) -> str:
    """The known key that is most like an unknown one, as the end of a message."""
    known = sorted({key for key, _ in _fields(model)})
    last = key.split(".")[-1]
    moved = [name for name in known if name.split(".")[-1] == last]  # the same name in another group
    nearest = (
        difflib.get_close_matches(key, moved, n=1, cutoff=0.0)
        or difflib.get_close_matches(key, known, n=1)
        or difflib.get_close_matches(last, known, n=1, cutoff=0.4)
    )
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted key and definition of every setting below a node."""
    for name, field in model.model_fields.items():
        key = f"{prefix}.{name}" if prefix else name
        yield key, field
        for node in _nodes(field.annotation):
            yield from _fields(node, key)


def _nodes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _nodes(argument)
