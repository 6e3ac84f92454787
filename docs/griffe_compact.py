"""Docstrings as the house writes them, opened up for the reference: several arguments on a line, Sphinx roles.

``tokenizer: a name. template: how turns are written.`` is one line in the source and two entries in the reference;
``VerbError, ConfigError: ...`` likewise; ``:func:`vlmzoo.build``` becomes a link. Used by ``mkdocs.yml`` only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from griffe import Alias, Extension, Object

SECTIONS = ("Args:", "Attributes:", "Raises:")
ROLE = re.compile(r":(?:func|class|meth|mod|attr):`~?([\w.]+)`")
ERROR = re.compile(r"[A-Z]\w*(?:Error|Exception|Interrupted)")
ENTRY = re.compile(r"(?:^|(?<=[.;)`\]]) )((?:\*{0,2}\w+)(?:, \*{0,2}\w+)*): ")


def opened(text: str, names: set[str]) -> str:
    """A docstring with one entry a line.

    Args:
        text: the docstring. names: of the arguments and attributes that entries may be about.
    """
    lines: list[str] = []
    section = ""
    for line in roles(text).split("\n"):
        if line.strip() in SECTIONS:
            section = line.strip()
        elif line.strip() and not line.startswith(" "):
            section = ""
        lines.extend(
            entries(line, names, section == "Raises:") if section and line.startswith(" ") else [line]
        )
    return "\n".join(lines)


def entries(line: str, names: set[str], errors: bool) -> Iterator[str]:
    """The entries that stand on one line of a section; a line that begins none goes on as it is."""
    body = line.strip()
    indent = line[: len(line) - len(line.lstrip())]
    found = [match for match in ENTRY.finditer(body) if known(match[1], names, errors)]
    if not found:
        yield line
        return
    if found[0].start():
        yield indent + body[: found[0].start()]
    ends = [*(match.start() for match in found[1:]), len(body)]
    for match, end in zip(found, ends, strict=True):
        told = body[match.end() : end].strip()
        for name in match[1].split(", "):
            yield f"{indent[:4]}{name}: {told}"


def known(words: str, names: set[str], errors: bool) -> bool:
    """Whether all words before a colon are arguments (or errors, in that section)."""
    split = words.replace("*", "").split(", ")
    return all(ERROR.fullmatch(word) for word in split) if errors else set(split) <= names


def roles(text: str) -> str:
    """Sphinx roles as Markdown: whole paths are links, other names are code. ``[a][b]`` in words is no link."""
    pieces = text.split("`")
    pieces[::2] = [words.replace("][", "]\\[") for words in pieces[::2]]
    return ROLE.sub(
        lambda m: f"[`{m[1]}`][{m[1]}]" if m[1].startswith("vlmzoo.") else f"`{m[1]}`", "`".join(pieces)
    )


class Compact(Extension):
    """Opens every docstring of a package."""

    def on_package(self, *, pkg: Any, **kwargs: Any) -> None:
        """Called by griffe once the package is read."""
        for item in walk(pkg):
            if item.docstring is None:
                continue
            names = {p.name for p in getattr(item, "parameters", ())}
            if item.is_class:
                names |= set(item.members)
                start = item.members.get("__init__")
                names |= {p.name for p in getattr(start, "parameters", ())}
            item.docstring.value = opened(item.docstring.value, names)


def walk(item: Any) -> Iterator[Object]:
    """An object and everything defined in it."""
    yield item
    for member in item.members.values():
        if not isinstance(member, Alias):
            yield from walk(member)
