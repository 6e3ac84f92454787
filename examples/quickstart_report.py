"""The report of examples/quickstart.py: headline tables from the runs' result files, and a page about every run."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from vlmzoo.data.scenes import COLOURS, SHAPES, SIZES
from vlmzoo.data.scenes.demonstrations import OFF_TASK
from vlmzoo.data.scenes.text import PLACES
from vlmzoo.evaluate.report import Chart, RunPage, Table

OUT = Path("runs/quickstart")
CLIP, STAGE_0, STAGE_1, LLAVA, BLIND, EXPORT, LANGUAGE, FLAMINGO = (
    OUT / name
    for name in (
        "clip", "llava-stage0", "llava-stage1", "llava", "llava-text-only", "llava-hf", "flamingo-language", "flamingo",
    )
)  # fmt: skip
WORDS = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "place": PLACES[2]}
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
    found = result(FLAMINGO, "after", "captions")
    two, swapped = (
        {row["attribute"]: row for row in result(FLAMINGO, "after", task)["table"]}
        for task in ("captions_of_two", "captions_swapped")
    )
    rows: list[Cells] = [
        {
            "caption names the": name, "one shape": row["accuracy"], "one shape_stderr": row["stderr"],
            "one, pictures swapped": swapped[name]["accuracy"], "chance": 1 / len(WORDS[name]),
            "two shapes": two[name]["accuracy"], "two shapes_stderr": two[name]["stderr"],
        }
        for row in found["table"]
        if (name := row["attribute"]) in WORDS
    ]  # fmt: skip
    note = (
        f"What captions of {found['n']} test pictures get right; the language model is frozen and was trained on text "
        "alone. Of two shapes such a short training often names one twice; with optim.steps=1600 it tells them apart."
    )
    return Table("Flamingo: captions", rows, note)


def shots_table() -> Table:
    """Flamingo's accuracy by the number of examples before the query, beside other rows' pictures."""
    found, swapped = (result(FLAMINGO, "after", task) for task in ("few_shot", "few_shot_swapped"))
    rows: dict[str, Cells] = {}
    for line in found["table"]:
        row = rows.setdefault(line["task"], {"name the": line["task"]})
        name = examples(line["shots"])
        row |= {name: line["accuracy"], f"{name}_stderr": line["stderr"]}
    for line in swapped["table"]:
        name = f"{line['shots']}, pictures swapped"
        rows[line["task"]] |= {name: line["accuracy"], "chance": line["chance"]}
    ordered = sorted(rows.values(), key=lambda row: row["name the"] == "all")
    counts = sorted({line["shots"] for line in found["table"]} - {0})
    best = {"name the": "counting votes"} | {examples(shots): votes(shots) for shots in counts}
    note = (
        "Which of the three to name stands nowhere in words: only the pictures with answers before the query tell, and "
        "one in four of them names something else, so counting votes finds the task as often as the last row says. "
        "Without examples nobody can know what is asked, and the model answers with a caption."
    )
    return Table("Flamingo: a task told by examples alone", [*ordered, best], note)


def shots_chart() -> Chart:
    """The same as curves."""
    found = result(FLAMINGO, "after", "few_shot")["table"]
    series: dict[str, list[list[float]]] = {}
    for line in found:
        if line["task"] != "all":
            series.setdefault(line["task"], []).append([line["shots"], line["accuracy"], line["stderr"]])
    counts = sorted({line["shots"] for line in found} - {0})
    series["counting votes"] = [[shots, votes(shots)] for shots in counts]
    return Chart("Flamingo: accuracy by examples", series, x="examples before the query", y="accuracy")


def examples(shots: int) -> str:
    """A column's name."""
    return "1 example" if shots == 1 else f"{shots} examples"


def votes(shots: int, off_task: float = OFF_TASK) -> float:
    """How often most examples name the attribute that is asked for (ties are drawn), if each names one of the two
    others with probability ``off_task``."""
    share = 0.0
    for told in itertools.product(range(3), repeat=shots):
        counts = [told.count(attribute) for attribute in range(3)]
        if counts[0] == max(counts):
            likely = (1 - off_task) ** counts[0] * (off_task / 2) ** (shots - counts[0])
            share += likely / counts.count(max(counts))
    return share


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
