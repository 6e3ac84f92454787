"""Flamingo against a straightforward way, and Idefics in stock transformers: time and memory as ratios, in turn.

- train: a step (forward, backward, AdamW). The straightforward side has the same weights and optimiser, and eager
  attention, scores to all pictures, weight gradients for the frozen language model, logits at every position. Idefics
  (transformers) has the same widths, depths, pictures and text, frozen as its users freeze it; other blocks inside.
- decode: a token after 1, 5, 17, 33 pictures (0, 4, 16, 32 shots), both sides with a cache of the text; the
  straightforward side makes keys and values of all pictures again at every step and scores them all. Ids must be equal.
- classify: 100 labels after 32 shots, against the whole prompt for every label (in batches; pictures encoded once).

Random weights with open gates. The gated blocks have OpenFlamingo's attention (8 heads of 64 to 64 latents, before every
layer), in a text model of width 256. In a wider one more of a token's time is the text model's own.

Usage: python benchmarks/flamingo.py [--only train decode classify] [--rounds 5]
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from measure import in_turn, peak_above, peak_elsewhere, ratio
from transformers import IdeficsConfig, IdeficsForVisionText2Text
from transformers.utils import logging

from vlmzoo import build
from vlmzoo.objectives.language import Language
from vlmzoo.types import IGNORE_INDEX

TEXT, LAYERS, VOCABULARY = 256, 6, 4096
PICTURE, SIDE, PATCH, LATENTS = 256, 112, 14, 64
HEADS, DIM_HEAD = 8, 64
IMAGE = 2
WANTED = {1: 1.5, 5: 2.5, 17: 4.5, 33: 7.0}


def flamingo() -> Any:
    """A model of those sizes, its gates open."""
    torch.manual_seed(0)
    vision = {
        "kind": "clip", "hidden_size": PICTURE, "intermediate_size": 4 * PICTURE, "num_hidden_layers": 4,
        "num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH, "feature_layer": -1, "cls": "drop",
    }  # fmt: skip
    language = {
        "kind": "llama", "hidden_size": TEXT, "intermediate_size": 4 * TEXT, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": VOCABULARY, "head_dim": TEXT // HEADS,
        "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0,
    }  # fmt: skip
    sizes = {"heads": HEADS, "dim_head": DIM_HEAD}
    model = build({
        "class": "vision_lm", "vision": vision, "language": language, "image_token_id": IMAGE,
        "connector": {"kind": "perceiver", "num_latents": LATENTS, "depth": 2, **sizes},
        "fusion": {"kind": "gated_cross_attention", **sizes},
    })  # fmt: skip
    for gate in model.fusion.gates():
        gate.data.fill_(0.5)
    return model.eval()


def text_of(rows: int, pictures: int, words: int) -> torch.Tensor:
    """Ids [rows, pictures * (1 + words)]: each picture's place and words after it."""
    chunk = torch.randint(
        4, VOCABULARY, (rows, pictures, 1 + words), generator=torch.Generator().manual_seed(1)
    )
    chunk[..., 0] = IMAGE
    return rearrange(chunk, "b j t -> b (j t)")


def features_of(model: Any, pictures: int) -> torch.Tensor:
    pixels = torch.randn(pictures, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    return model.encode_pictures(pixels)


# --- the straightforward side ------------------------------------------------------------------------------------


def eager(queries: Any, keys: Any, values: Any, attn_mask: Any = None, **_: Any) -> torch.Tensor:
    """Attention as it is written in the paper: all scores, softmax, sum."""
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.finfo(scores.dtype).max)
    return scores.softmax(dim=-1) @ values


class PlainBlock:
    """A gated block's forward with nothing kept: keys, values and scores of all pictures at every call."""

    def __init__(self, block: Any) -> None:
        self.block = block

    def __call__(self, x: torch.Tensor, gaze: Any) -> torch.Tensor:
        block, attention = self.block, self.block.attention
        pictures = rearrange(gaze.tokens, "b j l c -> b (j l) c")
        queries, keys, values = (
            rearrange(made, "b t (h e) -> b h t e", h=attention.heads)
            for made in (attention.to_q(block.norm(x)), attention.to_k(pictures), attention.to_v(pictures))
        )
        number = torch.arange(1, gaze.tokens.shape[1] + 1).repeat_interleave(gaze.tokens.shape[2])
        seen = eager(queries, keys, values, (gaze.index[..., None] == number)[:, None])
        seen = seen.masked_fill((gaze.index == 0)[:, None, :, None], 0.0)
        x = x + block.attention_gate.tanh() * attention.to_out(rearrange(seen, "b h t e -> b t (h e)"))
        return x + block.feed_forward_gate.tanh() * block.feed_forward(x)


