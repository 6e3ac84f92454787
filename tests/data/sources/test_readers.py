"""Sources of user data in the layouts of others: the records they publish, and broken or hostile ones."""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlmzoo.config import ConfigError, part_config
from vlmzoo.processing.image import open_image
from vlmzoo.types import RowError

SIDE = 6


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def png(shade: int = 0, suffix: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (shade, 100, 200)).save(buffer, suffix)
    return buffer.getvalue()


def shade(source: Any, row: Any, image: int = 0) -> int:
    return open_image(row["images"][image], source.root).getpixel((0, 0))[0]  # type: ignore[index]


def opened(kind: str, path: Path | str, **options: Any) -> Any:
    return part_config("datasets", {"kind": kind, "path": str(path), **options}, "data").open()


def words(row: Any) -> list[str | None]:
    return [part["text"] for part in row["parts"]]


def lines(file: Path, records: list[Any]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


IMAGE = {"type": "image"}


def text(words: Any) -> dict[str, Any]:
    return {"type": "text", "text": words}


# --- messages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({"messages": [user([IMAGE, text("what?")]), assistant([text("it")])], "images": ["a.png"]}, ["<i>", "what?", "it"]),
        ({"messages": [user([text("a <image>"), IMAGE]), assistant("it")], "image": "a.png"}, ["a <image>", "<i>", "it"]),
        ({"messages": [user("<image>\nwhat?"), assistant("it")], "images": ["a.png"]}, ["<i>", "what?", "it"]),
        ({"messages": [{"role": "system", "content": "s"}, user("what?"), assistant("it")], "images": ["a.png", "b.png"]},
         ["s", "<i>", "<i>", "what?", "it"]),  # as TRL places pictures that no content places
        ({"prompt": [user([IMAGE, text("what?")])], "completion": [assistant("it")], "images": ["a.png"]}, ["<i>", "what?", "it"]),
        ({"prompt": "what?", "completion": "it"}, ["what?", "it"]),
        ({"messages": [user([{"type": "text", "text": "hi", "index": None}]), assistant([text("ho")])], "images": None}, ["hi", "ho"]),
        ({"messages": [user([{"type": "video"}, text("?")])], "videos": [["a.png", "b.png"]]}, ["<v>", "?"]),
        ({"messages": [user([IMAGE, text("?")])], "images": [{"path": "a.png", "bytes": None}]}, ["<i>", "?"]),
    ],
)  # fmt: skip
def test_messages(tmp_path: Path, record: Any, wanted: list[str]) -> None:
    source = opened("messages", lines(tmp_path / "d.jsonl", [record]))
    marks = {"image": "<i>", "video": "<v>"}
    assert [marks.get(part["type"], part["text"]) for part in source[0]["parts"]] == wanted
    assert source.rejected == [] and source[0]["id"] == "0"
    assert len(source[0]["images"]) == sum(
        mark in wanted[i] for i in range(len(wanted)) for mark in ("<i>", "<v>")
    )


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": [user([IMAGE, IMAGE, text("?")])], "images": ["a.png"]}, "2 <image> places in the text, 1 pictures"),
        ({"messages": [user([text("?")])], "images": ["a.png"]}, "0 <image> places in the text, 1 pictures"),
        ({"messages": [user("<image> <image>")], "images": ["a.png"]}, "2 <image> places"),
        ({"messages": [user([{"type": "video"}])]}, "1 <video> places in the text, 0 videos"),
        ({"messages": [user([{"type": "video"}])], "videos": ["clip.mp4"]}, "a video is a list of its frames"),
        ({"messages": [user([{"type": "imgae"}])]}, "did you mean 'image'"),
        ({"messages": [{"role": "asistant", "content": "x"}]}, "did you mean 'assistant'"),
        ({"messages": [user([IMAGE])], "images": ["https://x.org/a.png"]}, "nothing is fetched"),
        ({"messages": [user([IMAGE])], "images": [3]}, "wanted a path or bytes"),
        ({"messages": [user([text(3)])]}, "wanted a text, got int"),
        ({"messages": [user([text(None)])]}, "wanted a text"),
        ({"messages": [user("half \ud800")]}, "surrogate"),
        ({"messages": []}, "no message"), ({"text": "x"}, "missing key 'messages'"), ({"messages": [user(None)]}, ""),
        ({"messages": {"role": "user"}}, ""), ({"messages": [["user", "x"]]}, ""), ({"messages": 3}, ""), ("x", ""), (None, ""),
    ],
)  # fmt: skip
def test_bad_messages_are_listed(tmp_path: Path, record: Any, reason: str) -> None:
    bad = {"id": "bad", **record} if isinstance(record, dict) else record
    good = {"messages": [user("hi"), assistant("ho")]}
    source = opened("messages", lines(tmp_path / "d.jsonl", [good, bad, good]))
    [(name, why)] = source.rejected
    assert len(source) == 2 and name == ("bad" if isinstance(record, dict) else "1") and reason in why and why
    with pytest.raises(ConfigError, match="no usable row"):
        opened("messages", lines(tmp_path / "bad.jsonl", [bad]))


