"""Against vectors from the reference implementations: open_flamingo, lucidrains' flamingo-pytorch, stock Idefics.

Every file of the folder that ``VLMZOO_GOLDEN`` names is read; sizes and switches come from the json beside it.
"""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import apart
from vlmzoo.compose import build
from vlmzoo.hub import idefics, openflamingo
from vlmzoo.hub.table import converted
from vlmzoo.nn.connectors.gated_cross_attention import GatedBlock, Gaze
from vlmzoo.nn.connectors.perceiver import Perceiver
from vlmzoo.objectives.language import Language
from vlmzoo.training.step import Step, Stream

GOLDEN = Path(os.environ.get("VLMZOO_GOLDEN", Path(__file__).parent.parent / "golden")) / "flamingo"
FAMILIES = tuple(f"case{number}_" for number in range(1, 8))
NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))
TOLERANCE = 1e-5

Case = tuple[dict[str, Any], dict[str, torch.Tensor]]


def cases(number: int) -> Any:
    found = [name for name in NAMES if name.startswith(f"case{number}_")]
    return pytest.mark.parametrize("name", found or [f"no case{number}_*.json in {GOLDEN}"])


def case(name: str, folder: Path = GOLDEN) -> Case:
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")


def group(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{prefix}/"): t for key, t in tensors.items() if key.startswith(f"{prefix}/")}


def same(found: torch.Tensor | None, wanted: torch.Tensor, what: str) -> None:
    assert found is not None, f"{what}: nothing"
    assert found.shape == wanted.shape, f"{what}: {tuple(found.shape)}, wanted {tuple(wanted.shape)}"
    assert apart(found, wanted) <= TOLERANCE, f"{what}: {apart(found, wanted):.1e} apart"


def activation(sizes: dict[str, Any]) -> str:
    return str(sizes.get("activation", "gelu")).split()[0]


def test_every_file_of_the_folder_is_a_known_case() -> None:
    assert NAMES, f"no vectors in {GOLDEN}"
    unknown = [name for name in NAMES if not name.startswith(FAMILIES)]
    assert not unknown
    assert {path.stem for path in GOLDEN.glob("*.safetensors")} == set(NAMES)


# --- the parts ---------------------------------------------------------------------------------------------------


def resampler_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A resampler alone: the names of a checkpoint without their prefix, and the tables of embeddings."""
    tables = {
        "frame_embs": "frame_embeds",
        "media_time_embs": "media_embeds",
        "media_pos_emb": "media_embeds",
    }
    found = {tables[n]: t.flatten(0, 1) if t.ndim == 3 else t for n, t in tensors.items() if n in tables}
    rest = openflamingo.split_fused({f"perceiver.{n}": t for n, t in tensors.items() if n not in tables})
    depth = 1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("layers."))
    ours = converted(rest, openflamingo.rules_of(depth, [], ""), to_theirs=False)
    return {**found, **{name.removeprefix("connector."): t for name, t in ours.items()}}


@cases(1)
def test_resampler(name: str) -> None:
    facts, tensors = case(name)
    sizes = facts["resampler"]
    assert sizes.get("eps", 1e-5) == 1e-5
    model = Perceiver(
        sizes["dim"], num_latents=sizes["num_latents"], depth=sizes["depth"], heads=sizes["heads"], dim_head=sizes["dim_head"],
        mult=sizes["ff_mult"], frames=sizes["max_num_frames"] or 0, media=sizes["max_num_media"] or 0,
        activation=activation(sizes),
    )  # fmt: skip
    model.load_state_dict(resampler_names(group(tensors, "weights")))
    x = tensors["inputs/x"].requires_grad_()  # [B, T, F, v, D], without F in one reference
    features = (x if x.ndim == 5 else x.unsqueeze(2)).flatten(0, 1)
    place = torch.arange(x.shape[1]).repeat(x.shape[0])
    out = model(features, place).unflatten(0, x.shape[:2])
    same(out, tensors["expected/output"], "output")
    (out * tensors["inputs/cotangent"]).sum().backward()
    same(x.grad, tensors["grads/inputs/x"], "x")
    gradients = {n: t for n, t in group(tensors, "grads").items() if not n.startswith("inputs/")}
    for key, gradient in resampler_names(gradients).items():
        same(model.get_parameter(key).grad, gradient, key)


@cases(2)
def test_gated_block(name: str) -> None:
    facts, tensors = case(name)
    sizes = facts["xattn"]
    block = GatedBlock(
        sizes["dim"], sizes.get("dim_visual") or sizes["dim"], sizes["heads"], sizes["dim_head"], sizes["ff_mult"],
        activation(sizes), False, not sizes["only_attend_immediate_media"], 0, norm_eps=sizes.get("eps", 1e-5),
    )  # fmt: skip
    block.load_state_dict(block_names(group(tensors, "weights")))
    x, media = tensors["inputs/x"].requires_grad_(), tensors["inputs/media"].requires_grad_()
    out = block(x, Gaze(media, tensors["inputs/media_index"]))
    defined = tensors["expected/well_defined"].bool()
    same(out[defined], tensors["expected/output"][defined], "output")
    branch = attention_branch(block, x, media, tensors["inputs/media_index"])
    same(branch[defined], tensors["expected/attention_branch"][defined], "attention branch")
    if "inputs/x_new" in tensors:  # text that goes on after the row sees what the row's last token saw
        further = tensors["inputs/media_index"][:, -1:].expand(-1, tensors["inputs/x_new"].shape[1])
        defined = tensors["expected/well_defined_new"].bool()
        with torch.no_grad():
            new = block(tensors["inputs/x_new"], Gaze(media, further))
        same(new[defined], tensors["expected/output_new"][defined], "further text")
    (out * tensors["inputs/cotangent"]).sum().backward()
    same(x.grad, tensors["grads/inputs/x"], "x")
    same(media.grad, tensors["grads/inputs/media"], "media")
    gradients = {n: t for n, t in group(tensors, "grads").items() if not n.startswith("inputs/")}
    for key, gradient in block_names(gradients).items():
        same(block.get_parameter(key).grad, gradient, key)


@torch.no_grad()
def attention_branch(
    block: GatedBlock, x: torch.Tensor, media: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    """What a block's attention adds before its gate, seen with the other gate closed."""
    alone = copy.deepcopy(block)
    alone.feed_forward_gate.zero_()
    return (alone(x, Gaze(media, index)) - x) / alone.attention_gate.tanh()


def block_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return converted(openflamingo.split_fused(tensors), openflamingo.BLOCK, to_theirs=False)


# --- whole models on GPT-NeoX, Llama, OPT ------------------------------------------------------------------------


def whole(facts: dict[str, Any], tensors: dict[str, torch.Tensor], **changes: Any) -> Any:
    """The model of a case, its weights read as a checkpoint of the project."""
    weights = group(tensors, "weights")
    resampler, xattn = facts["resampler"], facts["xattn"]
    connector, fusion = openflamingo.sizes(
        weights, {"connector": resampler["dim_head"], "fusion": xattn["dim_head"]}
    )
    for read, wanted in (
        (connector["heads"], resampler["heads"]), (connector["depth"], resampler["depth"]),
        (connector["num_latents"], resampler["num_latents"]), (connector["mult"], resampler["ff_mult"]),
        (fusion["heads"], xattn["heads"]), (fusion["mult"], xattn["ff_mult"]),
        (fusion["every"], xattn["cross_attn_every_n_layers"]), (fusion["offset"], xattn["offset"]),
    ):  # fmt: skip
        assert read == wanted
    attend = "immediate" if xattn["only_attend_immediate_media"] else "all_previous"
    lm = dict(facts["lm"]["config"])
    tree = {
        "class": "vision_lm", "vision": {"kind": "clip", **facts["vision"]["config"], "cls": "drop"},
        "connector": {**connector, "activation": activation(resampler)},
        "fusion": {**fusion, "activation": activation(xattn), "attend": attend},
        "language": {"kind": lm.pop("model_type"), **lm}, "image_token_id": facts["tokens"]["image"], **changes,
    }  # fmt: skip
    model = build(tree).eval()
    assert model.fusion.places == xattn["layer_indices"]
    missing, unexpected = model.language.load_state_dict(group(tensors, "lm"), strict=False)
    assert not unexpected and set(missing) <= set(model.language.all_tied_weights_keys or ())
    model.vision.tower.load_state_dict(group(tensors, "vision"))
    assert openflamingo.put(model, weights)
    return model


def inputs(model: Any, tensors: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    """Ids, mask, and the pictures that the ids have places for: [B, J, ...] with spares to reading order."""
    ids, pixels = tensors[f"inputs/{prefix}input_ids"], tensors[f"inputs/{prefix}pixel_values"]
    counts = (ids == model.config.image_token_id).sum(dim=1)
    own = torch.cat([row[:count] for row, count in zip(pixels, counts.tolist())])
    return {
        "input_ids": ids,
        "attention_mask": tensors[f"inputs/{prefix}attention_mask"],
        "pixel_values": own,
    }


def shown(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits with 0 at padding, as they are stored."""
    return logits * mask[..., None]


@cases(3)
def test_whole_model(name: str) -> None:
    facts, tensors = case(name)
    model = whole(facts, tensors)
    forward_is_the_reference(model, tensors)
    for key, gradient in openflamingo.to_ours(model, group(tensors, "grads")).items():
        same(model.get_parameter(key).grad, gradient, key)


def forward_is_the_reference(model: Any, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    pixels = tensors["inputs/pixel_values"]
    features = model.encode_pictures(pixels.flatten(0, 1))
    same(features.unflatten(0, pixels.shape[:2]), tensors["expected/vision_features"], "features")
    resampled = model.connector(features).unflatten(0, pixels.shape[:2])
    same(resampled, tensors["expected/resampled"], "resampled")
    batch = inputs(model, tensors)
    out = model(**batch, labels=tensors["inputs/labels"])
    logits = shown(out.logits, batch["attention_mask"])
    same(logits, tensors["expected/logits"], "logits")
    same(out.loss, tensors["expected/loss"], "loss")
    out.loss.backward()
    return logits


def beams_of(name: str) -> list[str]:
    """What the ids of a case's beam searches are called, in its json."""
    return sorted(re.findall(r"expected/(beam\w*_ids_lp\w+)", (GOLDEN / f"{name}.json").read_text()))


@pytest.mark.parametrize(
    ("name", "ids"),
    [(name, ids) for name in NAMES if name.startswith("case4_") for ids in ("greedy_ids", *dict.fromkeys(beams_of(name)))]
    or [(f"no case4_*.json in {GOLDEN}", "")],
)  # fmt: skip
def test_generation(name: str, ids: str) -> None:
    facts, tensors = case(name)
    model, about, wanted = whole(facts, tensors), facts["generation"], tensors[f"expected/{ids}"]
    beams = ids.startswith("beam")
    penalty = ids.partition("_lp")[2]
    options = {"num_beams": about["num_beams_beam"], "length_penalty": float(penalty)} if beams else {}
    out = model.generate(
        **inputs(model, tensors), max_new_tokens=about["max_new_tokens"], do_sample=False,
        eos_token_id=facts["tokens"][about["eos"]], pad_token_id=facts["tokens"]["pad"],
        return_dict_in_generate=True, output_scores=True, output_logits=True, **options,
    )  # fmt: skip
    padded = torch.full_like(wanted, facts["tokens"]["pad"])
    padded[:, : out.sequences.shape[1]] = out.sequences
    assert torch.equal(padded, wanted)
    scores = tensors[f"expected/{ids.replace('_ids', '_scores')}"]
    if beams:
        same(out.sequences_scores, scores, "scores")
    else:
        live = tensors["expected/greedy_live"].bool()
        assert not live[:, len(out.logits) :].any()
        logits = torch.stack(out.logits, dim=1)
        same(logits[live[:, : len(out.logits)]], scores[live], "logits")


@cases(5)
def test_gates_at_zero(name: str) -> None:
    facts, tensors = case(name)
    model = whole(facts, tensors)
    logits = forward_is_the_reference(model, tensors)
    batch = inputs(model, tensors)
    del batch["pixel_values"]
    bare = shown(model.language(**batch).logits, batch["attention_mask"])
    same(bare, tensors["expected/lm_logits"], "bare logits")
    assert torch.equal(logits, bare)
    closed = facts["parameters_with_exactly_zero_gradient"]
    weights = group(tensors, "weights")
    for key in openflamingo.to_ours(model, {name: weights[name] for name in closed}):
        gradient = model.get_parameter(key).grad
        assert gradient is None or not gradient.any(), key
    for key, gradient in openflamingo.to_ours(model, group(tensors, "grads")).items():
        same(model.get_parameter(key).grad, gradient, key)


# --- Idefics -----------------------------------------------------------------------------------------------------


@cases(6)
def test_idefics(name: str) -> None:
    facts, tensors = case(name)
    model = idefics.shell(facts["config"], image_token_id=facts["tokens"]["image"])
    idefics.put(model, group(tensors, "weights"))
    mask = tensors["inputs/image_attention_mask"]  # [B, T, J]
    assert mask.sum(dim=-1).max() <= 1
    index = (mask * torch.arange(1, mask.shape[-1] + 1)).sum(dim=-1)
    batch = inputs(model, tensors)
    out = model.eval()(**batch, media_index=index, labels=tensors["inputs/labels"])
    same(shown(out.logits, batch["attention_mask"]), tensors["expected/logits"], "logits")
    same(out.loss, tensors["expected/loss"], "loss")
    out.loss.backward()
    for key, gradient in idefics.to_ours(model, group(tensors, "grads")).items():
        same(model.get_parameter(key).grad, gradient, key)


# --- a training step on two data sets ----------------------------------------------------------------------------


@cases(7)
def test_training_step(name: str) -> None:
    """The weighted sum of two streams through the trainer's own step; only added tokens of the language model learn."""
    facts, tensors = case(name)
    ids = [facts["tokens"]["endofchunk"], facts["tokens"]["image"]]
    model = whole(facts, tensors, tokens=ids)
    model.language.requires_grad_(False), model.vision.requires_grad_(False)
    if model.tokens.output is not None:
        model.tokens.output.requires_grad_(False)  # the reference leaves the head alone
    names = sorted(
        key.removeprefix("loss_multiplier_") for key in facts if key.startswith("loss_multiplier_")
    )
    streams = {n: Stream(n, None, Language(), facts[f"loss_multiplier_{n}"]) for n in names}
    step, pieces = Step(model, streams), facts["gradient_accumulation_steps"]
    for piece in range(pieces):
        batches, factors = {}, {}
        for stream in names:
            prefix = f"{stream}.{piece}."
            batches[stream] = {
                **inputs(model, tensors, prefix),
                "labels": tensors[f"expected/{prefix}labels"],
            }
            count = Language().counts(batches[stream])["language"]
            factors[stream] = {"language": streams[stream].weight / count / pieces}
        loss, sums = step(batches, factors, {})
        loss.backward()
        for stream in names:
            mean = sums[stream]["language"] * factors[stream]["language"] * pieces / streams[stream].weight
            same(mean, tensors[f"expected/{stream}.{piece}.loss"], f"loss of {stream}")
    wanted = openflamingo.to_ours(model, group(tensors, "grads"))
    for key, gradient in wanted.items():
        if key.startswith("language."):
            same(model.tokens.input.grad, gradient[ids], key)
            assert not gradient.index_fill(0, torch.tensor(ids), 0.0).any()
        else:
            same(model.get_parameter(key).grad, gradient, key)
    squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
    same(torch.stack(squares).sum().sqrt(), tensors["expected/grad_norm"], "norm")
