"""Questions with options: ScienceQA, MMBench, SEED-Bench."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from vlmzoo.config import Config, ConfigError, nearest, nearest_file
from vlmzoo.data.benchmarks.base import (
    BenchmarkConfig,
    choice_row,
    letter_number,
    named,
    opened,
    read_list,
    read_mapping,
    written,
)
from vlmzoo.data.sources.base import Source
from vlmzoo.types import Row, RowError

SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
COPY = 1_000_000  # MMBench's files number a question's copies with turned options by steps of this
REFERENCE = 64  # most characters of a field that names the question whose picture is meant
FIELD = 1 << 30  # longest field of a table, in characters: a picture is one


class ScienceQaData(BenchmarkConfig):
    """``data: {kind: scienceqa, path: problems.json, images: images}`` (Lu et al. 2022).

    Attributes:
        splits: ``pid_splits.json``; beside ``path`` by default. split: a name in it. subset: ``images``: only the
            problems with a picture (ScienceQA-IMG).
    """

    kind: Literal["scienceqa"] = "scienceqa"
    picture: str = "{split}/{pid}/{image}"
    splits: str | None = None
    split: str = "test"
    subset: Literal["all", "images"] = "all"

    def open(self) -> Source:
        """The source: hint, question and options are what the user says.

        Raises:
            ConfigError: no such file, folder or split, no usable record.
        """
        problems = read_mapping(self.path)
        where = self.splits or str(Path(self.path).with_name("pid_splits.json"))
        splits = read_mapping(where, "data.splits")
        if self.split not in splits:
            raise ConfigError(f"data.split: no {self.split!r} in {where}; {nearest(self.split, splits)}")

        def to_row(record: Any, name: str) -> Row:
            if record is None:
                raise RowError(f"{name!r} of split {self.split!r} is not among the problems")
            pictures = [self.entry({"pid": name, **record})] if record.get("image") else []
            hint = str(record.get("hint") or "").strip()
            question = f"Context: {hint}\n{record['question']}" if hint else record["question"]
            context = [kind for kind, there in (("TXT", hint), ("IMG", pictures)) if there] or ["NO"]
            groups = {
                "subject": SUBJECTS.get(record.get("subject"), record.get("subject")),
                "context": context,
            }
            grade = str(record.get("grade") or "").removeprefix("grade")
            if grade.isdecimal():
                groups["grade"] = "G1-6" if int(grade) <= 6 else "G7-12"
            return choice_row(
                "scienceqa", name, question, pictures, [str(one) for one in record["choices"]], record["answer"],
                groups=groups,
            )  # fmt: skip

        wanted = ((str(name), problems.get(str(name))) for name in splits[self.split])
        if self.subset == "images":
            wanted = (pair for pair in wanted if pair[1] is None or _field(pair[1], "image"))
        return self.rows(wanted, to_row)


class MmBenchData(Config):
    """``data: {kind: mmbench, path: mmbench_dev.tsv}`` (Liu et al. 2024): a table that holds its pictures.

    One row a question. Copies with turned options that a file holds (numbered by steps of 1,000,000) stand in the truth
    of their question, as ``copies``.
    """

    kind: Literal["mmbench"] = "mmbench"
    path: str

    def open(self) -> Source:
        """The source; rows of a test file have no answers.

        Raises:
            ConfigError: no such file, not such a table, no usable record.
        """
        copies: dict[str, list[dict[str, str]]] = {}
        borrowed: set[str] = set()
        for line in self._lines():  # once without keeping pictures, so that copies are known
            if len(line["image"]) <= REFERENCE:
                borrowed.add(line["image"])
            if _is_copy(line["index"]):
                copies.setdefault(str(int(line["index"]) % COPY), []).append({**line, "image": ""})
        pictures = {line["index"]: line["image"] for line in self._lines() if line["index"] in borrowed}

        def to_row(line: Any, name: str) -> Row:
            data = line["image"]
            data = pictures.get(data, "") if len(data) <= REFERENCE else data
            hint = line.get("hint") or ""
            question = f"{hint}\n{line['question']}" if hint else line["question"]
            found = _options(line)
            groups = {axis: line[axis] for axis in ("category", "l2-category") if line.get(axis)}
            return choice_row(
                "mmbench", name, question, [{"bytes": _picture(data)}], found["choices"], found["right"],
                groups=groups, copies=[{"id": one["index"], **_options(one)} for one in copies.get(name, ())] or None,
            )  # fmt: skip

        base = ((line["index"], line) for line in self._lines() if not _is_copy(line["index"]))
        return opened(self.path, None, base, to_row)

    def _lines(self) -> Iterator[dict[str, str]]:
        """The lines of the table; what is empty, or pandas' ``nan``, is ''."""
        file = Path(self.path)
        if not file.is_file():
            raise ConfigError(f"data.path: no file {self.path!r}; {nearest_file(file, '*.tsv')}")
        csv.field_size_limit(FIELD)
        with file.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines, delimiter="\t")
            missing = {"index", "question", "image", "A", "B"} - set(table.fieldnames or ())
            if missing:
                named = ", ".join(name[:40] for name in table.fieldnames or ())
                raise ConfigError(
                    f"data.path {self.path}: no column {', '.join(sorted(missing))}; there are: {named}"
                )
            for line in table:
                plain = {key: str(value or "").strip() for key, value in line.items() if key}
                yield {key: "" if value == "nan" else value for key, value in plain.items()}


