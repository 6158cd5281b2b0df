"""The surroundings of every test: one thread, no hub, no telemetry, no network beyond this machine.

Two threads a process on busy cores make a toy step many times slower, so the thread count is set before
torch is loaded. A test that reaches for another machine fails at once instead of hanging.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

SURROUNDINGS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "offline",
}
for name, value in SURROUNDINGS.items():
    os.environ.setdefault(name, value)


def is_this_machine(address: Any) -> bool:
    """Whether a socket address stays on this machine: a file (AF_UNIX), localhost or a loopback number."""
    if not isinstance(address, tuple):
        return True
    host = str(address[0]).partition("%")[0]
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Refuse every connection to another machine, in this process, for the whole session."""
    connect = socket.socket.connect

    def refuse_strangers(self: socket.socket, address: Any) -> None:
        if not is_this_machine(address):
            raise AssertionError(f"a test tried to reach {address}: contrl works offline, and its tests must too")
        connect(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", refuse_strangers)
    yield
    patch.undo()
