"""The hub itself, played by this machine: a data set is downloaded, and found again when the hub has gone."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from contrl.data.hub import is_name
from tests.runs import environment

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The few answers of the hub that reading a public data set needs; any other name is unknown to it."""

    files: dict[str, bytes]

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, *, with_body: bool) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/api/datasets/some/name/tree/"):
            self.send(json.dumps([self.entry(name) for name in self.files]).encode())
        elif path == "/api/datasets/some/name" or path.startswith("/api/datasets/some/name/revision/"):
            siblings = [{"rfilename": name} for name in self.files]
            about = {"_id": "1", "id": "some/name", "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
            self.send(json.dumps(about).encode())
        else:
            name = re.sub(rf"^/datasets/some/name/resolve/({COMMIT}|main)/", "", path)
            if name in self.files:
                self.send(self.files[name], with_body=with_body, etag=self.entry(name)["oid"])
            else:
                self.send(b"", status=404, error="EntryNotFound" if "/resolve/" in path else "RepoNotFound")

    def entry(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def send(self, body: bytes, *, status: int = 200, with_body: bool = True, etag: str = "", error: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        for header, value in (("ETag", f'"{etag}"' if etag else ""), ("X-Error-Code", error)):
            if value:
                self.send_header(header, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[str]:
    """A hub with the data set some/name; its address."""
    handler = type("Handler", (Hub,), {"files": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


ASK = """if True:
    import time, datasets, huggingface_hub.hf_api
    from contrl.data.aif_gen import is_continual, read_tasks
    from contrl.data.sources import find_splits, read_rows
    from contrl.errors import UserError

    def say(function, *arguments):
        try:
            print(function(*arguments))
        except UserError as error:
            print(type(error).__name__, *str(error).splitlines(), sep=" | ")

    started = time.perf_counter()
    {}
    print(time.perf_counter() - started)
"""


def ask(address: str, home: Path, *calls: str) -> tuple[list[str], float]:
    """What each call gives, and the seconds all of them took, in a process for which the hub is at ``address``."""
    script = ASK.format("; ".join(f"say({call})" for call in calls))
    surroundings = environment(home, HF_ENDPOINT=address, HF_HUB_OFFLINE="0", HF_HOME=str(home))
    surroundings.pop("CONTRL_DATA_DIR", None)
    outcome = subprocess.run(
        [sys.executable, "-c", script], env=surroundings, capture_output=True, text=True, check=True
    )
    *lines, seconds = outcome.stdout.splitlines()
    return lines, float(seconds)


READ = (
    "is_continual, 'some/name'",
    "find_splits, 'some/name'",
    "read_rows, 'some/name'",
    "read_rows, 'some/name', 'test'",
    "read_rows, 'some/name', 'dev'",
)


def test_a_data_set_is_downloaded_and_outlives_the_hub(tmp_path: Path) -> None:
    files = {
        "train.jsonl": b'{"a": 1, "id": 7}\n{"a": 2, "id": 7}\n',
        "test.jsonl": b'{"a": 3, "id": 8}\n',
        "README.md": b"#",
    }
    expected = [
        "False",
        "('train', 'test')",
        # Two rows with one id are no reason to refuse a data set that others made.
        "[{'a': 1, 'id': '0:7'}, {'a': 2, 'id': '1:7'}]",
        "[{'a': 3, 'id': '8'}]",
        "UserError | the dataset some/name: has no split 'dev' |   it has train, test",
    ]
    unknown = "read_rows, 'some/name', 'train', 'other'"
    with hub(files) as address:
        *lines, wrong = ask(address, tmp_path, *READ, unknown)[0]
        assert lines == expected
        assert wrong.startswith("UserError | the dataset 'some/name' cannot be read | ")
    assert ask(address, tmp_path, *READ)[0] == expected


def test_a_repository_of_tasks_is_downloaded_and_outlives_the_hub(tmp_path: Path) -> None:
    pair = {"prompt": "p", "chosen": "c", "rejected": "r"}
    content = json.dumps({"datasets": [{"task": {"domain": {"x": {}}}, "train": [pair], "test": [pair]}]})
    calls = ("is_continual, 'some/name'", "lambda: [task.name for task in read_tasks('some/name')]")
    with hub({"dataset.json": content.encode(), "README.md": b"#"}) as address:
        assert ask(address, tmp_path, *calls)[0] == ["True", "['0-x']"]
    assert ask(address, tmp_path, *calls)[0] == ["True", "['0-x']"]


def test_a_name_that_the_hub_does_not_know_is_the_users_mistake(tmp_path: Path) -> None:
    with hub({}) as address:
        (continual, said), _ = ask(address, tmp_path, "is_continual, 'no/such'", "read_rows, 'no/such'")
    assert continual == "False"
    assert said.startswith("UserError | there is no file, folder or hub dataset 'no/such' | ")


def test_a_hub_that_never_answers_takes_five_seconds_at_most(tmp_path: Path) -> None:
    """It takes the connection and is silent: without a limit of ours that would be minutes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        (continual, said), seconds = ask(address, tmp_path, "is_continual, 'some/name'", "read_rows, 'some/name'")
    assert continual == "False"
    assert said.startswith(
        "EnvironmentFault | the dataset 'some/name' is no local file and could not be had from the hub | "
    )
    assert "did not answer" in said or "timed out" in said
    assert seconds < 20  # 5 on an idle machine; minutes without a limit of ours


def test_a_hub_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    (_, said), seconds = ask("http://127.0.0.1:9", tmp_path, "is_continual, 'some/name'", "read_rows, 'uc'")
    assert said.startswith("EnvironmentFault | uc is the hub's HuggingFaceH4/ultrachat_200k, which could not be had | ")
    assert "$CONTRL_DATA_DIR/uc/" in said
    assert seconds < 20  # 5 on an idle machine; minutes without a limit of ours


@pytest.mark.parametrize("name", ["imdb", "a/b", "trl-lib/ultrafeedback_binarized", "x.y-z/1", "_a/b_"])
def test_names_of_the_hub(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a/b/c", "/a", "a/", "-a", "a.", "a--b", "a..b", "a.git", "ä", "x" * 97, "a\n"]
)
def test_what_is_no_name_of_the_hub(name: str) -> None:
    assert not is_name(name)
