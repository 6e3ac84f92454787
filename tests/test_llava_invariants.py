"""The 26 invariants of the LLaVA dossier: where each is tested, and those that have no better place."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import gradients, rows, text_row, vision_lm, worst_gradient
from tests.processing.test_text import CONVERSATIONS, messages_of, processor_of, written
from vlmzoo.data.collate import LanguageCollate
from vlmzoo.data.mix import MicroBatches, Order
from vlmzoo.data.sources import merged_by_picture
from vlmzoo.objectives.language import Language
from vlmzoo.processing.image import ImageTransform
from vlmzoo.processing.text import TEMPLATES
from vlmzoo.training.optim import apply_learn
from vlmzoo.training.options import Learn, OptimOptions, TrainerOptions
from vlmzoo.training.step import Stream
from vlmzoo.training.trainer import Trainer

TESTS = Path(__file__).parent
HERE = "test_llava_invariants.py"
WHERE = {
    1: ["models/test_parity.py::test_features_are_the_numbered_hidden_states", f"{HERE}::test_tokens_of_a_picture"],
    2: ["models/test_parity.py::test_features_are_the_numbered_hidden_states", f"{HERE}::test_only_layers_up_to_the_chosen_one_count"],
    3: ["models/test_parity.py::test_llava_logits_loss_gradients", "models/test_parity.py::test_llava_generation_ids"],
    4: ["models/test_parity.py::test_packed_equals_padded", f"{HERE}::test_packed_samples_do_not_see_each_other"],
    5: [f"{HERE}::test_padding_side_company_and_order_change_nothing"],
    6: ["training/test_step.py::test_text_only_batches_leave_zero_not_missing_gradients", "training/test_distributed.py::test_one_rank_without_pictures"],
    7: [f"{HERE}::test_texts_alone_are_the_language_models_own"],
    8: ["processing/test_text.py::test_exactly_the_answers_and_their_end_are_supervised", "processing/test_jinja.py::test_exactly_the_answers_and_their_end"],
    9: ["processing/test_text.py::test_max_length_never_cuts_or_loses_a_picture", "test_bad_input.py::test_every_kind_of_bad_row_is_listed_and_the_others_are_read"],
    10: ["training/test_step.py::test_micro_batches_change_nothing"],
    11: [f"{HERE}::test_stage_one_trains_the_connector_as_the_whole_would"],
    12: ["models/test_inputs.py::test_cached_features_are_the_pictures"],
    13: ["models/test_parity.py::test_cached_generation_is_full_recompute"],
    14: ["nn/test_lora.py::test_start_and_merge", "nn/test_lora.py::test_targets_and_the_vision_tower", "hub/test_adapter.py::test_merged_equals_adapted_and_exports"],
    15: ["hub/test_llava_original.py::test_there_and_back_is_bit_exact", "hub/test_llava_original.py::test_projector_alone_beside_its_base", "hub/test_llava_stock.py::test_stock_to_ours_to_stock_is_bit_exact"],
    16: ["processing/test_image.py::test_equals_the_stock_processor", f"{HERE}::test_the_padded_square"],
    17: ["data/test_group.py::test_every_step_but_the_last_of_an_epoch_has_one_modality", "data/test_group.py::test_every_epoch_is_a_permutation_and_pure"],
    18: ["test_own_data.py::test_own_data_end_to_end", f"{HERE}::test_swapped_pictures_swap_their_rows"],
    19: [f"{HERE}::test_questions_on_one_picture_become_one_conversation"],
    20: [f"{HERE}::test_two_rounds_as_published", f"{HERE}::test_a_prompt_is_a_strict_prefix"],
    21: [f"{HERE}::test_texts_alone_are_the_language_models_own"],
    22: ["training/test_step.py::test_resume_is_bit_equal", f"{HERE}::test_stage_one_resumes_bit_equal"],
    23: [f"{HERE}::test_eight_questions_are_learnt_by_looking"],
    24: ["evaluate/test_answer_metrics.py::test_soft_accuracy_leaves_out_each_annotator", "evaluate/test_answer_metrics.py::test_yes_to_everything_on_balanced_questions"],
    25: ["models/test_parity.py::test_activation_checkpointing_gives_the_same_gradients", f"{HERE}::test_attention_kernels_agree"],
    26: ["hub/test_serving.py::test_the_served_answer_is_ours"],
}  # fmt: skip


def test_every_invariant_has_its_tests() -> None:
    assert sorted(WHERE) == list(range(1, 27))
    for place in (one for places in WHERE.values() for one in places):
        file, name = place.split("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, place


def batch_of(processor: Any, sample: list[Any], **options: Any) -> dict[str, torch.Tensor]:
    collate = LanguageCollate(processor, **options)
    return collate.join([collate.encode(row) for row in sample])


# --- the model ---------------------------------------------------------------------------------------------------


def test_tokens_of_a_picture() -> None:
    model, processor = vision_lm()
    sides = model.config.vision.image_size // model.config.vision.patch_size
    batch = batch_of(processor, [*rows(3), text_row()])
    assert processor.image_tokens == model.image_tokens == sides**2
    assert (batch["input_ids"] == processor.image_token_id).sum() == len(batch["pixel_values"]) * sides**2


def test_only_layers_up_to_the_chosen_one_count() -> None:
    model, processor = vision_lm()
    pixels, layers = processor.prompts(rows(1))["pixel_values"], model.vision.tower.encoder.layers
    before = model.encode_pictures(pixels)
    with torch.no_grad():
        for part in (layers[-1], model.vision.tower.post_layernorm):
            for parameter in part.parameters():
                parameter.add_(1.0)
        assert torch.equal(model.encode_pictures(pixels), before)
        layers[-2].mlp.fc2.bias.add_(0.1)
    assert not torch.allclose(model.encode_pictures(pixels), before)


def test_packed_samples_do_not_see_each_other() -> None:
    model, processor = vision_lm()
    model.eval()
    batch = batch_of(processor, [*rows(2), text_row("Is it on?", "no, not at all")], pack_length=600)
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    assert len(batch["input_ids"]) == 1 and len(starts) == 3
    inputs = {**{key: value for key, value in batch.items() if key != "labels"}, "use_cache": False}
    before = model(**inputs).logits[0]
    changed = batch["input_ids"].clone()
    place = starts[1] + (changed[0, starts[1] : starts[2]] != processor.image_token_id).nonzero()[3]
    changed[0, place] = (changed[0, place] + 7) % 400 + 5
    after = model(**{**inputs, "input_ids": changed}).logits[0]
    assert torch.equal(after[: starts[1]], before[: starts[1]])
    assert torch.equal(after[starts[2] :], before[starts[2] :])
    assert not torch.equal(after[place : starts[2]], before[place : starts[2]])


def test_padding_side_company_and_order_change_nothing() -> None:
    model, processor = vision_lm()
    model.double().eval()
    sample = [*rows(3), text_row("Is it on?", "no, not at all")]
    encoded = [processor.prompt_ids(row) for row in sample]
    pixels = torch.stack([one for row in sample for one in processor.pictures(row)]).double()

    def logits(order: list[int], side: str) -> list[torch.Tensor]:
        batch = processor.pad([encoded[i] for i in order], side=side)
        shown = torch.stack([pixels[i] for i in order if i < 3]) if any(i < 3 for i in order) else None
        out = model(**batch, **({} if shown is None else {"pixel_values": shown})).logits
        return [out[place][batch["attention_mask"][place].bool()] for place in range(len(order))]

    alone = [logits([i], "right")[0] for i in range(4)]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        for side in ("left", "right"):
            for i, found in zip(order, logits(order, side), strict=True):
                assert float((found - alone[i]).abs().max()) < 1e-12


def test_texts_alone_are_the_language_models_own() -> None:
    """No picture, no trace of one: the loss is that of the bare language model, whatever another row's picture shows."""
    model, processor = vision_lm()
    model.eval()
    batch = batch_of(processor, [text_row("Is it on?", "no, not at all")])
    term = Language()(model, batch)["language"]
    bare = model.language(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses = torch.nn.functional.cross_entropy(bare[0, :-1], batch["labels"][0, 1:], reduction="none")
    assert float(term.sum.detach()) == pytest.approx(float(losses.detach().sum()), rel=1e-6)
    mixed = processor.prompts([text_row("Is it on?"), *rows(1)])
    real = mixed["attention_mask"][0].bool()
    first = model(**mixed).logits[0][real]
    mixed["pixel_values"] = torch.zeros_like(mixed["pixel_values"])
    assert torch.equal(model(**mixed).logits[0][real], first)


def test_swapped_pictures_swap_their_rows() -> None:
    model, processor = vision_lm()
    model.eval()
    two = rows(2)
    parts = [*two[0]["parts"][:2], *two[1]["parts"][:2]]
    prompt = processor.prompts([{**two[0], "images": two[0]["images"] + two[1]["images"], "parts": parts}])
    features = model.encode_pictures(prompt["pixel_values"])
    assert torch.equal(model.encode_pictures(prompt["pixel_values"].flip(0)), features.flip(0))
    places = prompt["input_ids"][0] == processor.image_token_id
    logits = model(**prompt).logits[0]
    other = model(**{**prompt, "pixel_values": prompt["pixel_values"].flip(0)}).logits[0]
    first = int(places.nonzero()[0])
    assert torch.equal(other[:first], logits[:first]) and not torch.allclose(other[first:], logits[first:])


def test_attention_kernels_agree() -> None:
    model, processor = vision_lm()
    batch = batch_of(processor, [*rows(2), text_row()])
    found = []
    for kernel in ("sdpa", "eager"):
        model.set_attn_implementation(kernel)
        model.zero_grad()
        term = Language()(model, batch)["language"]
        term.sum.backward()
        found.append((float(term.sum.detach()), gradients(model)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    assert worst_gradient(found[1][1], found[0][1]) < 1e-4  # of one tensor against its own largest


# --- training ----------------------------------------------------------------------------------------------------


class Listed(list):
    """Rows as a source."""

    root = None
    rejected: list[tuple[str, str]] = []


def trainer_of(out: Path, learn: dict[str, Learn], steps: int, sample: Any = None, **options: Any) -> Trainer:
    model, processor = vision_lm()
    source = Listed(rows(8) if sample is None else sample)
    data = MicroBatches(
        source, LanguageCollate(processor), Order(0, "a", len(source)), len(source), cache=True
    )
    optim = OptimOptions(steps=steps, warmup=0, schedule="constant")
    out.mkdir(parents=True, exist_ok=True)
    return Trainer(model, {"a": Stream("a", data, Language())}, learn, optim, TrainerOptions(**options), out)


def test_stage_one_trains_the_connector_as_the_whole_would(tmp_path: Path) -> None:
    found = []
    for learn in ({"connector": Learn(lr=1e-3)}, {"connector": Learn(lr=1e-3), "language": Learn(lr=1e-3)}):
        model, processor = vision_lm()
        apply_learn(model, learn)
        Language()(model, batch_of(processor, rows(3)))["language"].sum.backward()
        found.append({name: grad for name, grad in gradients(model).items()})
    assert found[0] and all(name.startswith("connector.") for name in found[0])
    assert all(torch.equal(grad, found[1][name]) for name, grad in found[0].items())

    trainer = trainer_of(tmp_path, {"connector": Learn(lr=1e-2)}, 2)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.fit()
    moved = {
        name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert moved == {name for name in before if name.startswith("connector.")}


def test_stage_one_resumes_bit_equal(tmp_path: Path) -> None:
    learn = {"connector": Learn(lr=1e-2)}
    whole = trainer_of(tmp_path / "whole", learn, 4)
    whole.fit()
    cut = trainer_of(tmp_path / "cut", learn, 4, save_every=2)
    after = cut._after

    def killed(done: int, line: Any, bar: Any) -> None:
        after(done, line, bar)
        if done == 2:
            raise KeyboardInterrupt

    cut._after = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cut.fit()
    again = trainer_of(tmp_path / "cut", learn, 4, save_every=2)
    again.fit()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_eight_questions_are_learnt_by_looking(tmp_path: Path) -> None:
    """Eight pictures under one question: only by looking can they be told apart."""
    words = ["red", "blue", "green", "one", "two", "circle", "left", "no"]
    pictures = [
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8))
        for i in range(8)
    ]
    asked = [
        {"role": "user", "type": "image", "text": None},
        {"role": "user", "type": "text", "text": "what?"},
    ]
    sample = [
        {
            "images": [{"image": picture}],
            "parts": [*asked, {"role": "assistant", "type": "text", "text": word}],
            "id": word,
        }
        for picture, word in zip(pictures, words, strict=True)
    ]
    learn = {name: Learn(lr=5e-3) for name in ("connector", "language")}
    trainer = trainer_of(tmp_path, learn, 150, sample)
    line = trainer.fit()
    assert line["loss"] < 0.01
    model, (_, processor) = trainer.model.eval(), vision_lm()

    def answers(shown: list[Any]) -> list[str]:
        prompt = processor.prompts(
            [{"images": [{"image": picture}], "parts": asked, "id": "x"} for picture in shown]
        )
        out = model.generate(**prompt, max_new_tokens=6, do_sample=False, **processor.endings())
        return processor.answers(prompt, out)

    assert answers(pictures) == words
    assert answers(pictures[::-1]) == words[::-1]


# --- rows, pictures, words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(9, 4), (4, 9), (8, 5), (7, 7)])
def test_the_padded_square(width: int, height: int) -> None:
    """The colour is CLIP's mean cut down to whole numbers; of an odd difference the far side gets one pixel more."""
    mean = (0.48145466, 0.4578275, 0.40821073)
    transform = ImageTransform(max(width, height), "pad", mean, (1.0,) * 3)
    shown = transform(Image.new("RGB", (width, height), (255, 255, 255)))
    values = ((shown + torch.tensor(mean).view(3, 1, 1)) * 255).round().int()
    white = (values == 255).all(dim=0)
    assert {tuple(values[:, y, x].tolist()) for y, x in (~white).nonzero().tolist()} <= {(122, 116, 104)}
    ys, xs = (torch.nonzero(white.any(dim=axis)).flatten() for axis in (1, 0))
    side = max(width, height)
    assert (int(xs[0]), int(ys[0])) == ((side - width) // 2, (side - height) // 2)
    assert (len(xs), len(ys)) == (width, height)


def test_questions_on_one_picture_become_one_conversation() -> None:
    def row(name: str, picture: str | None, question: str, answer: str) -> Any:
        parts = [{"role": "user", "type": "image", "text": None}] if picture else []
        parts += [
            {"role": "user", "type": "text", "text": question},
            {"role": "assistant", "type": "text", "text": answer},
        ]
        images = [{"path": picture, "bytes": None}] if picture else []
        return {"images": images, "parts": parts, "id": name, "label": None, "source": "t", "truth": {}}

    plain = [
        row("1", "a.png", "what?", "red"), row("2", "b.png", "what?", "blue"), row("3", "a.png", "where?", "left"),
        row("4", None, "how?", "so"), row("5", "a.png", "what?", "red"), row("6", None, "how?", "so"),
    ]  # fmt: skip
    found = list(merged_by_picture(plain))
    assert [one["id"] for one in found] == ["1+3+5", "2", "4", "6"]

    def pairs(sample: list[Any]) -> list[tuple[Any, ...]]:
        texts = [
            (
                one["images"][0]["path"] if one["images"] else None,
                [p["text"] for p in one["parts"] if p["text"]],
            )
            for one in sample
        ]
        return sorted(
            (str(path), *words[i : i + 2]) for path, words in texts for i in range(0, len(words), 2)
        )

    assert pairs(found) == pairs(plain)
    assert all(
        sum(part["type"] == "image" for part in one["parts"]) == len(one["images"]) <= 1 for one in found
    )
    assert [one["id"] for one in merged_by_picture(plain, rounds=2)] == ["1+3", "5", "2", "4", "6"]
    _, processor = vision_lm()
    assert processor.segments_of(found[0])[2].kind == "image"


SYSTEM = {
    "vicuna_v1": "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. ",
    "llava_v1": "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. ",
}
GOLDEN = {  # two rounds, written out by hand from the published templates
    **{name: f"<s>{system}USER: <image>\nWhat colour? ASSISTANT: red</s>USER: Where? ASSISTANT: top left</s>" for name, system in SYSTEM.items()},
    "short": "<s>USER: <image>\nWhat colour? ASSISTANT: red</s>USER: Where? ASSISTANT: top left</s>",
    "flamingo": "<s>USER: <image>\nWhat colour? ASSISTANT: red</s>USER: Where? ASSISTANT: top left</s>",  # as short
    "continue": "<s><image>\nWhat colour? red</s>Where? top left</s>",
    "plain": "<s><image>red\ntop left\n",
    "llava_llama_2": "<s>[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n"
    "<image>\nWhat colour? [/INST] red </s><s>[INST] Where? [/INST] top left </s>",
    "mistral_instruct": "<s>[INST] <image>\nWhat colour? [/INST] red </s>[INST] Where? [/INST] top left </s>",
    "chatml": "<s><|im_start|>user\n<image>\nWhat colour?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
    "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\ntop left<|im_end|>\n",
}  # fmt: skip
WITH_SYSTEM = {
    "vicuna_v1": "<s>Be short. USER: <image>\nwhy? ASSISTANT: so</s>",
    "llava_llama_2": "<s>[INST] <<SYS>>\nBe short.\n<</SYS>>\n\n<image>\nwhy? [/INST] so </s>",
    "mistral_instruct": "<s>[INST] <<SYS>>\nBe short.\n<</SYS>>\n\n<image>\nwhy? [/INST] so </s>",
    "chatml": "<s><|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n<image>\nwhy?<|im_end|>\n<|im_start|>assistant\nso<|im_end|>\n",
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_two_rounds_as_published(name: str) -> None:
    processor = processor_of("tiny", name)
    assert written(processor, processor.chat.segments(CONVERSATIONS["many turns"]["parts"])) == GOLDEN[name]
    if name in WITH_SYSTEM:
        assert (
            written(processor, processor.chat.segments(CONVERSATIONS["system"]["parts"])) == WITH_SYSTEM[name]
        )


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tokenizer", ["tiny", "bytes"])
def test_a_prompt_is_a_strict_prefix(tokenizer: str, name: str) -> None:
    """As strings and as ids, before every answer of a conversation; and the masks of others are our labels."""
    processor = processor_of(tokenizer, name)
    for row in CONVERSATIONS.values():
        whole, (ids, labels) = (
            written(processor, processor.chat.segments(row["parts"])),
            processor.supervised(row),
        )
        for stop, part in enumerate(row["parts"]):
            if part["role"] == "assistant":
                segments = processor.chat.segments(row["parts"][: stop + 1], prompt=True)
                head, start = written(processor, segments), processor.segments.encode(segments)[0]
                assert whole.startswith(head) and len(head) < len(whole)
                assert (
                    ids[: len(start)] == start
                    and len(start) < len(ids)
                    and labels[len(start)] == ids[len(start)]
                )
        out = processor.apply_chat_template(
            messages_of(row),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            return_tensors="pt",
        )
        assert out["input_ids"][0].tolist() == ids
        assert out["assistant_masks"][0].tolist() == [int(label >= 0) for label in labels]
        assert ("pixel_values" in out) == bool(row["images"])