def test_lines_that_are_no_json_are_listed_and_json_may_hold_lines(tmp_path: Path) -> None:
    good = json.dumps({"messages": [user("hi"), assistant("ho")]}).encode()
    for name in ("d.jsonl", "D.JSONL", "d.json"):
        (tmp_path / name).write_bytes(
            b"\n".join([good, good, b"{broken", b"\xff\xfe", b"[" * 50_000, b"", good])
        )
        source = opened("messages", tmp_path / name)
        assert len(source) == 3 and [key for key, _ in source.rejected] == ["line 3", "line 4", "line 5"]
        assert all(why.startswith("not json") for _, why in source.rejected)


@pytest.mark.parametrize("kind", ["messages", "interleaved"])
def test_files_that_are_none(tmp_path: Path, kind: str) -> None:
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(ConfigError, match="not json"):
        opened(kind, tmp_path / "train.json")
    with pytest.raises(ConfigError, match=r"did you mean 'train\.json'"):
        opened(kind, tmp_path / "trian.json")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ConfigError, match="no usable row"):
        opened(kind, tmp_path / "empty.jsonl")
    with pytest.raises(ConfigError, match=r"data\.images: no folder"):
        opened(kind, tmp_path / "train.json", images=str(tmp_path / "pics"))


def test_more_rows_than_a_chunk(tmp_path: Path) -> None:
    records = [{"id": str(i), "messages": [user(f"q{i}"), assistant("a")]} for i in range(2500)]
    source = opened("messages", lines(tmp_path / "d.jsonl", records))
    assert len(source) == 2500
    for i in (0, 999, 1000, 2499, -1):
        assert source[i]["id"] == str(i % 2500) and words(source[i]) == [f"q{i % 2500}", "a"]
    for i in (2500, -2501):
        with pytest.raises(IndexError):
            source[i]


# --- interleaved -------------------------------------------------------------------------------------------------


def mmc4(pairs: list[tuple[str, Any]], texts: int = 3) -> dict[str, Any]:
    infos = [{"image_name": name, "matched_text_index": index, "matched_sim": 0.3} for name, index in pairs]
    return {
        "text_list": [f"t{i}" for i in range(texts)],
        "image_info": infos,
        "similarity_matrix": [[0.1] * texts] * len(pairs),
    }


def test_mmc4_pictures_go_by_their_sentence_not_by_their_order(tmp_path: Path) -> None:
    crossing = mmc4([("late.png", 2), ("early.png", 0), ("second.png", "2")])
    source = opened("interleaved", lines(tmp_path / "d.jsonl", [crossing, mmc4([])]))
    assert words(source[0]) == [None, "t0", "t1", None, None, "t2"]
    assert [entry["path"] for entry in source[0]["images"]] == ["early.png", "late.png", "second.png"]
    assert {part["role"] for part in source[0]["parts"]} == {"text"} and words(source[1]) == [
        "t0",
        "t1",
        "t2",
    ]


