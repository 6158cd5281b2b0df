"""A hub that gates, lacks, refuses or never answers: one message, quickly, with the ways out."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from contrl.config import ModelConfig
from contrl.errors import ENVIRONMENT, EnvironmentFault, UserError
from contrl.models.hub import only_cached
from contrl.models.load import load_policy, load_tokenizer

ANSWERS = {
    "gated": (403, "GatedRepo"),
    "missing": (404, "RepoNotFound"),
    "branch": (404, "RevisionNotFound"),
    "empty": (404, "EntryNotFound"),
}


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers by the owner's name in the address: /gated/model/resolve/main/config.json."""

    def do_HEAD(self) -> None:
        status, code = ANSWERS.get(self.path.split("/")[1], (200, ""))
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", "2")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's client is allowed to ask, and its cache is empty."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def hub(online: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("owner", "what", "way"),
    [
        ("gated", "is gated", "hf auth login"),
        ("missing", "the hub has no model", "hf auth login"),
        ("branch", "no such revision", "correct the revision"),
        ("empty", "no model for transformers", "name another model"),
    ],
)
def test_what_the_hub_refuses_is_said_with_the_ways_out(hub: None, owner: str, what: str, way: str) -> None:
    with pytest.raises(EnvironmentFault, match=what) as error:
        load_tokenizer(ModelConfig(f"{owner}/model"))
    text = str(error.value)
    assert (error.value.exit_code, len(text.splitlines()) <= 3) == (ENVIRONMENT, True)
    assert way in text
    assert "a local folder" in text
    assert "an embedded model (tiny, smollm2)" in text


def test_what_the_hub_has_is_loaded_from_it(hub: None) -> None:
    assert only_cached("fine/model") is False


def test_a_hub_that_never_answers_is_given_up_within_5_seconds(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that takes the connection and says nothing: the slowest way for a network to be down."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
        )
        started = time.perf_counter()
        with pytest.raises(EnvironmentFault, match="could not be had from the hub") as error:
            load_policy(ModelConfig("some/model"), seed=0)
        assert time.perf_counter() - started < 5
    assert "connect to the network; or name a local folder; or an embedded model" in error.value.fix


def test_a_cached_model_needs_no_hub(online: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The port is closed: nothing listens there any more."""
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{port}" + "/{repo_id}/resolve/{revision}/{filename}",
    )
    with pytest.raises(EnvironmentFault, match="could not be had"):
        only_cached("some/model")
    repository = tmp_path / "models--some--model"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}", encoding="utf-8")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    assert only_cached("some/model") is True


def test_working_offline_by_choice_says_so() -> None:
    """HF_HUB_OFFLINE is set for all tests."""
    with pytest.raises(EnvironmentFault, match="unset HF_HUB_OFFLINE"):
        only_cached("some/model")


def test_a_name_no_hub_would_take_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="there is no model folder") as error:
        only_cached("two words")
    assert not isinstance(error.value, EnvironmentFault)