def plain(model: Any, attention: str | None = None) -> Any:
    """A copy of the model with plain blocks, and ``attention`` in its towers."""
    other = copy.deepcopy(model)
    for block in other.fusion.blocks.values():
        block.forward = PlainBlock(block)
    if attention is not None:
        other.language.set_attn_implementation(attention)
        other.vision.tower.set_attn_implementation(attention)
    return other


# --- training ----------------------------------------------------------------------------------------------------

PICTURES, WORDS, ROWS = 6, 31, 4


def training_side(which: str) -> Callable[[], float]:
    """A whole step on the same batch; gives the loss."""
    model = idefics() if which == "idefics" else flamingo()
    ids = text_of(ROWS, PICTURES, WORDS)
    pixels = torch.randn(ROWS * PICTURES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    labels = ids.masked_fill(ids == IMAGE, IGNORE_INDEX)
    if which != "idefics":
        model = plain(model, "eager") if which == "plain" else model
        model.requires_grad_(False)
        model.connector.requires_grad_(True), model.fusion.requires_grad_(True)
    learning = [p for p in model.parameters() if p.requires_grad]
    if which == "plain":
        model.language.requires_grad_(
            True
        )  # as under open_flamingo's FSDP: made, and left out of the optimiser
    optimizer = torch.optim.AdamW(learning, lr=1e-4, fused=True)

    def loss_of() -> torch.Tensor:
        if which == "idefics":
            sees = F.one_hot(
                (ids == IMAGE).cumsum(1) - 1, PICTURES
            )  # [B, T, J]: the picture before each position
            shown = rearrange(pixels, "(b j) c h w -> b j c h w", b=ROWS)
            out = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=shown, image_attention_mask=sees,
                use_cache=False,
            )  # fmt: skip
            return F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        batch = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": labels,
            "pixel_values": pixels,
        }
        if which == "plain":
            return model(**batch, use_cache=False).loss
        term = Language()(model, batch)["language"]
        return term.sum / term.count

    def step() -> float:
        loss = loss_of()
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step if which != "plain" else eager_everywhere(step)


def eager_everywhere(work: Callable[[], float]) -> Callable[[], float]:
    """The resampler too, whose attention has no switch."""

    def wrapped() -> float:
        kept, F.scaled_dot_product_attention = F.scaled_dot_product_attention, eager
        try:
            return work()
        finally:
            F.scaled_dot_product_attention = kept

    return wrapped


def idefics() -> Any:
    """Idefics with the same widths and depths, frozen but for what it adds to its towers."""
    torch.manual_seed(0)
    config = IdeficsConfig(
        vocab_size=VOCABULARY, additional_vocab_size=0, hidden_size=TEXT, intermediate_size=4 * TEXT,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, cross_layer_interval=1, use_resampler=True,
        pad_token_id=0, alpha_type="float", alpha_initializer="ones",
        vision_config={
            "embed_dim": PICTURE, "image_size": SIDE, "patch_size": PATCH, "num_hidden_layers": 4,
            "num_attention_heads": 4, "intermediate_size": 4 * PICTURE,
        },
        perceiver_config={
            "resampler_depth": 2, "resampler_n_heads": HEADS, "resampler_head_dim": DIM_HEAD,
            "resampler_n_latents": LATENTS,
        },
    )  # fmt: skip
    model = IdeficsForVisionText2Text(config).eval()
    model.requires_grad_(False)
    (
        model.model.gated_cross_attn_layers.requires_grad_(True),
        model.model.perceiver_resampler.requires_grad_(True),
    )
    return model


def train(rounds: int) -> None:
    sides = {which: training_side(which) for which in ("plain", "idefics", "ours")}
    first = {which: sides[which]() for which in ("plain", "ours")}
    assert abs(first["plain"] - first["ours"]) < 1e-4 * first["plain"], first
    seconds = in_turn(sides, rounds)
    memory = {which: peak_elsewhere(__file__, "--memory", f"train:{which}") for which in sides}
    show = {which: f"{statistics.median(times):.2f} s" for which, times in seconds.items()}
    print(
        f"train: {ROWS} rows of {PICTURES} pictures and {PICTURES * (WORDS + 1)} ids; first loss {first}; {show}"
    )
    for peer in ("plain", "idefics"):
        print(f"  against {peer}: {ratio(seconds[peer], seconds['ours'])} faster", end=", ")
        print(
            f"memory {memory[peer]:.0f} against {memory['ours']:.0f} MiB, {memory[peer] / memory['ours']:.1f}x less"
        )


# --- decoding ----------------------------------------------------------------------------------------------------

NEW = 17


