"""Signals that ask to stop, and the processes of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch

from contrl.continual.processes import Ranks, StopSignal


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_remembered(signum: signal.Signals) -> None:
    said: list[str] = []
    before = signal.getsignal(signum)
    with StopSignal(said.append) as stop:
        assert stop.signum == 0
        os.kill(os.getpid(), signum)
        assert stop.signum == signum
    assert said == ["finishing the step and saving; once more stops at once"]
    assert signal.getsignal(signum) is before


def test_the_second_signal_stops_at_once() -> None:
    """In a process of its own: it ends by the signal itself."""
    script = """if True:
        import os, signal
        from contrl.continual.processes import StopSignal
        with StopSignal(print):
            os.kill(os.getpid(), signal.SIGTERM)
            print("still here", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            print("never", flush=True)
    """
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert outcome.returncode == -signal.SIGTERM
    assert outcome.stdout.splitlines()[-1] == "still here"


def test_a_signal_in_the_middle_of_a_print_is_remembered_without_words() -> None:
    """Python refuses to enter a buffered writer twice; the wish to stop must not be lost with the line."""

    def busy(text: str) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter>")

    with StopSignal(busy) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (Ranks().rank, Ranks().world_size) == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (Ranks().rank, Ranks().world_size) == (3, 4)


def test_a_policy_lives_on_its_process_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert Ranks().device({}) == torch.device("cuda", 2)
    assert Ranks().device({"use_cpu": True}) == torch.device("cpu")
    assert Ranks().device({"fsdp": "full_shard"}) == torch.device("cpu"), "whole, it may not fit one device"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    assert Ranks().device({}) == torch.device("cuda", 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert Ranks().device({}) == torch.device("cpu")
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Ranks().device({}) == torch.device("cpu")
