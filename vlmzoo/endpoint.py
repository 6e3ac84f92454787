"""A client for OpenAI-compatible chat endpoints, and the file that keeps every reply that was paid for.

Whatever writes or judges text with a model elsewhere asks it here. The key comes from the environment and goes into
one header: it is never printed, logged or written, not even when the server says it back.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import queue
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import Field, field_validator

from vlmzoo.config import Config, ConfigError

Name = TypeVar("Name")
Message = Mapping[str, Any]

PASSING = {408, 409, 425, 429}  # statuses besides 5xx after which the same request may do better
SPENT = "insufficient_quota"  # the code of a 429 that waiting does not help
LONGEST_WAIT = 300.0  # seconds; a server that wants more is not asked again
LARGEST_REPLY = 32_000_000  # bytes
SECRET_LENGTH = 12  # shorter "keys" are words such as EMPTY, which local servers are given
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class EndpointError(OSError):
    """A request that got no answer.

    Attributes:
        status: HTTP status; None where there was no reply.
        lasting: every other request would fail in the same way (wrong address, key or model, credit spent).
    """

    def __init__(self, message: str, status: int | None = None, lasting: bool = False) -> None:
        super().__init__(message)
        self.status, self.lasting = status, lasting


@dataclass(frozen=True)
class Reply:
    """What a model said. ``finish_reason`` is the server's (``stop``, ``length``, ...); token counts are 0 if not told."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class Endpoint(Config):
    """Where a model is served, and how it is asked.

    Attributes:
        base_url: up to what ``/chat/completions`` follows, for example ``http://localhost:8000/v1``.
        model: its name there.
        key_env: the environment variable that holds the key; None, or a variable that is not set, sends none.
        temperature: of sampling. max_tokens: most tokens of one reply.
        timeout: seconds that one request may take in all. retries: how often a request is sent again after it timed
            out, lost its connection, or got status 429 or 5xx or a body that is no reply.
        backoff: seconds before the first retry, doubled with each further one and shortened by chance by up to half; a
            Retry-After of the server's goes before it.
        concurrency: requests under way at once. patience: requests that fail one after the other before
            :meth:`Client.chat_all` gives up.
        body: further fields of every request, for example ``{seed: 1}``; None takes one out (``{max_tokens: null,
            max_completion_tokens: 500}`` for servers that want that name).
    """

    base_url: str
    model: str = Field(min_length=1)
    key_env: str | None = "OPENAI_API_KEY"
    temperature: float = Field(default=0.0, ge=0, le=2)
    max_tokens: int = Field(default=1024, ge=1)
    timeout: float = Field(default=120.0, gt=0)
    retries: int = Field(default=5, ge=0)
    backoff: float = Field(default=1.0, ge=0)
    concurrency: int = Field(default=8, ge=1, le=256)
    patience: int = Field(default=16, ge=1)
    body: dict[str, Any] = {}

    @field_validator("base_url")
    @classmethod
    def _plain(cls, address: str) -> str:
        try:
            url = httpx.URL(address)
        except httpx.InvalidURL as error:
            raise ValueError(f"no address: {error}") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("wanted http://... or https://..., for example http://localhost:8000/v1")
        if url.userinfo or url.query:  # addresses are printed, so they hold no secret
            raise ValueError(
                "no user, password or query belongs here; a key is read from the variable key_env"
            )
        return address.rstrip("/").removesuffix("/chat/completions")

    def open(self) -> Client:
        """A client, to be used in a ``with`` block.

        Raises:
            ConfigError: the key holds characters that no key has.
        """
        return Client(self)

    def key(self) -> str | None:
        """The key of the environment; None where there is none.

        Raises:
            ConfigError: it holds spaces or characters that no header can carry; it is not shown.
        """
        key = (os.environ.get(self.key_env) or "").strip() if self.key_env else ""
        if not all("!" <= letter <= "~" for letter in key):
            raise ConfigError(
                f"${self.key_env} holds spaces or characters that a key cannot have (not shown here)"
            )
        return key or None


