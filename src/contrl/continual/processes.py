"""The processes of a run, their devices, and the wish to stop it: torchrun's environment, SIGINT and SIGTERM."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch


class StopSignal:
    """Remembers the first SIGINT or SIGTERM; the second one acts as usual."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.signum = say, 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.signum = signum
        # The signal may have come in the middle of another print, which cannot be entered twice.
        with contextlib.suppress(RuntimeError):
            self.say("finishing the step and saving; once more stops at once")


@dataclass
class Ranks:
    """The processes of this run; torchrun and accelerate launch put them in the environment."""

    rank: int = field(default_factory=lambda: int(os.environ.get("RANK", "0")))
    world_size: int = field(default_factory=lambda: int(os.environ.get("WORLD_SIZE", "1")))

    def join(self, training: Mapping[str, Any]) -> None:
        """Set up the process group: gloo on the CPU, the device's own elsewhere."""
        if self.world_size > 1:
            from accelerate import PartialState

            PartialState(cpu=_on_cpu(training))

    def device(self, training: Mapping[str, Any]) -> torch.device:
        """Where this process's policy lives from the start, so that the first evaluation runs there too.

        A sharded model stays on the CPU until the trainer places it: whole, it may not fit one device.
        """
        launched = {os.environ.get(f"ACCELERATE_USE_{name}", "").lower() for name in ("FSDP", "DEEPSPEED")}
        if _on_cpu(training) or training.get("fsdp") or training.get("deepspeed") or "true" in launched:
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    def leave(self) -> None:
        """Take the process group down in good order, once every process has done its part."""
        if self.world_size > 1:
            from accelerate.state import AcceleratorState

            self.barrier()
            torch.distributed.destroy_process_group()
            AcceleratorState._reset_state(reset_partial_state=True)

    def barrier(self) -> None:
        """Wait for every process."""
        if self.world_size > 1:
            torch.distributed.barrier()


def _on_cpu(training: Mapping[str, Any]) -> bool:
    return bool(training.get("use_cpu")) or not torch.cuda.is_available()
