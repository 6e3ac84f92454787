"""Questions with short answers: VQAv2, GQA, TextVQA, VizWiz."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from vlmzoo.config import ConfigError
from vlmzoo.data.benchmarks.base import BenchmarkConfig, named, question_row, read_list, read_mapping
from vlmzoo.data.sources.base import Source
from vlmzoo.data.sources.records import read_json
from vlmzoo.types import Row, RowError


def _annotators(answers: Any) -> list[str]:
    """The texts of annotators' answers, given as texts or as ``{answer: ...}``.

    Raises:
        RowError: there is none.
    """
    texts = [one["answer"] if isinstance(one, Mapping) else one for one in answers or ()]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise RowError("no annotators' answers")
    return texts


def _commonest(answers: list[str]) -> str:
    return Counter(answers).most_common(1)[0][0]


class VqaV2Data(BenchmarkConfig):
    """``data: {kind: vqav2, path: questions.json, annotations: annotations.json, images: val2014}`` (Goyal et al. 2017).

    Attributes:
        path: ``v2_OpenEnded_mscoco_*_questions.json``. annotations: ``v2_mscoco_*_annotations.json``, matched by
            question_id; None for test sets, whose answers are not public.
    """

    kind: Literal["vqav2"] = "vqav2"
    annotations: str | None = None
    picture: str = "COCO_{data_subtype}_{image_id:012d}.jpg"

    def open(self) -> Source:
        """The source; a question without its annotation is rejected.

        Raises:
            ConfigError: no such file or folder, another file, no usable record.
        """
        questions, tree = read_list(self.path, "questions")
        subtype = str(tree.get("data_subtype") or "").replace("test-dev", "test")
        known = self._known()

        def to_row(record: Any, name: str) -> Row:
            entry = self.entry({"data_subtype": subtype, **record})
            if known is None:
                return question_row("vqav2", record["question_id"], record["question"], [entry])
            own = known.get(record["question_id"])
            if own is None:
                raise RowError("this question is not among the annotations")
            answers = _annotators(own["answers"])
            groups = {axis: own[axis] for axis in ("answer_type", "question_type") if own.get(axis)}
            answer = own.get("multiple_choice_answer") or _commonest(answers)
            return question_row(
                "vqav2",
                record["question_id"],
                record["question"],
                [entry],
                answer,
                answers=answers,
                groups=groups,
            )

        return self.rows(named(questions, "question_id"), to_row)

    def _known(self) -> dict[Any, Any] | None:
        if self.annotations is None:
            return None
        found, _ = read_list(self.annotations, "annotations", "data.annotations")
        try:
            return {one["question_id"]: one for one in found}
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"data.annotations {self.annotations}: one without a question_id ({error})"
            ) from None


class GqaData(BenchmarkConfig):
    """``data: {kind: gqa, path: testdev_balanced_questions.json, images: images}`` (Hudson and Manning 2019)."""

    kind: Literal["gqa"] = "gqa"
    picture: str = "{imageId}.jpg"

    def open(self) -> Source:
        """The source, with each question's types and the questions that it entails.

        Raises:
            ConfigError: no such file or folder, another file, no usable record.
        """

        def to_row(record: Any, name: str) -> Row:
            if record.get("answer") is None:
                raise RowError("no answer; the submission and challenge files hold none")
            types = record.get("types") or {}
            groups = {axis: types[axis] for axis in ("structural", "semantic") if types.get(axis)}
            if "structural" in groups:
                groups["form"] = "open" if groups["structural"] == "query" else "binary"
            entailed = [str(other) for other in record.get("entailed") or () if str(other) != name]
            return question_row(
                "gqa", name, record["question"], [self.entry(record)], record["answer"],
                answer=record["answer"], groups=groups, entailed=entailed,
            )  # fmt: skip

        return self.rows(read_mapping(self.path).items(), to_row)


class TextVqaData(BenchmarkConfig):
    """``data: {kind: textvqa, path: TextVQA_0.5.1_val.json, images: train_images}`` (Singh et al. 2019).

    Attributes:
        ocr: ``TextVQA_Rosetta_OCR_v0.2_val.json``: what a reader of text found in each picture is told in the prompt, as
            in LLaVA-1.5's evaluation; None tells nothing.
    """

    kind: Literal["textvqa"] = "textvqa"
    picture: str = "{image_id}.jpg"
    ocr: str | None = None

    def open(self) -> Source:
        """The source; whether text was told stands among each row's groups.

        Raises:
            ConfigError: no such file or folder, another file, no usable record.
        """
        records, _ = read_list(self.path, "data")
        tokens = self._tokens()
        variant = {"prompt": "without_ocr" if tokens is None else "with_ocr"}

        def to_row(record: Any, name: str) -> Row:
            answers = _annotators(record.get("answers"))
            question, picture = record["question"], str(record["image_id"])
            if tokens is not None:
                if picture not in tokens:
                    raise RowError(f"picture {picture!r} is not in data.ocr {self.ocr}")
                question = f"{question}\nReference OCR token: {', '.join(tokens[picture])}"
            row = question_row(
                "textvqa", record["question_id"], question, [self.entry(record)], _commonest(answers),
                answers=answers, groups=variant, aliases=[picture],
            )  # fmt: skip
            return {**row, "truth": {**row["truth"], "question": record["question"]}}

        return self.rows(named(records, "question_id"), to_row)

    def _tokens(self) -> dict[str, list[str]] | None:
        if self.ocr is None:
            return None
        records, _ = read_list(self.ocr, "data", "data.ocr")
        try:
            return {str(one["image_id"]): [str(token) for token in one["ocr_tokens"]] for one in records}
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"data.ocr {self.ocr}: a record without image_id or ocr_tokens ({error})"
            ) from None


class VizWizData(BenchmarkConfig):
    """``data: {kind: vizwiz, path: val.json, images: val}`` (Gurari et al. 2018); ``test.json`` has no answers."""

    kind: Literal["vizwiz"] = "vizwiz"
    picture: str = "{image}"

    def open(self) -> Source:
        """The source; ids are the names of the pictures.

        Raises:
            ConfigError: no such file or folder, another file, no usable record.
        """
        records = read_json(self.path)
        if not isinstance(records, list):
            raise ConfigError(
                f"data.path {self.path}: wanted a list of questions, got {type(records).__name__}"
            )

        def to_row(record: Any, name: str) -> Row:
            answers = _annotators(record["answers"]) if record.get("answers") is not None else None
            groups = {"answer_type": record["answer_type"]} if record.get("answer_type") else None
            return question_row(
                "vizwiz", record["image"], record["question"], [self.entry(record)],
                _commonest(answers) if answers else None, answers=answers, groups=groups,
            )  # fmt: skip

        return self.rows(named(records, "image"), to_row)
