"""LLaVA against stock transformers: time and memory as ratios, in one process, A B A B.

The peer is transformers' LlavaForConditionalGeneration with padded batches, as its users train it; ours is the same
weights packed, with logits only where supervised. Both have the same rows, dtype, attention (SDPA), frozen parts and
fused AdamW, and their losses are checked to be equal first.

- mix: stage 2 (connector and language model learn) on an instruction mix; 1024 words give the head the share of the cost
  that it has in a 7B model, 32000 are a real vocabulary. Stage 1: only the connector learns, from captions.
  "cached" gives ours the frozen tower's features in the place of pictures, as a run does with ``cache: {features: ...}``.
- FLOPs: matrix products that torch counts in our step, over the formula of ``vlmzoo.methods.flops`` for these rows without
  any padding (attention left out of both: a processor's kernel is not counted). In brackets the peer's.
- memory: peak above the loaded model with its gradients, of each side in a process of its own.
- generation: eight prompts of one batch, greedy.

Random weights, made-up lengths (log-normal, one row in eight long and without a picture).

Usage: python benchmarks/llava.py [--only mix-1024 mix-32000 stage1-32000 stage1-32000-cached generate] [--rounds 5] [--batch 8]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from measure import in_turn, peak_above, peak_elsewhere, ratio
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode, addmm_flop
from transformers import AutoModelForImageTextToText
from transformers.utils import logging

from vlmzoo import build, processor_for
from vlmzoo.data.collate import LanguageCollate
from vlmzoo.hub import llava
from vlmzoo.methods.flops import Costs, head_cost
from vlmzoo.nn.language import can_pack
from vlmzoo.objectives.language import Language
from vlmzoo.types import IGNORE_INDEX

SIDE, PATCH, TOWER, WIDTH, LAYERS = 224, 16, 192, 256, 6
PATCHES = (SIDE // PATCH) ** 2
NEW_TOKENS = 24
PACK_LENGTH = 8192


@dataclass(frozen=True)
class Case:
    """One training benchmark: vocabulary, stage, and what is wanted of it."""

    vocabulary: int
    stage: int
    faster: float
    leaner: float | None = None
    cached: bool = False


CASES = {
    "mix-1024": Case(1024, 2, 2.0),
    "mix-32000": Case(32000, 2, 3.5, leaner=6.0),
    "stage1-32000": Case(32000, 1, 2.7),
    "stage1-32000-cached": Case(32000, 1, 2.7, cached=True),
}


def model_of(vocabulary: int) -> Any:
    """Ours with random weights: a tower of 6 x 192 read at the last layer but one, a Llama of 6 x 256."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": TOWER, "intermediate_size": 4 * TOWER, "num_hidden_layers": LAYERS, "num_attention_heads": 6,
        "image_size": SIDE, "patch_size": PATCH, "feature_layer": -2,
    }  # fmt: skip
    language = {
        "hidden_size": WIDTH, "intermediate_size": 688, "num_hidden_layers": LAYERS, "num_attention_heads": 8,
        "num_key_value_heads": 8, "vocab_size": vocabulary, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    }  # fmt: skip
    return build("llava-tiny", vision=vision, language=language)


def stock_of(model: Any, processor: Any) -> Any:
    """The same weights in stock transformers, through our export."""
    with tempfile.TemporaryDirectory() as folder:
        llava.export(model, processor, folder)
        return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


