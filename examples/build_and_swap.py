"""Build models from parts and swap the parts: python examples/build_and_swap.py

LLaVA and Flamingo are one class with other parts; a connector, a fusion or a tower is changed by one argument. Weights
are random here, except for the encoder that ships with the package: what is looked at is how the parts fit together.
"""

from __future__ import annotations

import torch

from vlmzoo import available, build, processor_for
from vlmzoo.config import ConfigError
from vlmzoo.data.scenes import Scenes

PERCEIVER = {"kind": "perceiver", "num_latents": 4, "depth": 1, "heads": 4, "dim_head": 16}
CHOICES = {
    "a LLaVA": ("llava-tiny", {}),
    "the same with a trained encoder": ("llava-tiny", {"vision": "vlmzoo:clip-tiny"}),
    "with another connector": ("llava-tiny", {"connector": PERCEIVER}),
    "with another language model": ("llava-tiny", {"language": {"kind": "gpt2", "n_embd": 64, "n_layer": 2,
        "n_head": 4, "vocab_size": 512, "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}}),
    "a Flamingo": ("flamingo-tiny", {}),
    "a Flamingo that looks at every third layer": ("flamingo-tiny", {"fusion": {"every": 3}}),
}  # fmt: skip


def main() -> None:
    print("connectors to choose from:", ", ".join(available("connectors")))
    rows = [Scenes(split="test", rows="vqa", length=2)[i] for i in range(2)]
    for name, (preset, changes) in CHOICES.items():
        torch.manual_seed(0)
        model = build(preset, **changes).eval()
        prompt = processor_for(model).prompts(rows)  # a picture and a question each, as tensors
        with torch.no_grad():
            logits = model(**prompt).logits
        print(f"\n{name}: build({preset!r}{', ...' if changes else ''})")
        print(model)
        print(f"one picture takes {model.image_tokens} places in the prompt; logits {list(logits.shape)}")

    pictures = processor_for(clip := build("clip-tiny").eval())  # two towers, no language model
    batch = {"pixel_values": torch.stack([pictures.pictures(row)[0] for row in rows])}
    print(f"\na dual encoder: build('clip-tiny')\n{clip}")
    print(f"picture vectors {list(clip.encode_image(batch).shape)}")

    large = build("llava-1.5-7b", device="meta")  # shapes only: no memory, no download
    print(f"\nllava-1.5-7b has {sum(p.numel() for p in large.parameters()):,} parameters")
    try:
        build("llava-tiny", connector="percever")
    except ConfigError as error:
        print(f"a wrong name is told: {error}")


if __name__ == "__main__":
    main()