def _field(record: Any, name: str) -> Any:
    """A field that rows are chosen by; None where there is none, which is for the row's own check to tell."""
    return record.get(name) if isinstance(record, Mapping) else None


def _is_copy(index: str) -> bool:
    return index.isdecimal() and int(index) >= COPY


def _options(line: Mapping[str, str]) -> dict[str, Any]:
    """Options and the number of the right one (None in a test file); raises RowError where it is none of them."""
    texts = [line.get(letter) or "" for letter in "ABCDEFGH"]
    choices = list(filter(None, texts))
    if any(texts[len(choices) :]):
        raise RowError(f"an option stands behind an empty one: {texts}")
    return {
        "choices": choices,
        "right": letter_number(line["answer"], choices) if line.get("answer") else None,
    }


def _picture(data: str) -> bytes:
    try:
        found = base64.b64decode(data, validate=True)
    except ValueError as error:
        raise RowError(f"the picture is no base64: {error}") from None
    if not found:
        raise RowError("no picture")
    return found


class SeedBenchData(BenchmarkConfig):
    """``data: {kind: seed_bench, path: SEED-Bench.json, images: SEED-Bench-image}`` (Li et al. 2023).

    Attributes:
        video_picture: where a frame of a video question's video lies in ``images``, written like ``picture`` (LLaVA-1.5
            looks at the middle frame alone); None leaves the questions about videos out.
    """

    kind: Literal["seed_bench"] = "seed_bench"
    picture: str = "{data_id}"
    video_picture: str | None = None

    def open(self) -> Source:
        """The source, grouped by the dimension that a question belongs to.

        Raises:
            ConfigError: no such file or folder, another file, no usable record.
        """
        records, tree = read_list(self.path, "questions")
        types = tree.get("question_type") or {}
        names = {number: str(name) for name, number in types.items()}
        if self.video_picture is None:
            records = [record for record in records if _field(record, "data_type") != "video"]

        def to_row(record: Any, name: str) -> Row:
            video = record.get("data_type") == "video"
            path = written(str(self.video_picture), record) if video else self.entry(record)["path"]
            choices = [str(record[f"choice_{letter}"]) for letter in "abcd"]
            dimension = names.get(record["question_type_id"], str(record["question_type_id"]))
            return choice_row(
                "seed_bench", record["question_id"], record["question"], [{"path": path}], choices,
                letter_number(record["answer"], choices),
                groups={"dimension": dimension, "medium": "video" if video else "image"},
            )  # fmt: skip

        return self.rows(named(records, "question_id"), to_row)
