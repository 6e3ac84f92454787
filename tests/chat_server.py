"""A chat endpoint on this machine that answers by a script, and also fails, stalls, talks rubbish and hangs up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from vlmzoo.endpoint import Endpoint


@dataclass
class Answer:
    """One reply of the server: status, text of the reply or raw body, headers; waits, trickles or hangs up if told."""

    text: str = ""
    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    stall: float = 0.0
    trickle: float = 0.0  # seconds between two bytes
    hang_up: bool = False
    finish: str = "stop"

    def content(self) -> bytes:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": self.text, "code": None}}).encode()
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self.text},
            "finish_reason": self.finish,
        }
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        return json.dumps({"choices": [choice], "usage": usage}).encode()


Script = Callable[[dict[str, Any], int], Answer]


class ChatServer:
    """``script(request, how many requests came before it) -> Answer``; keeps requests and headers."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def endpoint(self, **fields: Any) -> Endpoint:
        """An endpoint config for this server that waits little."""
        return Endpoint(
            **{"base_url": self.address, "model": "stub", "backoff": 0.001, "timeout": 5.0, **fields}
        )

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            number = len(self.requests)
            self.requests.append(request)
            self.headers.append(dict(handler.headers))
            self.paths.append(handler.path)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self._send(handler, self.script(request, number))
        except OSError:  # the client has gone
            handler.close_connection = True
        finally:
            with self.lock:
                self.at_once -= 1

    def _send(self, handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        time.sleep(answer.stall)
        if answer.hang_up:
            handler.close_connection = True
            return
        content = answer.content()
        handler.send_response(answer.status)
        for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        for piece in [content[i : i + 1] for i in range(len(content))] if answer.trickle else [content]:
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(answer.trickle)


@contextmanager
def chat_server(script: Script) -> Iterator[ChatServer]:
    """A running server."""
    server = ChatServer(script)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
