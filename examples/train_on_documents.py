"""Train a Flamingo on interleaved json: python examples/train_on_documents.py

Writes documents as mmc4 holds them (sentences, and pictures matched to them in no order; one picture is a broken file),
trains a small Flamingo on windows of them, and lets it go on with a document that it has not seen. With documents of your
own only the two paths change.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import torch
from PIL import Image

from vlmzoo import load
from vlmzoo.config import parse_yaml
from vlmzoo.data.sources.interleaved import document_row
from vlmzoo.run import read_run, train

OUT = Path("runs/examples/documents")
STEPS = int(os.environ.get("EXAMPLE_STEPS", 120))
COLOURS = {"red": (210, 40, 40), "green": (40, 160, 70), "blue": (50, 80, 210), "yellow": (235, 210, 50)}
RUN = """
model: {preset: flamingo-tiny, vision: {from: "vlmzoo:clip-tiny"}}
learn: {connector: 3e-3, fusion: 3e-3, fusion.gates: 3e-2, language: 3e-3}   # the tiny language model knows no words yet
streams:
  web:
    data: {kind: interleaved, path: runs/examples/documents/train.jsonl, images: runs/examples/documents/images}
    objective: {kind: language}
    batch_size: 16
    documents: {window: 48, pictures: 3}      # a stretch of 48 tokens a visit, its first three pictures
optim: {steps: 100}
trainer: {threads: 1}
out: runs/examples/documents/run
"""


def write_documents(folder: Path, number: int, rng: random.Random) -> list[dict]:
    """Picture files and the documents about them; the first file is no picture."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = []
    for index in range(number):
        names = rng.choices(list(COLOURS), k=rng.randint(2, 5))
        pictures = []
        for place, name in enumerate(names):
            file = f"{index}_{place}.png"
            shade = tuple(min(255, max(0, value + rng.randint(-30, 30))) for value in COLOURS[name])
            Image.new("RGB", (40, 40), shade).save(folder / file)
            pictures.append({"image_name": file, "matched_text_index": place})
        rng.shuffle(
            pictures
        )  # as in mmc4, pictures stand in no order; each goes before the sentence it is matched to
        documents.append({"text_list": [f"this is {name}. " for name in names], "image_info": pictures})
    (folder / "0_0.png").write_text("this was a picture once")
    return documents


def main() -> None:
    rng = random.Random(0)
    documents = write_documents(OUT / "images", 80, rng)
    (OUT / "train.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents[:72]))
    assignments = [f"optim.steps={STEPS}", f"trainer.log_every={max(1, STEPS // 4)}"]
    train(read_run(parse_yaml(RUN), assignments), fresh=True)

    for line in map(json.loads, (OUT / "run/log.jsonl").read_text().splitlines()):
        if "loss" in line:
            print(f"step {line['step']:4d}  loss {line['loss']:.3f}")
    for line in (OUT / "run/quarantine.jsonl").read_text().splitlines():
        print("not used:", line)
    model, processor = load(OUT / "run")
    for document in documents[-4:]:
        row = document_row(document)
        prompt = processor.prompts([row], OUT / "images")  # up to the last picture; its sentence is left out
        with torch.no_grad():
            ids = model.generate(**prompt, max_new_tokens=8, do_sample=False)
        print(
            f"goes on: {processor.answers(prompt, ids)[0]!r}  (true: {document['text_list'][-1].strip()!r})"
        )


if __name__ == "__main__":
    main()
