"""The client of chat endpoints against a server that answers, fails, stalls and talks rubbish; the file of replies."""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.chat_server import Answer, chat_server
from vlmzoo.config import ConfigError, read
from vlmzoo.endpoint import (
    Endpoint,
    EndpointError,
    Reply,
    ReplyLog,
    data_url,
    message,
    request_key,
    retry_after,
)

KEY = "sk-0123456789abcdefghij"
ASKED = [message("user", "hello")]


def said(number: int) -> list[dict[str, Any]]:
    return [message("user", str(number))]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_a_request_is_what_the_protocol_wants() -> None:
    with chat_server(lambda request, number: Answer("good day")) as server:
        endpoint = server.endpoint(temperature=0.3, max_tokens=9, body={"seed": 4})
        with endpoint.open() as client:
            reply = client.chat(
                [message("system", "be brief"), message("user", "look", [data_url(b"\x89PNG")])]
            )
    assert reply == Reply("good day", "stop", prompt_tokens=7, completion_tokens=3)
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert server.requests == [
        {
            "model": "stub",
            "messages": [
                {"role": "system", "content": "be brief"},
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
                        {"type": "text", "text": "look"},
                    ],
                },
            ],
            "temperature": 0.3,
            "max_tokens": 9,
            "seed": 4,
        }
    ]


def test_fields_of_the_body_can_be_renamed() -> None:
    body = {"max_tokens": None, "max_completion_tokens": 5, "temperature": None}
    with (
        chat_server(lambda request, number: Answer("ok")) as server,
        server.endpoint(body=body).open() as client,
    ):
        client.chat(ASKED)
    assert set(server.requests[0]) == {"model", "messages", "max_completion_tokens"}


PASSING = {
    "500": Answer("broken", 500),
    "429": Answer("slow down", 429),
    "rubbish": Answer(body=b"<html>a gateway's page</html>"),
    "no choices": Answer(body=b'{"choices": []}'),
    "cut": Answer(body=b'{"choices": [', headers={"Content-Length": "500", "Connection": "close"}),
    "hung up": Answer(hang_up=True),
    "stalls": Answer("late", stall=0.5),
    "trickles": Answer("late", trickle=0.02),
}


@pytest.mark.parametrize("name", PASSING)
def test_passing_failures_are_asked_again(name: str) -> None:
    with (
        chat_server(lambda request, number: PASSING[name] if number < 2 else Answer("at last")) as server,
        server.endpoint(timeout=0.25).open() as client,
    ):
        assert client.chat(ASKED).text == "at last"
        assert (client.requests, client.retried) == (3, 2)
    assert len(server.requests) == 3


@pytest.mark.parametrize("name", PASSING)
def test_failures_that_stay_are_told(name: str) -> None:
    with (
        chat_server(lambda request, number: PASSING[name]) as server,
        server.endpoint(timeout=0.25, retries=1).open() as client,
        pytest.raises(EndpointError, match=r"127\.0\.0\.1.*tried 2 times") as error,
    ):
        client.chat(ASKED)
    assert len(server.requests) == 2 and "\n" not in str(error.value)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 307])
def test_refusals_are_never_asked_again(status: int) -> None:
    with (
        chat_server(lambda request, number: Answer(f"no, {KEY} is wrong", status)) as server,
        server.endpoint().open() as client,
        pytest.raises(EndpointError) as error,
    ):
        client.chat(ASKED)
    assert len(server.requests) == 1
    assert error.value.status == status and error.value.lasting == (status not in (400, 422))
    assert f"{server.address}/chat/completions: status {status}: no, [key] is wrong" == str(error.value)


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"error": "a text"}', "a text"),
        (b'{"detail": "no such\\n model"}', "no such model"),
        (b'{"detail": [{"loc": 1}]}', '{"detail": [{"loc": 1}]}'),
        (b"[1]", "[1]"),
        (b"", "nothing more was said"),
        (b"x" * 999, "x" * 300 + " ..."),
    ],
)
def test_what_a_server_says_is_shown_short_and_on_one_line(body: bytes, shown: str) -> None:
    with (
        chat_server(lambda request, number: Answer(status=400, body=body)) as server,
        server.endpoint().open() as client,
        pytest.raises(EndpointError) as error,
    ):
        client.chat(ASKED)
    assert str(error.value).partition("status 400: ")[2] == shown


