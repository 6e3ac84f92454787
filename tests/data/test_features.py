"""Features of a frozen tower on disk are those that the tower gives in line (invariant 12), and nothing stale is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from tests.helpers import SIDE, VOCABULARY, rows, vision_lm
from vlmzoo.config import ConfigError
from vlmzoo.data import features as module
from vlmzoo.data.collate import LanguageCollate, PairsCollate
from vlmzoo.data.features import CacheOptions, FeatureCache, cache_features, fingerprint, picture_key
from vlmzoo.data.mix import MicroBatches, Order
from vlmzoo.data.sources.base import Rows
from vlmzoo.run import read_run, train
from vlmzoo.types import RowError

TOWER = {"kind": "clip", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": SIDE, "patch_size": 8, "feature_layer": -2}  # fmt: skip
LANGUAGE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCABULARY}  # fmt: skip


def picture_rows(folder: Path) -> Rows:
    """Two pictures in one row, the first of them again in another, a video, and one file that is no picture."""
    for number in range(3):
        Image.new("RGB", (20 + number, 24), (60 * number, 120, 200)).save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    entries = [["0.png", "1.png"], ["0.png"], ["bad.png"]]
    made: list[Any] = []
    for number, names in enumerate(entries):
        parts = [{"role": "user", "type": "image", "text": None} for _ in names]
        made.append({"images": [{"path": name} for name in names], "parts": parts, "id": f"row{number}"})
    frames = {"frames": [{"path": "1.png"}, {"path": "2.png"}]}
    made.append(
        {"images": [frames], "parts": [{"role": "user", "type": "video", "text": None}], "id": "clip"}
    )
    for row in made:
        row["source"] = "test"
        row["parts"] = [
            *row["parts"],
            {"role": "user", "type": "text", "text": "what?"},
            {"role": "assistant", "type": "text", "text": "red"},
        ]
    return Rows(made, folder)


def stream(source: Any, processor: Any, size: int = 2) -> MicroBatches:
    return MicroBatches(source, LanguageCollate(processor), Order(0, "s", len(source)), size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cached_equals_in_line(tmp_path: Path, dtype: torch.dtype) -> None:
    """Bit for bit and of the same dtype, also through a file; the batch gives the same losses without any pixel."""
    model, processor = vision_lm()
    model.vision.to(dtype).requires_grad_(False)
    source = picture_rows(tmp_path)
    data = stream(source, processor)
    plain = LanguageCollate(processor)
    cache_features("s", data, CacheOptions(features=str(tmp_path / "cache")), model)
    for number in (0, 1, 3):
        row = source[number]
        for found, pixels in zip(
            data.collate.pictures(row, source.root), processor.pictures(row, source.root), strict=True
        ):
            wanted = torch.cat(
                [model.encode_pictures(one[None]) for one in (pixels if pixels.ndim == 4 else pixels[None])]
            )
            assert found.dtype == dtype
            assert torch.equal(found, wanted[:, 0])
    picked = [source[0], source[3], source[1]]
    cached = data.collate.join([data.collate.encode(row, source.root) for row in picked])
    in_line = plain.join([plain.encode(row, source.root) for row in picked])
    assert "pixel_values" not in cached and torch.equal(cached["frames"], in_line["frames"])
    model.vision.forward = None
    found = model.token_losses(cached)
    del model.vision.forward
    assert torch.allclose(found, model.token_losses(in_line), rtol=1e-6, atol=1e-6)


def test_each_picture_once_resumed_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = vision_lm()
    model.vision.requires_grad_(False)
    source = picture_rows(tmp_path)
    cache = FeatureCache(tmp_path / "cache", "name", processor)
    seen: list[int] = []

    def encode(pictures: torch.Tensor) -> torch.Tensor:
        seen.append(len(pictures))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return model.encode_pictures(pictures).detach()

    monkeypatch.setattr(module, "BATCH", 1)
    monkeypatch.setattr(module, "SHARD_BYTES", 1)
    with pytest.raises(KeyboardInterrupt):
        cache.fill(source, encode)
    assert cache.refresh() == 1  # what was finished before is there
    cache.fill(source, encode)
    assert (
        sum(seen) == 1 + 1 + 2 and cache.refresh() == 3
    )  # the one it was stopped at, and the two that were left
    cache.fill(source, encode)
    assert sum(seen) == 4
    with pytest.raises(RowError, match=r"bad\.png"):
        cache.pictures(source[2], source.root)
    Image.new("RGB", (30, 30)).save(tmp_path / "0.png")
    with pytest.raises(RowError, match="changed after"):
        cache.pictures(source[1], source.root)


def test_processes_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process makes its own rows' pictures in files of its own; together they are all."""
    model, processor = vision_lm()
    model.vision.requires_grad_(False)
    source = picture_rows(tmp_path)
    made = []
    monkeypatch.setattr(module.distributed, "world_size", lambda: 2)
    for number in range(2):
        monkeypatch.setattr(module.distributed, "rank", lambda number=number: number)
        cache = FeatureCache(tmp_path / "cache", "name", processor)
        cache.refresh = lambda: 0  # both start at once: neither sees what the other made
        cache.fill(source, lambda pictures: made.append(len(pictures)) or model.encode_pictures(pictures))
    shards = list((tmp_path / "cache" / "name").iterdir())
    assert len(shards) == 2 and all(file.suffix == ".safetensors" for file in shards)
    assert made == [2, 3]  # row 0 of the first, rows 1 and 3 of the other: the first picture of both twice
    assert FeatureCache(tmp_path / "cache", "name", processor).refresh() == 3


