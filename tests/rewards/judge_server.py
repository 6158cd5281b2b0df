"""A judge for tests: a real HTTP server on 127.0.0.1 that answers as it is told, well or badly."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request; ``text`` is its last message, ``number`` counts the requests with that text from 0.

    Names of headers are in small letters.
    """

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    at: float
    number: int

    @property
    def text(self) -> str:
        return self.body["messages"][-1]["content"]


@dataclass(frozen=True)
class Say:
    """What the server does with a request.

    ``content`` goes into a chat completion; ``raw`` is the whole body instead. ``cut`` closes the connection after half
    of the body, ``drop`` before any byte, ``drip`` sends the body byte by byte with that many seconds between.
    """

    content: Any = "reward:1.0"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    raw: bytes | None = None
    cut: bool = False
    drop: bool = False
    drip: float = 0.0
    until: threading.Event | None = None


class JudgeServer(ThreadingHTTPServer):
    """Used as a context. ``answer`` gives what to say to a request; ``asked`` keeps all requests."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, answer: Callable[[Asked], Say] = lambda asked: Say()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.asked, self.lock = answer, [], threading.Lock()
        self.running = self.most_at_once = 0
        self.answered: Counter[str] = Counter()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    asked: list[Asked]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def texts(self) -> list[str]:
        return [asked.text for asked in self.asked]

    def __enter__(self) -> JudgeServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: JudgeServer

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            text = body["messages"][-1]["content"]
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.path, headers, body, time.monotonic(), server.texts.count(text))
            server.asked.append(asked)
            server.running += 1
            server.most_at_once = max(server.most_at_once, server.running)
        try:
            say = server.answer(asked)
            if say.until is not None:
                say.until.wait(20)
            time.sleep(say.delay)
        finally:
            with server.lock:
                server.running -= 1
        self._say(say, asked)

    def _say(self, say: Say, asked: Asked) -> None:
        if say.drop:
            self.close_connection = True
            return
        body = say.raw
        if body is None:
            message = {"role": "assistant", "content": say.content}
            body = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
        self.send_response(say.status)
        for name, value in {"Content-Type": "application/json", **say.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if say.cut:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        for part in [body] if not say.drip else [body[i : i + 1] for i in range(len(body))]:
            self.wfile.write(part)
            self.wfile.flush()
            time.sleep(say.drip)
        with self.server.lock:
            self.server.answered[asked.text] += say.status == 200

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""
