"""Strict typed configs: pydantic schemas over YAML 1.2, errors with path, value and the nearest valid name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from vlmzoo import registry

T = TypeVar("T", bound=BaseModel)
MAX_YAML_BYTES = 1_000_000
MAX_YAML_ALIASES = 100  # a handful is reuse, thousands are an expansion attack


class ConfigError(ValueError):
    """A mistake in what the user wrote; the message carries path, value and the nearest valid thing."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A sentence that helps after a wrong name: ``did you mean 'x'?`` or the list of what there is."""
    names = sorted(map(str, names))
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names) or 'none'}"


class Config(BaseModel):
    """Base of every schema: unknown keys refused, frozen, defaults validated, booleans are not numbers."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        arbitrary_types_allowed=True,
        populate_by_name=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        names = {field.alias or name for name, field in cls.model_fields.items()}
        for key, value in tree.items():
            if key not in names and key not in cls.model_fields:
                problem = f"unknown key; {nearest(key, names)}"
                raise PydanticCustomError(
                    "at", "{problem}", {"problems": [((str(key),), problem)], "problem": problem}
                )
            field = cls.model_fields.get(key)
            if isinstance(value, bool) and field and not _accepts_bool(field.annotation):
                problem = f"wanted {_type_name(field.annotation)}, got the truth value {value}"
                raise PydanticCustomError(
                    "at", "{problem}", {"problems": [((str(key),), problem)], "problem": problem}
                )
        return tree


def _accepts_bool(annotation: Any) -> bool:
    if annotation in (bool, Any, object):
        return True
    return any(_accepts_bool(arg) for arg in get_args(annotation))


def _type_name(annotation: Any) -> str:
    return getattr(annotation, "__name__", str(annotation))


def read(schema: type[T], tree: Any, where: str = "") -> T:
    """Validate ``tree`` against ``schema``.

    Raises:
        ConfigError: one line per problem, each with its dotted path.
    """
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        prefix = (where,) if where else ()
        lines = [f"{'.'.join((*prefix, *path)) or schema.__name__}: {text}" for path, text in problems(error)]
        raise ConfigError("\n".join(lines)) from None


def problems(error: ValidationError) -> list[tuple[tuple[str, ...], str]]:
    """Path and message of everything pydantic found, nested part errors unfolded."""
    found: list[tuple[tuple[str, ...], str]] = []
    for item in error.errors():
        path = tuple(str(step) for step in item["loc"])
        nested = item.get("ctx", {}).get("problems")
        if nested:
            found.extend((path + tuple(inner), text) for inner, text in nested)
        elif item["type"] == "missing":
            found.append((path, "missing"))
        else:
            message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            shown = "" if isinstance(item["input"], (dict, BaseModel)) else f" (got {item['input']!r})"
            found.append((path, message[:1].lower() + message[1:] + shown))
    return found


def _nested_error(found: list[tuple[tuple[str, ...], str]]) -> PydanticCustomError:
    text = "; ".join(f"{'.'.join(path)}: {message}" if path else message for path, message in found)
    return PydanticCustomError("at", "{problem}", {"problems": found, "problem": text})


def read_part(family: str, tree: Any) -> Any:
    """A part's config from ``"kind"`` or ``{"kind": ..., ...}``, looked up in the registry at this moment."""
    if isinstance(tree, BaseModel):
        return tree
    tree = {"kind": tree} if isinstance(tree, str) else tree
    if not isinstance(tree, Mapping) or "kind" not in tree:
        names = ", ".join(registry.names(family))
        raise _nested_error([((), f"wanted a mapping with a 'kind' (one of: {names}), got {tree!r}")])
    try:
        schema = registry.lookup(family, tree["kind"])
    except KeyError as error:
        raise _nested_error([(("kind",), str(error.args[0]))]) from None
    try:
        return schema.model_validate(dict(tree))
    except ValidationError as error:
        raise _nested_error(problems(error)) from None


def part_config(family: str, tree: Any, where: str) -> Any:
    """:func:`read_part` outside a schema.

    Raises:
        ConfigError: with paths that start at ``where``.
    """
    try:
        return read_part(family, tree)
    except PydanticCustomError as error:
        found = (error.context or {})["problems"]
        raise ConfigError("\n".join(f"{'.'.join((where, *path))}: {text}" for path, text in found)) from None


def part_of(family: str) -> Any:
    """The type of a field that holds a part's config by kind: ``connector: part_of("connectors")``."""
    return Annotated[SerializeAsAny[Config], BeforeValidator(partial(read_part, family))]


# --- YAML ------------------------------------------------------------------------------------------------------


class _Yaml12(yaml.SafeLoader):
    """PyYAML reads YAML 1.1 (1e-3 a string, off False); this reads scalars by the 1.2 core rules."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_YAML_ALIASES:
                raise ConfigError(f"more than {MAX_YAML_ALIASES} aliases in one file")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        double = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if double is not None:
            raise ConfigError(f"key {double!r} is written twice (line {node.start_mark.line + 1})")
        return super().construct_mapping(node, deep)


_Yaml12.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|false|True|False|TRUE|FALSE", "tfTF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _Yaml12.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _construct_int(loader: Any, node: Any) -> int:
    text = loader.construct_scalar(node)
    return int(text, 8 if "0o" in text else 16 if "0x" in text else 10)


_Yaml12.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str, where: str = "") -> Any:
    """The tree of a YAML 1.2 text.

    Raises:
        ConfigError: syntax errors with their line, Python tags, double keys, alias floods, oversized files.
    """
    if len(text) > MAX_YAML_BYTES:
        raise ConfigError(f"{where or 'yaml'}: larger than {MAX_YAML_BYTES} characters")
    try:
        return yaml.load(text, Loader=_Yaml12)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where or 'yaml'}: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{where or 'yaml'}: {error}") from None


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file (with the nearest one in its folder), or not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        there = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(f"no config file {str(path)!r}; {nearest(path.name, there)}")
    tree = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: wanted a mapping at the top, got {type(tree).__name__}")
    return tree


def dump_yaml(tree: Any) -> str:
    """YAML text of a plain tree, keys in the order given."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)


def override(tree: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """``tree`` with dotted assignments applied (``optim.steps=20``); values are read by the YAML rules.

    Raises:
        ConfigError: an assignment without ``=``, or a path that goes through something that is not a mapping.
    """
    result = tree
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(
                f"{assignment!r}: an override is written path=value, for example optim.steps=20"
            )
        value: Any = parse_yaml(text, path) if text else ""
        for key in reversed(path.split(".")):
            value = {key: value}
        result = merge(result, value)
    return result


def merge(base: Any, change: Any, where: str = "") -> Any:
    """``base`` with ``change`` laid over it; mappings merge, a different ``kind`` replaces, the rest is replaced."""
    if not isinstance(change, Mapping):
        return change
    if base is None:
        return dict(change)
    if not isinstance(base, Mapping):
        if "kind" in change or "from" in change:
            return dict(change)
        raise ConfigError(
            f"{where or 'override'}: {base!r} is not a mapping, so {', '.join(change)} cannot be set in it"
        )
    if "kind" in change and "kind" in base and change["kind"] != base["kind"]:
        return dict(change)
    merged = dict(base)
    for key, value in change.items():
        merged[key] = merge(base[key], value, f"{where}.{key}".lstrip(".")) if key in base else value
    return merged
