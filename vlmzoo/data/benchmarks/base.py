"""What the readers of benchmarks share: files of one shape, pictures by pattern, rows of questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from vlmzoo.config import Config, ConfigError, nearest
from vlmzoo.data.sources.base import Rejected, Rows, Source, convert, picture_folder
from vlmzoo.data.sources.records import read_json
from vlmzoo.data.sources.shapes import place, said
from vlmzoo.processing.response_formats import with_options
from vlmzoo.types import Row, RowError


class BenchmarkConfig(Config):
    """What every benchmark's files are told by.

    Attributes:
        path: the file of questions. images: folder that picture paths start from; the file's own folder by default.
        picture: where a question's picture lies in it, written with the names of the record's fields in braces.
    """

    path: str
    images: str | None = None
    picture: str

    def rows(self, records: Iterable[tuple[str, Any]], to_row: Callable[[Any, str], Row]) -> Source:
        """:func:`opened` with this config's files."""
        return opened(self.path, picture_folder(self.images, self.path), records, to_row)

    def entry(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The picture of a record.

        Raises:
            RowError: the pattern names a field that it lacks.
        """
        return {"path": written(self.picture, record)}


def opened(
    path: str,
    root: Path | None,
    records: Iterable[tuple[str, Any]],
    to_row: Callable[[Any, str], Row],
    rejected: Rejected | None = None,
) -> Source:
    """The source of (name, record) pairs; records that are no rows, and names that come again, are ``rejected``.

    Raises:
        ConfigError: no usable record.
    """
    rejected = [] if rejected is None else rejected
    return Rows(_once(convert(records, to_row, rejected), rejected), root, rejected, f"data.path {path}")


def named(records: Iterable[Any], key: str) -> Iterator[tuple[str, Any]]:
    """Records by one of their fields, or by their place where they lack it."""
    for number, record in enumerate(records):
        known = isinstance(record, Mapping) and record.get(key) is not None
        yield str(record[key] if known else number), record


def written(pattern: str, record: Mapping[str, Any]) -> str:
    """A pattern with a record's fields in its braces.

    Raises:
        RowError: no such field, or one that cannot be written so.
    """
    try:
        return pattern.format(**record)
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        fields = ", ".join(map(str, record))
        raise RowError(f"picture {pattern!r}: {type(error).__name__} {error}; fields: {fields}") from None


def _once(rows: Iterator[Row], rejected: Rejected) -> Iterator[Row]:
    seen: set[str] = set()
    for row in rows:
        if row["id"] in seen:
            rejected.append((row["id"], "this id stands twice"))
            continue
        seen.add(row["id"])
        yield row


def read_list(path: str, key: str, where: str = "data.path") -> tuple[list[Any], Mapping[str, Any]]:
    """The list under a key of a json file, and the whole.

    Raises:
        ConfigError: no such file, not json, no such list: another file.
    """
    tree = read_json(path, where)
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{where} {path}: wanted a mapping with {key!r}, got {type(tree).__name__}")
    if not isinstance(tree.get(key), list):
        raise ConfigError(f"{where} {path}: no list {key!r}; {nearest(key, tree)}")
    return tree[key], tree


def read_mapping(path: str | Path, where: str = "data.path") -> Mapping[str, Any]:
    """A json file of records by name.

    Raises:
        ConfigError: no such file, not json, no mapping.
    """
    tree = read_json(path, where)
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{where} {path}: wanted records by their ids, got {type(tree).__name__}")
    return tree


def question_row(
    source: str,
    name: Any,
    question: Any,
    pictures: Sequence[dict[str, Any]],
    reply: Any = None,
    **truth: Any,
) -> Row:
    """A question about pictures, and its answer where it is known.

    Args:
        source: which benchmark. name: the row's id. reply: what the assistant is to say. truth: what is known; fields
            that are None are left out.

    Raises:
        RowError: the question or the reply is no text.
    """
    parts = [*[place("user")] * len(pictures), said("user", question)]
    if reply is not None:
        parts.append(said("assistant", reply))
    known = {"question": question, **truth}
    return {
        "images": list(pictures),
        "parts": parts,
        "label": None,
        "id": str(name),
        "source": source,
        "truth": {key: value for key, value in known.items() if value is not None},
    }


def choice_row(
    source: str,
    name: Any,
    question: str,
    pictures: Sequence[dict[str, Any]],
    choices: Sequence[str],
    right: int | None,
    **truth: Any,
) -> Row:
    """A question with options, answered by the letter of one.

    Args:
        source: which benchmark. name: the row's id. question: without its options. choices: at least two. right: the
            number of the right one, None where that is not known. truth: what else is known.

    Raises:
        RowError: fewer than two options, more than there are letters, or ``right`` is none of them.
    """
    if len(choices) < 2:
        raise RowError(f"{len(choices)} options to choose from")
    if right is not None and not 0 <= right < len(choices):
        raise RowError(f"the answer is option {right}, and there are {len(choices)} from 0 on")
    letter = None if right is None else ascii_uppercase[right]
    row = question_row(source, name, with_options(question, choices), pictures, letter, **truth)
    known = {} if right is None else {"answer": choices[right], "letter": letter}
    return {**row, "truth": {**row["truth"], "question": question, "choices": list(choices), **known}}


def letter_number(letter: Any, choices: Sequence[str]) -> int:
    """The number of the option that a letter names.

    Raises:
        RowError: it names none.
    """
    letters = ascii_uppercase[: len(choices)]
    if not isinstance(letter, str) or len(letter.strip()) != 1 or letter.strip() not in letters:
        raise RowError(f"the answer {letter!r} is none of {', '.join(letters)}")
    return letters.index(letter.strip())