def test_spent_credit_is_not_waited_for() -> None:
    spent = json.dumps({"error": {"message": "pay first", "code": "insufficient_quota"}}).encode()
    with (
        chat_server(lambda request, number: Answer(status=429, body=spent)) as server,
        server.endpoint().open() as client,
        pytest.raises(EndpointError, match="pay first") as error,
    ):
        client.chat(ASKED)
    assert error.value.lasting and len(server.requests) == 1


def test_a_missing_key_is_told_where_one_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with (
        chat_server(lambda request, number: Answer("who are you", 401)) as server,
        server.endpoint().open() as client,
        pytest.raises(EndpointError, match=r"no key was sent: \$OPENAI_API_KEY is not set"),
    ):
        client.chat(ASKED)
    assert "Authorization" not in server.headers[0]


def test_nobody_there() -> None:
    with chat_server(lambda request, number: Answer()) as server:
        endpoint = server.endpoint(retries=1)
    with endpoint.open() as client, pytest.raises(EndpointError, match=r"ConnectError.*tried 2 times"):
        client.chat(ASKED)


def test_retry_after_goes_before_our_own_wait() -> None:
    wait = Answer("later", 429, headers={"Retry-After": "0.3"})
    with (
        chat_server(lambda request, number: wait if number == 0 else Answer("now")) as server,
        server.endpoint().open() as client,
    ):
        start = time.monotonic()
        client.chat(ASKED)
    assert time.monotonic() - start >= 0.3


def test_a_long_retry_after_is_told_and_not_waited_for() -> None:
    with (
        chat_server(lambda request, number: Answer("later", 429, headers={"Retry-After": "7200"})) as server,
        server.endpoint().open() as client,
        pytest.raises(EndpointError, match="asks to wait 7200 s"),
    ):
        client.chat(ASKED)
    assert len(server.requests) == 1


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after("12") == 12 and retry_after("-1") == 0
    later = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60), usegmt=True)
    assert 55 < (retry_after(later) or 0) <= 60
    assert retry_after("Thu, 01 Jan 1970 00:00:00 GMT") == 0
    assert retry_after(None) is retry_after("soon") is retry_after("nan") is None


def test_many_at_once_but_no_more_and_read_as_they_are_answered() -> None:
    taken: list[int] = []

    def requests() -> Any:
        for number in range(30):
            taken.append(number)
            yield number, said(number)

    def script(request: dict[str, Any], number: int) -> Answer:
        return Answer(request["messages"][0]["content"], stall=0.01)

    with chat_server(script) as server, server.endpoint(concurrency=4).open() as client:
        found = {}
        for name, reply in client.chat_all(requests()):
            assert len(taken) <= len(found) + 5
            found[name] = reply.text  # type: ignore[union-attr]
    assert found == {number: str(number) for number in range(30)}
    assert 2 <= server.most_at_once <= 4


def test_a_request_that_fails_alone_is_given_back_as_its_error() -> None:
    def script(request: dict[str, Any], number: int) -> Answer:
        text = request["messages"][0]["content"]
        return Answer("too long", 400) if text == "3" else Answer(text)

    with chat_server(script) as server, server.endpoint(concurrency=2).open() as client:
        found = dict(client.chat_all((number, said(number)) for number in range(6)))
    assert isinstance(found.pop(3), EndpointError)
    assert {name: reply.text for name, reply in found.items()} == {n: str(n) for n in (0, 1, 2, 4, 5)}


def test_a_wrong_key_ends_it_after_those_under_way() -> None:
    def script(request: dict[str, Any], number: int) -> Answer:
        return Answer("paid for", stall=0.1) if number == 0 else Answer("no", 401)

    with chat_server(script) as server, server.endpoint(concurrency=2).open() as client:
        found = []
        with pytest.raises(EndpointError, match="status 401"):
            for _, reply in client.chat_all((number, said(number)) for number in range(50)):
                found.append(reply)
    assert [reply.text for reply in found] == ["paid for"] and len(server.requests) == 2


def test_an_endpoint_that_only_fails_is_given_up() -> None:
    with (
        chat_server(lambda request, number: Answer("down", 503)) as server,
        server.endpoint(concurrency=1, retries=0, patience=3).open() as client,
        pytest.raises(EndpointError, match="given up after 3 failures in a row"),
    ):
        list(client.chat_all((number, said(number)) for number in range(50)))
    assert len(server.requests) == 3


