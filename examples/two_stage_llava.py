"""LLaVA-1.5's two stages on a folder of your own, with LoRA: python examples/two_stage_llava.py

Writes the folder first: pictures, captions for stage 1, and questions for stage 2 among which are a row of two pictures,
one of text alone, a broken file and a missing one. Then the connector learns alone from the captions, the connector and
adapters in the language model learn from the questions, the adapters are merged, and stock transformers answers from the
export. With data of your own change the paths; with a tower and a language model from the Hub stage 0, in which the tiny
one learns to speak at all, goes, and stage 1 begins with
model: {preset: llava-tiny, vision: google/siglip-base-patch16-224, language: Qwen/Qwen3-0.6B}.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmzoo.config import parse_yaml
from vlmzoo.folders import export, merge
from vlmzoo.run import read_run, train

OUT = Path("runs/examples/two_stage")
STEPS = int(os.environ.get("EXAMPLE_STEPS", 200))
COLOURS = {"red": (210, 40, 40), "green": (40, 160, 70), "blue": (50, 80, 210), "yellow": (235, 210, 50)}
QUESTION = "What colour is the square?\nAnswer the question using a single word or phrase."
STAGE_0 = """
model: {preset: llava-tiny, vision: {from: "vlmzoo:clip-tiny"}}
learn: {connector: 3e-3, language: 3e-3}            # a real run skips this: its language model can speak already
streams:
  captions:
    data: {kind: scenes, rows: captions, objects: [1, 1], size: 32, length: 1000}
    objective: {kind: language}
    template: plain
    batch_size: 16
    cache: true
optim: {steps: 100}
trainer: {threads: 1}
out: runs/examples/two_stage/stage0
"""
STAGE_1 = """
model: {from: runs/examples/two_stage/stage0}
learn: {connector: 3e-3}                            # tower and language model are not named, so they are frozen
streams:
  captions:
    data: {kind: llava, path: runs/examples/two_stage/captions.json, images: runs/examples/two_stage/images}
    objective: {kind: language}
    template: plain                                 # a picture and its caption, as LLaVA's stage 1 has it
    batch_size: 16
optim: {steps: 100}
trainer: {threads: 1}
out: runs/examples/two_stage/stage1
"""
STAGE_2 = """
model: {from: runs/examples/two_stage/stage1}
learn: {connector: 5e-3, language: {lr: 1e-2, lora: {r: 16}}}
streams:
  questions:
    data: {kind: llava, path: runs/examples/two_stage/questions.json, images: runs/examples/two_stage/images}
    objective: {kind: language}
    batch_size: 16
    pack_length: 128
optim: {steps: 100}
trainer: {threads: 1}
out: runs/examples/two_stage/stage2
"""


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def write_data(folder: Path, number: int, rng: random.Random) -> list[str]:
    """Pictures, captions.json and questions.json; the colours of the pictures."""
    (folder / "images").mkdir(parents=True)
    names = [rng.choice(list(COLOURS)) for _ in range(number)]
    for index, name in enumerate(names):
        shade = tuple(min(255, max(0, value + rng.randint(-35, 35))) for value in COLOURS[name])
        size = (rng.randint(24, 96), rng.randint(24, 96))
        Image.new("RGB", size, shade).save(folder / "images" / f"{index}.png")
    rows = list(enumerate(names))[:-4]  # the last ones are to ask about
    captions = [
        {
            "id": f"caption {i}",
            "image": f"{i}.png",
            "conversations": turns("<image>\nWhat is this?", f"a picture of a {name} square."),
        }
        for i, name in rows
    ]
    questions = [
        {"id": f"row {i}", "image": f"{i}.png", "conversations": turns(f"<image>\n{QUESTION}", name)}
        for i, name in rows
    ]
    both = turns("<image>\n<image>\nWhich colours are the two squares?", f"{names[0]} and {names[1]}")
    questions += [
        {"id": "two pictures", "image": ["0.png", "1.png"], "conversations": both},
        {"id": "text alone", "conversations": turns("What is the colour of grass?", "green")},
        {"id": "broken", "image": "broken.png", "conversations": turns(f"<image>\n{QUESTION}", "red")},
        {"id": "missing", "image": "gone.png", "conversations": turns(f"<image>\n{QUESTION}", "red")},
    ]
    (folder / "images" / "broken.png").write_text("this was a picture once")
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "questions.json").write_text(json.dumps(questions))
    return names


def ask_stock(folder: Path, pictures: list[Path]) -> list[str]:
    """What stock transformers answers from an exported folder; nothing of vlmzoo is in it."""
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
    )
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    said = []
    for picture in pictures:
        inputs = processor(
            images=Image.open(picture), text=prompt, add_special_tokens=False, return_tensors="pt"
        )
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        said.append(
            processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        )
    return said


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    names = write_data(OUT, 64, random.Random(0))
    for number, stage in enumerate((STAGE_0, STAGE_1, STAGE_2)):
        line = train(read_run(parse_yaml(stage), [f"optim.steps={STEPS}"]), fresh=True)
        print(f"stage {number}: loss {line['loss']:.3f} after {line['step']} steps")
    for line in (OUT / "stage2" / "quarantine.jsonl").read_text().splitlines():
        print("not used:", line)
    print(f"adapters merged: {merge(OUT / 'stage2', OUT / 'merged')}")
    difference = export(OUT / "merged", OUT / "stock")
    print(f"exported: logits here and in stock transformers differ by at most {difference:.1e}")
    last = range(len(names) - 4, len(names))  # pictures that were not trained on
    for index, said in zip(
        last, ask_stock(OUT / "stock", [OUT / "images" / f"{i}.png" for i in last]), strict=True
    ):
        print(f"{index}.png: {said!r}  (true: {names[index]})")


if __name__ == "__main__":
    main()
