"""Prompt a Flamingo with demonstrations: python examples/few_shot_prompts.py [FOLDER]

A prompt is a document: picture, answer, picture, answer, ..., and the picture that is asked about. What is to be named
(colour, shape or size) stands nowhere in words, only in the demonstrations, so answers get better with more of them.
FOLDER is a trained Flamingo; by default the one of `make quickstart`, or else a model with random weights.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from PIL import Image

from vlmzoo import build, load, processor_for
from vlmzoo.data.scenes.demonstrations import Demonstrations

TRAINED = Path("runs/quickstart/flamingo")
QUERIES = int(os.environ.get("EXAMPLE_QUERIES", 60))
SHOTS = (0, 1, 2, 4)


def document(shown: list[tuple[Image.Image, str]], query: Image.Image) -> dict:
    """The row of a prompt: every demonstration's picture and text, then the picture that is asked about."""
    parts = []
    for _, text in shown:
        parts += [
            {"role": "text", "type": "image", "text": None},
            {"role": "text", "type": "text", "text": text},
        ]
    parts.append({"role": "text", "type": "image", "text": None})
    pictures = [*(picture for picture, _ in shown), query]
    return {"images": [{"image": picture} for picture in pictures], "parts": parts, "id": "prompt"}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else TRAINED
    if folder.is_dir():
        model, processor = load(folder)
    else:
        print(f"no {folder} here (make quickstart makes it): random weights, so the answers are noise")
        model = build("flamingo-tiny", vision="vlmzoo:clip-tiny").eval()
        processor = processor_for(model)
    size = model.vision.image_size
    tasks = Demonstrations("test", length=QUERIES, shots=(4, 4), off_task=0.0, size=size)
    for shots in SHOTS:
        rows, truths = [], []
        for number in range(QUERIES):
            pictures = [entry["image"] for entry in tasks[number]["images"]]
            texts = [part["text"] for part in tasks[number]["parts"] if part["type"] == "text"]
            shown = list(zip(pictures, texts, strict=True))[:-1]  # the last pair is the query and its answer
            rows.append(document(shown[len(shown) - shots :], pictures[-1]))
            truths.append(tasks[number]["truth"]["answer"])
        prompt = processor.prompts(rows)  # left-padded ids, all pictures in reading order
        ids = model.generate(**prompt, max_new_tokens=6, do_sample=False)
        said = [
            text.split(".")[0].strip() for text in processor.answers(prompt, ids)
        ]  # a text ends with a full stop
        right = sum(answer == truth for answer, truth in zip(said, truths, strict=True))
        print(
            f"{shots} demonstrations: {right / QUERIES:.2f} right of {QUERIES}, for example {said[0]!r} (true: {truths[0]!r})"
        )


if __name__ == "__main__":
    main()
