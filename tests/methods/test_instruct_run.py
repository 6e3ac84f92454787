"""Whole runs of ``vlmzoo instruct`` against a server that answers, fails and dies: nothing is paid for twice or lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.chat_server import Answer, ChatServer, chat_server
from vlmzoo.cli import app
from vlmzoo.config import ConfigError, read
from vlmzoo.data.scenes.disk import write
from vlmzoo.data.sources.conversations import LlavaConfig
from vlmzoo.endpoint import EndpointError
from vlmzoo.methods.instruct import Annotated, Instruct, Records, Rules, Thing, read_annotated, write_instruct
from vlmzoo.methods.instruct.report import Report

KEY = "sk-0123456789abcdefghij"
DOG = Thing("dog", (0.1, 0.1, 0.5, 0.5))
DESCRIPTION = "A brown dog with a red collar runs over a wide green meadow and looks back at somebody who calls it from afar."
CONVERSATION = (
    "Question:\nWhat is the dog doing?\n===\nAnswer:\nIt runs.\n===\nQuestion:\nHow many dogs are there?\n===\nAnswer:\n"
    "There are two dogs."
)
REASONING = "Question:\nWhy might it look back?\n===\nAnswer:\nIt hears somebody who calls it."


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def records(number: int, folder: Path) -> Records:
    return Records(
        [Annotated(f"p{i}", f"{i}.jpg", (f"dog number {i}",), (DOG,)) for i in range(number)], folder
    )


def jsonl(folder: Path, number: int) -> Path:
    file = folder / "source.jsonl"
    record = {"instances": [{"category": "dog", "bbox": list(DOG.box)}]}
    file.write_text(
        "".join(
            json.dumps({**record, "id": f"p{i}", "image": f"{i}.jpg", "captions": [f"dog number {i}"]}) + "\n"
            for i in range(number)
        )
    )
    return file


def asked_for(request: dict[str, Any]) -> tuple[str, str]:
    """(kind, picture) of a request."""
    system, context = request["messages"][0]["content"], request["messages"][-1]["content"]
    kinds = {
        "write a conversation": "conversation",
        "write one description": "detail",
        "one demanding": "reasoning",
    }
    [kind] = [kind for words, kind in kinds.items() if words in system]
    number = re.search(r"dog number (\d+)", context)
    assert number
    return kind, f"p{number[1]}"


def well(request: dict[str, Any], number: int = 0) -> Answer:
    kind, _ = asked_for(request)
    return Answer({"conversation": CONVERSATION, "detail": DESCRIPTION, "reasoning": REASONING}[kind])


def options(server: ChatServer, *kinds: str, **fields: Any) -> Instruct:
    endpoint = server.endpoint(**fields.pop("endpoint", {}))
    return Instruct(kinds=kinds or ("conversation", "detail", "reasoning"), endpoint=endpoint, **fields)


def written(report: Report, name: str) -> Any:
    text = report.files[name].read_text(encoding="utf-8")
    return (
        [json.loads(line) for line in text.splitlines()]
        if name in ("rejected", "replies")
        else json.loads(text)
    )


def no_key_in(folder: Path, key: str = KEY) -> None:
    for path in folder.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path


def test_a_whole_run(tmp_path: Path) -> None:
    with chat_server(well) as server:
        report = write_instruct(
            records(3, tmp_path),
            tmp_path / "my.json",
            options(server, "conversation", "detail", "reasoning", "rules", price=(2.0, 10.0)),
        )
    assert len(server.requests) == 9 == report.asked
    data = written(report, "data")
    assert [one["id"] for one in data] == [
        f"p{i}_{kind}" for i in range(3) for kind in ("conversation", "detail", "reasoning", "rules")
    ]
    assert data[0] == {
        "id": "p0_conversation", "image": "0.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is the dog doing?"}, {"from": "gpt", "value": "It runs."},
        ],
    }  # fmt: skip
    assert all(json.dumps(one).count("<image>") == 1 for one in data)
    assert data[1]["conversations"][1]["value"] == DESCRIPTION
    rejected = written(report, "rejected")
    assert [(one["id"], one["kind"], one["reason"]) for one in rejected] == [
        (f"p{i}", "conversation", "count") for i in range(3)
    ]
    tree = written(report, "report")
    assert tree["complete"] and tree["records"] == 12
    assert tree["tokens"] == {
        "prompt": 63, "completion": 27, "prompt_this_run": 63, "completion_this_run": 27,
    }  # fmt: skip
    assert tree["cost"]["all"] == pytest.approx((63 * 2 + 27 * 10) / 1e6)
    assert tree["kinds"]["conversation"] == {"replies": 3, "records": 3, "rounds": 3}
    assert tree["rejected"]["count"]["count"] == 3 and len(tree["rejected"]["count"]["examples"]) == 3
    assert tree["models"] == {"stub": 9} and tree["options"]["endpoint"]["base_url"] == server.address
    no_key_in(tmp_path)


def test_the_same_run_again_asks_nothing_and_writes_the_same(tmp_path: Path) -> None:
    with chat_server(well) as server:
        first = write_instruct(records(3, tmp_path), tmp_path / "my.json", options(server))
        before = first.files["data"].read_bytes()
        again = write_instruct(records(3, tmp_path), tmp_path / "my.json", options(server))
        assert len(server.requests) == 9 and again.asked == 0 and again.tokens == first.tokens
        assert again.tokens_now == [0, 0] and again.files["data"].read_bytes() == before
        more = write_instruct(records(4, tmp_path), tmp_path / "my.json", options(server))
        assert len(server.requests) == 12 and more.asked == 3
        changed = Instruct.model_validate(
            {
                **options(server).model_dump(),
                "prompts": {"detail": {"system": "write one description, briefly"}},
            }
        )
        write_instruct(records(4, tmp_path), tmp_path / "my.json", changed)
    assert Counter(asked_for(one)[0] for one in server.requests[12:]) == {"detail": 4}


def test_every_kind_of_trouble_in_one_run(tmp_path: Path) -> None:
    """Half of the requests fail first in some way; some fail for good; some replies are rubbish."""
    tries: Counter[tuple[str, str]] = Counter()

    def script(request: dict[str, Any], number: int) -> Answer:
        asked = asked_for(request)
        tries[asked] += 1
        kind, picture = asked
        if picture == "p0":
            return Answer(f"no thanks, {KEY}", 400)
        if picture == "p1" and kind == "detail":
            return Answer("always down", 503)
        if picture == "p2":
            return Answer(
                {"conversation": "no form", "detail": "The caption says: a dog.", "reasoning": ""}[kind]
            )
        if picture == "p3" and kind == "detail":
            return Answer(DESCRIPTION, finish="length")
        if tries[asked] == 1 and picture in ("p4", "p5"):
            troubles = [
                Answer("x", 500), Answer("x", 429, headers={"Retry-After": "0"}), Answer(body=b"<html>"),
                Answer(hang_up=True), Answer(body=b'{"cho', headers={"Content-Length": "99", "Connection": "close"}),
                Answer("late", stall=0.6),
            ]  # fmt: skip
            return troubles[
                ("p4", "p5").index(picture) * 3 + ("conversation", "detail", "reasoning").index(kind)
            ]
        return well(request)

    with chat_server(script) as server:
        chosen = options(server, endpoint={"timeout": 0.4, "retries": 2, "concurrency": 4})
        report = write_instruct(records(6, tmp_path), tmp_path / "my.json", chosen)
        assert max(tries.values()) == 3 and tries[("detail", "p1")] == 3
        assert all(tries[(kind, "p0")] == 1 for kind in ("conversation", "detail", "reasoning"))
        reasons = Counter((one["id"], one["reason"]) for one in written(report, "rejected"))
        assert reasons[("p0", "request")] == 3 and reasons[("p1", "request")] == 1
        assert {reason for (name, reason) in reasons if name == "p2"} == {"form", "length", "empty"}
        assert reasons[("p3", "cut")] == 1
        assert {one["id"] for one in written(report, "data")} == {
            f"p{i}_{kind}" for i in (1, 3, 4, 5) for kind in ("conversation", "detail", "reasoning")
        } - {"p1_detail", "p3_detail"}
        assert report.failed == 4 and not report.complete and report.retried == 8
        no_key_in(tmp_path)
        before = len(server.requests)
        server.script = well
        again = write_instruct(records(6, tmp_path), tmp_path / "my.json", chosen)
    assert len(server.requests) - before == 4  # only those that failed; rubbish was paid for and is kept
    assert again.complete and {one["id"] for one in written(again, "data")} >= {"p0_detail", "p1_detail"}


def test_a_wrong_key_stops_it_and_keeps_what_was_answered(tmp_path: Path) -> None:
    def script(request: dict[str, Any], number: int) -> Answer:
        return well(request) if number < 4 else Answer("key revoked", 401)

    with chat_server(script) as server:
        chosen = options(server, "detail", endpoint={"concurrency": 1})
        with pytest.raises(EndpointError, match=r"key revoked; 4 replies are kept in .*my\.replies\.jsonl"):
            write_instruct(records(9, tmp_path), tmp_path / "my.json", chosen)
        assert not (tmp_path / "my.json").exists()
        server.script = well
        write_instruct(records(9, tmp_path), tmp_path / "my.json", chosen)
    assert len(server.requests) == 5 + 5


def test_the_budget_ends_it(tmp_path: Path) -> None:
    with chat_server(well) as server:  # a reply costs 7 * 100 + 3 * 100 = 1000 millionths
        chosen = options(server, "detail", price=(100, 100), budget=0.0035, endpoint={"concurrency": 1})
        report = write_instruct(records(9, tmp_path), tmp_path / "my.json", chosen)
        assert len(server.requests) == 4 and report.not_asked == 5 and not report.complete
        write_instruct(records(9, tmp_path), tmp_path / "my.json", chosen)
    assert len(server.requests) == 4


def test_stopping_writes_what_there_is(tmp_path: Path) -> None:
    stop = threading.Event()
    with chat_server(well) as server:
        chosen = options(server, "detail", endpoint={"concurrency": 1})
        report = write_instruct(
            records(9, tmp_path),
            tmp_path / "my.json",
            chosen,
            lambda done, total: stop.set() if done == 3 else None,
            stop,
        )
    assert len(written(report, "data")) == 3 and report.not_asked == 6
    assert "the same command goes on" in report.text()


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("precious")
    with pytest.raises(ConfigError, match=r"mine\.json exists, and no mine\.report\.json"):
        write_instruct(records(1, tmp_path), tmp_path / "mine.json", Instruct())
    assert (tmp_path / "mine.json").read_text() == "precious"
    with pytest.raises(ConfigError, match=r"ends with \.json"):
        write_instruct(records(1, tmp_path), tmp_path / "mine.jsonl", Instruct())


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        ({"kinds": ["detail"]}, "no endpoint is named; rules needs none"),
        ({"kinds": ["detale"]}, "kinds.0"),
        ({"kinds": []}, "names none"),
        ({"kinds": ["rules", "rules"]}, "one twice"),
        ({"budget": 3}, "a budget needs a price"),
        ({"endpoint": {"model": "m"}}, "endpoint.base_url: missing"),
    ],
)
def test_wrong_options(tree: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        read(Instruct, tree, "instruct")


# --- the command -------------------------------------------------------------------------------------------------


def command(source: Path, out: Path, *rest: Any) -> list[str]:
    return ["instruct", str(source), "--out", str(out), *map(str, rest)]


def test_the_command_offline(tmp_path: Path) -> None:
    folder = write(tmp_path / "coco", layout="coco", length=12, size=32, options={"category": "shape"})
    done = CliRunner().invoke(
        app, command(folder, tmp_path / "my.json", "--limit", 10, "--set", "rules.questions=9")
    )
    assert done.exit_code == 0, done.output
    assert "10 records about 10 pictures" in done.output and "presence, adversarial" in done.output
    assert f"{{kind: llava, path: {tmp_path / 'my.json'}, images: {folder / 'images'}}}" in done.output
    assert sorted(path.name for path in tmp_path.glob("my*")) == [
        "my.json",
        "my.rejected.jsonl",
        "my.report.json",
    ]
    source = LlavaConfig(path=str(tmp_path / "my.json"), images=str(folder / "images")).open()
    assert len(source) == 10 and source.rejected == [] and len(source[0]["images"]) == 1


def test_the_command_with_an_endpoint_and_own_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY[::-1])
    (tmp_path / "more.yaml").write_text(
        "endpoint: {backoff: 0.001, temperature: 0.7}\n"
        "prompts:\n  detail: {system: write one description in verse, questions: [Sing to me.]}\n"
    )
    with chat_server(well) as server:
        there = ("--base-url", server.address, "--model", "stub", "--key-env", "MY_KEY")
        rest = (*there, "--config", tmp_path / "more.yaml", "--price", "1,2")
        done = CliRunner().invoke(app, command(jsonl(tmp_path, 2), tmp_path / "my.json", *rest))
    assert done.exit_code == 0, done.output
    assert {asked_for(one)[0] for one in server.requests} == {"conversation", "detail", "reasoning"}
    assert {one["temperature"] for one in server.requests} == {0.7}
    assert "6 requests in this run (0 retries); 42 + 18 tokens in all; cost 0.0001" in done.output
    questions = [one["conversations"][0]["value"] for one in json.loads((tmp_path / "my.json").read_text())]
    assert questions.count("<image>\nSing to me.") == 2
    assert {one["Authorization"] for one in server.headers} == {f"Bearer {KEY[::-1]}"}
    no_key_in(tmp_path, KEY[::-1])
    assert KEY[::-1] not in done.output


def start(source: Path, out: Path, server: ChatServer) -> subprocess.Popen[str]:
    there = ("--base-url", server.address, "--model", "stub")
    rest = (*there, "--kinds", "detail", "--set", "endpoint.concurrency=2")
    return subprocess.Popen(
        [sys.executable, "-m", "vlmzoo", *command(source, out, *rest)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
    )  # fmt: skip


def until(server: ChatServer, number: int) -> None:
    deadline = time.monotonic() + 60
    while len(server.requests) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_in_the_middle_it_goes_on_without_asking_again(tmp_path: Path) -> None:
    """kill -9: what had been answered and written is not asked again; a torn line is told."""
    source, out = jsonl(tmp_path, 12), tmp_path / "my.json"
    replies = tmp_path / "my.replies.jsonl"

    def slow(request: dict[str, Any], number: int) -> Answer:
        return Answer(DESCRIPTION, stall=0.1)

    with chat_server(slow) as server:
        child = start(source, out, server)
        until(server, 6)
        child.kill()
        child.communicate()
        assert not out.exists()
        lines = replies.read_text().splitlines()
        answered = {json.loads(line)["id"] for line in lines}
        assert 2 <= len(answered) <= 6
        before = len(server.requests)
        replies.write_text(
            "\n".join(lines) + '\n{"key": "0123", "id": "p1'
        )  # as a writer killed while it wrote
        server.script = well
        done = CliRunner().invoke(
            app, command(source, out, "--kinds", "detail", "--base-url", server.address, "--model", "stub")
        )
    assert done.exit_code == 0, done.output
    assert f"lines of the replies' file that hold none: {len(lines) + 1}" in done.output
    asked_again = [asked_for(one)[1] for one in server.requests[before:]]
    assert sorted(asked_again) == sorted({f"p{i}" for i in range(12)} - answered)
    assert len(json.loads(out.read_text())) == 12
    no_key_in(tmp_path)


def test_interrupted_it_waits_for_replies_under_way_and_writes_what_there_is(tmp_path: Path) -> None:
    source, out = jsonl(tmp_path, 40), tmp_path / "my.json"
    with chat_server(lambda request, number: Answer(DESCRIPTION, stall=0.1)) as server:
        child = start(source, out, server)
        until(server, 4)
        child.send_signal(signal.SIGINT)
        shown, told = child.communicate(timeout=60)
    assert child.returncode == 1, told
    assert "waiting for the replies under way" in told and "Traceback" not in told
    assert "the same command goes on" in shown
    kept = (tmp_path / "my.replies.jsonl").read_text().splitlines()
    assert len(kept) == len(server.requests) == len(json.loads(out.read_text())) < 40


# --- training ----------------------------------------------------------------------------------------------------


def test_a_tiny_llava_trains_on_what_was_written(tmp_path: Path) -> None:
    import torch

    from vlmzoo.compose import build, processor_for
    from vlmzoo.run import RunConfig, train

    folder = write(tmp_path / "coco", layout="coco", length=16, size=32, options={"category": "shape"})
    write_instruct(read_annotated([folder]), tmp_path / "my.json", Instruct(rules=Rules(questions=5)))
    torch.manual_seed(0)
    model = build("llava-tiny")
    model.save_pretrained(tmp_path / "start"), processor_for(model).save_pretrained(tmp_path / "start")
    tree = {
        "model": {"from": str(tmp_path / "start")},
        "learn": {"connector": 4e-3, "language": 2e-3},
        "streams": {
            "talk": {
                "data": {"kind": "llava", "path": str(tmp_path / "my.json"), "images": str(folder / "images")},
                "objective": {"kind": "language"}, "batch_size": 2,
            }
        },
        "optim": {"steps": 8}, "trainer": {"threads": 1, "log_every": 1}, "out": str(tmp_path / "run"),
    }  # fmt: skip
    line = train(read(RunConfig, tree))
    losses = [
        json.loads(text).get("loss") for text in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    first = next(loss for loss in losses if loss is not None)
    assert line["step"] == 8 and line["loss"] < 0.9 * first
    quarantine = tmp_path / "run" / "quarantine.jsonl"
    assert not quarantine.exists() or quarantine.read_text() == ""