def test_mmc4_pictures_unlike_their_sentence_are_left_out(tmp_path: Path) -> None:
    documents = [mmc4([("a.png", 0), ("b.png", 1)]), mmc4([("c.png", 0)])]
    for document, similarities in zip(documents, ((0.3, 0.1), (0.1,))):
        for info, value in zip(document["image_info"], similarities):
            info["matched_sim"] = value
    tree = {"path": lines(tmp_path / "d.jsonl", documents)}
    source = opened("interleaved", **tree, min_similarity=0.24)
    assert [entry["path"] for entry in source[0]["images"]] == ["a.png"] and len(source) == 1
    assert [why for _, why in source.rejected] == ["no picture is as similar to its sentence as 0.24"]
    assert len(opened("interleaved", **tree)) == 2


def test_pictures_inside_mmc4(tmp_path: Path) -> None:
    document = mmc4([("a.png", 1)])
    document["image_info"][0]["image_base64"] = base64.b64encode(png(7)).decode()
    source = opened("interleaved", lines(tmp_path / "d.jsonl", [document]))
    assert shade(source, source[0]) == 7


def test_obelics(tmp_path: Path) -> None:
    document = {"texts": [None, "a", "b", None], "images": ["a.png", None, None, "b.png"], "metadata": "[]"}
    source = opened("interleaved", lines(tmp_path / "d.jsonl", [document]))
    assert words(source[0]) == [None, "a", "b", None]
    assert [entry["path"] for entry in source[0]["images"]] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (mmc4([("a.png", 3)]), "matched_text_index 3 of 3 sentences"), (mmc4([("a.png", -1)]), "matched_text_index -1"),
        (mmc4([("a.png", "x")]), "matched_text_index 'x'"), (mmc4([("a.png", True)]), "matched_text_index True"),
        ({"text_list": ["a"], "image_info": [{"matched_text_index": 0}]}, "missing key 'image_name'"),
        ({"text_list": ["a"], "image_info": [{"image_name": "a"}]}, "missing key 'matched_text_index'"),
        ({"text_list": ["a"], "image_info": [{"image_base64": "%%", "matched_text_index": 0}]}, "no base64"),
        ({"text_list": "abc"}, "text_list: wanted a list"), ({"text_list": []}, "an empty document"), ({"text_list": [3]}, "wanted a text"),
        ({"texts": ["a"], "images": []}, "1 texts and 0 images"), ({"texts": [None], "images": [None]}, "neither a text and"),
        ({"texts": ["a"], "images": ["b"]}, "both a text and"), ({"texts": [None], "images": ["http://x/a.png"]}, "nothing is fetched"),
        ({"texts": [None]}, "missing key 'images'"), ({"text": "x"}, "neither mmc4"), ({"texts": "ab", "images": "ab"}, "wanted a list"),
    ],
)  # fmt: skip
def test_bad_documents_are_listed(tmp_path: Path, record: Any, reason: str) -> None:
    source = opened("interleaved", lines(tmp_path / "d.jsonl", [mmc4([]), {"id": "bad", **record}]))
    [(name, why)] = source.rejected
    assert len(source) == 1 and name == "bad" and reason in why


# --- webdataset --------------------------------------------------------------------------------------------------


def tar(file: Path, members: list[tuple[Any, bytes]]) -> Path:
    with tarfile.open(file, "w") as archive:
        for name, data in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file


