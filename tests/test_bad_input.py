"""Bad rows, pictures, folders and configs in one table each: what is refused, with which words, and nothing else.

Every fault of one file or field is tested where it is handled (``tests/processing/test_image.py``, ``tests/test_config.py``);
here they go through the whole: a data set with every kind of bad row, folders that lie, and code that must not run.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.helpers import text_row, vision_lm
from vlmzoo import build, load
from vlmzoo.compose import processor_for, tokenizer_of
from vlmzoo.config import ConfigError, readable
from vlmzoo.data.collate import LanguageCollate
from vlmzoo.data.mix import MicroBatches, Order, append_quarantine, read_quarantine
from vlmzoo.data.sources import LlavaConfig, MessagesConfig
from vlmzoo.models.base import within
from vlmzoo.run import read_run, train
from vlmzoo.types import IGNORE_INDEX, RowError

ROOT = Path(__file__).parent.parent


class Counting(BaseHTTPRequestHandler):
    """Counts whoever asks."""

    hits = 0

    def do_GET(self) -> None:
        Counting.hits += 1
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a local server."""
    Counting.hits = 0
    own = HTTPServer(("127.0.0.1", 0), Counting)
    thread = threading.Thread(target=own.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{own.server_port}"
    own.shutdown(), own.server_close(), thread.join()


# --- rows --------------------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A PNG header without its pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def poisoned(folder: Path, server: str) -> tuple[Path, dict[str, str]]:
    """A LLaVA json with good rows and every kind of bad one: the file, and a word of the reason for each bad id."""
    pictures = folder / "images"
    pictures.mkdir(parents=True)
    Image.new("RGB", (9, 7), "red").save(pictures / "good.png")
    Image.new("RGB", (64, 64), "red").save(pictures / "cut.jpg", quality=95)
    files = {
        "cut.jpg": (pictures / "cut.jpg").read_bytes()[:300], "page.jpg": b"<html>404</html>", "empty.jpg": b"",
         "flat.png": png(0, 5), "eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    }  # fmt: skip
    Image.new("1", (9_000, 9_000)).save(pictures / "bomb.png")  # ten kilobytes
    for name, content in files.items():
        (pictures / name).write_bytes(content)
    Image.new("RGB", (3, 3)).save(folder / "secret.png")
    os.symlink(folder / "secret.png", pictures / "link.png")
    asked, said = {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}
    talk = [asked, said]
    bad: dict[str, tuple[Any, str]] = {
        **{name: ({"image": name, "conversations": talk}, "cannot be read") for name in ("cut.jpg", "page.jpg", "empty.jpg")},
        "bomb.png": ({"image": "bomb.png", "conversations": talk}, "pixels"),
        "flat.png": ({"image": "flat.png", "conversations": talk}, "image"),
        "eps.jpg": ({"image": "eps.jpg", "conversations": talk}, "cannot be read"),
        "gone": ({"image": "gone.png", "conversations": talk}, "does not exist"),
        "up": ({"image": "../secret.png", "conversations": talk}, "leaves the data root"),
        "absolute": ({"image": "/etc/hostname", "conversations": talk}, "leaves the data root"),
        "link": ({"image": "link.png", "conversations": talk}, "leaves the data root"),
        "url": ({"image": f"{server}/a.png", "conversations": talk}, "wanted a local file"),
        "two places": ({"image": "good.png", "conversations": [{**asked, "value": "<image><image>?"}, said]}, "places"),
        "no place": ({"image": "good.png", "conversations": [{**asked, "value": "?"}, said]}, "places"),
        "no picture": ({"conversations": talk}, "places"),
        "no answer": ({"image": "good.png", "conversations": [asked]}, "nothing to learn"),
        "no turns": ({"image": "good.png", "conversations": []}, ""),
        "number": ({"image": 7, "conversations": talk}, ""),
        "late": ({"image": "good.png", "conversations": [{"from": "human", "value": "word " * 900}, said, asked, said]}, "max_length"),
        "long": ({"conversations": [{"from": "human", "value": "word " * 100_000}, said]}, "nothing to learn"),
    }  # fmt: skip
    good = {
        "good": {"image": "good.png", "conversations": talk},
        "text": {"conversations": [{"from": "human", "value": "How?"}, said]},
        "empty answer": {"image": "good.png", "conversations": [asked, {**said, "value": ""}]},
        "long answer": {"image": "good.png", "conversations": [asked, {**said, "value": "red " * 100_000}]},
    }  # fmt: skip
    rows = {**good, **{name: record for name, (record, _) in bad.items()}}
    (folder / "all.json").write_text(json.dumps([{"id": name, **record} for name, record in rows.items()]))
    return folder / "all.json", {name: why for name, (_, why) in bad.items()}


def test_every_kind_of_bad_row_is_listed_and_the_others_are_read(tmp_path: Path, server: str) -> None:
    file, bad = poisoned(tmp_path, server)
    source = LlavaConfig(path=str(file), images=str(tmp_path / "images")).open()
    model, processor = vision_lm()
    collate = LanguageCollate(processor, max_length=within(300, model))
    listed = tmp_path / "quarantine.jsonl"
    append_quarantine(listed, source.rejected, "s")
    data = MicroBatches(source, collate, Order(0, "s", len(source)), 1, quarantine=listed)
    for number in range(len(source)):
        batch = data[number]
        assert batch["input_ids"].shape[1] <= 300 and (batch["labels"] != IGNORE_INDEX).any()
        assert torch.isfinite(model.token_losses(batch)).all()
    reasons = {line["id"]: line["reason"] for line in read_quarantine(listed)}
    assert set(reasons) == set(bad)
    wrong = {name: reasons[name] for name, why in bad.items() if why not in reasons[name]}
    assert not wrong
    assert all(len(reason) < 400 for reason in reasons.values())
    assert Counting.hits == 0


def test_literal_places_in_messages_are_text(tmp_path: Path) -> None:
    Image.new("RGB", (9, 7), "red").save(tmp_path / "a.png")
    content = [{"type": "image"}, {"type": "text", "text": "what is <image> here? </s>"}]
    line = {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a tag"}],
        "images": ["a.png"],
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    source = MessagesConfig(path=str(tmp_path / "a.jsonl")).open()
    _, processor = vision_lm()
    sample = LanguageCollate(processor).encode(source[0], source.root)
    assert sample.ids.count(processor.image_token_id) == processor.image_tokens and len(sample.pictures) == 1
    assert "what is <image> here? </s>" in processor.decode(sample.ids, skip_special_tokens=False)


def test_nothing_is_fetched_for_a_conversation(server: str) -> None:
    _, processor = vision_lm()
    for picture in ({"url": f"{server}/a.png"}, {"path": "/etc/hostname"}, {"image": f"{server}/a.png"}):
        messages = [
            {"role": "user", "content": [{"type": "image", **picture}, {"type": "text", "text": "what?"}]}
        ]
        with pytest.raises(ValueError, match="wanted PIL pictures"):
            processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert Counting.hits == 0


def test_a_row_longer_than_the_model_is_cut_to_its_positions() -> None:
    model, processor = vision_lm()
    assert within(None, model) == within(10**9, model) == model.config.language.max_position_embeddings
    assert within(9, model) == 9
    long = text_row("why?", "so " * 50_000)
    ids = LanguageCollate(processor, within(None, model)).encode(long).ids
    assert len(ids) == within(None, model)
    with pytest.raises(RowError, match="nothing to learn"):
        LanguageCollate(processor, within(None, model)).encode(text_row("why? " * 50_000, "so"))


# --- folders -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model = build("llava-tiny")
    model.save_pretrained(folder), processor_for(model).save_pretrained(folder)
    return folder


def weights(change: Any) -> Any:
    """Edit the tensors of a folder."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return edit


def tree(name: str, change: Any) -> Any:
    """Edit a json file of a folder."""

    def edit(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        change(found)
        (folder / name).write_text(json.dumps(found))

    return edit


def header(change: Any) -> Any:
    """Edit the bytes of a weights file."""
    return lambda folder: (folder / "model.safetensors").write_bytes(
        change((folder / "model.safetensors").read_bytes())
    )


BIAS = "connector.down.bias"
TOKEN = {
    "id": 900,
    "content": "<new>",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
LIES = {
    "truncated": (header(lambda data: data[:-100]), "incomplete metadata"),
    "empty": (header(lambda data: b""), "header too small"),
    "a header of 2^60": (header(lambda data: (1 << 60).to_bytes(8, "little") + data[8:]), "header too large"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    "a tensor less": (weights(lambda found: found.pop(BIAS)), f"1 missing: {BIAS}"),
    "a tensor more": (weights(lambda found: found.update(evil=torch.zeros(2))), "1 unexpected: evil"),
    "another shape": (weights(lambda found: found.update({BIAS: found[BIAS][:3].clone()})), f"1 mis-shaped: {BIAS}"),
    "a misspelt field": (tree("config.json", lambda found: found["connector"].update(activatoin="gelu")), "did you mean 'activation'"),
    "a misspelt part": (tree("config.json", lambda found: found.update(conector=found.pop("connector"))), "conector: unknown key; did you mean 'connector'"),
    "an unknown model": (tree("config.json", lambda found: found.update(model_type="vlmzoo_vision_ml")), "did you mean 'vlmzoo_vision_lm'"),
    "half a config": (lambda folder: (folder / "config.json").write_text('{"model_type": "vlmzoo_'), "config.json: Unterminated string"),
    "no json at all": (lambda folder: (folder / "config.json").write_text("model: x"), "not a valid JSON file"),
    "a larger tokenizer": (tree("tokenizer.json", lambda found: found["added_tokens"].append(TOKEN)), "has ids up to 512, the language model has 512 rows"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    "another picture token": (tree("config.json", lambda found: found.update(image_token_id=7)), "the model has 7, the tokenizer's <image> is 2"),
    "an unknown template": (tree("processor_config.json", lambda found: found.update(template="shrot")), "no template 'shrot'; did you mean 'short'"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_folder_that_lies_is_refused_in_a_line(saved: Path, tmp_path: Path, name: str) -> None:
    edit, message = LIES[name]
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    edit(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value), str(caught.value)


def test_code_in_a_folder_never_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w').write('x')\nclass Evil: pass\n")
    config = {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    )
    for attempt in (
        lambda: load(tmp_path), lambda: tokenizer_of(tmp_path), lambda: build("llava-tiny", language=str(tmp_path)),
        lambda: build("llava-tiny", vision=str(tmp_path)),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            attempt()
    assert not marker.exists()


# --- run files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["./none", "../none", "/no/where", "runs/none", "a/b/c", "~/none", "some thing", "configs/none"]
)
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("asked the network"))
    with pytest.raises(ConfigError, match=f"model.from: no folder '{name}'"):
        readable(name, "model.from")


def test_a_hub_that_cannot_be_reached_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants

    def no_network(*_: Any) -> None:
        raise OSError("Name or service not known")

    for name in (
        "HF_HUB_OFFLINE",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for _ in range(2):
        with pytest.raises(ConfigError, match="tokenizer: cannot read 'someone/never-made'"):
            tokenizer_of("someone/never-made")
    assert [
        record.getMessage() for record in caplog.records if "cannot be reached" in record.getMessage()
    ] == ["the Hub (huggingface.co) cannot be reached; only what was downloaded before is used"]
    assert "Retrying" not in caplog.text
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: [])
    assert readable("someone/never-made", "x") == "someone/never-made" and not constants.HF_HUB_OFFLINE


def test_a_missing_base_and_missing_data_are_told_together(tmp_path: Path) -> None:
    config = read_run(
        ROOT / "configs/llava/tiny.yaml",
        [
            "model.from=runs/never-trained",
            f"out={tmp_path / 'out'}",
            "streams.questions.data={kind: llava, path: never.json}",
        ],
    )
    with pytest.raises(ConfigError) as caught:
        train(config)
    first, second = str(caught.value).splitlines()
    assert first.startswith("model.from: no folder 'runs/never-trained'") and "never.json" in second
    assert not (tmp_path / "out").exists()
