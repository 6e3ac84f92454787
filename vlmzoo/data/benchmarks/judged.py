"""Open questions whose answers another model judges: LLaVA-Bench (in the wild), MM-Vet."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vlmzoo.config import ConfigError, nearest_file
from vlmzoo.data.benchmarks.base import BenchmarkConfig, named, question_row, read_mapping
from vlmzoo.data.sources.base import Source
from vlmzoo.data.sources.records import read_records
from vlmzoo.types import Row, RowError


class LlavaWildData(BenchmarkConfig):
    """``data: {kind: llava_wild, path: questions.jsonl, images: images}``: 60 questions on 24 pictures (Liu et al. 2023).

    Attributes:
        context: ``context.jsonl``, which describes each picture for a judge that does not see it.
        references: ``answers_gpt4.jsonl``, the answers that a model's are compared with.
    """

    kind: Literal["llava_wild"] = "llava_wild"
    picture: str = "{image}"
    context: str
    references: str

    def open(self) -> Source:
        """The source, grouped by category.

        Raises:
            ConfigError: no such file or folder, not json, no usable record.
        """
        contexts = _texts(self.context, "image", "caption", "data.context")
        references = _texts(self.references, "question_id", "text", "data.references")

        def to_row(record: Any, name: str) -> Row:
            key = str(record["question_id"])
            if str(record["image"]) not in contexts:
                raise RowError(f"picture {record['image']!r} is not in data.context {self.context}")
            if key not in references:
                raise RowError(f"question {key} is not in data.references {self.references}")
            return question_row(
                "llava_wild", key, record["text"], [self.entry(record)], references[key],
                context=contexts[str(record["image"])], answer=references[key],
                groups={"category": record.get("category")},
            )  # fmt: skip

        records = [record for _, record in _strict(self.path, "data.path")]
        return self.rows(named(records, "question_id"), to_row)


def _strict(path: str, where: str) -> list[tuple[str, Any]]:
    """All records of a small file; raises ConfigError where it is not there, or a line is no json."""
    if not Path(path).is_file():
        raise ConfigError(f"{where}: no file {path!r}; {nearest_file(Path(path), '*.json*')}")
    broken: list[tuple[str, str]] = []
    found = list(read_records(path, broken))
    if broken:
        raise ConfigError(f"{where} {path}: {broken[0][0]}: {broken[0][1]}")
    return found


def _texts(path: str, key: str, text: str, where: str) -> dict[str, str]:
    """A file's texts by one of its fields; raises ConfigError naming the file."""
    try:
        return {str(record[key]): str(record[text]) for _, record in _strict(path, where)}
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{where} {path}: a record without {key} or {text} ({error})") from None


class MmVetData(BenchmarkConfig):
    """``data: {kind: mm_vet, path: mm-vet.json, images: images}`` (Yu et al. 2024)."""

    kind: Literal["mm_vet"] = "mm_vet"
    picture: str = "{imagename}"

    def open(self) -> Source:
        """The source, grouped by the capabilities that a question needs, and by all of them together.

        Raises:
            ConfigError: no such file or folder, another file, no usable record.
        """

        def to_row(record: Any, name: str) -> Row:
            needed = sorted(str(one) for one in record["capability"])
            if not needed:
                raise RowError("no capability")
            return question_row(
                "mm_vet", name, record["question"], [self.entry(record)], record["answer"], answer=record["answer"],
                groups={"capability": needed, "integration": "+".join(needed)}, aliases=[name.removeprefix("v1_")],
            )  # fmt: skip

        return self.rows(read_mapping(self.path).items(), to_row)