def sample(key: str, number: int = 0, caption: str = "a dog") -> list[tuple[Any, bytes]]:
    return [(f"{key}.png", png(number)), (f"{key}.txt", caption.encode())]


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_webdataset(tmp_path: Path) -> None:
    tar(
        tmp_path / "b.tar",
        [
            *sample("x/000", 1),
            ("x/001.JPG", png(2, "JPEG")),
            ("x/001.json", b'{"caption": "\xc3\xa9mu", "id": 7}'),
        ],
    )
    tar(tmp_path / "a.tar", [
        ("readme", b"no extension"), (".DS_Store", b"x"), ("._000.png", b"x"), ("deep/", b""),
        ("000.cls", b"1\n"), ("000.webp", png(3, "WEBP")), ("000.meta.json", b"not read"), ("000.npy", b"x"),
        ("001.1.png", png(5)), ("001.0.png", png(4)), ("001.json", json.dumps({"conversations": [{"from": "human", "value": "<image><image>?"}]}).encode()),
        ("002.0.001.png", png(9)), ("002.0.000.png", png(8)), ("002.json", json.dumps({"parts": [{"role": "text", "type": "video", "text": None}]}).encode()),
    ])  # fmt: skip
    source = opened("webdataset", tmp_path, classes=["cat", "dog"])
    assert source.rejected == [] and [source[i]["id"] for i in range(5)] == [
        "a/000",
        "a/001",
        "a/002",
        "b/x/000",
        "7",
    ]
    assert (
        source[0]["label"] == 1
        and source.class_names == ["cat", "dog"]
        and shade(source, source[0]) in range(8)
    )
    assert [shade(source, source[1], i) for i in (0, 1)] == [4, 5] and words(source[1]) == [None, None, "?"]
    frames = source[2]["images"][0]["frames"]
    assert [open_image(frame).getpixel((0, 0))[0] for frame in frames] == [8, 9]  # type: ignore[index]
    assert (
        words(source[3]) == [None, "a dog"]
        and shade(source, source[3]) == 1
        and source[3]["images"][0]["path"] == "x/000.png"
    )
    assert words(source[4]) == [None, "ému"]
    assert (
        len(opened("webdataset", tmp_path / "b.tar"))
        == len(opened("webdataset", str(tmp_path / "b*.tar")))
        == 2
    )


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("../bad.png", png()), ("../bad.txt", b"x")], "leaves the archive"), ([("/bad.png", png()), ("/bad.txt", b"x")], "leaves the archive"),
        ([("a/../bad.png", png()), ("a/../bad.txt", b"x")], "leaves the archive"), ([("C:\\bad.png", png()), ("C:\\bad.txt", b"x")], "leaves"),
        ([(link("bad.png", "/etc/passwd"), b""), ("bad.txt", b"x")], "no plain file"),
        ([(link("bad.png", "g1.png", tarfile.LNKTYPE), b""), ("bad.txt", b"x")], "no plain file"),
        ([*sample("bad"), ("bad.png", png())], "there twice"), ([*sample("bad"), ("bad.txt", b"y")], "there twice"),
        ([*sample("bad"), ("bad.PNG", png())], "there twice"),
        ([("bad.png", png())], "no .txt, .json or .cls"), ([("bad.txt", b"x")], "no picture"), ([("bad.png", png()), ("bad.txt", b"  ")], "empty caption"),
        ([("bad.png", png()), ("bad.txt", b"\xff\xfe")], ".txt is no text"), ([("bad.png", png()), ("bad.json", b"{")], ".json is no json"),
        ([("bad.png", png()), ("bad.json", b"[1]")], "wanted a mapping"), ([("bad.png", png()), ("bad.json", b'{"parts": []}')], "at least one part"),
        ([("bad.png", png()), ("bad.json", b'{"parts": [{"role": "text", "type": "text", "text": "x"}]}')], "0 <image> places in the text, 1 pictures"),
        ([("bad.png", png()), ("bad.json", b'{"parts": [{"role": "usr", "type": "image"}]}')], "did you mean 'user'"),
    ],
)  # fmt: skip
def test_bad_samples_are_listed(tmp_path: Path, members: Any, reason: str) -> None:
    source = opened("webdataset", tar(tmp_path / "s.tar", [*sample("g1", 1), *members, *sample("g2", 2)]))
    assert [source[i]["id"] for i in range(len(source))] == ["s/g1", "s/g2"]
    [(name, why)] = source.rejected
    assert "bad" in name and reason in why
    with pytest.raises(ConfigError, match="no usable row"):
        opened("webdataset", tar(tmp_path / "b.tar", members))


