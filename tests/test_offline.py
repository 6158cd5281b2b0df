"""The whole main job with every door to the network shut, in a process of its own without any offline switch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_demo import SHORT
from tests.runs import contrl, environment

GUARD = '''"""Refuses and writes down every attempt to reach another machine; Python loads this at its start."""
import socket


def refuse(*arguments, **keywords):
    with open({log!r}, "a", encoding="utf-8") as file:
        file.write(repr(arguments) + "\\n")
    raise OSError("the network is shut")


for owner, name in (
    (socket.socket, "connect"), (socket.socket, "connect_ex"), (socket.socket, "sendto"),
    (socket, "create_connection"), (socket, "getaddrinfo"), (socket, "gethostbyname"),
):
    setattr(owner, name, refuse)
'''


@pytest.mark.slow
def test_the_demo_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "attempts.txt"
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD.format(log=str(log)), encoding="utf-8")
    for name in [name for name in os.environ if name.startswith(("HF_", "TRANSFORMERS_", "WANDB_"))]:
        monkeypatch.delenv(name)
    path = f"{tmp_path / 'guard'}{os.pathsep}{environment(tmp_path)['PYTHONPATH']}"
    outcome = contrl(["demo", *SHORT], tmp_path, PYTHONPATH=path)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == ""
    assert (tmp_path / "runs" / "demo" / "report.html").exists()
    assert not log.exists() or log.read_text(encoding="utf-8") == ""
    # That the guard was there to see it:
    reach = [sys.executable, "-c", "import socket; socket.create_connection(('localhost', 80))"]
    refused = subprocess.run(reach, env=environment(tmp_path, PYTHONPATH=path), capture_output=True, check=False)
    assert b"the network is shut" in refused.stderr
    assert "localhost" in log.read_text(encoding="utf-8")
