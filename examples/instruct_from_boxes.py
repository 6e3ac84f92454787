"""Instruction data from captions and boxes, without a model: python examples/instruct_from_boxes.py

Draws scenes and writes them as COCO does, asks questions whose answers follow from the boxes, shows one conversation and
trains a small LLaVA on all of them. With COCO itself, only the folder changes.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from vlmzoo.config import parse_yaml
from vlmzoo.data.scenes import disk
from vlmzoo.methods.instruct import Instruct, Rules, read_annotated, write_instruct
from vlmzoo.run import read_run, train

OUT = Path("runs/examples/instruct")
STEPS = int(os.environ.get("EXAMPLE_STEPS", 60))
RUN = """
model: {preset: llava-tiny, vision: {from: "vlmzoo:clip-tiny"}}
learn: {connector: 3e-3, language: 3e-3}
streams:
  questions:
    data: {kind: llava, path: runs/examples/instruct/rules.json, images: runs/examples/instruct/coco/images}
    objective: {kind: language}
    batch_size: 4
trainer: {threads: 1}
out: runs/examples/instruct/run
"""


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    # several objects of a picture may share a shape, so there is something to count
    folder = disk.write(OUT / "coco", layout="coco", length=150, size=32, options={"category": "shape"})
    options = Instruct(rules=Rules(questions=8))
    report = write_instruct(read_annotated([folder]), OUT / "rules.json", options)
    print(report.text())

    records = json.loads((OUT / "rules.json").read_text())
    for turn in records[1]["conversations"]:
        print(f"{turn['from']}: {turn['value']}")

    train(read_run(parse_yaml(RUN), [f"optim.steps={STEPS}", "trainer.log_every=4"]), fresh=True)
    log = [json.loads(line) for line in (OUT / "run/log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    print(f"loss {losses[0]:.2f} at the first steps, {losses[-1]:.2f} at the last")


if __name__ == "__main__":
    main()
