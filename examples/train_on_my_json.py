"""Train on a folder of pictures and a LLaVA json: python examples/train_on_my_json.py

Writes such a folder first (patches of colour, one of them a broken file), trains a small LLaVA on it from the shipped
encoder, and asks about pictures it has not seen. With data of your own only the two paths change.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from PIL import Image

from vlmzoo import load
from vlmzoo.chat import Conversation
from vlmzoo.config import parse_yaml
from vlmzoo.run import read_run, train

OUT = Path("runs/examples/my_json")
STEPS = int(os.environ.get("EXAMPLE_STEPS", 80))
COLOURS = {"red": (210, 40, 40), "green": (40, 160, 70), "blue": (50, 80, 210), "yellow": (235, 210, 50)}
RUN = """
model: {preset: llava-tiny, vision: {from: "vlmzoo:clip-tiny"}}
learn: {connector: 3e-3, language: 3e-3}            # the encoder is not named, so it is frozen
streams:
  patches:
    data: {kind: llava, path: runs/examples/my_json/train.json, images: runs/examples/my_json/images}
    objective: {kind: language}
    batch_size: 16
optim: {steps: 100}
trainer: {threads: 1}
out: runs/examples/my_json/run
"""
QUESTION = "What colour is the patch?"


def write_data(folder: Path, number: int, rng: random.Random) -> list[dict]:
    """Picture files and the records about them; the first file is no picture."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(number):
        name, rgb = rng.choice(list(COLOURS.items()))
        shade = tuple(min(255, max(0, value + rng.randint(-35, 35))) for value in rgb)
        Image.new("RGB", (rng.randint(24, 96), rng.randint(24, 96)), shade).save(folder / f"{index}.png")
        turns = [
            {"from": "human", "value": f"<image>\n{QUESTION}"},
            {"from": "gpt", "value": f"It is {name}."},
        ]
        records.append({"id": f"row {index}", "image": f"{index}.png", "conversations": turns})
    (folder / "0.png").write_text("this was a picture once")
    return records


def main() -> None:
    rng = random.Random(0)
    records = write_data(OUT / "images", 80, rng)
    (OUT / "train.json").write_text(json.dumps(records[:64]))
    assignments = [f"optim.steps={STEPS}", f"trainer.log_every={max(1, STEPS // 4)}"]
    train(read_run(parse_yaml(RUN), assignments), fresh=True)

    log = [json.loads(line) for line in (OUT / "run/log.jsonl").read_text().splitlines()]
    for line in log:
        if "loss" in line:
            print(f"step {line['step']:4d}  loss {line['loss']:.3f}")
    for line in (OUT / "run/quarantine.jsonl").read_text().splitlines():
        print("not used:", line)
    model, processor = load(OUT / "run")
    for record in records[-6:]:  # pictures that were not trained on
        talk = Conversation(model, processor)
        talk.show(OUT / "images" / record["image"])
        said = talk.ask(QUESTION)
        print(f"{record['image']}: {said}  (true: {record['conversations'][1]['value']})")


if __name__ == "__main__":
    main()
