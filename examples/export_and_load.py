"""Export a model and ask it with stock transformers alone: python examples/export_and_load.py [FOLDER]

FOLDER is a trained LLaVA; by default the one of `make quickstart`, or else one trained here for a few steps. The answers here and there are the same text, because they are the same numbers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from vlmzoo import load
from vlmzoo.config import parse_yaml
from vlmzoo.data.scenes import Scenes
from vlmzoo.folders import export
from vlmzoo.run import read_run, train

OUT = Path("runs/examples/export")
TRAINED = Path("runs/quickstart/llava")
STEPS = int(os.environ.get("EXAMPLE_STEPS", 60))
RUN = """
model: {preset: llava-tiny, vision: {from: "vlmzoo:clip-tiny"}}
learn: {connector: 3e-3, language: 3e-3}
streams:
  questions: {data: {kind: scenes, rows: vqa, size: 32}, objective: {kind: language}, batch_size: 16}
optim: {steps: 60}
trainer: {threads: 1}
out: runs/examples/export/trained
"""


def source(arguments: list[str]) -> Path:
    """The folder asked for, or the trained one that is there, or one trained for a few steps."""
    if arguments or TRAINED.is_dir():
        return Path(*arguments[:1]) if arguments else TRAINED
    print(
        f"no {TRAINED} here (make quickstart makes it): {STEPS} steps of training instead, so the answers are poor"
    )
    train(read_run(parse_yaml(RUN), [f"optim.steps={STEPS}"]), fresh=True)
    return OUT / "trained"


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    folder = source(sys.argv[1:])
    difference = export(folder, OUT / "stock")  # written, read back by stock classes, logits compared
    print(f"{folder} -> {OUT / 'stock'}: logits differ by at most {difference:.1e}")
    print("files:", ", ".join(sorted(file.name for file in (OUT / "stock").iterdir())))

    model, processor = load(folder)
    scenes = Scenes(split="test", rows="vqa", length=3, size=model.vision.image_size)
    asked, ours = [], []
    for number in range(3):
        row = scenes[number]
        row["images"][0]["image"].save(OUT / f"{number}.png")
        asked += [str(OUT / f"{number}.png"), row["truth"]["question"]]
        prompt = processor.prompts([row])
        out = model.generate(**prompt, max_new_tokens=16, do_sample=False)
        ours += processor.answers(prompt, out)
    script = Path(__file__).with_name("use_export.py")  # does not import vlmzoo
    command = [sys.executable, str(script), str(OUT / "stock"), *asked]
    stock = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split("\n")[:3]
    for question, here, there in zip(asked[1::2], ours, stock, strict=True):
        print(f"{question}\n  vlmzoo: {here!r}\n  stock transformers: {there!r}")


if __name__ == "__main__":
    main()