def test_keys_that_come_again(tmp_path: Path) -> None:
    source = opened(
        "webdataset", tar(tmp_path / "s.tar", [*sample("a", 1), *sample("b", 2), *sample("a", 3)])
    )
    assert [source[i]["id"] for i in range(len(source))] == ["s/a", "s/b"] and shade(source, source[0]) == 1
    assert source.rejected == [("s/a", "key 'a' came before in this shard")]


def test_a_shard_cut_anywhere_gives_its_whole_samples(tmp_path: Path) -> None:
    whole = tar(
        tmp_path / "whole.tar", [member for i in range(4) for member in sample(str(i), i)]
    ).read_bytes()
    good = len(opened("webdataset", tmp_path / "whole.tar"))
    assert good == 4
    end = len(whole.rstrip(b"\0"))
    sizes = []
    for cut in sorted({*range(100, end + 400, 311), 512, 1024, 1536, end}):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        try:
            source = opened("webdataset", tmp_path / "cut.tar")
        except ConfigError:
            sizes.append(0)
            continue
        assert any(name == "cut.tar" for name, _ in source.rejected), f"cut at {cut} went unnoticed"
        sizes.append(len(source))
        for i in range(len(source)):
            assert shade(source, source[i]) == i and words(source[i]) == [None, "a dog"]
    assert sizes == sorted(sizes) and {0, 1, 2, 3} <= set(sizes)


def test_what_is_no_shard(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \*\.tar in this folder"):
        opened("webdataset", tmp_path)
    tar(tmp_path / "good.tar", sample("g"))
    (tmp_path / "text.tar").write_bytes(b"<html>" * 500)
    (tmp_path / "empty.tar").write_bytes(b"")
    source = opened("webdataset", tmp_path)
    assert len(source) == 1 and sorted(name for name, _ in source.rejected) == ["empty.tar", "text.tar"]
    with pytest.raises(ConfigError, match=r"did you mean 'good\.tar'"):
        opened("webdataset", tmp_path / "god.tar")
    with pytest.raises(ConfigError, match="no usable row"):
        opened("webdataset", tmp_path / "text.tar")


# --- parquet -----------------------------------------------------------------------------------------------------

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(file: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def cells(*values: Any, kind: Any = PICTURE) -> Any:
    return pa.array(values, kind)


def held(number: int) -> dict[str, Any]:
    return {"bytes": png(number), "path": None}


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({"image": cells(held(3)), "text": ["a dog"]}, [None, "a dog"]), ({"image": cells(held(3)), "caption": ["a dog"]}, [None, "a dog"]),
        ({"img": cells(held(3)), "caption": ["a dog"]}, [None, "a dog"]), ({"jpg": cells(png(3), kind=pa.binary()), "text": ["a dog"]}, [None, "a dog"]),
        ({"image": cells(held(3)), "question": ["what?"], "answer": ["it"]}, [None, "what?", "it"]),
        ({"images": cells([held(3)], kind=pa.list_(PICTURE)), "messages": [[user("what?"), assistant("it")]]}, [None, "what?", "it"]),
        ({"image": cells(held(3)), "conversations": [[{"from": "human", "value": "<image>?"}]]}, [None, "?"]),
        ({"image": cells(held(3)), "label": [2]}, [None]),
    ],
)  # fmt: skip
def test_parquet(tmp_path: Path, columns: Any, wanted: list[Any]) -> None:
    source = opened("parquet", table(tmp_path / "t.parquet", columns))
    assert words(source[0]) == wanted and shade(source, source[0]) == 3 and source.rejected == []


def test_parquet_is_read_in_any_order_and_stays_on_disk(tmp_path: Path) -> None:
    for part in range(2):
        numbers = range(part * 60, part * 60 + 60)
        table(
            tmp_path / f"{part}.parquet",
            {"image": cells(*map(held, numbers)), "text": [str(i) for i in numbers]},
        )
    source = opened("parquet", tmp_path)
    assert len(source) == 120
    for i in np.random.default_rng(0).permutation(120):
        assert shade(source, source[int(i)]) == i and words(source[int(i)])[1] == str(i)
    assert source._table.cache_files  # mapped from a file, not held


