"""The main job, end to end, offline, in minutes on two cores: `make quickstart` runs this.

A contrastive encoder (shipped trained; FROM_SCRATCH=1 trains it here), a LLaVA on it in stages, the same LLaVA
without pictures as a control, a Flamingo on the same encoder, evaluation, export to stock transformers, and a report
to look at. Every command it runs is shown, so that each can be run by hand.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quickstart_report import (
    BLIND,
    CLIP,
    EXPORT,
    FLAMINGO,
    LANGUAGE,
    LLAVA,
    OUT,
    STAGE_0,
    STAGE_1,
    caption_table,
    encoder_table,
    export_table,
    llava_table,
    pages,
    shots_chart,
    shots_table,
)

from vlmzoo.config import located
from vlmzoo.evaluate.report import Table, write_report

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


@contextmanager
def beside(what: str, folder: Path, *commands: list[str]) -> Iterator[None]:
    """Run commands one after the other in the background while the block runs; stop everything if one fails."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "output.log"
    print(f"\nIn the background, {what} (output: {log}):")
    for command in commands:
        show(command)
    line = " && ".join(map(shlex.join, commands))
    with log.open("w") as out:
        process = subprocess.Popen(
            line, shell=True, env=ENVIRONMENT, stdout=out, stderr=out, start_new_session=True
        )
        try:
            yield
            if process.poll() is None:
                print(f"\nwaiting for {what} to end ...", flush=True)
            if process.wait():
                sys.exit(f"quickstart stopped: {what} failed, see {log}")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)


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


def beginnings(vision: str) -> None:
    """LLaVA's stage 0 (the language model learns to speak) and 1 (connector), beside Flamingo's language model."""
    language = train("configs/flamingo/tiny_language.yaml", f"out={LANGUAGE}")
    with beside("Flamingo's language model, from text alone", LANGUAGE, language):
        run(train("configs/llava/tiny_stage0.yaml", f"model.vision.from={vision}", f"out={STAGE_0}"))
        run(train("configs/llava/tiny_stage1.yaml", f"model.from={STAGE_0}", f"out={STAGE_1}"))


def seeing(vision: str) -> None:
    """LLaVA's stage 2, beside what lets Flamingo see (both its towers frozen) and LLaVA's control without pictures."""
    flamingo = train(
        "configs/flamingo/tiny.yaml", f"model.vision.from={vision}", f"model.language.from={LANGUAGE}", f"out={FLAMINGO}",
    )  # fmt: skip
    blind = train(
        "configs/llava/tiny.yaml", f"model.from={STAGE_1}", f"out={BLIND}", "streams.questions.data.pictures=blank",
        "streams.captions.data.pictures=blank",
        "evaluate.tasks.vqa.data.pictures=blank", "evaluate.tasks.vqa.swap=false", "evaluate.before=false",
    )  # fmt: skip
    with beside("Flamingo, then LLaVA's rows and steps without pictures", FLAMINGO, flamingo, blind):
        run(train("configs/llava/tiny.yaml", f"model.from={STAGE_1}", f"out={LLAVA}"))


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
    return export_table(rows)


def say(tables: list[Table]) -> None:
    """Headline tables in the terminal."""
    for table in tables:
        print(f"\n{table.title}")
        for row in table.rows:
            shown = {key: value for key, value in row.items() if not key.endswith("_stderr")}
            print(
                "  "
                + "  ".join(
                    f"{key} {value:.3f}" if isinstance(value, float) else f"{value:32s}"
                    for key, value in shown.items()
                )
            )


def main() -> None:
    start = time.time()
    OUT.mkdir(parents=True, exist_ok=True)
    vision = encoder()
    beginnings(vision)
    seeing(vision)
    exported = export()
    steps = [
        f'vlmzoo generate {LLAVA} {sorted((OUT / "pictures" / "images").iterdir())[0]} "How many shapes are there?"',
        "vlmzoo list connectors",
        "accelerate launch -m vlmzoo.train configs/llava/tiny.yaml model.from=runs/quickstart/llava-stage1 optim.steps=2000 out=runs/longer",
    ]
    minutes = (time.time() - start) / 60
    lead = (
        "A contrastive encoder, a LLaVA and a Flamingo composed from shared parts, trained by one trainer in "
        f"{minutes:.1f} minutes, one of them exported to stock transformers."
    )
    tables = [encoder_table(), llava_table(), caption_table(), shots_table()]
    page = write_report(
        OUT / "report.html",
        pages(SCRATCH),
        title="vlmzoo quickstart",
        lead=lead,
        tables=[*tables, shots_chart(), exported],
        next_steps=steps,
    )
    say(tables)
    print(f"\nDone in {minutes:.1f} minutes. Look at {page}. Try next:")
    for command in steps:
        print(f"  {command}")


if __name__ == "__main__":
    main()
