"""Strict typed configs: pydantic schemas over YAML 1.2, errors with path, value and the nearest valid name."""

from __future__ import annotations

import difflib
import logging
import os
import re
import socket
import types
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin
from urllib.parse import urlsplit
from urllib.request import getproxies

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from vlmzoo import registry

log = logging.getLogger(__name__)
T = TypeVar("T", bound=BaseModel)
SHIPPED = "vlmzoo:"  # before the name of weights that the package brings along
MAX_YAML_CHARACTERS = 1_000_000
MAX_YAML_VALUES = 100_000  # with every alias written out: a few lines of aliases can stand for billions


class ConfigError(ValueError):
    """A mistake in what the user wrote; the message carries path, value and the nearest valid thing."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A sentence that helps after a wrong name: ``did you mean 'x'?`` or the list of what there is."""
    names = sorted(map(str, names))
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names) or 'none'}"


def nearest_file(path: Path, pattern: str) -> str:
    """:func:`nearest` for a file that does not exist: among the files beside it, or the folders beside its own."""
    folder = path.parent
    if folder.is_dir():
        return nearest(path.name, (file.name for file in folder.glob(pattern) if file.name != path.name))
    while not folder.parent.is_dir():
        folder = folder.parent
    folders = [one.name for one in folder.parent.iterdir() if one.is_dir() and not one.name.startswith(".")]
    return f"no folder {str(folder)!r}; {nearest(folder.name, folders)}"


