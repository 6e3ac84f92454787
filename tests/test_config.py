"""The strict reader: YAML 1.2 scalars, hostile files, errors with path, value and nearest name, overrides."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, PositiveInt

from vlmzoo.config import (
    MAX_YAML_CHARACTERS,
    Config,
    ConfigError,
    dump_yaml,
    load_yaml,
    merge,
    nearest,
    override,
    parse_yaml,
    part_config,
    part_of,
    read,
)

# --- scalars -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E3", 1000.0), ("1.5e+2", 150.0), (".5", 0.5), ("1.", 1.0), ("-2", -2), ("+7", 7),
        ("0o17", 15), ("0x1F", 31), ("017", 17), (".inf", math.inf), ("-.INF", -math.inf),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("off", "off"), ("on", "on"), ("no", "no"), ("yes", "yes"), ("NO", "NO"), ("y", "y"), ("tRUE", "tRUE"),
        ("1_000", "1_000"), ("1:30", "1:30"), ("2020-01-01", "2020-01-01"), ("0b11", "0b11"), ("0o9", "0o9"),
        ("=", "="), ("e5", "e5"), ("1e", "1e"), (".", "."), ("inf", "inf"), ("nan", "nan"), ("'1e-3'", "1e-3"),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_rules_of_yaml_1_2(text: str, value: Any) -> None:
    found = parse_yaml(f"a: {text}")["a"]
    assert found == value
    assert type(found) is type(value)


def test_nan_and_merge_keys() -> None:
    assert math.isnan(parse_yaml("a: .NaN")["a"])
    assert parse_yaml("<<: {a: 1}") == {
        "<<": {"a": 1}
    }  # 1.2 has no merge key: it is an unknown key like any other


# line breaks of other alphabets are left out: PyYAML folds them when it writes a key
words = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], include_characters="\n\t"), max_size=12
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
    | st.sampled_from(["1e-3", "off", "0o17", "0x1", ".inf", "~", "", "=", "<<", "true", "-", "#a", "a: b", "&a", "*a", "!x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(plain)
def test_what_is_dumped_is_read_back(tree: Any) -> None:
    assert parse_yaml(dump_yaml({"tree": tree})) == {"tree": tree}


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab1:-[]{},&*!'\"#|>? \n%@`.0x~", max_size=40))
def test_any_text_is_a_tree_or_a_config_error(text: str) -> None:
    try:
        parse_yaml(text)
    except ConfigError as error:
        assert str(error).startswith("yaml: ")


# --- hostile files -----------------------------------------------------------------------------------------------


def lines_of_aliases(levels: int, width: int, base: str = "[a, a]") -> str:
    lines = [f"l0: &l0 {base}"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize("width", [2, 9, 200])
def test_a_flood_of_aliases_is_refused_quickly(width: int) -> None:
    start = time.perf_counter()
    with pytest.raises(ConfigError, match="aliases"):
        parse_yaml(lines_of_aliases(40 if width == 2 else 9, width))
    assert time.perf_counter() - start < 2


def test_a_few_aliases_are_fine_and_a_circle_is_not() -> None:
    tree = parse_yaml("a: &shared {kind: scenes, size: 32}\nb: *shared\nc: [*shared, *shared]")
    assert tree["b"] == tree["c"][1] == {"kind": "scenes", "size": 32}
    for text in ("a: &x [*x]", "a: &x {b: {c: *x}}"):
        with pytest.raises(ConfigError, match="contains itself"):
            parse_yaml(text)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['true']", "a: !!python/name:os.system", "a: !!binary aGk=", "a: !!set {b}",
        "a: !own 1", "a: !!int foo", "a: !!float foo", "a: !!bool foo", "a: !!map foo", "a: !!seq foo", "a: !!timestamp x",
        "[" * 5000, "a: " + "9" * 5000, "a: b: c", "a: 'open", "\x00", "? [a]\n: 1", "--- 1\n--- 2",
    ],
)  # fmt: skip
def test_tags_and_broken_texts_are_config_errors(text: str) -> None:
    with pytest.raises(ConfigError, match="my file"):
        parse_yaml(text, "my file")


def test_syntax_errors_and_double_keys_name_the_line() -> None:
    with pytest.raises(ConfigError, match="line 3"):
        parse_yaml("a: 1\nb: 2\nc: [")
    with pytest.raises(ConfigError, match=r"'a' is written twice \(line 3\)"):
        parse_yaml("a: 1\nb: 2\na: 3")
    with pytest.raises(ConfigError, match=r"'x' is written twice \(line 2\)"):
        parse_yaml("a: {x: 1,\n x: 1}")


def test_oversized_files_and_many_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="larger than"):
        parse_yaml("a" * (MAX_YAML_CHARACTERS + 1))
    big = tmp_path / "big.yaml"
    with big.open("wb") as out:
        out.truncate(1 << 40)  # a sparse terabyte: must not be read
    with pytest.raises(ConfigError, match="larger than"):
        load_yaml(big)
    start = time.perf_counter()
    many = parse_yaml("{" + ", ".join(f"k{i}" for i in range(20_000)) + "}")
    assert len(many) == 20_000 and time.perf_counter() - start < 15  # not quadratic


# --- files -------------------------------------------------------------------------------------------------------


def test_missing_files_name_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "tiny.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match=r"did you mean 'tiny\.yaml'"):
        load_yaml(tmp_path / "llava" / "tinny.yaml")
    with pytest.raises(ConfigError, match=r"no folder .*did you mean 'llava'"):
        load_yaml(tmp_path / "lava" / "tiny.yaml")
    with pytest.raises(ConfigError, match="did you mean 'llava'"):
        load_yaml(tmp_path / "lava" / "deeper" / "tiny.yaml")
    with pytest.raises(ConfigError, match="no config file"):
        load_yaml(tmp_path / "llava")  # a folder
    with pytest.raises(ConfigError, match="no config file"):
        load_yaml("nothing-like-it.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "wanted a mapping"), (b"- 1", "wanted a mapping"), (b"\xff\xfe\x89PNG", "not a text file"), (b"a: [", "line 1")],
)  # fmt: skip
def test_files_that_are_no_config(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_yaml(file)
    assert str(file) in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert load_yaml(tmp_path / "c.yaml") == {"a": 1}


# --- schemas -----------------------------------------------------------------------------------------------------


class Inner(Config):
    """Inside."""

    rate: float = 1.0
    flag: bool = False
    name: str = "x"


class Outer(Config):
    """Outside."""

    inner: Inner = Inner()
    many: dict[str, Inner] = Field(default_factory=dict)
    items: list[Inner] = Field(default_factory=list)
    connector: part_of("connectors") | None = None  # type: ignore[valid-type]
    connectors: list[part_of("connectors")] = Field(default_factory=list)  # type: ignore[valid-type]
    named: dict[str, part_of("connectors")] = Field(default_factory=dict)  # type: ignore[valid-type]
    steps: PositiveInt | None = None
    pair: tuple[float, float] = (0.9, 0.99)
    weights: dict[str, float] = Field(default_factory=dict)
    schedule: Literal["cosine", "linear"] = "cosine"
    anything: Any = None


@pytest.mark.parametrize(
    ("tree", "path", "near"),
    [
        ({"stpes": 1}, "stpes", "'steps'"),
        ({"inner": {"rat": 1}}, "inner.rat", "'rate'"),
        ({"many": {"a": {"nam": 1}}}, "many.a.nam", "'name'"),
        ({"items": [{}, {"flg": True}]}, "items.1.flg", "'flag'"),
        ({"connector": {"kind": "perceiver", "num_latent": 4}}, "connector.num_latent", "'num_latents'"),
        ({"connector": {"kind": "percever"}}, "connector.kind", "'perceiver'"),
        ({"connectors": ["mlp", {"kind": "mlp", "activatoin": "gelu"}]}, "connectors.1.activatoin", "'activation'"),
        ({"named": {"a": {"kind": "mpl"}}}, "named.a.kind", "'mlp'"),
    ],
)  # fmt: skip
def test_unknown_keys_give_the_whole_path_and_the_nearest_name(
    tree: dict[str, Any], path: str, near: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(Outer, tree, "top")
    assert str(caught.value).startswith(f"top.{path}: ")
    assert f"did you mean {near}" in str(caught.value)


def test_every_problem_of_a_mapping_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read(Outer, {"aaa": 1, "bbb": 2, "steps": True})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["aaa", "bbb", "steps"]
    with pytest.raises(ConfigError) as caught:
        read(Outer, {"inner": {"rate": "fast"}, "steps": 0, "schedule": "cosin"})
    text = str(caught.value)
    assert "inner.rate: " in text and "'fast'" in text
    assert "steps: " in text and "(got 0)" in text
    assert "schedule: " in text and "'cosine' or 'linear' (got 'cosin')" in text


@pytest.mark.parametrize("kind", [None, 3, ["mlp"], {"a": 1}, ""])
def test_a_kind_that_is_no_name(kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"connector\.kind: no connector"):
        read(Outer, {"connector": {"kind": kind}})
    with pytest.raises(ConfigError, match=r"here\.kind: no connector"):
        part_config("connectors", {"kind": kind}, "here")


@pytest.mark.parametrize("tree", [3, ["mlp"], {"activation": "gelu"}])
def test_a_part_without_kind_lists_the_kinds(tree: Any) -> None:
    with pytest.raises(ConfigError, match=r"^connectors\.0: .*'kind' \(one of: .*mlp.*perceiver"):
        read(Outer, {"connectors": [tree]})


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"steps": True}, "steps"), ({"inner": {"rate": True}}, "inner.rate"), ({"pair": [0.9, False]}, "pair.1"),
        ({"weights": {"a": 1, "b": True}}, "weights.b"), ({"items": [{"rate": False}]}, "items.0.rate"),
        ({"connector": {"kind": "perceiver", "depth": True}}, "connector.depth"), ({"inner": True}, "inner"),
        ({"inner": {"name": False}}, "inner.name"),
    ],
)  # fmt: skip
def test_truth_values_are_no_numbers(tree: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError, match="truth value") as caught:
        read(Outer, tree)
    assert str(caught.value).startswith(f"{path}: ")


def test_truth_values_stay_where_they_belong() -> None:
    found = read(Outer, {"inner": {"flag": True}, "items": [{"flag": True}], "anything": [True]})
    assert found.inner.flag is True and found.items[0].flag is True and found.anything == [True]


def test_configs_are_frozen_and_keep_their_parts_fields_when_dumped() -> None:
    found = read(Outer, {"connector": {"kind": "perceiver", "num_latents": 5}, "connectors": ["linear"]})
    dumped = found.model_dump(mode="json")
    assert dumped["connector"]["num_latents"] == 5 and dumped["connectors"][0]["kind"] == "linear"
    assert read(Outer, dumped) == found
    with pytest.raises(ValueError, match="frozen"):
        found.steps = 3


def test_missing_and_wrong_top() -> None:
    class Needs(Config):
        steps: int

    with pytest.raises(ConfigError, match=r"^optim\.steps: missing$"):
        read(Needs, {}, "optim")
    for wrong in (None, [], "x", 3):
        with pytest.raises(ConfigError, match=r"^optim: "):
            read(Needs, wrong, "optim")


def test_nearest() -> None:
    assert nearest("percever", ["mlp", "perceiver"]) == "did you mean 'perceiver'?"
    assert nearest("zzz", ["b", "a"]) == "there are: a, b"
    assert nearest("zzz", []) == "there are: none"


# --- overrides and merging ---------------------------------------------------------------------------------------


def test_overrides_are_typed_and_leave_the_original() -> None:
    tree = {"optim": {"steps": 10, "lr": 1.0}, "out": "a"}
    changed = override(
        tree,
        ["optim.steps=20", "optim.lr=1e-3", "out=off", "new.deep.key=[1, x]", "optim.clip=null", "empty="],
    )
    assert changed == {
        "optim": {"steps": 20, "lr": 1e-3, "clip": None}, "out": "off", "new": {"deep": {"key": [1, "x"]}}, "empty": "",
    }  # fmt: skip
    assert tree == {"optim": {"steps": 10, "lr": 1.0}, "out": "a"}
    assert override(tree, ["optim={steps: 3}"])["optim"] == {"steps": 3, "lr": 1.0}
    assert override(tree, ["out=a=b"])["out"] == "a=b"


@pytest.mark.parametrize("text", ["optim.steps", "=3", "a..b=1", ".a=1", "a.=1"])
def test_what_is_no_override(text: str) -> None:
    with pytest.raises(ConfigError, match="path=value"):
        override({}, [text])


def test_an_override_through_something_that_is_no_mapping() -> None:
    with pytest.raises(ConfigError, match=r"optim\.steps: 10 is not a mapping, so more"):
        override({"optim": {"steps": 10}}, ["optim.steps.more=1"])
    with pytest.raises(ConfigError, match=r"many: \[1\] is not a mapping"):
        override({"many": [1]}, ["many.0=2"])
    with pytest.raises(ConfigError, match=r"(?s)optim\.steps: .*line 1"):
        override({}, ["optim.steps=[1"])


def test_merge_rules() -> None:
    mlp = {"kind": "mlp", "activation": "relu"}
    assert merge({"connector": mlp}, {"connector": {"activation": "gelu"}}) == {
        "connector": {"kind": "mlp", "activation": "gelu"}
    }
    assert merge({"connector": mlp}, {"connector": {"kind": "mlp"}}) == {"connector": mlp}
    other = {"kind": "perceiver", "depth": 2}
    assert merge({"connector": mlp}, {"connector": other}) == {
        "connector": other
    }  # nothing of the old kind stays
    assert merge({"a": [1, 2]}, {"a": [3]}) == {"a": [3]}
    assert merge({"a": None}, {"a": {"b": 1}}) == {"a": {"b": 1}}
    assert merge({"a": {"b": 1}}, {"a": None}) == {"a": None}
    assert merge({"part": "mlp"}, {"part": other}) == {"part": other}


trees = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3), max_leaves=6
)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), trees, max_size=3),
    st.dictionaries(st.sampled_from("abcd"), trees, max_size=3),
)
def test_merging_lays_every_leaf_of_the_change_over_the_base(base: Any, change: Any) -> None:  # fmt: skip
    try:
        merged = merge(base, change)
    except ConfigError:
        return
    assert merge(merged, change) == merged
    assert set(merged) == {*base, *change}
    for key in base:
        if key not in change:
            assert merged[key] == base[key]
