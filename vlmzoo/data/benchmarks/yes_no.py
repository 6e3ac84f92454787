"""Questions to be answered by yes or no: POPE, MME."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from vlmzoo.config import Config, ConfigError
from vlmzoo.data.benchmarks.base import BenchmarkConfig, opened, question_row
from vlmzoo.data.sources.base import Rejected, Source, listed_files, picture_folder
from vlmzoo.data.sources.records import read_records
from vlmzoo.types import Row, RowError

PICTURES = (".jpg", ".jpeg", ".png")
REQUEST = "Please answer yes or no."  # ends every question of MME's files


def _yes_no(answer: Any) -> str:
    """Raises RowError where it is neither."""
    plain = answer.strip().lower().rstrip(".") if isinstance(answer, str) else ""
    if plain not in ("yes", "no"):
        raise RowError(f"the answer is {answer!r}; wanted yes or no")
    return plain


class PopeData(BenchmarkConfig):
    """``data: {kind: pope, path: coco, images: val2014}``: is this object there? (Li et al. 2023).

    Attributes:
        path: a file, a folder or a glob of ``coco_pope_random.json``, ``..._popular``, ``..._adversarial``.
    """

    kind: Literal["pope"] = "pope"
    picture: str = "{image}"

    def open(self) -> Source:
        """The source; ids are ``<file>/<question_id>``, as the files count each from 1.

        Raises:
            ConfigError: no such file or folder, files about several data sets, no usable record.
        """
        files = listed_files(self.path, "*pope*.json")
        makers = sorted({file.stem.rpartition("_")[0] for file in files})
        if len(makers) > 1:
            raise ConfigError(
                f"data.path {self.path}: files of several data sets ({', '.join(makers)}); give a glob of one"
            )
        rejected: Rejected = []

        def records() -> Iterator[tuple[str, Any]]:
            for file in files:
                for number, record in read_records(str(file), rejected):
                    if not isinstance(record, Mapping):
                        rejected.append((f"{file.stem}/{number}", "no record"))
                        continue
                    yield f"{file.stem}/{record.get('question_id', number)}", record

        def to_row(record: Any, name: str) -> Row:
            answer = _yes_no(record["label"])
            own = name.rpartition("/")[2]
            return question_row(
                "pope", name, record["text"], [self.entry(record)], answer,
                answer=answer, category=name.partition("/")[0].rpartition("_")[2], aliases=[own],
            )  # fmt: skip

        return opened(self.path, picture_folder(self.images, files[0]), records(), to_row, rejected)


class MmeData(Config):
    """``data: {kind: mme, path: MME_Benchmark}``: two questions a picture (Fu et al. 2023).

    Attributes:
        path: a folder for each category; beside each picture a ``.txt`` of the same name with a question, a tab and its
            answer a line. Pictures may lie in ``images``, texts in ``questions_answers_YN`` of the category.
        request: ``file`` keeps the files' "Please answer yes or no." after each question; ``none`` leaves it out, as
            LLaVA-1.5's evaluation does, which asks for a short answer instead.
    """

    kind: Literal["mme"] = "mme"
    path: str
    request: Literal["none", "file"] = "none"

    def open(self) -> Source:
        """The source; ids are ``<category>/<picture>/<number>``.

        Raises:
            ConfigError: no such folder, no usable record.
        """
        folder = Path(self.path)
        if not folder.is_dir():
            raise ConfigError(
                f"data.path: no folder {self.path!r}; wanted one with a folder for each category"
            )
        rejected: Rejected = []
        return opened(self.path, folder, self._records(folder, rejected), self._row, rejected)

    def _records(self, folder: Path, rejected: Rejected) -> Iterator[tuple[str, Any]]:
        for texts in sorted([*folder.glob("*/*.txt"), *folder.glob("*/questions_answers_YN/*.txt")]):
            category = texts.relative_to(folder).parts[0]
            beside = [texts.parent, folder / category / "images"]
            pictures = [there / f"{texts.stem}{end}" for there in beside for end in PICTURES]
            picture = next((file for file in pictures if file.is_file()), None)
            if picture is None:
                rejected.append((str(texts.relative_to(folder)), "no picture of this name"))
                continue
            lines = texts.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            for number, line in enumerate(filter(None, map(str.strip, lines)), 1):
                own = f"{category}/{picture.name}"
                record = {"line": line, "category": category, "own": own, "path": picture.relative_to(folder)}
                yield f"{own}/{number}", record

    def _row(self, record: Any, name: str) -> Row:
        question, tab, answer = record["line"].rpartition("\t")
        if not tab:
            raise RowError(f"wanted a question, a tab and its answer, got {record['line'][:100]!r}")
        answer, question = _yes_no(answer), question.strip()
        if self.request == "none":
            question = question.removesuffix(REQUEST).strip()
        return question_row(
            "mme", name, question, [{"path": str(record["path"])}], answer.capitalize(),
            answer=answer, category=record["category"], picture=record["own"], aliases=[record["own"]],
        )  # fmt: skip
