"""The house rules, read from the code: floors, no cycles, words that belong to one floor, sizes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "vlmzoo"
FLOORS: dict[str, int] = {
    "types": 0, "config": 0, "registry": 0, "distributed": 0, "endpoint": 0, "imports": 0,
    "nn": 1, "processing": 1,
    "models": 2, "objectives": 2, "data": 2,
    "compose": 3, "training": 3, "evaluate": 3,
    "methods": 4, "hub": 4, "chat": 4,
    "hub.files": 0, "hub.table": 0, "hub.projector": 1,  # tensors in files under anybody's names; no model, no layout
    "run_file": 5, "folders": 5, "terminal": 5, "web": 5,
    "run": 6,
    "experiment": 7, "train": 7, "cli": 7, "cli_instruct": 7, "cli_evaluate": 7, "cli_packing": 7, "cli_parts": 7, "__main__": 7, "auto": 7, "__init__": 7,
}  # fmt: skip
DOORS = FLOORS["__init__"]
NEVER = {  # room -> rooms it may not import even though they lie lower
    "training": {"models", "objectives", "data", "compose", "evaluate", "nn", "processing"},
    "objectives": {"models", "data"},
    "data": {"models", "objectives"},
}
LONG_FUNCTIONS: dict[str, str] = {}  # "file:function" -> reason
LONG_FILES: dict[str, str] = {}
RANK_WORDS = {
    "get_rank",
    "get_world_size",
    "local_rank",
    "process_index",
    "is_main_process",
    "num_processes",
    "all_reduce",
    "all_gather",
}
MODEL_WORDS = (
    "llava",
    "flamingo",
    "blip",
    "clip_tiny",
    "siglip",
    "visionlm",
    "vision_lm",
    "dual_encoder",
    "dualencoder",
    "perceiver",
)
FILES = sorted(ROOT.rglob("*.py"))


def module(path: Path) -> str:
    return ".".join(("vlmzoo", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def room(name: str) -> str:
    parts = name.split(".")[1:]
    inner = ".".join(parts[:2])
    return inner if inner in FLOORS else parts[0] if parts else "__init__"


def imports(path: Path) -> set[str]:
    """Modules of vlmzoo imported anywhere in a file; imports for type checkers only are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "vlmzoo"}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vlmzoo":
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(
                    inner
                    if (ROOT.parent / (inner.replace(".", "/") + ".py")).is_file()
                    or (ROOT.parent / inner.replace(".", "/")).is_dir()
                    else node.module
                )
    return found


@pytest.mark.parametrize("path", FILES, ids=module)
def test_floors(path: Path) -> None:
    own = room(module(path))
    assert own in FLOORS, f"{path} stands on no floor; add it to FLOORS"
    for target in imports(path):
        there = room(target)
        if there == own:
            continue
        if (
            there == "__init__"
        ):  # the package itself: only the door floor may ask it for more than its registry
            assert FLOORS[own] == DOORS, f"{module(path)} imports the package root"
            continue
        lower = (
            FLOORS[there] < FLOORS[own]
            or (FLOORS[own] == FLOORS[there] == 0)
            or (FLOORS[own] == FLOORS[there] == DOORS)
        )
        assert lower, f"{module(path)} (floor {FLOORS[own]}) imports {target} (floor {FLOORS[there]})"
        assert there not in NEVER.get(own, ()), f"{module(path)} must never import {target}"


def test_no_cycles() -> None:
    graph = {module(path): imports(path) for path in FILES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "import cycle: " + " -> ".join((*trail[trail.index(name) :], name))
        if name in done:
            return
        for target in graph.get(name, ()):
            visit(target, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", sorted((ROOT / "training").glob("*.py")), ids=module)
def test_training_knows_no_model(path: Path) -> None:
    text = path.read_text(encoding="utf-8").lower()
    assert not [word for word in MODEL_WORDS if word in text]


@pytest.mark.parametrize("path", FILES, ids=module)
def test_words_of_one_floor(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {
        n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)
    }
    if module(path) != "vlmzoo.distributed":
        assert not names & RANK_WORDS, f"{path}: rank words belong to distributed.py: {names & RANK_WORDS}"
    if module(path) != "vlmzoo.cli":
        assert "print" not in names, f"{path} prints"


STOCK_MODELS = (
    "LlavaForConditionalGeneration",
    "BlipForConditionalGeneration",
    "BlipModel",
    "IdeficsForVisionText2Text",
    "CLIPModel",
    "AutoModelForImageTextToText",
)


@pytest.mark.parametrize("path", [p for p in FILES if room(module(p)) not in ("hub", "auto")], ids=module)
def test_compositions_are_our_own(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {
        n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)
    }
    assert not names & set(STOCK_MODELS)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_sizes_and_types(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    name = str(path.relative_to(ROOT))
    assert len(text.splitlines()) <= 500 or name in LONG_FILES, f"{name} has {len(text.splitlines())} lines"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        length = (node.end_lineno or 0) - node.lineno + 1
        assert length <= 60 or f"{name}:{node.name}" in LONG_FUNCTIONS, (
            f"{name}:{node.name} has {length} lines"
        )
        untyped = [
            a.arg
            for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            if a.annotation is None and a.arg not in ("self", "cls")
        ]
        assert not untyped and (node.returns is not None), (
            f"{name}:{node.name} is not typed: {untyped or 'return'}"
        )


@pytest.mark.parametrize("path", [p for p in FILES if p.read_text(encoding="utf-8").strip()], ids=module)
def test_public_things_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path} has no module docstring"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"
