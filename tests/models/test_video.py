"""Videos from the row to the loss: places as long as they must be, frames in order, any mix of lengths in a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers import CONNECTORS, FUSIONS, PATCHES, SIDE, VISIONS, rows, text_row, vision_lm
from vlmzoo.compose import build, processor_for
from vlmzoo.config import read_part
from vlmzoo.data.collate import LanguageCollate, PairsCollate
from vlmzoo.data.scenes.clips import Clips
from vlmzoo.data.scenes.pairs import Pairs
from vlmzoo.data.sources import Rows
from vlmzoo.evaluate.tasks.answers import VqaConfig, YesNoConfig
from vlmzoo.models.media import deal
from vlmzoo.models.presets import tiny_language, tiny_vision
from vlmzoo.objectives.contrastive import Contrastive
from vlmzoo.processing.image import evenly, frames_of, one_picture, open_image
from vlmzoo.processing.processor import Processor, join_pictures
from vlmzoo.run import load
from vlmzoo.types import RowError

FRAMES = 4
GRID = [(connector, fusion) for connector in CONNECTORS for fusion in FUSIONS]


def clips(count: int = 3, kind: str = "vqa", frames: int = FRAMES, **options: Any) -> list[Any]:
    source = Clips(rows=kind, length=max(count, 2), size=SIDE, frames=frames, **options)
    return [source[i] for i in range(count)]


def mixed() -> list[Any]:
    """Videos of two lengths, a picture, a pair of pictures, a text, and a row that has both kinds."""
    (short,), (long,) = clips(1, frames=3), clips(1, frames=5)
    (still,) = rows(1)
    both = {**long, "images": [*long["images"], *still["images"]], "id": "both"}
    both["parts"] = [*long["parts"][:1], {"role": "user", "type": "image", "text": None}, *long["parts"][1:]]
    return [short, still, long, text_row(), both, Pairs(length=1, size=SIDE)[0]]


def with_frame_embeds(fusion: str, frames: int) -> tuple[Any, Processor]:
    """A tiny model whose Perceiver knows the order of so many frames."""
    tree = {
        "class": "vision_lm",
        "vision": {**VISIONS["clip"], "feature_layer": -2},
        "connector": {**CONNECTORS["perceiver"], "frames": frames},
        "fusion": FUSIONS[fusion],
        "language": tiny_language(),
    }
    model = build(tree)
    for gate in getattr(model.fusion, "gates", list)():
        gate.data.fill_(0.8)
    return model.eval(), processor_for(model)


# The processor


@pytest.mark.parametrize(("connector", "fusion"), GRID)
def test_a_video_has_as_many_places_as_the_connector_gives_tokens(connector: str, fusion: str) -> None:
    model, processor = vision_lm(connector=connector, fusion=fusion)
    constant = {"gated_cross_attention": 1}.get(fusion) or (3 if connector == "perceiver" else None)
    for frames in (3, 5):
        (row,) = clips(1, frames=frames)
        ids, _ = processor.supervised(row)
        wanted = constant or PATCHES * frames
        assert ids.count(processor.image_token_id) == wanted
        prompt = processor.prompts([row])
        assert (prompt["input_ids"] == processor.image_token_id).sum() == wanted
        assert prompt["pixel_values"].shape == (1, frames, 3, SIDE, SIDE)
        if fusion == "splice":
            assert model.connector.tokens_per_image(PATCHES, frames) == wanted


def test_pictures_of_a_row_are_its_frames() -> None:
    _, processor = vision_lm()
    short, still, *_ = mixed()
    (video,) = processor.pictures(short)
    assert torch.equal(video[1], processor.transform(open_image(short["images"][0]["frames"][1])))
    assert processor.pictures(still)[0].shape == (3, SIDE, SIDE)


def test_join_pictures() -> None:
    picture, video = torch.rand(3, 2, 2), torch.rand(4, 3, 2, 2)
    assert join_pictures([]) == {}
    assert join_pictures([picture, picture])["pixel_values"].shape == (2, 3, 2, 2)
    assert join_pictures([video, video])["pixel_values"].shape == (2, 4, 3, 2, 2)
    joined = join_pictures([picture, video])
    assert joined["frames"].tolist() == [1, 4]
    assert torch.equal(joined["pixel_values"], torch.cat([picture[None], video]))


def test_frames_are_taken_evenly() -> None:
    assert evenly(3, None) == evenly(3, 8) == [0, 1, 2]
    assert evenly(8, 4) == [0, 2, 5, 7] and evenly(9, 1) == [4] and evenly(30, 2) == [0, 29]
    for count in range(1, 40):
        for most in range(1, 12):
            taken = evenly(count, most)
            assert taken == sorted(set(taken)) and len(taken) == min(count, most) and taken[-1] < count
    model, _ = vision_lm()
    processor = processor_for(model, max_frames=3)
    (row,) = clips(1, frames=7)
    assert processor.supervised(row)[0].count(processor.image_token_id) == 3 * PATCHES
    whole = processor_for(model).pictures(row)[0]
    assert torch.equal(processor.pictures(row)[0], whole[[0, 3, 6]])


def test_what_a_processor_knows_of_videos_is_saved(tmp_path: Path) -> None:
    model, _ = vision_lm()
    processor = processor_for(model, max_frames=3)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    _, again = load(tmp_path)
    (row,) = clips(1, frames=7)
    assert (again.frame_tokens, again.max_frames) == (PATCHES, 3)
    assert again.supervised(row) == processor.supervised(row)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "film.mp4"}, "video 'film.mp4': video files are not read"),
        ({"bytes": b"....ftyp"}, "video 'bytes': video files are not read"),
        ({}, "video files are not read"),
        ({"frames": []}, "at least one picture"),
        ({"frames": "abc"}, "at least one picture"),
        ({"frames": [{"path": "no.png"}]}, "does not exist"),
        ({"frames": [{"frames": [{"path": "a"}]}]}, "frames of a video where a picture is wanted"),
        ({"frames": [{"path": "../secret.png"}]}, "leaves the data root"),
    ],
)
def test_a_video_that_cannot_be_used_is_a_row_error(entry: Any, message: str, tmp_path: Path) -> None:
    _, processor = vision_lm()
    (row,) = clips(1)
    bad = {**row, "images": [entry]}
    with pytest.raises(RowError, match=message):
        LanguageCollate(processor).encode(bad, tmp_path)
    with pytest.raises(RowError, match=message):
        processor.prompts([bad], tmp_path)


def test_frames_in_a_picture_s_place_are_refused() -> None:
    _, processor = vision_lm()
    (video,), (still,) = clips(1), rows(1)
    with pytest.raises(RowError, match="frames of a video where a picture is wanted"):
        processor.pictures({**still, "images": video["images"]})
    with pytest.raises(RowError, match="2 pictures"):
        processor.prompts([{**video, "images": video["images"] * 2}])
    with pytest.raises(RowError, match="cuts through a picture of 16 tokens"):
        processor.supervised(video, max_length=10)


def test_rows_in_memory_keep_the_frames(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (SIDE, SIDE), (80 * number,) * 3).save(tmp_path / f"{number}.png")
    (video,), (still,) = clips(1), rows(1)
    paths = [{"path": f"{number}.png"} for number in range(3)]
    source = Rows([{**still, "images": paths[:1]}, {**video, "images": [{"frames": paths}]}], tmp_path)
    assert len(frames_of(source[1]["images"][0])) == 3
    _, processor = vision_lm()
    shown = processor.pictures(source[1], tmp_path)[0]
    assert shown.shape == (3, 3, SIDE, SIDE) and (shown.diff(dim=0) > 0).all()
    assert processor.pictures(source[0], tmp_path)[0].shape == (3, SIDE, SIDE)


def test_one_picture_of_a_row() -> None:
    (video,), (still,) = clips(1), rows(1)
    assert one_picture(still["images"]).size == (SIDE, SIDE)
    strip = one_picture(video["images"])
    assert strip.size == (FRAMES * SIDE + FRAMES - 1, SIDE)
    last = strip.crop((strip.width - SIDE, 0, strip.width, SIDE))
    assert last.tobytes() == video["images"][0]["frames"][-1]["image"].tobytes()
    assert one_picture([*still["images"], *video["images"]]).width > SIDE + strip.width


# The model


@pytest.mark.parametrize("connector", list(CONNECTORS))
@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_a_mixed_batch_is_its_rows_one_by_one(connector: str, fusion: str) -> None:
    model, processor = vision_lm(connector=connector, fusion=fusion)
    model.eval()
    collate = LanguageCollate(processor)
    samples = [collate.encode(row) for row in mixed()]
    batch = collate.join(samples)
    assert batch["frames"].tolist() == [3, 1, 5, 5, 1, 1, 1]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        together = model(**inputs).logits
        for i, sample in enumerate(samples):
            alone = {key: value for key, value in collate.join([sample]).items() if key != "labels"}
            assert torch.allclose(model(**alone).logits[0], together[i, : len(sample.ids)], atol=2e-5)
    features = model.encode_pictures(inputs.pop("pixel_values"))
    assert torch.equal(model(**inputs, image_features=features).logits, together)


@pytest.mark.parametrize(
    ("connector", "fusion"), [("mlp", "splice"), ("mlp", "gated_cross_attention"), ("perceiver", "splice")]
)
def test_a_mixed_batch_learns_and_answers_as_its_rows(connector: str, fusion: str) -> None:
    model, processor = vision_lm(connector=connector, fusion=fusion)
    model.eval()
    shown = [row for row in mixed() if row["images"]]
    samples = [LanguageCollate(processor).encode(row) for row in shown]
    padded = LanguageCollate(processor).join(samples)
    losses = model.token_losses(padded)
    losses.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.connector.parameters())
    if fusion == "splice":  # gated models are not packed
        packed = model.token_losses(LanguageCollate(processor, pack_length=150).join(samples)).sum()
        assert torch.allclose(packed, losses.sum(), rtol=1e-5)
    asked = [row for row in shown if row["parts"][0]["role"] == "user"]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": 2, "do_sample": False}
    together = model.generate(**processor.prompts(asked), **options)[:, -4:]
    for i, row in enumerate(asked):
        assert torch.equal(model.generate(**processor.prompts([row]), **options)[0, -4:], together[i])


def test_places_and_videos_must_agree() -> None:
    assert deal([7, 0, 4], [3, 4, 4]) == [2, 0, 1]
    with pytest.raises(ValueError, match="row 0 holds 5 image tokens"):
        deal([5], [3, 4])
    with pytest.raises(ValueError, match=r"by row: \[1\]\), 2 were given"):
        deal([3], [3, 4])
    model, processor = vision_lm()
    prompt = processor.prompts(mixed()[:2])
    with pytest.raises(ValueError, match="are 3 pictures, 4 were given"):
        model(**{**prompt, "frames": torch.tensor([2, 1])})
    with pytest.raises(ValueError, match="row 0 holds 12 image tokens"):
        model(**{**prompt, "frames": torch.tensor([1, 3])})


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_frame_embeddings_give_frames_an_order(fusion: str) -> None:
    for frames, ordered in ((FRAMES, True), (0, False)):
        model, processor = with_frame_embeds(fusion, frames)
        prompt = processor.prompts(clips(2, kinds=("motion",), events=(1, 1)))
        shuffled = {**prompt, "pixel_values": prompt["pixel_values"][:, [2, 0, 3, 1]]}
        with torch.no_grad():
            a, b = (model(**one).logits[:, -1] for one in (prompt, shuffled))
        assert torch.allclose(a, b, atol=1e-5) != ordered
        still = {**prompt, "pixel_values": prompt["pixel_values"][:, [0, 0, 0, 0]]}
        assert not torch.allclose(model(**still).logits[:, -1], a, atol=1e-5)


def test_a_tiny_model_learns_eight_clips() -> None:
    """Perceiver with frame embeddings, spliced: questions that no single frame answers."""
    torch.manual_seed(0)
    tree = {
        "class": "vision_lm",
        "vision": tiny_vision(num_hidden_layers=2, feature_layer=-1),
        "connector": {
            "kind": "perceiver",
            "num_latents": 8,
            "depth": 1,
            "heads": 4,
            "dim_head": 16,
            "frames": FRAMES,
        },
        "fusion": {"kind": "splice"},
        "language": tiny_language(num_hidden_layers=2),
    }
    model = build(tree)
    processor = processor_for(model)
    source = Clips(
        "train", "vqa", length=8, size=32, frames=FRAMES, kinds=("motion", "order"), objects=(2, 2)
    )
    collate = LanguageCollate(processor)
    batch = collate.join([collate.encode(row) for row in source])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    start = float(model.token_losses(batch).mean().detach())
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.token_losses(batch).mean()
        loss.backward()
        optimizer.step()
    assert start > 2 and float(loss.detach()) < 0.05
    result = VqaConfig(
        data={"kind": "scenes_clips", "rows": "vqa", "length": 8, "size": 32, "frames": FRAMES, "kinds": ("motion", "order"), "objects": (2, 2)},
        samples=2, max_new_tokens=10,
    ).build("clips").run(model.eval(), processor)  # fmt: skip
    assert result.metrics["accuracy"] == 1.0
    assert result.samples[0]["picture"].width == 32 * FRAMES + FRAMES - 1


# Evaluation and the dual encoder


def test_tasks_take_clips_and_pairs() -> None:
    model, processor = vision_lm(connector="perceiver")
    data = {"kind": "scenes_clips", "rows": "vqa", "length": 6, "size": SIDE, "frames": 3}
    result = VqaConfig(data=data, samples=2).build("clips").run(model, processor)
    assert 0 <= result.metrics["accuracy_swapped"] <= 1
    pairs = {"kind": "scenes_pairs", "length": 8, "size": SIDE}
    judged = YesNoConfig(data=pairs, samples=2).build("pairs").run(model, processor)
    assert judged.n == 8 and judged.samples[0]["picture"].width > 2 * SIDE
    likely = {"kind": "likelihood", "data": data}
    assert read_part("tasks", likely).build("likely").run(model, processor).n == 6


def test_a_dual_encoder_averages_frames() -> None:
    torch.manual_seed(0)
    model = build("clip-tiny").eval()
    processor = processor_for(model, max_frames=3)
    videos = Clips(rows="captions", length=3, size=32, frames=5)
    collate = PairsCollate(processor)
    batch = collate.join([collate.encode(row) for row in videos])
    assert batch["pixel_values"].shape == (3, 3, 3, 32, 32)
    vectors = model.encode_image(batch)
    frames = model.encode_image({"pixel_values": batch["pixel_values"].flatten(0, 1)}).unflatten(0, (3, 3))
    mean = torch.nn.functional.normalize(frames.mean(dim=1), dim=-1)
    assert torch.allclose(vectors, mean, atol=1e-6)
    still = {"pixel_values": batch["pixel_values"][:, :1]}
    assert torch.allclose(model.encode_image(still), frames[:, 0], atol=1e-6)
    (picture,) = rows(1, "captions")
    both = collate.join([collate.encode(row) for row in (videos[0], picture, videos[1])])
    assert both["frames"].tolist() == [3, 1, 3]
    found = model.encode_image(both)
    assert torch.allclose(found[[0, 2]], vectors[:2], atol=1e-6)
    assert Contrastive().counts(both) == {"contrastive": 3.0}
    Contrastive()(model, both)["contrastive"].sum.backward()
    assert model.vision_projection.weight.grad.abs().sum() > 0
