"""A chat endpoint on loopback that answers as it is told, for the real `openai` client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from quaver.calib.prompts.aspects import load_aspects
from quaver.calib.prompts.grammar import grammar
from quaver.runtime.artifact import digest_json

KEY = "sk-loopback-0123456789abcdef"
ASPECTS = {aspect.name: aspect for aspect in load_aspects()}


@dataclass(frozen=True)
class Reply:
    """What the endpoint sends back, after a while."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds


@dataclass
class Endpoint:
    """A running server: `reply` maps (number of the request, its body) to a Reply; `asked` is what it was sent."""

    url: str
    reply: Callable[[int, dict[str, Any]], Reply]
    asked: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)


def says(content: object, **more: Any) -> Reply:
    """A completion whose message is `content`."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "tiny",
        "choices": [choice],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
    return Reply(json.dumps(body | more).encode(), headers={"Content-Type": "application/json"})


def captions(*texts: object) -> Reply:
    """A completion that holds captions."""
    return says(json.dumps({"captions": texts}))


def fails(status: int, message: str = "busy", **headers: str) -> Reply:
    """An error as such endpoints word it."""
    body = json.dumps({"error": {"message": message, "type": "error"}}).encode()
    return Reply(body, status, {"Content-Type": "application/json", **headers})


def targets(body: dict[str, Any]) -> list[str]:
    """The aspects a request asks for."""
    lines = body["messages"][1]["content"].splitlines()
    return [line[2:].split(", for example")[0] for line in lines if ", for example: " in line]


def model(number: int, body: dict[str, Any]) -> Reply:
    """A good model: captions that cover what is asked for; the same request always gets the same answer."""
    rng = np.random.default_rng(int(digest_json(body)[7:23], 16))
    write, asked = grammar(tuple(ASPECTS.values())), [ASPECTS[name] for name in targets(body)]
    return captions(*(write(asked, (), rng) for _ in range(4)))


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A good model behind an endpoint, and the key that it wants in the environment."""
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    there: Endpoint

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            there.asked.append(({name.lower(): value for name, value in self.headers.items()}, body))
            reply = there.reply(len(there.asked) - 1, body)
            time.sleep(reply.delay)
            try:
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)
            except OSError:
                pass  # the client has stopped waiting

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    there = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", model)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield there
    server.shutdown()
    thread.join()
    server.server_close()
