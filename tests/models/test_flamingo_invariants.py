"""What holds for every Flamingo, whatever its weights: who sees what, what padding and spare pictures change (nothing)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers import apart, gradients, rows, vision_lm
from vlmzoo.data.collate import LanguageCollate
from vlmzoo.nn.connectors.gated_cross_attention import GatedBlock
from vlmzoo.nn.connectors.gaze import Gaze
from vlmzoo.nn.connectors.perceiver import Perceiver
from vlmzoo.objectives.language import Language

DIM, CONTEXT, TOKENS, PICTURES, TEXT = 12, 10, 3, 4, 9


def flamingo() -> tuple[Any, Any]:
    model, processor = vision_lm(connector="perceiver", fusion="gated_cross_attention")
    return model.eval(), processor


def document(*pictures: int) -> dict[str, Any]:
    """Words, then for each number a picture of the embedded scenes with words after it."""
    pool = rows(max(pictures, default=0) + 1)
    parts = [{"role": "text", "type": "text", "text": "some words first"}]
    for number in pictures:
        parts += [
            {"role": "text", "type": "image", "text": None},
            {"role": "text", "type": "text", "text": f" picture {number} is described."},
        ]
    images = [pool[number]["images"][0] for number in pictures]
    return {"images": images, "parts": parts, "id": "d", "label": None, "source": "test"}


def block(**options: Any) -> GatedBlock:
    torch.manual_seed(1)
    made = GatedBlock(DIM, CONTEXT, 2, 4, 2, "gelu", True, False, 0, **options)
    with torch.no_grad():
        made.attention_gate.fill_(0.7), made.feed_forward_gate.fill_(-0.4)
    return made


def test_closed_gates_change_neither_loss_nor_ids() -> None:
    model, processor = flamingo()
    for gate in model.fusion.gates():
        gate.data.zero_()
    collate = LanguageCollate(processor)
    batch = collate.join([collate.encode(row) for row in rows(3)])
    text = {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask", "labels")}
    bare = model.language(**{**text, "position_ids": (text["attention_mask"].cumsum(-1) - 1).clamp_min(0)})
    term = Language()(model, batch)["language"]
    assert apart(term.sum / term.count, bare.loss) <= 1e-6
    term.sum.backward()
    reached = {name for name, gradient in gradients(model).items() if gradient.any()}
    new = {name for name in reached if name.startswith(("connector.", "fusion."))}
    assert new == {f"fusion.{name}" for name in model.fusion.groups()["gates"]}
    prompt = processor.prompts(rows(2))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    bare_ids = model.language.generate(
        input_ids=prompt["input_ids"], attention_mask=prompt["attention_mask"], **options,
        suppress_tokens=[model.config.image_token_id],
    )  # fmt: skip
    assert torch.equal(model.generate(**prompt, **options), bare_ids)


def test_open_gates_let_every_part_learn() -> None:
    model, processor = flamingo()
    collate = LanguageCollate(processor)
    batch = collate.join([collate.encode(row) for row in rows(3)])
    Language()(model, batch)["language"].sum.backward()
    found = gradients(model)
    for name, _ in model.named_parameters():
        if name.startswith(("connector.", "fusion.")):
            assert found[name].any(), name


def test_an_earlier_picture_reaches_later_text_through_self_attention_only() -> None:
    """The first block's output after the second picture does not change with the first picture; the last one's does."""
    model, processor = flamingo()
    batch = processor.prompts([document(0, 1)], whole=True)
    place = (batch["input_ids"][0] == model.config.image_token_id).nonzero().flatten()[1]
    seen: list[list[torch.Tensor]] = []
    for change in (0.0, 1.0):
        outputs: list[torch.Tensor] = []
        handles = [
            made.register_forward_hook(lambda module, args, out, kept=outputs: kept.append(out))
            for made in model.fusion.blocks.values()
        ]
        pixels = batch["pixel_values"].clone()
        pixels[0] += change
        model(**{**batch, "pixel_values": pixels})
        for handle in handles:
            handle.remove()
        seen.append(outputs)
    first, last = 0, len(model.fusion.blocks) - 1
    assert torch.equal(seen[0][first][:, place:], seen[1][first][:, place:])
    assert not torch.equal(seen[0][last][:, place:], seen[1][last][:, place:])


def test_pictures_that_no_text_sees_change_nothing() -> None:
    made, x = block(), torch.randn(2, TEXT, DIM)
    media = torch.randn(2, PICTURES, TOKENS, CONTEXT)
    index = torch.randint(0, PICTURES, (2, TEXT))  # the last picture is a spare
    out = made(x, Gaze(media, index))
    other = media.clone()
    other[:, -1] = 100.0
    assert torch.equal(made(x, Gaze(other, index)), out)
    assert apart(made(x, Gaze(media[:, :-1], index)), out) <= 1e-6
    order = torch.tensor([2, 0, 1, 3])
    moved = torch.zeros_like(index)
    for new, old in enumerate(order.tolist()):
        moved[index == old + 1] = new + 1
    assert apart(made(x, Gaze(media[:, order], moved)), out) <= 1e-6  # numbers are only names


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_company_change_nothing(side: str) -> None:
    """Rows of a batch with other lengths and other numbers of pictures are what each is alone."""
    model, processor = flamingo()
    documents = [document(0, 1, 2), document(3), document(), document(1, 1)]
    together = processor.pad([processor.prompt_ids(one, whole=True) for one in documents], side=side)
    pixels = torch.stack([picture for one in documents for picture in processor.pictures(one)])
    logits = model(**together, pixel_values=pixels).logits
    for number, one in enumerate(documents):
        alone = processor.prompts([one], whole=True)
        real = together["attention_mask"][number].bool()
        assert apart(logits[number][real], model(**alone).logits[0]) <= 1e-5


def test_a_batch_without_pictures_is_the_language_models() -> None:
    """With the attention alone open, text before any picture is the bare language model's, bit for bit."""
    model, processor = flamingo()
    for made in model.fusion.blocks.values():
        made.feed_forward_gate.data.zero_()
    batch = processor.prompts([document()], whole=True)
    assert torch.equal(model(**batch).logits, model.language(**batch).logits)


