"""The main job, end to end, offline, in minutes on two cores: `make quickstart` runs this.

A contrastive encoder (shipped trained; FROM_SCRATCH=1 trains it here), a LLaVA on it in two stages, the same LLaVA
without pictures as a control, evaluation, export to stock transformers, and a report to look at. Every command it
runs is shown, so that each can be run by hand.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vlmzoo.config import located
from vlmzoo.evaluate.report import RunPage, Table, write_report

OUT = Path("runs/quickstart")
CLIP, STAGE_0, STAGE_1, LLAVA, BLIND, EXPORT = (
    OUT / name for name in ("clip", "llava-stage0", "llava-stage1", "llava", "llava-text-only", "llava-hf")
)
SCRATCH = os.environ.get("FROM_SCRATCH", "0") not in ("", "0")
EXTRA = shlex.split(os.environ.get("QUICKSTART_OVERRIDES", ""))  # for the tests: fewer steps
LAUNCH = ["accelerate", "launch", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def train(config: str, *overrides: str, processes: int = 1) -> list[str]:
    """The command that trains a run file."""
    several = ["--multi_gpu"] if processes > 1 else []
    command = [
        *LAUNCH,
        *several,
        "--num_processes",
        str(processes),
        "-m",
        "vlmzoo.train",
        config,
        *overrides,
        *EXTRA,
    ]
    return [*command, "--fresh"]


def show(command: list[str]) -> None:
    print(f"\n$ {shlex.join(command)}", flush=True)


def run(command: list[str]) -> None:
    """Run a command in the foreground; stop everything if it fails."""
    show(command)
    if subprocess.run(command, env=ENVIRONMENT).returncode:
        sys.exit(f"\nquickstart stopped: the command above failed\n  {shlex.join(command)}")


def cpu_only() -> bool:
    import torch

    return not torch.accelerator.is_available()


def encoder() -> str:
    """The encoder LLaVA sees with: trained here, or the one in the package, evaluated here."""
    source = "vlmzoo:clip-tiny"
    if SCRATCH:
        run(
            train(
                "configs/clip/tiny.yaml",
                f"out={CLIP}",
                processes=2 if cpu_only() and (os.cpu_count() or 1) > 1 else 1,
            )
        )
        return str(CLIP)
    print(
        "\nThe encoder is the trained one that ships with vlmzoo (FROM_SCRATCH=1 make quickstart trains it here)."
    )
    run(["vlmzoo", "eval", source, "configs/clip/tiny.yaml", "--out", str(CLIP), "--when", "after"])
    for name in ("parts.json", "log.jsonl", "run.yaml"):  # how it was trained, for the report
        shutil.copy(Path(located(source)) / name, CLIP / name)
    return source


def llava(vision: str) -> None:
    """Stage 0 (the language model learns to speak), 1 (connector), then 2 beside its control, one process each."""
    run(train("configs/llava/tiny_stage0.yaml", f"model.vision.from={vision}", f"out={STAGE_0}"))
    run(train("configs/llava/tiny_stage1.yaml", f"model.from={STAGE_0}", f"out={STAGE_1}"))
    blind = train(
        "configs/llava/tiny.yaml", f"model.from={STAGE_1}", f"out={BLIND}", "streams.questions.data.pictures=blank",
        "streams.captions.data.pictures=blank",
        "evaluate.tasks.vqa.data.pictures=blank", "evaluate.tasks.vqa.swap=false", "evaluate.before=false",
    )  # fmt: skip
    BLIND.mkdir(parents=True, exist_ok=True)
    log = BLIND / "output.log"
    print(f"\nIn the background, the same model, rows and steps without pictures (its output: {log}):")
    show(blind)
    with log.open("w") as out, subprocess.Popen(blind, env=ENVIRONMENT, stdout=out, stderr=out) as control:
        run(train("configs/llava/tiny.yaml", f"model.from={STAGE_1}", f"out={LLAVA}"))
        if control.poll() is None:
            print("\nwaiting for the control without pictures to end ...", flush=True)
        if control.wait():
            sys.exit(f"quickstart stopped: the control failed, see {log}")


def export() -> Table:
    """Export, then ask the stock model in a process that never imports vlmzoo."""
    shutil.rmtree(EXPORT, ignore_errors=True)
    run(["vlmzoo", "export", str(LLAVA), str(EXPORT), "--to", "transformers"])
    pictures = OUT / "pictures"
    shutil.rmtree(pictures, ignore_errors=True)
    run(["vlmzoo", "scenes", str(pictures), "--split", "test", "--length", "6"])
    records = json.loads((pictures / "llava.json").read_text(encoding="utf-8"))
    asked = [
        (
            str(pictures / r["image"]),
            r["conversations"][0]["value"].replace("<image>\n", ""),
            r["conversations"][1]["value"],
        )
        for r in records
    ]
    command = [
        sys.executable,
        "examples/use_export.py",
        str(EXPORT),
        *(text for picture, question, _ in asked for text in (picture, question)),
    ]
    show(command)
    done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("quickstart stopped: stock transformers could not use the export")
    answers = done.stdout.strip("\n").split("\n")
    rows = [
        {"question": q, "true answer": truth, "stock transformers says": said}
        for (_, q, truth), said in zip(asked, answers, strict=True)
    ]
    for row in rows:
        print("  {question}  ->  {stock transformers says}  (true: {true answer})".format(**row))
    return Table("The export, asked by stock transformers alone", rows)


def result(folder: Path, when: str, task: str) -> dict[str, Any]:
    return json.loads((folder / "results" / when / f"{task}.json").read_text(encoding="utf-8"))


def tables() -> list[Table]:
    """Headline numbers: the encoder, and LLaVA by kind of question beside its controls."""
    zero, pairs = result(CLIP, "after", "zero_shot")["metrics"], result(CLIP, "after", "retrieval")["metrics"]
    encoder_rows = [
        {"measure": "zero-shot accuracy, 64 classes", "value": zero["accuracy"], "chance": zero["chance"]},
        {"measure": "picture to text R@1", "value": pairs["image_to_text_r1"], "chance": pairs["chance_r1"]},
        {"measure": "text to picture R@1", "value": pairs["text_to_image_r1"], "chance": pairs["chance_r1"]},
    ]
    before, after, blind = (
        result(folder, when, "vqa")
        for folder, when in ((LLAVA, "before"), (LLAVA, "after"), (BLIND, "after"))
    )
    without = {row["kind"]: row["accuracy"] for row in blind["table"]}
    untrained = {row["kind"]: row["accuracy"] for row in before["table"]}
    rows = [
        {
            "kind": row["kind"], "LLaVA": row["accuracy"], "before training": untrained[row["kind"]],
            "text-only control": without[row["kind"]], "pictures swapped": row["swapped"], "chance": row["chance"],
        }
        for row in after["table"]
    ]  # fmt: skip
    whole = {
        "kind": "all", "LLaVA": after["metrics"]["accuracy"], "before training": before["metrics"]["accuracy"],
        "text-only control": blind["metrics"]["accuracy"], "pictures swapped": after["metrics"]["accuracy_swapped"],
        "chance": after["metrics"]["chance"],
    }  # fmt: skip
    note = f"Accuracy of short answers on {after['n']} test questions; the control is the same model, rows and steps with grey pictures."
    return [
        Table("Encoder on the test split", encoder_rows),
        Table("LLaVA: does it look?", [*rows, whole], note),
    ]


def main() -> None:
    start = time.time()
    OUT.mkdir(parents=True, exist_ok=True)
    llava(encoder())
    found = [*tables(), export()]
    steps = [
        f'vlmzoo generate {LLAVA} {sorted((OUT / "pictures" / "images").iterdir())[0]} "How many shapes are there?"',
        "vlmzoo list connectors",
        "accelerate launch -m vlmzoo.train configs/llava/tiny.yaml model.from=runs/quickstart/llava-stage1 optim.steps=2000 out=runs/longer",
    ]
    pages = [
        RunPage(
            "Encoder",
            CLIP,
            "Contrastive, from nothing."
            if SCRATCH
            else "Shipped with the package with the log of its training, evaluated here.",
        ),
        RunPage("LLaVA, stage 0", STAGE_0, "A language model from nothing learns to speak, from captions."),
        RunPage("LLaVA, stage 1", STAGE_1, "Only the connector learns, from captions."),
        RunPage("LLaVA, stage 2", LLAVA, "Connector and language model learn from questions."),
        RunPage("Text-only control", BLIND, "The same model, rows and steps; every picture is even grey."),
    ]
    minutes = (time.time() - start) / 60
    lead = f"A contrastive encoder and a LLaVA composed from shared parts, trained by one trainer in {minutes:.1f} minutes, exported to stock transformers."
    page = write_report(
        OUT / "report.html", pages, title="vlmzoo quickstart", lead=lead, tables=found, next_steps=steps
    )
    for table in found[:2]:
        print(f"\n{table.title}")
        for row in table.rows:
            print(
                "  "
                + "  ".join(
                    f"{key} {value:.3f}" if isinstance(value, float) else f"{value:32s}"
                    for key, value in row.items()
                )
            )
    print(f"\nDone in {minutes:.1f} minutes. Look at {page}. Try next:")
    for command in steps:
        print(f"  {command}")


if __name__ == "__main__":
    main()