class Client:
    """An open connection to an endpoint; safe to use from several threads.

    Attributes:
        requests: sent so far. retried: how many of them repeated one that had failed.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.url = f"{endpoint.base_url}/chat/completions"
        self.requests = self.retried = 0
        self._key = endpoint.key()
        self._closed = threading.Event()
        self._counting = threading.Lock()
        self._http = httpx.Client(
            headers={
                "Content-Type": "application/json",
                **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
            },
            timeout=endpoint.timeout,
            limits=httpx.Limits(max_connections=endpoint.concurrency),
            trust_env=httpx.URL(self.url).host not in LOOPBACK,  # no proxy knows this machine
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections; requests that wait for their next try fail."""
        self._closed.set()
        self._http.close()

    def chat(self, messages: Sequence[Message]) -> Reply:
        """The model's reply to a conversation, asked again by the rules of the endpoint where that may help.

        Raises:
            EndpointError: refused (other statuses than 408, 409, 425, 429 and 5xx: never asked again), or failed in
                every try; names the address, the status and what the server said.
        """
        endpoint = self.endpoint
        for attempt in range(endpoint.retries + 1):
            with self._counting:
                self.requests += 1
                self.retried += attempt > 0
            try:
                return self._ask(messages)
            except _Passing as failure:
                wait = failure.wait
                if wait is None:
                    wait = endpoint.backoff * 2.0**attempt * random.uniform(0.5, 1.0)
                last = attempt == endpoint.retries
                if last or wait > LONGEST_WAIT or self._closed.wait(wait):
                    tries = f"; tried {attempt + 1} times" if attempt else ""
                    asked = f"; it asks to wait {wait:.0f} s" if not last and wait > LONGEST_WAIT else ""
                    raise EndpointError(f"{failure}{tries}{asked}", failure.status) from None
        raise AssertionError("the last try returns or raises")

    def chat_all(
        self, requests: Iterable[tuple[Name, Sequence[Message]]], stop: threading.Event | None = None
    ) -> Iterator[tuple[Name, Reply | EndpointError]]:
        """Replies to named conversations as they come, ``concurrency`` of them under way at once.

        ``requests`` is read only as fast as they are answered. A request that fails alone is given back as its error.
        Once ``stop`` is set no further one is begun; those under way are waited for, as they are before an error.

        Raises:
            EndpointError: one that every request would meet, or ``patience`` failures in a row.
        """
        todo: queue.SimpleQueue[tuple[Name, Sequence[Message]] | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[Name, Reply | BaseException]] = queue.SimpleQueue()
        source, under_way, failures = iter(requests), 0, 0
        stop = stop or threading.Event()
        fatal: EndpointError | None = None
        for _ in range(self.endpoint.concurrency):  # daemons: leaving does not wait for a server that stalls
            threading.Thread(target=self._work, args=(todo, done), daemon=True).start()
        try:
            while True:
                while under_way < self.endpoint.concurrency and not fatal and not stop.is_set():
                    request = next(source, None)
                    if request is None:
                        break
                    todo.put(request)
                    under_way += 1
                if not under_way:
                    break
                name, result = done.get()
                under_way -= 1
                if isinstance(result, Reply):
                    failures = 0
                    yield name, result
                elif not isinstance(result, EndpointError):
                    raise result
                elif result.lasting:
                    fatal = fatal or result
                else:
                    failures += 1
                    if failures >= self.endpoint.patience:
                        fatal = fatal or _given_up(result, failures)
                    yield name, result
        finally:
            for _ in range(self.endpoint.concurrency):
                todo.put(None)
        if fatal:
            raise fatal

    def _work(self, todo: queue.SimpleQueue[Any], done: queue.SimpleQueue[Any]) -> None:
        while (request := todo.get()) is not None:
            name, messages = request
            try:
                done.put((name, self.chat(messages)))
            except BaseException as error:  # the thread that waits for it raises it
                done.put((name, error))

    def _ask(self, messages: Sequence[Message]) -> Reply:
        """One request.

        Raises:
            _Passing: the same request may do better. EndpointError: it will not.
        """
        endpoint = self.endpoint
        asked = {
            "model": endpoint.model, "messages": list(messages), "temperature": endpoint.temperature,
            "max_tokens": endpoint.max_tokens, **endpoint.body,
        }  # fmt: skip
        asked = {key: value for key, value in asked.items() if value is not None}
        try:
            status, headers, text = self._send(asked)
        except httpx.TimeoutException:
            raise _Passing(f"{self.url}: no reply within {endpoint.timeout:g} s") from None
        except httpx.HTTPError as error:
            raise _Passing(f"{self.url}: {type(error).__name__}: {self._shown(str(error))}") from None
        if status == HTTPStatus.OK:
            try:
                return _reply(json.loads(text))
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                raise _Passing(f"{self.url}: a body that is no reply: {self._shown(text)}", status) from None
        message = f"{self.url}: status {status}: {self._shown(text)}"
        spent = status == HTTPStatus.TOO_MANY_REQUESTS and SPENT in text
        if (status in PASSING or status >= 500) and not spent:
            raise _Passing(message, status, retry_after(headers.get("retry-after")))
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) and endpoint.key_env and not self._key:
            message += f" (no key was sent: ${endpoint.key_env} is not set)"
        lasting = spent or status in (401, 403, 404, 405) or status < 400
        raise EndpointError(message, status, lasting)

    def _send(self, asked: dict[str, Any]) -> tuple[int, httpx.Headers, str]:
        """Status, headers and text, read within the timeout however slowly it trickles."""
        deadline = time.monotonic() + self.endpoint.timeout
        # httpx's own json cannot encode half characters, which json of others may hold
        content = json.dumps(asked).encode()
        with self._http.stream("POST", self.url, content=content) as response:
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("too slow")
                if len(body) > LARGEST_REPLY:
                    raise httpx.ReadError(f"a reply of more than {LARGEST_REPLY} bytes")
        text = body.decode("utf-8", "replace")
        if self._key and len(self._key) >= SECRET_LENGTH:  # some servers say it back
            text = text.replace(self._key, "[key]")
        return response.status_code, response.headers, text

    def _shown(self, text: str) -> str:
        """What a server said, short and on one line."""
        with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
            tree = json.loads(text)
            error = tree.get("error") or tree["detail"]  # OpenAI's, and that of servers made with FastAPI
            text = error if isinstance(error, str) else str(error["message"])
        line = " ".join(text.encode("utf-8", "replace").decode().split())
        return (line[:300] + " ..." if len(line) > 300 else line) or "nothing more was said"