def test_labels_of_parquet(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features(
        {"image": ImageFeature(), "label": ClassLabel(names=["zebra", "ant"]), "id": Value("string")}
    )
    rows = {"image": [held(1), held(2), held(3)], "label": [1, 0, None], "id": ["x", "y", "z"]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "t.parquet")
    source = opened("parquet", tmp_path / "t.parquet")
    assert source.class_names == ["zebra", "ant"] and [source[i]["label"] for i in range(3)] == [1, 0, None]
    assert [source[i]["id"] for i in range(3)] == ["x", "y", "z"]
    columns = {"image": cells(held(1), held(2)), "kind": ["wolf", "ant"]}
    source = opened("parquet", table(tmp_path / "t2.parquet", columns), label_column="kind")
    assert source.class_names == ["ant", "wolf"] and source[0]["label"] == 1
    numbers = {"image": cells(held(1), held(2)), "label": ["10", "3"]}
    source = opened("parquet", table(tmp_path / "t3.parquet", numbers))
    assert source.class_names == [] and [source[i]["label"] for i in (0, 1)] == [10, 3]


def test_a_named_text_column_goes_before_all_others(tmp_path: Path) -> None:
    columns = {"image": cells(held(1)), "text": ["x"], "question": ["?"], "summary": ["short"]}
    source = opened("parquet", table(tmp_path / "t.parquet", columns), text_column="summary")
    assert words(source[0]) == [None, "short"]
    (tmp_path / "t.csv").write_text("image,text,question,summary\na.png,x,?,short\n")
    assert words(opened("csv", tmp_path / "t.csv", text_column="summary")[0]) == [None, "short"]
    assert words(opened("csv", tmp_path / "t.csv")[0]) == [None, "?"]


def test_a_table_of_texts_alone(tmp_path: Path) -> None:
    source = opened("parquet", table(tmp_path / "t.parquet", {"text": ["a", "b", None]}))
    assert [words(source[i]) for i in range(len(source))] == [["a"], ["b"]] and source[0]["images"] == []
    assert source.rejected == [("2", "no picture")]


def test_pictures_of_parquet_that_are_paths(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").write_bytes(png(5))
    columns = {
        "image": cells({"bytes": None, "path": "a.png"}, {"bytes": None, "path": "../t.parquet"}),
        "text": ["x", "y"],
    }
    source = opened("parquet", table(tmp_path / "t.parquet", columns), images=str(tmp_path / "pics"))
    assert len(source) == 2 and shade(source, source[0]) == 5
    with pytest.raises(RowError, match="leaves the data root"):
        shade(source, source[1])


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"image": cells(held(1), None), "text": ["x", "y"]}, "no picture"), ({"image": cells(held(1), {"bytes": None, "path": None}), "text": ["x", "y"]}, "wanted a path or bytes"),
        ({"image": cells(held(1), held(2)), "text": ["x", None]}, None), ({"image": cells(held(1), held(2)), "text": ["x", " "]}, "empty caption"),
        ({"image": cells(held(1), {"bytes": None, "path": "http://x/y.png"}), "text": ["x", "y"]}, "nothing is fetched"),
        ({"images": cells([held(1)], [], kind=pa.list_(PICTURE)), "messages": [[user("<image>")]] * 2}, "1 <image> places in the text, 0 pictures"),
        ({"images": cells([held(1)], None, kind=pa.list_(PICTURE)), "parts": ['[{"role": "text", "type": "image"}]', "[]"]}, "at least one part"),
    ],
)  # fmt: skip
def test_bad_rows_of_parquet_are_listed(tmp_path: Path, columns: Any, reason: str | None) -> None:
    source = opened("parquet", table(tmp_path / "t.parquet", {**columns, "id": ["good", "bad"]}))
    if reason is None:
        assert words(source[1]) == [None]
        return
    [(name, why)] = source.rejected
    assert len(source) == 1 and source[0]["id"] == "good" and name == "bad" and reason in why


