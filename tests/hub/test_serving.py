"""``transformers serve`` answers chat requests from an exported folder, on the CPU, with the words that we give."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import rows, vision_lm
from vlmzoo.folders import export

NEEDED = ("fastapi", "uvicorn", "openai", "rich")  # what transformers' own extra 'serving' brings
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"transformers serve needs {', '.join(MISSING)}")
START, ANSWER, TOKENS = 90, 30, 8  # seconds until the server listens, seconds for an answer, ids in one


class Server:
    """The server of one folder, and the model that was exported to it."""

    def __init__(self, folder: Path, address: str, model: Any, processor: Any) -> None:
        self.folder, self.address, self.model, self.processor = folder, address, model, processor

    def request(self, path: str, tree: Any = None) -> str:
        """What the server answers to a GET, or to a POST of a tree."""
        body = None if tree is None else json.dumps(tree).encode()
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(self.address + path, body, headers), timeout=ANSWER
        ) as answer:
            return answer.read().decode()

    def chat(self, content: list[dict[str, Any]], **more: Any) -> str:
        """The answer's JSON (or its stream) to one user message; without max_tokens the server writes 1024 ids."""
        message = {"role": "user", "content": content}
        options = {"model": str(self.folder), "max_tokens": TOKENS, "temperature": 0.0, **more}
        return self.request("/v1/chat/completions", {"messages": [message], **options})

    def ours(self, content: list[dict[str, Any]], pictures: list[Any]) -> str:
        """Our own greedy answer."""
        parts = [
            {"role": "user", "type": "text" if "text" in item else "image", "text": item.get("text")}
            for item in content
        ]
        row = {"images": [{"image": picture} for picture in pictures], "parts": parts, "id": "asked"}
        prompt = self.processor.prompts([row])
        said = self.model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)
        return self.processor.tokenizer.decode(
            said[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: Any) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    model, processor = vision_lm()
    model.eval().save_pretrained(folder / "ours")
    processor.save_pretrained(folder / "ours")
    export(folder / "ours", folder / "stock")
    (folder / "cache").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = "from transformers.cli.transformers import main; main()"
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", str(folder / "stock"), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            found = Server(folder / "stock", address, model, processor)
            wait(found, process, folder / "log")
            yield found
        finally:
            process.kill()
            process.wait(timeout=10)


def wait(server: Server, process: subprocess.Popen, log: Path) -> None:
    """Until it listens."""
    end = time.monotonic() + START
    while True:
        try:
            assert json.loads(server.request("/health"))["status"] == "ok"
            return
        except (urllib.error.URLError, ConnectionError):
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.2)


def image(picture: Any) -> dict[str, Any]:
    file = io.BytesIO()
    picture.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize("count", [1, 0, 2], ids=["one picture", "text only", "two pictures"])
def test_the_served_answer_is_ours(server: Server, count: int) -> None:
    pictures = [row["images"][0]["image"] for row in rows(2)[:count]]
    content = [*map(image, pictures), words("What is this?")]
    answer = json.loads(server.chat(content))
    said = answer["choices"][0]["message"]["content"]
    assert said == server.ours(content, pictures) and said
    assert answer["usage"]["completion_tokens"] == TOKENS


def test_a_streamed_answer_is_the_same(server: Server) -> None:
    picture = rows(1)[0]["images"][0]["image"]
    content = [image(picture), words("Which colour is it?")]
    lines = [line.removeprefix("data: ") for line in server.chat(content, stream=True).splitlines() if line]
    pieces = [json.loads(line)["choices"][0]["delta"].get("content") for line in lines if line != "[DONE]"]
    assert len([piece for piece in pieces if piece]) > 1
    assert "".join(piece or "" for piece in pieces) == server.ours(content, [picture])
