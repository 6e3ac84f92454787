"""A user's own folder of pictures with a LLaVA json: trains by two changed lines, exports, and stock loads it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from vlmzoo.compose import build, processor_for
from vlmzoo.folders import load
from vlmzoo.run import read_run, train

ROOT = Path(__file__).parent.parent


def own_folder(folder: Path) -> Path:
    """Pictures of several formats and sizes, one of them broken, one missing, and their json; two pictures in a row, none."""
    pictures = folder / "images"
    pictures.mkdir(parents=True)
    records = []
    for number, (colour, suffix) in enumerate(
        [("red", "jpg"), ("blue", "png"), ("green", "webp"), ("red", "gif")]
    ):
        Image.new("RGB", (40 + 9 * number, 30), colour).save(pictures / f"{number}.{suffix}")
        turns = [
            {"from": "human", "value": "<image>\nWelche Farbe hat das Bild?"},
            {"from": "gpt", "value": colour},
        ]
        records.append({"id": number, "image": f"{number}.{suffix}", "conversations": turns})
    both = [{"from": "human", "value": "<image>\n<image>\nGleich?"}, {"from": "gpt", "value": "nein"}]
    records.append({"id": "both", "image": ["0.jpg", "1.png"], "conversations": both})
    words = [{"from": "human", "value": "Wie geht es?"}, {"from": "gpt", "value": "gut"}]
    records.append({"id": "words", "conversations": words})
    (pictures / "broken.jpg").write_bytes(b"<html>not a picture</html>")
    records.append({**records[0], "id": "broken", "image": "broken.jpg"})
    records.append({**records[0], "id": "gone", "image": "gone.jpg"})
    records.append({**records[0], "id": "escape", "image": "../train.json"})
    records.append(
        {
            "id": "no place",
            "image": "0.jpg",
            "conversations": [{"from": "human", "value": "hm"}, {"from": "gpt", "value": "x"}],
        }
    )
    (folder / "train.json").write_text(json.dumps(records))
    return folder


def test_own_data_end_to_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = build("llava-tiny")
    model.save_pretrained(tmp_path / "start"), processor_for(model).save_pretrained(tmp_path / "start")
    data = own_folder(tmp_path / "mine")
    out = tmp_path / "run"
    config = read_run(
        ROOT / "configs/llava/tiny.yaml",
        [
            f"streams.questions.data={{kind: llava, path: {data / 'train.json'}, images: {data / 'images'}}}",
            f"model.from={tmp_path / 'start'}", f"out={out}", "optim.steps=6", "streams.questions.batch_size=4",
            "streams.captions.batch_size=2", "streams.questions.group=modality", "evaluate.before=false", "evaluate.after=false",
        ],
    )  # fmt: skip
    line = train(config)
    assert line["step"] == 6 and line["loss"] > 0
    bad = {json.loads(text)["id"] for text in (out / "quarantine.jsonl").read_text().splitlines()}
    assert bad == {"broken", "gone", "escape", "no place"}  # every row was asked for, and no other is missing
    assert "4 rows could not be used" in caplog.text and "quarantine.jsonl" in caplog.text
    lines = [json.loads(text) for text in (out / "log.jsonl").read_text().splitlines()]
    moved = next(line for line in lines if "learning" in line)
    assert moved["learning"]["connector"][0] > 0 and moved["frozen"] > 0
    card = (out / "README.md").read_text()
    assert "Training config" in card and "train.json" in card

    assert load(out)[0].config.starts["vision"] == str(tmp_path / "start")

    from vlmzoo.folders import export

    assert export(out, tmp_path / "stock") < 1e-5
    code = (
        "import sys\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        f"model, info = AutoModelForImageTextToText.from_pretrained({str(tmp_path / 'stock')!r}, output_loading_info=True)\n"
        "assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), info\n"
        f"processor = AutoProcessor.from_pretrained({str(tmp_path / 'stock')!r})\n"
        "from PIL import Image\n"
        f"picture = Image.open({str(data / 'images' / '1.png')!r})\n"
        "chat = [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'Welche Farbe hat das Bild?'}]}]\n"
        "text = processor.apply_chat_template(chat, add_generation_prompt=True)\n"
        "inputs = processor(images=picture, text=text, add_special_tokens=False, return_tensors='pt')\n"
        "out = model.generate(**inputs, max_new_tokens=5, do_sample=False)\n"
        "print(out[0, inputs['input_ids'].shape[1]:].tolist())\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'vlmzoo']\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, processor = load(out)
    parts = [
        {"role": "user", "type": "image", "text": None},
        {"role": "user", "type": "text", "text": "Welche Farbe hat das Bild?"},
    ]
    prompt = processor.prompts(
        [{"images": [{"path": str(data / "images" / "1.png")}], "parts": parts, "id": "x"}]
    )
    answer = ours.generate(**prompt, max_new_tokens=5, do_sample=False)[
        0, prompt["input_ids"].shape[1] :
    ].tolist()
    assert done.stdout.strip() == str(answer)


def test_a_half_precision_run_is_judged_too(tmp_path: Path) -> None:
    """Frozen parts in bfloat16 beside learning ones in float32: evaluation needs the same arithmetic as training."""
    tasks = "{vqa: {kind: vqa, data: {kind: scenes, rows: vqa, split: test, length: 7, size: 32}}}"
    config = read_run(
        ROOT / "configs/llava/tiny_stage0.yaml",
        [
            "model.vision.from=vlmzoo:clip-tiny", f"out={tmp_path}", "optim.steps=2", "trainer.precision=bf16",
            "streams.captions.batch_size=4", f"evaluate={{before: true, every: 1, tasks: {tasks}}}",
        ],
    )  # fmt: skip
    assert train(config)["step"] == 2
    assert {path.parent.name for path in tmp_path.glob("results/*/vqa.json")} == {"before", "step-1", "after"}
