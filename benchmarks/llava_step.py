"""One LLaVA training step against stock transformers: time and memory as ratios, in one process, A B A B.

The peer is transformers' LlavaForConditionalGeneration with padded batches, as its users train it; ours is the same
weights packed, with logits only where supervised. Both losses are checked to be equal first. Random weights, made-up
lengths (lognormal, one row in eight long and without a picture); a small model with a 7B-like share of its cost in the head.

Usage: python benchmarks/llava_step.py [--rounds 5] [--batch 8] [--vocabulary 1024] [--device cpu]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from vlmzoo import build, processor_for
from vlmzoo.data.collate import LanguageCollate
from vlmzoo.hub import llava
from vlmzoo.objectives.language import Language


def model_of(vocabulary: int) -> Any:
    torch.manual_seed(0)
    vision = {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "image_size": 224,
        "patch_size": 16,
    }
    language = {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
    }
    return build("llava-tiny", vision=vision, language=language)


def rows(count: int, generator: torch.Generator) -> list[Any]:
    """A mixture as instruction data has it: mostly short talk about a picture, one in eight long and without one."""
    found = []
    for number in range(count):
        pictured = number % 8 != 7
        words = torch.empty(1).log_normal_(
            4.0 if pictured else 6.5, 0.8 if pictured else 0.3, generator=generator
        )
        words = int(words.clamp(20, 1000))
        parts: list[Any] = [{"role": "user", "type": "image", "text": None}] if pictured else []
        parts.append({"role": "user", "type": "text", "text": "red circle " * (words // 2)})
        parts.append({"role": "assistant", "type": "text", "text": "blue square " * max(1, words // 12)})
        picture = Image.new("RGB", (224, 224), (number * 30 % 255, 100, 100))
        found.append({"images": [{"image": picture}] if pictured else [], "parts": parts, "id": str(number)})
    return found


def peer_step(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    loss = model(**batch).loss
    loss.backward()
    return loss.detach()


def our_step(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    term = Language()(model, batch)["language"]
    (term.sum / term.count).backward()
    return (term.sum / term.count).detach()


def prepare(which: str, options: argparse.Namespace) -> tuple[Any, Any, Any]:
    model = model_of(options.vocabulary)
    processor = processor_for(model)
    generator = torch.Generator().manual_seed(1)
    encoder = LanguageCollate(processor)
    samples = [encoder.encode(row) for row in rows(options.batch, generator)]
    pack = None if which == "peer" else 1  # rows as long as the longest sample: attention is quadratic
    batch = {
        k: v.to(options.device) for k, v in LanguageCollate(processor, pack_length=pack).join(samples).items()
    }
    step = our_step
    if which == "peer":
        with tempfile.TemporaryDirectory() as folder:
            llava.export(model, processor, folder)
            model, step = AutoModelForImageTextToText.from_pretrained(folder), peer_step
    vision = model.vision if which == "ours" else model.model.vision_tower
    vision.requires_grad_(False)
    return model.to(options.device).train(), batch, step


def memory(which: str, options: argparse.Namespace) -> float:
    """Peak memory of three steps above the loaded model, MiB, in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--memory",
        which,
        "--batch",
        str(options.batch),
        "--vocabulary",
        str(options.vocabulary),
    ]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure_memory(which: str, options: argparse.Namespace) -> None:
    model, batch, step = prepare(which, options)
    step(model, batch)  # gradients and workspaces are there before the measurement starts
    model.zero_grad(set_to_none=False)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here (Linux)
    before = _status("VmRSS")
    for _ in range(3):
        step(model, batch)
    print((_status("VmHWM") - before) / 1024)


def _status(name: str) -> int:
    """A line of this process's memory report, kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", choices=["peer", "ours"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        measure_memory(options.memory, options)
        return
    sides = {which: prepare(which, options) for which in ("peer", "ours")}
    losses = {which: float(step(model, batch)) for which, (model, batch, step) in sides.items()}
    assert abs(losses["peer"] - losses["ours"]) < 1e-4 * losses["peer"], losses
    seconds: dict[str, list[float]] = {"peer": [], "ours": []}
    for _ in range(options.rounds):
        for which, (model, batch, step) in sides.items():
            start = time.process_time()
            step(model, batch)
            seconds[which].append(time.process_time() - start)
            model.zero_grad()
    peer, ours = (statistics.median(seconds[which]) for which in ("peer", "ours"))
    print(f"loss peer {losses['peer']:.6f}, ours {losses['ours']:.6f}")
    print(
        f"step: peer {peer:.3f} s, ours {ours:.3f} s (medians of {options.rounds}, CPU time): {peer / ours:.2f}x faster"
    )
    if options.device == "cpu":
        spent = {which: memory(which, options) for which in ("peer", "ours")}
        print(
            f"memory above the model: peer {spent['peer']:.0f} MiB, ours {spent['ours']:.0f} MiB: {spent['peer'] / spent['ours']:.1f}x less"
        )


if __name__ == "__main__":
    main()