def test_what_is_no_table_of_pictures(tmp_path: Path) -> None:
    good = table(tmp_path / "t.parquet", {"image": cells(held(1)), "text": ["x"]})
    (tmp_path / "u.parquet").write_bytes(good.read_bytes()[:-40])
    source = opened("parquet", tmp_path)
    assert len(source) == 1 and [name for name, _ in source.rejected] == ["u.parquet"]
    with pytest.raises(ConfigError, match="no usable row"):
        opened("parquet", tmp_path / "u.parquet")
    with pytest.raises(ConfigError, match=r"image_column: no column 'imgae'; did you mean 'image'"):
        opened("parquet", good, image_column="imgae")
    with pytest.raises(ConfigError, match=r"no column holds pictures; .*there are: a, b"):
        opened("parquet", table(tmp_path / "n.parquet", {"a": [1], "b": ["x"]}))
    with pytest.raises(ConfigError, match=r"several columns hold pictures \(left, right\)"):
        opened("parquet", table(tmp_path / "s.parquet", {"left": cells(held(1)), "right": cells(held(1))}))
    table(tmp_path / "other.parquet", {"image": cells(held(1)), "size": [1]})
    with pytest.raises(ConfigError, match="cannot be read as one"):
        opened("parquet", str(tmp_path / "[to]*.parquet"))


# --- imagefolder and csv -----------------------------------------------------------------------------------------


def folder(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(number))
    return root


def test_imagefolder(tmp_path: Path) -> None:
    root = folder(
        tmp_path / "d",
        "dog/1.PNG",
        "dog/sub/2.Jpeg",
        "cat/é 3.png",
        "top.png",
        ".hidden/x.png",
        "dog/.x.png",
        "dog/Thumbs.db",
    )
    (root / "bird").mkdir()
    source = opened("imagefolder", root)
    assert source.class_names == ["bird", "cat", "dog"]
    found = {source[i]["id"]: source[i] for i in range(len(source))}
    assert {name: row["label"] for name, row in found.items()} == {
        "top.png": None,
        "cat/é 3.png": 1,
        "dog/1.PNG": 2,
        "dog/sub/2.Jpeg": 2,
    }
    assert shade(source, found["cat/é 3.png"]) == 2 and words(found["top.png"]) == [None]
    ordered = opened("imagefolder", root, classes=["dog", "cat"])
    assert [ordered[i]["label"] for i in range(len(ordered))] == [None, 1, 0, 0]
    partly = opened("imagefolder", root, classes=["dog"])
    assert partly.rejected == [("cat/é 3.png", "folder 'cat' is none of the 1 classes")]