def rows(count: int, stage: int, generator: torch.Generator) -> list[Any]:
    """Instruction data: mostly short talk about a picture, one in eight long and without one. Stage 1: captions."""
    found = []
    for number in range(count):
        pictured = stage == 1 or number % 8 != 7
        middle, spread = (2.5, 0.4) if stage == 1 else (4.0, 0.8) if pictured else (6.5, 0.3)
        words = int(torch.empty(1).log_normal_(middle, spread, generator=generator).clamp(6, 1000))
        parts: list[Any] = [{"role": "user", "type": "image", "text": None}] if pictured else []
        if stage == 2:
            parts.append({"role": "user", "type": "text", "text": "red circle " * (words // 2)})
        answer = words // 2 if stage == 1 else max(1, words // 12)
        parts.append({"role": "assistant", "type": "text", "text": "blue square " * answer})
        picture = Image.new("RGB", (SIDE, SIDE), (number * 30 % 255, 100, 100))
        found.append({"images": [{"image": picture}] if pictured else [], "parts": parts, "id": str(number)})
    return found


def batches(processor: Any, case: Case, which: str, count: int, size: int) -> list[dict[str, torch.Tensor]]:
    """The same rows for both sides: the peer's padded, ours packed."""
    generator = torch.Generator().manual_seed(1)
    collate = LanguageCollate(processor, pack_length=None if which == "peer" else PACK_LENGTH)
    return [
        collate.join([collate.encode(row) for row in rows(size, case.stage, generator)]) for _ in range(count)
    ]


@torch.no_grad()
def with_features(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch as it comes from a cache of features."""
    features = model.encode_pictures(batch["pixel_values"])
    return {**{k: v for k, v in batch.items() if k != "pixel_values"}, "image_features": features}


def side(which: str, case: Case, options: argparse.Namespace) -> tuple[Callable[[], float], Any, list[Any]]:
    """A training step on the next batch, the model it trains, and the batches."""
    model = model_of(case.vocabulary)
    processor = processor_for(model)
    data = batches(processor, case, which, options.rounds + 1, options.batch)
    if which == "peer":
        model = stock_of(model, processor)
    else:
        assert can_pack(model.language)
        data = [with_features(model, batch) for batch in data] if case.cached else data
    tower = model.vision if which == "ours" else model.model.vision_tower
    frozen = [tower] if case.stage == 2 else [tower, model.language] if which == "ours" else [
        tower, model.model.language_model, model.lm_head
    ]  # fmt: skip
    for part in frozen:
        part.requires_grad_(False)
    model.train()
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5, fused=True)
    turn = cycle(data)

    def step() -> float:
        batch = next(turn)
        if which == "peer":
            loss = model(**batch).loss
        else:
            term = Language()(model, batch)["language"]
            loss = term.sum / term.count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step, model, data


def flops_of(step: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_flop}) as counter:
        step()
    return float(counter.get_total_flops())


def wanted_flops(model: Any, padded: dict[str, torch.Tensor], stage: int) -> float:
    """The formula for a batch's rows: frozen tower once, connector three times, language model and head by stage."""
    vision, pictures = model.vision, len(padded["pixel_values"])
    layers = next(m for m in vision.tower.modules() if isinstance(m, torch.nn.ModuleList))
    tower = Costs.of(list(layers), model.config.vision).forward((PATCHES + 1) * pictures, 0)
    tower += 2.0 * 3 * PATCH**2 * TOWER * PATCHES * pictures
    connector = 2.0 * sum(p.numel() for p in model.connector.parameters() if p.ndim == 2) * PATCHES * pictures
    tokens, supervised = (
        int(padded["attention_mask"].sum()),
        int((padded["labels"][:, 1:] != IGNORE_INDEX).sum()),
    )
    body = Costs.of_language(model.language).forward(tokens, 0) + head_cost(model.language) * supervised
    return tower + 3 * connector + (3 if stage == 2 else 2) * body


def train(name: str, options: argparse.Namespace) -> None:
    """One case: equal losses, time, FLOPs and memory."""
    case = CASES[name]
    made = {which: side(which, case, options) for which in ("peer", "ours")}
    losses = {which: step() for which, (step, _, _) in made.items()}
    assert abs(losses["peer"] - losses["ours"]) < 1e-4 * losses["peer"], losses
    seconds = in_turn({which: step for which, (step, _, _) in made.items()}, options.rounds)
    print(f"{name}: {ratio(seconds['peer'], seconds['ours'])} faster, wanted {case.faster}x")
    spent = {which: sum(flops_of(step) for _ in data) for which, (step, _, data) in made.items()}
    formula = sum(wanted_flops(made["ours"][1], batch, case.stage) for batch in made["peer"][2])
    print(
        f"  FLOPs over the formula: {spent['ours'] / formula:.3f}, wanted 1.03 (peer {spent['peer'] / formula:.3f})"
    )
    del made
    peaks = {
        which: peak_elsewhere(__file__, "--memory", name, which, "--batch", str(options.batch), "--rounds", "1")
        for which in ("peer", "ours")
    }  # fmt: skip
    aim = f", wanted {case.leaner}x" if case.leaner else ""
    print(
        f"  memory: {peaks['peer']:.0f} and {peaks['ours']:.0f} MiB, {peaks['peer'] / peaks['ours']:.1f}x less{aim}"
    )


def memory(name: str, which: str, options: argparse.Namespace) -> None:
    """Print the peak of forward and backward above a model that has its gradients."""
    _, model, data = side(which, CASES[name], options)
    batch = data[0]

    def work() -> None:
        (model(**batch).loss if which == "peer" else Language()(model, batch)["language"].sum).backward()
        model.zero_grad(set_to_none=False)

    print(peak_above(work))


def generate(options: argparse.Namespace) -> None:
    """Eight prompts with a picture each, of different lengths; the ids are the same."""
    model = model_of(32000).eval()
    processor = processor_for(model)
    asked = [row for row in rows(16, 2, torch.Generator().manual_seed(3)) if row["images"]][:8]
    prompt = processor.prompts(asked)
    peer = stock_of(model, processor).eval()
    how = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    sides = {
        "peer": lambda: peer.generate(**prompt, **how, suppress_tokens=[model.config.image_token_id]),
        "ours": lambda: model.generate(**prompt, **how),
    }
    assert torch.equal(sides["peer"](), sides["ours"]())
    seconds = in_turn(sides, options.rounds)
    print(f"generate: {ratio(seconds['peer'], seconds['ours'])} faster, wanted 1.0x")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[*CASES, "generate"], default=[*CASES, "generate"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--memory", nargs=2, metavar=("CASE", "SIDE"), help="measure one side (the program itself asks)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options.memory:
        return memory(*options.memory, options)
    for name in options.only:
        generate(options) if name == "generate" else train(name, options)


if __name__ == "__main__":
    main()