def together(works: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """What each of several works gives.

    Raises:
        ConfigError: the mistakes of all of them, a line each.
    """
    found, wrong = {}, []
    for name, work in works.items():
        try:
            found[name] = work()
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigError("\n".join(wrong))
    return found


def differences(old: Any, new: Any) -> list[str]:
    """What changed between two plain trees, one line a leaf."""
    return [f"{path}: {a!r} became {b!r}" for path, (a, b) in differing([old, new]).items()]


def differing(trees: Sequence[Any], path: str = "") -> dict[str, list[Any]]:
    """The leaves in which plain trees differ: dotted path to the value in each tree, None where there is none.

    A branch that some trees lack is a leaf; below it those that have it are compared.
    """
    there = [place for place, tree in enumerate(trees) if tree is not None]
    if 1 < len(there) < len(trees) and all(isinstance(trees[place], dict) for place in there):
        inner = differing([trees[place] for place in there], path)
        spread = {
            key: [dict(zip(there, values, strict=True)).get(i) for i in range(len(trees))]
            for key, values in inner.items()
        }
        return {path: list(trees), **spread}
    if all(isinstance(tree, dict) for tree in trees):
        keys = dict.fromkeys(key for tree in trees for key in tree)
        found: dict[str, list[Any]] = {}
        for key in keys:
            found |= differing([tree.get(key) for tree in trees], f"{path}.{key}".lstrip("."))
        return found
    return {} if all(tree == trees[0] for tree in trees) else {path: list(trees)}


def located(source: str | Path) -> str:
    """Where a source of weights lies: ``vlmzoo:name`` is shipped with the package, the rest is as it says.

    Raises:
        ConfigError: nothing of that name is shipped.
    """
    text = str(source)
    if not text.startswith(SHIPPED):
        return text
    name, folder = text.removeprefix(SHIPPED), Path(__file__).parent / "assets"
    if not (folder / name).is_dir():
        there = [path.name for path in folder.iterdir() if path.is_dir()]
        raise ConfigError(f"nothing named {name!r} is shipped; {nearest(name, there)}")
    return str(folder / name)


_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def readable(source: str | Path, where: str) -> str:
    """:func:`located` for a source that is about to be read: a folder or file, or else a name on the Hub.

    A name that can only be a path never goes to the Hub, and a Hub that cannot be reached is not asked again and again:
    then only what was downloaded before is used.

    Args:
        where: the key of the source, for messages.

    Raises:
        ConfigError: nothing there, with the nearest that is.
    """
    text = located(source)
    if Path(text).exists():
        return text
    first = text.partition("/")[0]
    if not _HUB_NAME.fullmatch(text) or first == "runs" or Path(first).is_dir():
        raise ConfigError(f"{where}: no folder {text!r}; {nearest_file(Path(text or '.'), '[!.]*')}")
    _look_for_hub()
    return text


def _look_for_hub() -> None:
    """One look-up of the Hub's address, where its client would ask for half a minute."""
    from huggingface_hub import constants

    asked_for = str(os.environ.get("HF_HUB_OFFLINE", "")).upper() in constants.ENV_VARS_TRUE_VALUES
    if asked_for or getproxies():  # a proxy knows addresses that we do not
        return
    host = urlsplit(constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, None)
        constants.HF_HUB_OFFLINE = False
    except OSError:
        if not constants.HF_HUB_OFFLINE:
            log.warning(f"the Hub ({host}) cannot be reached; only what was downloaded before is used")
        constants.HF_HUB_OFFLINE = True


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
        found: list[tuple[tuple[str, ...], str]] = []
        for key, value in tree.items():
            if key not in names and key not in cls.model_fields:
                found.append(((str(key),), f"unknown key; {nearest(key, names)}"))
                continue
            field = cls.model_fields.get(key)
            if field is None or _mentions(field.annotation, _takes_bool):
                continue
            deep = not _mentions(field.annotation, _is_schema)  # a nested schema looks after its own fields
            wanted = _type_name(field.annotation)
            found.extend(
                ((str(key), *path), f"wanted {wanted}, got the truth value {truth}")
                for path, truth in _truth_values(value, deep)
            )
        if found:
            raise _nested_error(found)
        return tree


def _mentions(annotation: Any, test: Any) -> bool:
    return test(annotation) or any(_mentions(arg, test) for arg in get_args(annotation))


def _takes_bool(annotation: Any) -> bool:
    return any(annotation is one for one in (bool, Any, object))


def _is_schema(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _truth_values(value: Any, deep: bool) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Path and value of the booleans in a value, in lists and mappings too if ``deep``."""
    if isinstance(value, bool):
        yield (), value
    elif deep and isinstance(value, (list, tuple, Mapping)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from (((str(key), *path), truth) for path, truth in _truth_values(item, deep))


def _type_name(annotation: Any) -> str:
    """An annotation as a person would say it: ``int or None``, ``'a' or 'b'``, ``tuple of float, float``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(arg) for arg in args)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin is not None and args:
        return f"{origin.__name__} of {', '.join(_type_name(arg) for arg in args)}"
    return "None" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


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

    def construct_document(self, node: Any) -> Any:
        if _written_out(node, {}) > MAX_YAML_VALUES:
            raise ConfigError(f"more than {MAX_YAML_VALUES} values with its aliases written out")
        return super().construct_document(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise ConfigError(f"key {key!r} is written twice (line {key_node.start_mark.line + 1})")
            seen |= {key} if isinstance(key, Hashable) else set()
        return super().construct_mapping(node, deep)


def _written_out(node: Any, known: dict[int, int | None]) -> int:
    """How many values a node stands for when its aliases are written out."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise ConfigError(f"the value in line {node.start_mark.line + 1} contains itself")
        return size
    known[id(node)] = None  # being counted
    inner: list[Any] = []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        inner = [one for pair in node.value for one in pair]
    size = 1 + sum(_written_out(one, known) for one in inner)
    known[id(node)] = size
    return size


_Yaml12.yaml_constructors = {
    tag: build
    for tag, build in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
}
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
    if len(text) > MAX_YAML_CHARACTERS:
        raise ConfigError(f"{where or 'yaml'}: larger than {MAX_YAML_CHARACTERS} characters")
    try:
        return yaml.load(text, Loader=_Yaml12)
    except (yaml.YAMLError, ConfigError) as error:
        raise ConfigError(f"{where or 'yaml'}: {error}") from None
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{where or 'yaml'}: a value that is not of its type: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where or 'yaml'}: nested too deeply") from None


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file (with the nearest one in its folder), not text, or not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no config file {str(path)!r}; {nearest_file(path, '*.y*ml')}")
    if path.stat().st_size > 4 * MAX_YAML_CHARACTERS:
        raise ConfigError(f"{path}: larger than {MAX_YAML_CHARACTERS} characters")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file: {error}") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: wanted a mapping at the top, got {type(tree).__name__}")
    return tree


class _Yaml12Dumper(yaml.SafeDumper):
    """Quotes what :class:`_Yaml12` would not read back as text (``'1e-3'``)."""

    yaml_implicit_resolvers = _Yaml12.yaml_implicit_resolvers


def dump_yaml(tree: Any) -> str:
    """YAML text of a plain tree, keys in the order given; :func:`parse_yaml` reads the same tree."""
    return yaml.dump(tree, Dumper=_Yaml12Dumper, sort_keys=False, allow_unicode=True, width=110)


def override(tree: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """``tree`` with dotted assignments applied (``optim.steps=20``); values are read by the YAML rules.

    Raises:
        ConfigError: an assignment without ``=``, or a path that goes through something that is not a mapping.
    """
    result = tree
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not all(path.split(".")):
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