def test_links_out_of_an_imagefolder(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", "a/1.png")
    folder(tmp_path / "secret", "s.png")
    os.symlink(tmp_path / "secret" / "s.png", root / "a" / "out.png")
    os.symlink(tmp_path / "secret", root / "b")
    os.symlink(root / "a" / "1.png", root / "a" / "in.png")
    source = opened("imagefolder", root)
    assert [source[i]["id"] for i in range(len(source))] == ["a/1.png", "a/in.png"]
    assert dict(source.rejected) == {
        "a/out.png": "a link that leaves the data root",
        "b": "a link to a folder; links are not followed",
    }
    listed = lines(
        root / "metadata.jsonl",
        [{"file_name": "a/1.png"}, {"file_name": "a/out.png"}, {"file_name": "../secret/s.png"}],
    )
    source = opened("imagefolder", listed.parent)
    for i in (1, 2):
        with pytest.raises(RowError, match="leaves the data root"):
            shade(source, source[i])


def test_folders_without_classes_or_pictures(tmp_path: Path) -> None:
    flat = opened("imagefolder", folder(tmp_path / "flat", "b.png", "a.png"))
    assert [flat[i]["id"] for i in (0, 1)] == ["a.png", "b.png"] and flat.class_names == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no picture in this folder"):
        opened("imagefolder", tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"holds splits \(train, val\)"):
        opened("imagefolder", folder(tmp_path / "splits", "train/a/1.png", "val/a/1.png"))
    with pytest.raises(ConfigError, match="did you mean 'flat'"):
        opened("imagefolder", tmp_path / "flatt")


def test_metadata_of_an_imagefolder(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", "x/1.png", "x/2.png", "y/3.png")
    lines(root / "metadata.jsonl", [
        {"file_name": "x/1.png", "text": "a dog"}, {"file_name": "y/3.png", "label": "wolf"}, {"text": "no file"}, {"file_name": ""}, 3,
    ])  # fmt: skip
    source = opened("imagefolder", root)
    assert len(source) == 2 and words(source[0]) == [None, "a dog"] and source.class_names == ["wolf"]
    assert [name for name, _ in source.rejected] == ["2", "3", "4"]
    (root / "classes.txt").write_text("wolf\nx\n")
    source = opened("imagefolder", root)
    assert source.class_names == ["wolf", "x"] and [source[i]["label"] for i in (0, 1)] == [
        1,
        0,
    ]  # by folder, by label


def test_csv(tmp_path: Path) -> None:
    folder(tmp_path, "p/1.png", "p/2.png")
    file = tmp_path / "labels.csv"
    file.write_bytes(
        '\ufefffilename,class,caption\r\n1.png,wolf,"a, b"\r\n2.png,ant,\r\n3.png\r\n4.png,a,b,c\r\n,x,y\r\n'.encode()
    )
    source = opened("csv", file, images=str(tmp_path / "p"))
    assert source.class_names == ["ant", "wolf", "x"]
    assert [(source[i]["label"], words(source[i])) for i in range(len(source))] == [
        (1, [None, "a, b"]),
        (0, [None]),
    ]
    assert [name for name, _ in source.rejected] == ["line 4", "line 5", "2"]
    assert shade(source, source[1]) == 1
    (tmp_path / "t.tsv").write_text("path\ty\np/1.png\t7\np/2.png\t-1\n")
    source = opened("csv", tmp_path / "t.tsv", label_column="y")
    assert source.class_names == [] and [source[i]["label"] for i in (0, 1)] == [7, None]
    source = opened("csv", tmp_path / "t.tsv", label_column="y", classes=[f"c{i}" for i in range(8)])
    assert source.class_names[source[0]["label"]] == "c7"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"a,b\n1,2\n", {}, r"no column of picture files \(file_name, .*there are: a, b"), (b"", {}, "there are: none"),
        (b"file_name,label\n", {}, "there are: none"), (b"image,kind\na.png,b\n", {"label_column": "kin"}, r"label_column: no column 'kin'; did you mean 'kind'"),
        (b"image\nhttp://x/a.png\n", {}, "nothing is fetched"), (b'image,text\n"a.png,"b" c\n', {}, "no column of picture files|not csv"),
        (b"image,text\na.png,\xff\n", {}, "no Unicode text"),
    ],
)  # fmt: skip
def test_bad_csv(tmp_path: Path, content: bytes, options: dict[str, Any], message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        opened("csv", tmp_path / "t.csv", **options)


def test_no_csv(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image\n")
    with pytest.raises(ConfigError, match=r"did you mean 'labels\.csv'"):
        opened("csv", tmp_path / "label.csv")


# --- what they are for -------------------------------------------------------------------------------------------


def test_zero_shot_on_a_folder_of_ones_own(tmp_path: Path) -> None:
    from vlmzoo.compose import build, processor_for

    root = folder(tmp_path / "pets", "cat/1.png", "dog/2.png", "dog/3.png")
    model = build("clip-tiny")
    task = part_config(
        "tasks", {"kind": "zero_shot", "data": {"kind": "imagefolder", "path": str(root)}}, "tasks"
    ).build("pets")
    result = task.run(model, processor_for(model))
    assert result.n == 3 and result.metrics["chance"] == 0.5
