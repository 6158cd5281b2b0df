"""Who runs what: one file for each claim, made so that of any number of machines on one folder only one succeeds.

``claims/<id>.<n>.json`` is created exclusively, which a network file system does atomically. A claim is never deleted:
whoever takes over from a holder that is gone creates number n + 1, and again only one can. A holder is gone when its
process is dead (told only for the same boot of the same machine) or its heartbeat, the file's time, is too old.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrl.continual.records import write_atomic
from contrl.continual.study_manifest import CLAIMS

BEAT, STALE = 15.0, 300.0
"""Seconds between two heartbeats, and after which a silent holder elsewhere counts as gone."""


@dataclass(frozen=True)
class Holder:
    """A process that holds or held a run.

    Attributes:
        host: the machine's name, for a reader.
        machine: tells one boot of one machine (and one container of it) from any other.
        process: its number and the moment it was started, so that a reused number is no stranger's.
    """

    host: str
    machine: str
    process: str

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        return cls(platform.node(), _machine(), _process(os.getpid()))


class Claims:
    """The claims of a study's folder."""

    def __init__(self, folder: Path, *, stale: float = STALE) -> None:
        self.folder, self.stale = folder / CLAIMS, stale

    def take(self, run_id: str) -> Claim | None:
        """The claim of a run for this process; None when another holds it, or was faster."""
        number, path = self._last(run_id)
        if path is not None and self._is_held(path):
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = self.folder / f"{run_id}.{number + 1}.json"
        try:
            descriptor = os.open(mine, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return None
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(vars(Holder.here())).encode())
            file.flush()
            os.fsync(file.fileno())
        return Claim(self, run_id, number + 1, mine)

    def holder(self, run_id: str) -> Holder | None:
        """Who holds a run now."""
        _, path = self._last(run_id)
        if path is None or not self._is_held(path):
            return None
        told = _read(path)
        return Holder(told.get("host", "?"), told.get("machine", "?"), told.get("process", "?"))

    def _last(self, run_id: str) -> tuple[int, Path | None]:
        """The newest claim of a run, by its number."""
        found: list[tuple[int, Path]] = []
        for path in self.folder.glob(f"{run_id}.*.json"):
            with contextlib.suppress(ValueError):
                found.append((int(path.name.split(".")[-2]), path))
        return max(found) if found else (0, None)

    def _is_held(self, path: Path) -> bool:
        told = _read(path)
        if told.get("released"):
            return False
        if told.get("machine") == _machine():
            return _process(int(str(told.get("process", "0:")).partition(":")[0])) == told.get("process")
        return self._now() - _time_of(path) < self.stale

    def _now(self) -> float:
        """The file system's time: clocks of machines differ, and heartbeats are its times."""
        probe = self.folder / f".clock-{platform.node()}-{os.getpid()}"
        try:
            probe.touch()
            return probe.stat().st_mtime
        except OSError:
            return time.time()
        finally:
            probe.unlink(missing_ok=True)


@dataclass
class Claim:
    """A run held by this process."""

    claims: Claims
    run_id: str
    number: int
    path: Path

    def beat(self) -> bool:
        """Tell that this process is alive; False when another has taken the run over, which ends this one's right."""
        number, _ = self.claims._last(self.run_id)
        if number > self.number:
            return False
        with contextlib.suppress(OSError):
            os.utime(self.path)
        return True

    def release(self) -> None:
        """Let others have the run: it is finished, stopped or failed."""
        write_atomic(self.path, json.dumps(_read(self.path) | {"released": True}).encode())


def _read(path: Path) -> dict[str, Any]:
    """A claim's content; empty while it is being written, which counts as a holder of an unknown machine."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _time_of(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _machine() -> str:
    """This boot of this machine, and the container in it: where equal, process numbers mean the same."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _process(number: int) -> str:
    """``number:started`` of a living process, "" of a dead one; without /proc only the number tells."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else f"{number}:{fields[19]}"
    except FileNotFoundError:
        if Path("/proc/self/stat").exists() or number <= 0:
            return ""
    except (OSError, IndexError):
        return ""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return f"{number}:"
