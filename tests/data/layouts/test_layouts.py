"""Layouts: what each holds reads back equal, other readers agree, and nothing half-written is left behind."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmzoo.config import ConfigError, part_config
from vlmzoo.data.layouts import LAYOUTS, write
from vlmzoo.data.scenes import CLASS_NAMES, Scenes
from vlmzoo.data.scenes.source import ScenesConfig
from vlmzoo.processing.image import open_image

SIDE = 12
NAMES = ["tabby cat", "Zebra", "a/b: *", "émeu"]  # not sorted, not all safe for a file system


class Listed:
    """A source from a list of rows."""

    def __init__(
        self, rows: list[Any], root: Path | None = None, class_names: list[str] | None = None
    ) -> None:
        self.rows, self.root, self.rejected = rows, root, []
        if class_names:
            self.class_names = class_names

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def picture(number: int) -> dict[str, Any]:
    values = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE + 3, 3), dtype=np.uint8)
    return {"image": Image.fromarray(values)}


def part(text: str, role: str = "text") -> dict[str, Any]:
    kind = {"<i>": "image", "<v>": "video"}.get(text)
    return {"role": role, "type": kind or "text", "text": None if kind else text}


def row(
    name: str,
    parts: list[Any],
    images: list[Any],
    truth: dict[str, Any] | None = None,
    label: int | None = None,
) -> Any:
    return {
        "images": images,
        "parts": parts,
        "label": label,
        "id": name,
        "source": "test",
        "truth": truth or {},
    }


def clip(number: int) -> dict[str, Any]:
    return {"frames": [picture(number + i) for i in range(3)]}


CHAT = [part("<i>", "user"), part("what is it?", "user"), part("a “dog”", "assistant")]
OBJECTS = [{"name": "red circle", "colour": "red", "box": [0.25, 0.5, 0.75, 1.0]}]
KINDS: dict[str, Any] = {
    "caption": row("c/1", [part("<i>"), part("a dog.")], [picture(1)],
                   {"caption": "a dog.", "captions": ["a dog.", "one dog."], "objects": OBJECTS, "noise": None}),
    "chat": row("q", [*CHAT, part("sure?", "user"), part("yes", "assistant")], [picture(2)], {"kind": "what", "choices": ["a", "b"]}),
    "several": row("two", [part("first", "user"), part("<i>", "user"), part("then", "user"), part("<i>", "user"),
                           part("same?", "user"), part("no", "assistant")], [picture(3), picture(4)], {"answer": "no"}),
    "text chat": row("t", [part("be brief", "system"), part("hi", "user"), part("hello", "assistant")], []),
    "label": row("l", [part("<i>")], [picture(5)], {"objects": []}, 2),
    "document": row("d", [part("<i>"), part("red."), part("<i>"), part("<i>"), part("both blue."), part("the end.")],
                    [picture(6), picture(7), picture(8)], {"task": "colour", "shots": 2}),
    "picture last": row("p", [part("look:"), part("<i>")], [picture(9)]),
    "text": row("x", [part("only words."), part("and more.")], []),
    "clip": row("v", [part("<v>", "user"), part("what moves?", "user"), part("it", "assistant")], [clip(10)]),
    "clip caption": row("vc", [part("<v>"), part("it moves.")], [clip(40)], {"caption": "it moves."}),
    "mixed clips": row("m", [part("<v>"), part("one"), part("<i>"), part("<v>"), part("three")], [clip(20), picture(23), clip(24)]),
}  # fmt: skip
EVERYTHING = set(KINDS)
HOLDS = {
    "coco": {"caption"},
    "llava": {"caption", "chat", "several", "text chat"},
    "messages": {"caption", "chat", "several", "text chat", "clip", "clip caption"},
    "webdataset": EVERYTHING,
    "interleaved": {"caption", "label", "document", "picture last", "text"},
    "interleaved mmc4": {"caption", "document", "text"},
    "parquet": EVERYTHING,
    "imagefolder": {"caption", "chat", "label", "picture last"},
    "imagefolder csv": {"caption", "chat", "label", "picture last"},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "interleaved mmc4": {"style": "mmc4"},
    "imagefolder csv": {"metadata": "csv"},
}
CASES = [(layout, kind) for layout in HOLDS for kind in KINDS]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def there_and_back(
    folder: Path, layout: str, rows: list[Any], names: list[str] | None = None, root: Path | None = None
) -> Any:
    name, _, _ = layout.partition(" ")
    written = write(Listed(rows, root, names), folder, name, **OPTIONS.get(layout, {}))
    assert written.skipped == [] and written.rows == len(rows)
    source = part_config("datasets", written.config, "data").open()
    assert source.rejected == []
    return source


def pixels(entries: list[Any], root: Any) -> list[Any]:
    return [
        pixels(entry["frames"], root)
        if entry.get("frames") is not None
        else open_image(entry, root).tobytes()
        for entry in entries
    ]


def as_conversation(parts: list[Any]) -> list[Any]:
    prompt = [{**parts[0], "role": "user"}, part("Describe the picture.", "user")]
    return [*prompt, part(parts[1]["text"], "assistant")]


# --- round trips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "kind"), [case for case in CASES if case[1] in HOLDS[case[0]]])
def test_what_a_layout_holds_reads_back(tmp_path: Path, layout: str, kind: str) -> None:
    wanted = KINDS[kind]
    source = there_and_back(tmp_path / "out", layout, [wanted], NAMES)
    if layout == "coco":
        assert [source[i]["truth"]["caption"] for i in range(len(source))] == wanted["truth"]["captions"]
    found = source[0]
    assert pixels(found["images"], source.root) == pixels(wanted["images"], None)
    talks = layout in ("llava", "messages")
    assert found["parts"] == (
        as_conversation(wanted["parts"]) if talks and kind.endswith("caption") else wanted["parts"]
    )
    assert found["label"] == wanted["label"]
    if layout == "coco":
        assert found["truth"] == {key: wanted["truth"][key] for key in ("caption", "captions")}
        return
    said = {"answer": found["parts"][-1]["text"]} if talks else {}
    assert found["truth"] == said | wanted["truth"]
    assert found["id"] == wanted["id"] and found["source"] == layout.split()[0]
    if layout.split()[0] in ("webdataset", "parquet", "imagefolder"):
        assert source.class_names == NAMES


@pytest.mark.parametrize(("layout", "kind"), [case for case in CASES if case[1] not in HOLDS[case[0]]])
def test_what_it_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, layout: str, kind: str
) -> None:
    name = layout.split()[0]
    with pytest.raises(ConfigError, match=f"layout '{name}' cannot hold row .*nothing was written") as caught:
        write(Listed([KINDS[kind]]), tmp_path / "out", name, **OPTIONS.get(layout, {}))
    able = {other for other in LAYOUTS if kind in HOLDS[other]} - {name}
    assert set(str(caught.value).split("these can: ")[1].split("; ")[0].split(", ")) == able
    with pytest.raises(ConfigError, match="cannot hold"):  # also behind rows that it can hold
        write(Listed([KINDS["caption"], KINDS[kind]]), tmp_path / "out", name, **OPTIONS.get(layout, {}))
    assert list(tmp_path.iterdir()) == []


SCENES = {
    "captions": ("llava", "messages", "webdataset", "interleaved", "parquet", "imagefolder"),
    "vqa": ("llava", "messages", "webdataset", "parquet", "imagefolder"),
    "dialogue": ("llava", "messages", "webdataset", "parquet", "imagefolder"),
    "labels": ("webdataset", "interleaved", "parquet", "imagefolder"),
}


@pytest.mark.parametrize(("rows", "layout"), [(rows, layout) for rows in SCENES for layout in SCENES[rows]])
def test_scenes_of_every_kind(tmp_path: Path, rows: str, layout: str) -> None:
    data = ScenesConfig(rows=rows, split="val", length=3, size=16).open()
    written = write(data, tmp_path / "out", layout)
    source = part_config("datasets", written.config, "data").open()
    for i in range(3):
        assert pixels(source[i]["images"], source.root) == pixels(data[i]["images"], None)
        assert source[i]["truth"].items() >= json.loads(json.dumps(data[i]["truth"])).items()
        assert source[i]["label"] == data[i]["label"]
        if rows != "captions":
            assert source[i]["parts"] == data[i]["parts"]
    if rows == "labels" and layout != "interleaved":
        assert source.class_names == data.class_names


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).map(
    lambda text: f".{text}."
)
chats = st.lists(st.tuples(texts, texts), min_size=1, max_size=3)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chats, st.integers(0, 2), st.sampled_from(["messages", "webdataset", "parquet"]))
def test_any_words_survive(tmp_path_factory: Any, chat: list[Any], pictures: int, layout: str) -> None:
    parts = [part("<i>", "user")] * pictures
    parts = parts + [part(text, role) for turn in chat for text, role in zip(turn, ("user", "assistant"))]
    wanted = row("<image>", parts, [picture(i) for i in range(pictures)])
    source = there_and_back(tmp_path_factory.mktemp("words") / "out", layout, [wanted])
    assert source[0]["parts"] == parts and source[0]["id"] == "<image>"


def test_bytes_and_files_are_kept_as_they_are(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture(1)["image"].save(buffer, "JPEG")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.JPG").write_bytes(buffer.getvalue())
    for layout in ("llava", "webdataset", "parquet", "imagefolder"):
        for entry in ({"bytes": buffer.getvalue()}, {"path": "a.JPG"}):
            wanted = row("1", CHAT, [entry])
            out = tmp_path / f"{layout}-{len(entry.get('path', ''))}"
            source = there_and_back(out, layout, [wanted], root=tmp_path / "in")
            found = source[0]["images"][0]
            data = found.get("bytes") or (source.root / found["path"]).read_bytes()
            assert data == buffer.getvalue() and found["path"].endswith(".jpg")


def test_a_wrong_caption_stands_alone_in_coco(tmp_path: Path) -> None:
    wrong = {**KINDS["caption"], "parts": [part("<i>"), part("a cat.")]}
    source = there_and_back(tmp_path / "out", "coco", [wrong, KINDS["caption"]])
    assert [source[i]["truth"]["caption"] for i in range(len(source))] == ["a cat.", "a dog.", "one dog."]


def test_coco_with_boxes_a_row_a_picture(tmp_path: Path) -> None:
    written = write(Listed([KINDS["caption"]]), tmp_path / "out", "coco", categories=("green star",))
    assert written.files == ["coco.json", "instances.json"]
    boxes = {"instances": str(tmp_path / "out" / "instances.json"), "rows": "pictures"}
    source = part_config("datasets", {**written.config, **boxes}, "data").open()
    assert len(source) == 1
    assert source[0]["truth"] == {
        "caption": "a dog.", "captions": ["a dog.", "one dog."],
        "objects": [{"name": "red circle", "box": [0.25, 0.5, 0.75, 1.0]}],
    }  # fmt: skip
    tree = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert tree["categories"] == [{"id": 1, "name": "green star"}, {"id": 2, "name": "red circle"}]
    assert tree["annotations"][0] == {
        "id": 1, "image_id": 1, "category_id": 2, "bbox": [3.75, 6.0, 7.5, 6.0], "area": 45.0, "iscrowd": 0,
    }  # fmt: skip


# --- other readers -----------------------------------------------------------------------------------------------


def loaded(kind: str, **options: Any) -> Any:
    import datasets

    return datasets.load_dataset(kind, split="train", **options)


def test_parquet_for_datasets(tmp_path: Path) -> None:
    rows = [KINDS["label"], {**KINDS["several"], "label": None}, KINDS["clip"]]
    write(Listed(rows, class_names=NAMES), tmp_path / "out", "parquet", shard_size=2)
    files = sorted(map(str, (tmp_path / "out").glob("*.parquet")))
    assert len(files) == 2
    table = loaded("parquet", data_files=files)
    assert table.features["label"].int2str(table[0]["label"]) == NAMES[2] and table[1]["label"] is None
    for found, wanted in zip(table, rows):
        assert [one.tobytes() for one in found["images"]] == [
            p for p in pixels(wanted["images"], None) if isinstance(p, bytes)
        ]
        assert found["parts"] == wanted["parts"] and json.loads(found["truth"]) == wanted["truth"]
    assert [[one.tobytes() for one in video] for video in table[2]["videos"]] == pixels(
        rows[2]["images"], None
    )
    raw = table.with_format("arrow")[:]["images"].to_pylist()
    assert all(one["bytes"] for images in raw for one in images)  # really in the table, not beside it


@pytest.mark.parametrize("metadata", ["jsonl", "csv"])
def test_imagefolder_for_datasets(tmp_path: Path, metadata: str) -> None:
    rows = [
        KINDS["label"],
        KINDS["caption"],
        {**KINDS["label"], "id": "l2", "label": 0, "images": [picture(30)]},
    ]
    write(Listed(rows, class_names=NAMES), tmp_path / "out", "imagefolder", metadata=metadata)
    table = loaded("imagefolder", data_dir=str(tmp_path / "out"))
    assert [one["image"].convert("RGB").tobytes() for one in table] == [
        pixels(r["images"], None)[0] for r in rows
    ]
    assert [one["label"] for one in table] == [NAMES[2], None, NAMES[0]]
    assert table[1]["text"] == "a dog."
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == [
        "a_b_ _",
        "images",
        "tabby cat",
    ]
    bare = loaded(
        "imagefolder", data_files=sorted(map(str, (tmp_path / "out").glob("*/*.png"))), drop_labels=False
    )
    assert bare.features["label"].names == [
        "a_b_ _",
        "images",
        "tabby cat",
    ]  # folders alone say the classes too


def test_messages_for_trl(tmp_path: Path) -> None:
    """TRL's documented schema: typed content, as many image items as images, roles that alternate after the system's."""
    rows = [KINDS["caption"], KINDS["chat"], KINDS["several"], KINDS["text chat"]]
    write(Listed(rows), tmp_path / "out", "messages")
    table = loaded("json", data_files=str(tmp_path / "out" / "messages.jsonl"))
    assert {"messages", "images"} <= set(table.column_names)
    for record in table:
        roles = [message["role"] for message in record["messages"] if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        items = [item for message in record["messages"] for item in message["content"]]
        assert sum(item["type"] == "image" for item in items) == len(record["images"])
        assert all((item["type"] == "text") == (item.get("text") is not None) for item in items)
        assert all((tmp_path / "out" / path).is_file() for path in record["images"])


def test_webdataset_for_others(tmp_path: Path) -> None:
    """The naming rule by hand, and the reader of datasets."""
    rows = [{**KINDS["caption"], "id": str(i), "label": i % 3} for i in range(5)]
    written = write(Listed(rows, class_names=NAMES), tmp_path / "out", "webdataset", shard_size=2)
    assert written.files == ["000000.tar to 000002.tar"]
    samples: dict[str, dict[str, bytes]] = {}
    for shard in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                key, _, field = member.name.partition(".")
                samples.setdefault(key, {})[field] = archive.extractfile(member).read()  # type: ignore[union-attr]
    assert len(samples) == 5
    for (_, sample), wanted in zip(sorted(samples.items()), rows):
        assert set(sample) == {"png", "txt", "cls", "json"}
        assert Image.open(io.BytesIO(sample["png"])).tobytes() == wanted["images"][0]["image"].tobytes()
        assert sample["txt"] == b"a dog." and int(sample["cls"]) == wanted["label"]
    table = loaded("webdataset", data_files=[str(p) for p in sorted((tmp_path / "out").glob("*.tar"))])
    assert [one["cls"] for one in table] == [0, 1, 2, 0, 1] and table[0]["png"].size == (SIDE + 3, SIDE)
    again = write(Listed(rows, class_names=NAMES), tmp_path / "again", "webdataset", shard_size=2)
    assert all((again.folder / p.name).read_bytes() == p.read_bytes() for p in (tmp_path / "out").iterdir())


def test_mmc4_by_its_rule(tmp_path: Path) -> None:
    """Each image goes before the sentence of its matched_text_index, which is where its similarity is highest."""
    write(Listed([KINDS["document"]]), tmp_path / "out", "interleaved", style="mmc4")
    document = json.loads((tmp_path / "out" / "documents.jsonl").read_text())
    assert document["text_list"] == ["red.", "both blue.", "the end."]
    assert [info["matched_text_index"] for info in document["image_info"]] == [0, 1, 1]
    for info, similarities in zip(document["image_info"], document["similarity_matrix"], strict=True):
        assert (
            np.argmax(similarities) == info["matched_text_index"] and max(similarities) == info["matched_sim"]
        )
        assert (tmp_path / "out" / info["image_name"]).is_file()


def test_obelics_by_its_rule(tmp_path: Path) -> None:
    write(Listed([KINDS["document"], KINDS["picture last"]]), tmp_path / "out", "interleaved")
    for line in (tmp_path / "out" / "documents.jsonl").read_text().splitlines():
        document = json.loads(line)
        assert all(
            (a is None) != (b is None) for a, b in zip(document["texts"], document["images"], strict=True)
        )
        assert all((tmp_path / "out" / path).is_file() for path in document["images"] if path)


# --- the folder --------------------------------------------------------------------------------------------------


def test_bad_rows_are_left_out_and_listed(tmp_path: Path) -> None:
    good = KINDS["chat"]
    bad = [
        row("gone", CHAT, [{"path": "gone.png"}]), row("out", CHAT, [{"path": "../x.png"}]), row("html", CHAT, [{"bytes": b"<html>"}]),
        row("places", CHAT, []), row("literal", [*CHAT[:2], part("an <image> tag", "assistant")], [picture(1)]),
        row("breaks", [CHAT[0], part("\nwhat?\n", "user"), CHAT[2]], [picture(1)]), row("half", [*CHAT[:2], part("\ud800", "assistant")], [picture(1)]),
    ]  # fmt: skip
    written = write(Listed([bad[0], good, *bad[1:]], root=tmp_path), tmp_path / "out", "llava")
    assert written.rows == 1 and [name for name, _ in written.skipped] == [one["id"] for one in bad]
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [(line["id"], line["reason"]) for line in lines] == written.skipped
    reasons = dict(written.skipped)
    for name, word in (
        ("gone", "exist"),
        ("out", "root"),
        ("html", "read"),
        ("places", "parts"),
        ("literal", "<image>"),
    ):
        assert word in reasons[name], reasons[name]
    assert len(list((tmp_path / "out" / "images").iterdir())) == 1
    with pytest.raises(ConfigError, match=r"no row to write \(gone: "):
        write(Listed(bad[:1], root=tmp_path), tmp_path / "none", "llava")
    assert not (tmp_path / "none").exists()
    assert (
        there_and_back(tmp_path / "m", "messages", [bad[4]])[0]["parts"] == bad[4]["parts"]
    )  # messages can say it


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("cocoa", {}, "did you mean 'coco'"), ("webdataset", {"shard_sise": 3}, "did you mean 'shard_size'"),
        ("webdataset", {"shard_size": 0}, "shard_size"), ("interleaved", {"style": "mcm4"}, "mmc4"),
        ("imagefolder", {"metadata": "xml"}, "csv"),
    ],
)  # fmt: skip
def test_wrong_names_and_options(tmp_path: Path, layout: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write(Listed([KINDS["caption"]]), tmp_path / "out", layout, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_complete_or_absent(tmp_path: Path, layout: str) -> None:
    class Breaking(Listed):
        def __getitem__(self, index: int) -> Any:
            if index:
                raise KeyboardInterrupt
            return KINDS["caption"]

    with pytest.raises(KeyboardInterrupt):
        write(Breaking([0, 1]), tmp_path / "out", layout)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    write(Listed([KINDS["caption"]]), tmp_path / "out", layout)  # an empty folder is taken over
    with pytest.raises(FileExistsError, match="not an empty folder"):
        write(Listed([KINDS["caption"]]), tmp_path / "out", layout)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, layout: str) -> None:
    data = np.random.default_rng(0).bytes(20_000)
    png = io.BytesIO()
    picture(1)["image"].save(png, "PNG")

    class Many(Listed):
        def __len__(self) -> int:
            return 400

        def __getitem__(self, index: int) -> Any:
            return {**KINDS["caption"], "id": str(index), "images": [{"bytes": png.getvalue() + data}]}

    write(Listed([KINDS["caption"]]), tmp_path / "warm", layout)  # imports
    tracemalloc.start()
    seen: list[tuple[int, int]] = []
    write(Many([]), tmp_path / "out", layout, progress=lambda done, total: seen.append((done, total)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == [(i, 400) for i in range(1, 401)]
    assert peak < 400 * len(data) / 2


def test_csv_metadata_is_a_table(tmp_path: Path) -> None:
    write(Listed([KINDS["label"], KINDS["chat"]]), tmp_path / "out", "imagefolder", metadata="csv")
    with (tmp_path / "out" / "metadata.csv").open(newline="", encoding="utf-8") as text:
        lines = list(csv.DictReader(text))
    assert [line["label"] for line in lines] == ["2", ""]  # a source without names: numbers


def test_categories_of_scenes_are_the_same_in_every_split(tmp_path: Path) -> None:
    from vlmzoo.data.scenes.disk import write as write_scenes

    trees = [
        json.loads((write_scenes(tmp_path / split, layout="coco", split=split, length=2, size=16) / "instances.json").read_text())
        for split in ("train", "test")
    ]  # fmt: skip
    assert trees[0]["categories"] == trees[1]["categories"]
    assert [one["name"] for one in trees[0]["categories"]] == list(CLASS_NAMES)
    assert len(Scenes(length=2)) == 2
