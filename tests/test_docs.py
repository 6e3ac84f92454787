"""The guide pages say what is so: their code runs, their commands and config keys exist, the site builds."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from vlmzoo import registry
from vlmzoo.cli import app
from vlmzoo.config import load_yaml, merge, override, parse_yaml, read
from vlmzoo.run import RunConfig, read_tasks

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "pages"
GUIDES = sorted(PAGES.glob("*.md"))
TEXTS = [*GUIDES, ROOT / "README.md"]
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>.+?) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```", re.M | re.S
)
COMMANDS = typer.main.get_command(app)
REPLACED = {"model", "learn", "streams"}  # sections of a run file that a piece stands in for, not beside


def blocks(page: Path, language: str) -> list[tuple[str, str | None]]:
    """Code of a page's blocks in one language, each with why it is not run, if it is not."""
    text = page.read_text(encoding="utf-8")
    return [(m["code"], m["why"]) for m in BLOCK.finditer(text) if m["language"] == language]


class _Loader(yaml.SafeLoader):
    """Takes mkdocs' own tags as text."""


_Loader.add_constructor("!relative", lambda loader, node: loader.construct_scalar(node))


def site() -> Any:
    return yaml.load((ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8"), Loader=_Loader)


@pytest.fixture
def _own_registry() -> Iterator[None]:
    """What a page registers is gone after it."""
    before = {family: dict(table) for family, table in registry._TABLES.items()}
    yield
    for family, table in registry._TABLES.items():
        table.clear()
        table.update(before[family])


@pytest.mark.parametrize(
    "page", [page for page in TEXTS if blocks(page, "python")], ids=lambda page: page.name
)
@pytest.mark.usefixtures("_own_registry")
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page in one namespace, in reading order, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": page.stem}
    ran = 0
    for code, why in blocks(page, "python"):
        compiled = compile(code, f"{page.name}:{code.splitlines()[0]}", "exec", dont_inherit=True)
        if why is None:
            exec(compiled, space)
            ran += 1
    assert ran


def commands(page: Path) -> list[list[str]]:
    """The commands of ours in a page's shell blocks, as words."""
    lines = [line for code, _ in blocks(page, "bash") for line in code.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [_without_imports(line) for line in words if "vlmzoo" in line or "vlmzoo.train" in line]


def _without_imports(line: list[str]) -> list[str]:
    """A command without the option that stands before its name."""
    place = line.index("--imports") if "--imports" in line else len(line)
    return line[:place] + line[place + 2 :]


@pytest.mark.parametrize("page", [page for page in TEXTS if commands(page)], ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    """Every option and argument is one that the command takes; run files exist, changes to them are read."""
    for line in commands(page):
        launched = "vlmzoo.train" in line
        name, *rest = (
            ["train", *line[line.index("vlmzoo.train") + 1 :]]
            if launched
            else line[line.index("vlmzoo") + 1 :]
        )
        command = COMMANDS.commands.get(name)
        assert command, f"{page.name}: no command {name!r} in {shlex.join(line)}"
        context = click.Context(command, info_name=name)
        try:
            given = command.make_parser(context).parse_args(list(rest))[0]
        except click.UsageError as error:
            pytest.fail(f"{page.name}: {shlex.join(line)}: {error.message}")
        for word in rest:
            assert not word.endswith(".yaml") or (ROOT / word).is_file(), f"{page.name}: no file {word}"
        if name in ("train", "eval", "rescore"):
            tree = override(load_yaml(ROOT / given["config"]), given["overrides"] or [])
            if name == "train" or "model" in tree:
                read(RunConfig, tree)
            if name == "rescore":
                assert given["task"] in read_tasks(tree, given["config"]), f"{page.name}: {shlex.join(line)}"


@pytest.mark.parametrize("page", [page for page in TEXTS if blocks(page, "yaml")], ids=lambda page: page.name)
def test_yaml_blocks_read(page: Path) -> None:
    """Pieces of a run file: laid over a whole one, every key and value is valid."""
    whole = load_yaml(ROOT / "configs/llava/tiny.yaml")
    for code, why in blocks(page, "yaml"):
        if why is None:
            piece = parse_yaml(code, page.name)
            base = {key: value for key, value in whole.items() if not (key in REPLACED and key in piece)}
            for name, stream in piece.get("streams", {}).items():
                under = whole["streams"]["questions"].items()  # its bare values (cache: true) give way
                kept = {key: value for key, value in under if key not in stream or isinstance(value, dict)}
                piece["streams"][name] = merge(kept, stream)
            read(RunConfig, merge(base, piece))


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for label, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), f"{page.name}: [{label}] leads to {target}"
        if anchor and there.suffix == ".md" and there.parent != PAGES / "api":
            heads = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w]+", "-", head.lower()).strip("-") for head in heads}
            assert anchor in slugs, f"{page.name}: no heading #{anchor} in {there.name}"
    for picture in re.findall(r'(?:src|srcset)="([^"]+)"', page.read_text(encoding="utf-8")):
        assert (page.parent / picture).is_file(), f"{page.name}: no picture {picture}"


def test_files_named_in_words_exist() -> None:
    for page in TEXTS:
        text = page.read_text(encoding="utf-8")
        for name in set(re.findall(r"(?:examples|configs|benchmarks|tests)/[\w/.-]+\.(?:py|yaml)", text)):
            assert (ROOT / name).is_file(), f"{page.name} names {name}"


def test_every_page_and_every_module_stands_in_the_site() -> None:
    named = set(re.findall(r"[\w/]+\.md", json.dumps(site()["nav"])))
    assert named == {str(path.relative_to(PAGES)) for path in PAGES.rglob("*.md")}
    shown = {
        name
        for path in (PAGES / "api").glob("*.md")
        for name in re.findall(r"^::: (\S+)", path.read_text(), re.M)
    }
    for path in (ROOT / "vlmzoo").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.stem in ("__init__", "__main__") or not path.read_text(encoding="utf-8").strip():
            continue
        room = ".".join(module.split(".")[:2])
        assert module in shown or room in shown or room in ("vlmzoo.train", "vlmzoo.auto"), (
            f"{module} is in no api page"
        )


@pytest.mark.parametrize("family", registry.families())
def test_every_name_of_a_config_is_told(family: str) -> None:
    """Names in the registry of data sets, tasks and objectives stand in the guide."""
    if family in ("datasets", "tasks", "objectives", "connectors", "fusions"):
        told = "".join(page.read_text(encoding="utf-8") for page in GUIDES)
        own = [name for name in registry.names(family) if _is_shipped(registry.lookup(family, name))]
        assert own and not [name for name in own if f"`{name}`" not in told and f"kind: {name}" not in told]


def _is_shipped(target: object) -> bool:
    """Other tests of the same process may have registered names of theirs."""
    return getattr(target, "__module__", "vlmzoo").split(".")[0] == "vlmzoo"


MANY = 6  # arguments from which a list of them is wanted; with fewer, names and a sentence do


def test_many_arguments_are_explained() -> None:
    """Public functions of many arguments have an Args section, or refer to the one that has it."""
    for path in (ROOT / "vlmzoo").rglob("*.py"):
        if path.name.startswith("cli"):  # there the help of each option is the list
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            arguments = {a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)} - {
                "self",
                "cls",
            }
            told = ast.get_docstring(node) or ""
            explained = "Args:" in told or ":func:" in told or ":class:" in told
            assert len(arguments) < MANY or explained, f"{path}: {node.name}"


@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="needs the extra docs")
def test_site_builds_without_warnings_and_asks_for_nothing_outside(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "-f",
            "docs/mkdocs.yml",
            "-d",
            str(tmp_path / "site"),
        ],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(GUIDES)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="(https?:[^"]+)"', text)
        assert not fetched, f"{page.name} fetches {fetched}"
    reference = (tmp_path / "site/api/compose.html").read_text(encoding="utf-8")
    assert 'id="vlmzoo.compose.build"' in reference and ":func:" not in reference
    options = (tmp_path / "site/api/training.html").read_text(encoding="utf-8")
    for name in (
        "save_every",
        "keep",
        "log_every",
    ):  # written on one line in the source, told one by one here
        assert re.search(rf">{name}</span></code></b>", options), name