def test_fingerprint_changes_with_what_features_depend_on() -> None:
    model, processor = vision_lm()
    base = fingerprint(model.vision, processor.transform, torch.float32)
    assert fingerprint(model.vision, processor.transform, torch.float32) == base
    found = {base, fingerprint(model.vision, processor.transform, torch.bfloat16)}
    found.add(fingerprint(model.vision, processor.changed(image_fit="pad").transform, torch.float32))
    model.config.vision.feature_layer = -1
    found.add(fingerprint(model.vision, processor.transform, torch.float32))
    model.config.vision.feature_layer = -2
    with torch.no_grad():
        next(model.vision.parameters()).flatten()[0] += 1e-3
    found.add(fingerprint(model.vision, processor.transform, torch.float32))
    assert len(found) == 5


def test_another_tower_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, processor = vision_lm()
    model.vision.requires_grad_(False)
    source = picture_rows(tmp_path)
    options = CacheOptions(features=str(tmp_path / "cache"))
    data = stream(source, processor)
    caplog.set_level("INFO", "vlmzoo")
    cache_features("s", data, options, model)
    assert "MiB a picture" in caplog.text and "another tower" not in caplog.text
    before = data.collate.pictures(source[1], source.root)[0]
    with torch.no_grad():
        for parameter in model.vision.parameters():
            parameter.mul_(1.1)
    cache_features("s", data, options, model)
    assert "another tower" in caplog.text
    after = data.collate.pictures(source[1], source.root)[0]
    assert not torch.allclose(before, after)
    assert torch.equal(after, model.encode_pictures(processor.pictures(source[1], source.root)[0][None])[0])


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = vision_lm()
    source = picture_rows(tmp_path)
    options = CacheOptions(features=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"streams\.s\.cache\.features: the tower learns \(vision\."):
        cache_features("s", stream(source, processor), options, model)
    model.vision.requires_grad_(False)
    pairs = MicroBatches(source, PairsCollate(processor), Order(0, "s", len(source)), 2)
    with pytest.raises(ConfigError, match="PairsCollate takes no features"):
        cache_features("s", pairs, options, model)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(ConfigError, match=r"needs about .* GiB are free"):
        cache_features("s", stream(source, processor), options, model)
    monkeypatch.undo()

    def full(*args: Any) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(ConfigError, match=r"No space left on device.*the same command goes on"):
        cache_features("s", stream(source, processor), options, model)
    monkeypatch.undo()
    cache_features("s", stream(source, processor), options, model)
    shard = next((tmp_path / "cache").glob("*/*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(ConfigError, match=f"{shard.name} is no shard of features"):
        cache_features("s", stream(source, processor), options, model)


def test_same_content_same_name(tmp_path: Path) -> None:
    row = rows(1)[0]
    picture = row["images"][0]["image"]
    assert picture_key({"image": picture}) == picture_key({"image": picture.copy()})
    picture.save(tmp_path / "a.png")
    encoded = (tmp_path / "a.png").read_bytes()
    assert picture_key({"path": "a.png"}, tmp_path) == picture_key({"bytes": encoded})
    with pytest.raises(RowError, match="does not exist"):
        picture_key({"path": "b.png"}, tmp_path)


def run_tree(out: Path, **stream_options: Any) -> dict[str, Any]:
    data = {"kind": "scenes", "rows": "vqa", "split": "train", "length": 12, "size": SIDE}
    return {
        "model": {"preset": "llava-tiny", "vision": TOWER, "language": LANGUAGE},
        "learn": {"connector": 1e-2, "language": 1e-2},
        "streams": {"s": {"data": data, "objective": {"kind": "language"}, "batch_size": 4, "pack_length": 64, **stream_options}},
        "optim": {"steps": 4},
        "trainer": {"threads": 1, "log_every": 1, "workers": 1},
        "evaluate": {"after": False},
        "out": str(out),
    }  # fmt: skip


def test_a_run_on_cached_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses as without, and no picture passes the tower once the features are there."""
    from vlmzoo.models.vision_lm import VisionLM

    cache = {"features": str(tmp_path / "cache")}
    train(read_run(run_tree(tmp_path / "plain")))
    train(read_run(run_tree(tmp_path / "cached", cache=cache)))
    calls = []
    monkeypatch.setattr(VisionLM, "encode_pictures", lambda *args: calls.append(args))
    train(read_run(run_tree(tmp_path / "again", cache=cache)))
    assert not calls
    losses = {}
    for name in ("plain", "cached", "again"):
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        losses[name] = [line["loss"] for line in lines if "loss" in line]
    assert losses["plain"] and losses["cached"] == losses["again"]
    assert losses["plain"] == pytest.approx(losses["cached"], rel=1e-6)
    with pytest.raises(ConfigError, match="the tower learns"):
        tree = run_tree(tmp_path / "learns", cache=cache)
        train(read_run({**tree, "learn": {**tree["learn"], "vision": 1e-4}}))
    assert not (tmp_path / "learns" / "run.yaml").exists()
