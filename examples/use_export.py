"""An exported LLaVA with stock transformers alone: this file does not import vlmzoo.

Usage: python examples/use_export.py FOLDER PICTURE "question" [PICTURE "question" ...]
"""

from __future__ import annotations

import sys

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor


def main(folder: str, *asked: str) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    for picture, question in zip(asked[::2], asked[1::2], strict=True):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = processor(
            images=Image.open(picture), text=prompt, add_special_tokens=False, return_tensors="pt"
        )
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        print(processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())


if __name__ == "__main__":
    main(*sys.argv[1:])