@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_gates_are_odd_and_saturate(gate: str) -> None:
    made, x = block(gate=gate), torch.randn(1, TEXT, DIM)
    gaze = Gaze(torch.randn(1, 1, TOKENS, CONTEXT), torch.ones(1, TEXT, dtype=torch.long))
    made.feed_forward_gate.data.zero_()
    assert made.attention_gate.shape == ((DIM,) if gate == "vector" else (1,))
    branch = []
    for value in (0.7, -0.7, 30.0, 1e4):
        made.attention_gate.data.fill_(value)
        branch.append(made(x, gaze) - x)
    assert apart(branch[0], -branch[1]) <= 1e-6
    assert torch.equal(branch[2], branch[3]) and torch.isfinite(branch[3]).all()


@pytest.mark.parametrize(
    "options", [{"norm": "rms", "qk_norm": True, "glu": True, "hidden": 20}, {"qk_norm": True}]
)
def test_switches_change_the_parameters_they_name(options: dict[str, Any]) -> None:
    names = dict(block(**options).named_parameters())
    assert ("norm.bias" in names) == (options.get("norm") != "rms")
    assert "attention.q_norm.weight" in names
    assert ("feed_forward.gate.weight" in names) == bool(options.get("glu"))
    assert names["feed_forward.up.weight"].shape[0] == options.get("hidden", 2 * DIM)
    start = GatedBlock(DIM, CONTEXT, 2, 4, 2, "gelu", True, False, 0, gate_start=1.0)
    assert float(start.attention_gate.detach()) == float(start.feed_forward_gate.detach()) == 1.0


def test_the_resampler_treats_every_picture_alike() -> None:
    """Without embeddings of their place pictures go through it alone; with them the place matters."""
    torch.manual_seed(0)
    features = torch.randn(PICTURES, 2, 5, DIM)
    plain = Perceiver(DIM, num_latents=TOKENS, depth=2, heads=2, dim_head=4, qk_norm=True, width=16).eval()
    order = torch.randperm(PICTURES)
    assert plain.latents.shape == (TOKENS, 16)
    assert apart(plain(features[order]), plain(features)[order]) <= 1e-6
    assert apart(plain(features[:1]), plain(features)[:1]) <= 1e-6
    placed = Perceiver(DIM, num_latents=TOKENS, depth=1, heads=2, dim_head=4, media=PICTURES).eval()
    there, elsewhere = placed(features[:1], torch.tensor([0])), placed(features[:1], torch.tensor([3]))
    assert not torch.allclose(there, elsewhere, atol=1e-3)
    bare = Perceiver(DIM, num_latents=TOKENS, depth=1, heads=2, dim_head=4, final_norm=False)
    assert not any(name.startswith("norm.") for name, _ in bare.named_parameters())
