"""contrl works offline and reports to nobody: no source file speaks to a network, and a test that tries is stopped."""

from __future__ import annotations

import ast
import socket

import pytest

NETWORK = {
    *("socket", "ssl", "ftplib", "smtplib", "telnetlib", "xmlrpc", "http", "urllib.request", "socketserver"),
    *("requests", "urllib3", "httpx", "httpx2", "aiohttp", "websockets", "openai"),
    *("posthog", "sentry_sdk", "opentelemetry", "wandb", "trackio", "mlflow", "comet_ml"),
}
# File -> why it may speak to a network. Only what a user asks for by name (a judge's address) belongs here.
ALLOWED: dict[str, str] = {
    "continual/tracker_kinds.py": "starts the W&B run that --report_to wandb asks for",
    "rewards/endpoint.py": "asks the judge whose address or key the user has given",
}


def imported_modules(tree: ast.Module) -> set[str]:
    """Every module imported, with its parents: "http.client" gives "http.client" and "http"."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return names | {name.rpartition(".")[0] for name in names} | {name.partition(".")[0] for name in names}


def test_no_source_file_speaks_to_a_network(sources: dict[str, ast.Module]) -> None:
    speakers = {path: imported_modules(tree) & NETWORK for path, tree in sources.items() if path not in ALLOWED}
    assert {path: names for path, names in speakers.items() if names} == {}


def test_the_list_of_exceptions_is_current(sources: dict[str, ast.Module]) -> None:
    assert {path for path in ALLOWED if path not in sources or not imported_modules(sources[path]) & NETWORK} == set()


def test_a_test_cannot_reach_another_machine() -> None:
    """192.0.2.1 is reserved for documentation (RFC 5737): were it not refused, the connection would time out."""
    with socket.socket() as stranger, pytest.raises(AssertionError, match="works offline"):
        stranger.connect(("192.0.2.1", 80))


def test_a_test_may_speak_to_itself() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
        pass
