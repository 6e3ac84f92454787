"""Train a Flamingo on clips and show it longer ones: python examples/watch_clips.py

A video is a list of frames. The resampler learns an embedding for each of 8 frames; clips of 8, of 20 and single pictures
go through the same weights afterwards, the embeddings interpolated for more (Flamingo, section 3.1).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from vlmzoo import load
from vlmzoo.config import parse_yaml
from vlmzoo.data.scenes.clips import Clips
from vlmzoo.run import read_run, train

OUT = Path("runs/examples/clips")
STEPS = int(os.environ.get("EXAMPLE_STEPS", 150))
QUERIES = int(os.environ.get("EXAMPLE_QUERIES", 4))
RUN = """
model: {preset: flamingo-tiny, vision: {from: "vlmzoo:clip-tiny"}, connector: {frames: 8}}
learn: {connector: 3e-3, fusion: 3e-3, fusion.gates: 3e-2, language: 3e-3}
streams:
  clips:                                       # videos and pictures of one world, side by side
    data: {kind: scenes_clips, rows: captions, objects: [1, 1], frames: 8, length: 400, size: 32}
    objective: {kind: language}
    batch_size: 8
    cache: true
  pictures:
    data: {kind: scenes, rows: captions, objects: [1, 1], length: 2000, size: 32}
    objective: {kind: language}
    batch_size: 16
    weight: 0.2
optim: {steps: 100}
trainer: {threads: 1}
out: runs/examples/clips/run
"""


def main() -> None:
    assignments = [f"optim.steps={STEPS}", f"trainer.log_every={max(1, STEPS // 4)}"]
    train(read_run(parse_yaml(RUN), assignments), fresh=True)
    for line in map(json.loads, (OUT / "run/log.jsonl").read_text().splitlines()):
        if "loss" in line:
            print(
                f"step {line['step']:4d}  clips {line['clips/language']:.3f}  pictures {line['pictures/language']:.3f}"
            )
    model, processor = load(OUT / "run")
    for frames in (8, 20):
        clips = Clips("test", objects=(1, 1), frames=frames, length=QUERIES, size=32)
        for row in clips:
            prompt = processor.prompts([row])
            with torch.no_grad():
                ids = model.generate(**prompt, max_new_tokens=24, do_sample=False)
            print(
                f"{frames} frames: {processor.answers(prompt, ids)[0]!r}  (true: {row['truth']['caption']!r})"
            )


if __name__ == "__main__":
    main()