def decoding_side(which: str, pictures: int, model: Any = None) -> Callable[[int], torch.Tensor]:
    model = model or flamingo()
    features = features_of(model, pictures)
    ids = text_of(1, pictures, 15)
    asked = plain(model) if which == "plain" else model

    def generate(new: int) -> torch.Tensor:
        return asked.generate(
            ids, attention_mask=torch.ones_like(ids), image_features=features, do_sample=False, max_new_tokens=new,
            min_new_tokens=new,
        )  # fmt: skip

    return generate


def decode(rounds: int) -> None:
    model = flamingo()
    for pictures, wanted in WANTED.items():
        sides = {which: decoding_side(which, pictures, model) for which in ("plain", "ours")}
        assert torch.equal(sides["plain"](NEW), sides["ours"](NEW))
        calls = {
            f"{which} {new}": (lambda s=side, n=new: s(n))
            for which, side in sides.items()
            for new in (1, NEW)
        }
        seconds = in_turn(calls, rounds)
        token = {
            which: [
                (b - a) / (NEW - 1)
                for a, b in zip(seconds[f"{which} 1"], seconds[f"{which} {NEW}"], strict=True)
            ]
            for which in sides
        }
        whole = ratio(seconds[f"plain {NEW}"], seconds[f"ours {NEW}"])
        print(
            f"decode, {pictures} pictures: {1e3 * statistics.median(token['plain']):.1f} against "
            f"{1e3 * statistics.median(token['ours']):.1f} ms a token: {ratio(token['plain'], token['ours'])} faster "
            f"(wanted {wanted}x); prompt and {NEW} tokens {whole}"
        )
    memory = [peak_elsewhere(__file__, "--memory", f"decode:{which}:{pictures}") for which in sides]
    print(f"  memory with {pictures} pictures {memory[0]:.0f} against {memory[1]:.0f} MiB")


# --- classification ----------------------------------------------------------------------------------------------

SHOTS, LABELS, BATCH = 32, 100, 10


def classifying_side(which: str) -> Callable[[], torch.Tensor]:
    """The log-likelihood of every label, [LABELS]."""
    model = flamingo()
    features = features_of(model, SHOTS + 1)
    ids = text_of(1, SHOTS + 1, 11)
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 5, (LABELS,), generator=generator).tolist()
    labels = [torch.randint(4, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    if which == "ours":
        inputs = {"input_ids": ids, "image_features": features}
        return lambda: torch.stack([one.sum() for one in model.score(inputs, [labels])[0]])

    @torch.no_grad()
    def each() -> torch.Tensor:
        media = model.media(ids, image_features=features)
        found = []
        for start in range(0, LABELS, BATCH):
            texts = labels[start : start + BATCH]
            longest = max(map(len, texts))
            padded = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
            batch = torch.cat([ids.expand(len(texts), -1), padded], dim=1)
            marks = F.pad(padded, (ids.shape[1], 0), value=IGNORE_INDEX)
            real = torch.arange(longest) < torch.tensor([len(text) for text in texts])[:, None]
            marks[:, ids.shape[1] :].masked_fill_(~real, IGNORE_INDEX)
            losses = model.token_losses({"input_ids": batch, "labels": marks, "media": media})
            found += [-one.sum() for one in losses.split([len(text) for text in texts])]
        return torch.stack(found)

    return each


def classify(rounds: int) -> None:
    sides = {which: classifying_side(which) for which in ("each", "ours")}
    apart = float((sides["each"]() - sides["ours"]()).abs().max())
    assert apart < 1e-3, apart
    seconds = in_turn(sides, rounds)
    memory = [peak_elsewhere(__file__, "--memory", f"classify:{which}") for which in sides]
    each, ours = (statistics.median(seconds[which]) for which in sides)
    print(
        f"classify, {LABELS} labels after {SHOTS} shots: {each:.2f} against {ours:.2f} s, values within {apart:.0e}: "
        f"{ratio(seconds['each'], seconds['ours'])} faster; memory {memory[0]:.0f} against {memory[1]:.0f} MiB"
    )


def remember(part: str) -> float:
    """Peak memory of one side of one part, ``part:side[:pictures]``."""
    what, which, *pictures = part.split(":")
    if what == "train":
        return peak_above(training_side(which))
    if what == "classify":
        return peak_above(classifying_side(which))
    generate = decoding_side(which, int(pictures[0]))
    return peak_above(lambda: generate(NEW))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=["train", "decode", "classify"], default=["train", "decode", "classify"]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    if options.memory:
        print(remember(options.memory))
        return
    for part in options.only:
        {"train": train, "decode": decode, "classify": classify}[part](options.rounds)


if __name__ == "__main__":
    main()