def _given_up(error: EndpointError, failures: int) -> EndpointError:
    return EndpointError(f"{error}; given up after {failures} failures in a row", error.status, lasting=True)


class _Passing(Exception):
    """A failure after which the same request may do better; ``wait``: seconds, as the server asks for."""

    def __init__(self, message: str, status: int | None = None, wait: float | None = None) -> None:
        super().__init__(message)
        self.status, self.wait = status, wait


def _reply(tree: Any) -> Reply:
    choice, usage = tree["choices"][0], tree.get("usage") or {}
    message = choice["message"]
    text = message.get("content") or message.get("refusal") or ""
    if not isinstance(text, str):
        raise TypeError(f"content is {type(text).__name__}")
    counts = (int(usage.get(f"{whose}_tokens") or 0) for whose in ("prompt", "completion"))
    return Reply(text, str(choice.get("finish_reason") or ""), *counts)


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, written as a number or as a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    with suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if seconds == seconds else None
    with suppress(ValueError, TypeError):
        moment = parsedate_to_datetime(value)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
        return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())
    return None


# --- messages ----------------------------------------------------------------------------------------------------


def message(role: str, text: str, pictures: Sequence[str] = ()) -> dict[str, Any]:
    """A message of a conversation; ``pictures`` (addresses, see :func:`data_url`) stand before its text."""
    if not pictures:
        return {"role": role, "content": text}
    shown = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    return {"role": role, "content": [*shown, {"type": "text", "text": text}]}


def data_url(data: bytes, mime: str = "image/png") -> str:
    """The bytes of a picture file as an address that holds them."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


# --- replies on disk ---------------------------------------------------------------------------------------------


def request_key(name: str, kind: str, prompt: Any) -> str:
    """A stable name for a request: a hash of whom it is about, of which kind it is, and of all that is said in it."""
    text = json.dumps([name, kind, prompt], sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class ReplyLog:
    """Replies in an append-only jsonl file, found again by the key of their request.

    A line that a killed writer left unfinished is passed over and stays in the file. One process writes at a time.

    Args:
        path: created with its folder where it does not exist.

    Attributes:
        passed_over: numbers of lines that hold no reply.

    Raises:
        ConfigError: another process has it open.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.passed_over: list[int] = []
        self._places: dict[str, int] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ReplyLog:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> Reply:
        """The reply to a request; raises KeyError where there is none."""
        return _kept(self.record(key))

    def record(self, key: str) -> dict[str, Any]:
        """All that was written with a reply."""
        self._file.seek(self._places[key])
        return json.loads(self._file.readline())

    def add(self, key: str, reply: Reply, **about: Any) -> None:
        """Append a reply; it is in the system's hands when this returns, so a killed process loses nothing.

        Raises:
            OSError: naming the file.
        """
        line = json.dumps({"key": key, **about, **asdict(reply)}) + "\n"
        self._file.seek(0, os.SEEK_END)
        place = self._file.tell()
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            raise OSError(f"{self.path}: the reply could not be written: {error}") from None
        self._places[key] = place

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{self.path}: another process is writing replies to it") from None

    def _read(self) -> None:
        self._file.seek(0)
        place, ended = 0, True
        for number, line in enumerate(self._file, 1):
            try:
                record = json.loads(line)
                _kept(record)
                self._places[record["key"]] = place
            except (ValueError, LookupError, TypeError, RecursionError):
                self.passed_over.append(number)
            place += len(line)
            ended = line.endswith(b"\n")
        if not ended:  # the next reply begins on a line of its own
            self._file.write(b"\n")
            self._file.flush()


def _kept(record: Any) -> Reply:
    return Reply(**{field.name: record[field.name] for field in fields(Reply)})