def test_failures_between_answers_do_not_add_up() -> None:
    def script(request: dict[str, Any], number: int) -> Answer:
        return Answer("too long", 400) if number % 3 else Answer("well")

    with (
        chat_server(script) as server,
        server.endpoint(concurrency=1, patience=3).open() as client,
    ):
        found = list(client.chat_all((number, said(number)) for number in range(12)))
    assert [isinstance(reply, Reply) for _, reply in found] == [True, False, False] * 4


def test_stopping_waits_for_those_under_way_and_begins_no_other() -> None:
    stop = threading.Event()
    with (
        chat_server(lambda request, number: Answer("x", stall=0.05)) as server,
        server.endpoint(concurrency=3).open() as client,
    ):
        found = 0
        for _ in client.chat_all(((number, said(number)) for number in range(50)), stop):
            stop.set()
            found += 1
    assert found == len(server.requests) <= 3


def test_an_error_while_requests_are_made_is_not_swallowed() -> None:
    def requests() -> Any:
        yield 0, said(0)
        raise RuntimeError("no more")

    with (
        chat_server(lambda request, number: Answer("x")) as server,
        server.endpoint().open() as client,
        pytest.raises(RuntimeError, match="no more"),
    ):
        list(client.chat_all(requests()))


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("localhost:8000", "wanted http"),
        ("ftp://host/v1", "wanted http"),
        ("https://me:secret@host/v1", "no user, password"),
        ("https://host/v1?key=secret", "no user, password"),
    ],
)
def test_addresses(address: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"at.base_url.*{why}|at.base_url: {why}"):
        read(Endpoint, {"base_url": address, "model": "m"}, "at")


def test_the_whole_address_of_the_call_is_taken_too() -> None:
    assert Endpoint(base_url="http://host/v1/chat/completions", model="m").base_url == "http://host/v1"


def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\nX-Evil: 1")
    with pytest.raises(ConfigError, match=r"\$OPENAI_API_KEY holds spaces") as error:
        Endpoint(base_url="http://host/v1", model="m").open()
    assert "secret" not in str(error.value)


# --- replies on disk ---------------------------------------------------------------------------------------------

REPLY = Reply("a cat ☃ \ud800", "stop", 5, 2)


def test_a_key_of_a_request_is_stable_and_tells_requests_apart() -> None:
    prompt = [message("user", "ü")]
    assert request_key("1", "detail", prompt) == request_key(
        "1", "detail", [{"content": "ü", "role": "user"}]
    )
    keys = {
        request_key(*asked)
        for asked in [
            ("1", "detail", prompt),
            ("2", "detail", prompt),
            ("1", "x", prompt),
            ("1", "detail", []),
        ]
    }
    assert len(keys) == 4
    assert (
        request_key("1", "a", []) == "84aa924702bd3580c107e31a7395ecc6"
    )  # printf '["1","a",[]]' | sha256sum


def test_replies_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "replies.jsonl"
    with ReplyLog(path) as log:
        log.add("k1", REPLY, id="1", kind="detail")
        assert "k1" in log and "k2" not in log and log["k1"] == REPLY
    with ReplyLog(path) as log:
        log.add("k2", Reply("b", "length", 0, 0))
        assert len(log) == 2 and log["k1"] == REPLY and log["k2"].finish_reason == "length"
        assert log.record("k1")["kind"] == "detail" and log.passed_over == []


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_last_line_is_passed_over_and_the_next_reply_is_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "replies.jsonl"
    with ReplyLog(path) as log:
        log.add("k1", REPLY)
        log.add("k2", REPLY)
    path.write_bytes(path.read_bytes()[:-cut])
    whole = cut == 1  # only the line's end is missing
    with ReplyLog(path) as log:
        assert log.passed_over == ([] if whole else [2])
        assert "k1" in log and ("k2" in log) == whole
        log.add("k3", REPLY)
    with ReplyLog(path) as log:
        assert log["k3"] == log["k1"] == REPLY and len(log) == (3 if whole else 2)


def test_lines_that_are_no_replies_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    with ReplyLog(path) as log:
        log.add("k1", REPLY)
    path.write_bytes(b'\xff\n[]\n{"key": "k0"}\n3\n' + path.read_bytes())
    with ReplyLog(path) as log:
        assert log.passed_over == [1, 2, 3, 4] and log["k1"] == REPLY


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with ReplyLog(tmp_path / "replies.jsonl"), pytest.raises(ConfigError, match="another process"):
        ReplyLog(tmp_path / "replies.jsonl")
    ReplyLog(tmp_path / "replies.jsonl")
