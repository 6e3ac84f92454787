"""The report of examples/quickstart.py: headline tables from the runs' result files, and a page about every run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlmzoo.data.scenes import ANSWERS
from vlmzoo.evaluate.report import RunPage, Table

OUT = Path("runs/quickstart")
CLIP, STAGE_0, STAGE_1, LLAVA, BLIND, EXPORT, LANGUAGE, FLAMINGO = (
    OUT / name
    for name in (
        "clip", "llava-stage0", "llava-stage1", "llava", "llava-text-only", "llava-hf", "flamingo-language", "flamingo",
    )
)  # fmt: skip
Cells = dict[str, Any]


def result(folder: Path, when: str, task: str) -> dict[str, Any]:
    """A task's result file."""
    return json.loads((folder / "results" / when / f"{task}.json").read_text(encoding="utf-8"))


def encoder_table() -> Table:
    """The contrastive encoder: zero-shot classes and retrieval."""
    zero, pairs = result(CLIP, "after", "zero_shot")["metrics"], result(CLIP, "after", "retrieval")["metrics"]
    rows: list[Cells] = [
        {"measure": "zero-shot accuracy, 64 classes", "value": zero["accuracy"], "chance": zero["chance"]},
        {"measure": "picture to text R@1", "value": pairs["image_to_text_r1"], "chance": pairs["chance_r1"]},
        {"measure": "text to picture R@1", "value": pairs["text_to_image_r1"], "chance": pairs["chance_r1"]},
    ]
    return Table("Encoder on the test split", rows)


def llava_table() -> Table:
    """LLaVA by kind of question beside its controls."""
    before, after, blind = (
        result(folder, when, "vqa")
        for folder, when in ((LLAVA, "before"), (LLAVA, "after"), (BLIND, "after"))
    )
    without = {row["kind"]: row["accuracy"] for row in blind["table"]}
    untrained = {row["kind"]: row["accuracy"] for row in before["table"]}
    rows: list[Cells] = [
        {
            "kind": row["kind"], "LLaVA": row["accuracy"], "before training": untrained[row["kind"]],
            "text-only control": without[row["kind"]], "pictures swapped": row["swapped"], "chance": row["chance"],
        }
        for row in after["table"]
    ]  # fmt: skip
    whole: Cells = {
        "kind": "all", "LLaVA": after["metrics"]["accuracy"], "before training": before["metrics"]["accuracy"],
        "text-only control": blind["metrics"]["accuracy"], "pictures swapped": after["metrics"]["accuracy_swapped"],
        "chance": after["metrics"]["chance"],
    }  # fmt: skip
    note = f"Accuracy of short answers on {after['n']} test questions; the control is the same model, rows and steps with grey pictures."
    return Table("LLaVA: does it look?", [*rows, whole], note)


def caption_table() -> Table:
    """Flamingo's captions, attribute by attribute, beside those of other rows' pictures."""
    found, swapped = (result(FLAMINGO, "after", task) for task in ("captions", "captions_swapped"))
    control = {row["attribute"]: row["accuracy"] for row in swapped["table"]}
    rows: list[Cells] = [
        {
            "caption names the": row["attribute"], "Flamingo": row["accuracy"], "Flamingo_stderr": row["stderr"],
            "pictures swapped": control[row["attribute"]], "chance": 1 / len(ANSWERS[row["attribute"]]),
        }
        for row in found["table"]
        if row["attribute"] in ANSWERS
    ]  # fmt: skip
    note = (
        f"What the captions of {found['n']} test pictures of one shape get right; the language model is frozen "
        "and was trained on text alone."
    )
    return Table("Flamingo: captions", rows, note)


def shots_table() -> Table:
    """Flamingo's accuracy by the number of examples before the query, beside other rows' pictures."""
    found, swapped = (result(FLAMINGO, "after", task) for task in ("few_shot", "few_shot_swapped"))
    rows: dict[str, Cells] = {}
    for line in found["table"]:
        row = rows.setdefault(line["task"], {"name the": line["task"]})
        name = f"{line['shots']} examples" if line["shots"] != 1 else "1 example"
        row |= {name: line["accuracy"], f"{name}_stderr": line["stderr"]}
    for line in swapped["table"]:
        rows[line["task"]] |= {
            f"{line['shots']}, pictures swapped": line["accuracy"], "chance": line["chance"],
        }  # fmt: skip
    note = (
        "Which of the three to name stands nowhere in words: only the pictures with answers before the query tell, and "
        "one in four of them names something else. Without examples the model cannot know what is asked, and captions."
    )
    return Table("Flamingo: a task told by examples alone", list(rows.values()), note)


def export_table(rows: list[Cells]) -> Table:
    """What the exported model answered in stock transformers."""
    return Table("The export, asked by stock transformers alone", rows)


def pages(scratch: bool) -> list[RunPage]:
    """A page about every run."""
    shipped = "Shipped with the package with the log of its training, evaluated here."
    return [
        RunPage("Encoder", CLIP, "Contrastive, from nothing." if scratch else shipped),
        RunPage("LLaVA, stage 0", STAGE_0, "A language model from nothing learns to speak, from captions."),
        RunPage("LLaVA, stage 1", STAGE_1, "Only the connector learns, from captions."),
        RunPage("LLaVA, stage 2", LLAVA, "Connector and language model learn from questions."),
        RunPage("Text-only control", BLIND, "The same model, rows and steps; every picture is even grey."),
        RunPage(
            "Flamingo, language model", LANGUAGE, "A language model from nothing learns from text alone."
        ),
        RunPage(
            "Flamingo",
            FLAMINGO,
            "Tower and language model are frozen; Perceiver and gated cross-attention learn from demonstrations and "
            "captions, side by side in every step.",
        ),
    ]
