"""The loop of a study: start what nobody has, tell what ended, go on until every run is finished or has failed.

Any number of commands, on any number of machines, may do this on one folder. A run that failed is tried once by each
command; one that another command runs is waited for, and taken over should that command be gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

from contrl.continual import study_manifest
from contrl.continual.study_manifest import PlannedRun
from contrl.errors import OK, Interrupted, PartlyFailed
from contrl.study.checking import Study
from contrl.study.claims import STALE, Claims
from contrl.study.pool import Pool
from contrl.study.worker import TAKEN, Job, write_failure

LOOK = 2.0
"""Seconds between two looks at what others do."""
SHOWN = ("average", "forgetting")


def is_finished(folder: Path, run: PlannedRun) -> bool:
    """Whether a run has come to its end and has its results."""
    return study_manifest.state(folder, run) == "finished" and (folder / run.folder / "results.json").exists()


def carry_out(
    study: Study,
    num_workers: int,
    say: Callable[[str], None],
    *,
    prepare: Callable[[], object] = bool,
    stale: float = STALE,
) -> None:
    """Bring every run to its end.

    Args:
        study: checked.
        num_workers: processes at once.
        say: prints a line.
        prepare: called in each process before its run; a function of a module.
        stale: seconds after which a silent command elsewhere counts as gone.

    Raises:
        Interrupted: on SIGINT or SIGTERM, once every run has saved.
        PartlyFailed: some runs failed; the others are finished.
    """
    study_manifest.write(study.folder, study.manifest)
    with _Stop(say) as stop:
        loop = _Loop(study, num_workers, say, prepare, stale)
        loop.run(stop)
    if stop.signum:
        left = len(loop.unfinished)
        what = f"stopped on request; {left} of {len(loop.runs)} runs are left, what was begun is saved"
        raise Interrupted(what, signum=stop.signum, fix=f"continue with the same command: {study.manifest.command}")
    if loop.failed:
        lines = [f"{loop.label(run_id)}: {why}" for run_id, why in loop.failed.items()]
        log = study.folder / study_manifest.LOGS
        raise PartlyFailed(
            f"{len(loop.failed)} of {len(loop.runs)} runs failed",
            why="\n  ".join(lines),
            fix=f"what they said stands in {log}; the same command tries them again",
        )


@dataclass
class _Loop:
    """What is known of the runs while they are carried out."""

    study: Study
    num_workers: int
    say: Callable[[str], None]
    prepare: Callable[[], object]
    stale: float
    pool: Pool = field(default_factory=Pool)
    failed: dict[str, str] = field(default_factory=dict)
    taken: dict[str, float] = field(default_factory=dict)
    durations: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.claims = Claims(self.study.folder, stale=self.stale)
        self.runs = {run.id: run for run in self.study.manifest.runs}
        self.unfinished = {run.id: run for run in self.runs.values() if not is_finished(self.study.folder, run)}
        self.started: dict[str, float] = {}
        self.told_waiting = False
        if skipped := len(self.runs) - len(self.unfinished):
            self.say(f"{skipped} of {len(self.runs)} runs are finished")

    def label(self, run_id: str) -> str:
        """Arm, seed and order of a run, with its id."""
        run = self.runs[run_id]
        return f"{run.arm}  seed {run.seed}  {run.order}  ({run_id})"

    def run(self, stop: _Stop) -> None:
        """Until nothing is left, or everything has stopped."""
        while self.unfinished.keys() - self.failed.keys() or self.pool.running:
            if not stop.signum:
                self._fill()
            elif not self.pool.running:
                return
            stop.pass_on(self.pool)
            if self.pool.running:
                for run_id, code in self.pool.ended(LOOK / 4):
                    self._ended(run_id, code, stopping=bool(stop.signum))
            else:
                self._wait_for_others()
            self._notice_others()

    # --- starting ---

    def _fill(self) -> None:
        """Start runs that nobody has."""
        for run_id in self.unfinished:
            if len(self.pool.running) >= self.num_workers:
                return
            busy = run_id in self.pool.running or run_id in self.failed
            if busy or time.monotonic() - self.taken.get(run_id, -LOOK) < LOOK:
                continue
            if self.claims.holder(run_id) is not None:
                self.taken[run_id] = time.monotonic()
                continue
            job = Job(
                run_id,
                self.study.runs[run_id],
                self.study.folder,
                self.study.keep_weights,
                dict(os.environ),
                ("contrl", *sys.argv[1:]),
                self.prepare,
                self.stale,
            )
            self.started[run_id] = time.monotonic()
            self.pool.start(job)

    # --- ending ---

    def _ended(self, run_id: str, code: int, *, stopping: bool) -> None:
        """Note and tell what became of a run."""
        if code == TAKEN:
            self.taken[run_id] = time.monotonic()
        elif code == OK:
            self.durations.append(time.monotonic() - self.started[run_id])
            del self.unfinished[run_id]
            self._tell(run_id, self.durations[-1])
        elif not (stopping and code in (-signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGTERM)):
            if code < 0:
                name = signal.Signals(-code).name
                why = " (the system may be short of memory)" if code == -signal.SIGKILL else ""
                write_failure(self.study.folder, run_id, f"killed by {name}{why}", code)
            self.failed[run_id] = self._reason(run_id, code)
            self.say(f"failed   {self.label(run_id)}: {self.failed[run_id].splitlines()[0]}")

    def _reason(self, run_id: str, code: int) -> str:
        told = study_manifest.failure(self.study.folder, run_id).get("what")
        return str(told or f"its process ended with exit code {code}")

    def _tell(self, run_id: str, seconds: float | None) -> None:
        """One line of a finished run: how many are done, its numbers, the time left."""
        run, done = self.runs[run_id], len(self.runs) - len(self.unfinished)
        parts = [f"{done}/{len(self.runs)}", run.arm, f"seed {run.seed}", run.order, *self._numbers(run)]
        parts += ["elsewhere" if seconds is None else clock(seconds)]
        left = len(self.unfinished.keys() - self.failed.keys())
        if left and self.durations:
            # The median, because the first runs wait for the process that the others are forked from.
            parts.append(f"eta {clock(median(self.durations) * left / min(self.num_workers, left))}")
        self.say("  ".join(parts))

    def _numbers(self, run: PlannedRun) -> list[str]:
        try:
            text = (self.study.folder / run.folder / "results.json").read_text(encoding="utf-8")
            metrics: dict[str, Any] = json.loads(text)["metrics"]
        except (OSError, ValueError, KeyError):
            return []
        values = {name: metrics.get(name, {}).get("value") for name in SHOWN}
        return [f"{name} {value:.3f}" for name, value in values.items() if value is not None]

    # --- others ---

    def _notice_others(self) -> None:
        """Runs that another command has finished meanwhile."""
        for run_id in [name for name in self.taken if name in self.unfinished and name not in self.pool.running]:
            if is_finished(self.study.folder, self.runs[run_id]):
                del self.unfinished[run_id]
                self._tell(run_id, None)

    def _wait_for_others(self) -> None:
        if not self.told_waiting and self.unfinished.keys() - self.failed.keys():
            self.told_waiting = True
            held = [self.claims.holder(run_id) for run_id in self.unfinished if run_id not in self.failed]
            hosts = ", ".join(sorted({holder.host for holder in held if holder is not None}))
            where = f" on {hosts}" if hosts else ""
            self.say(f"{len(held)} runs are carried out by another command{where}: waiting for it")
        time.sleep(LOOK / 4)


def clock(seconds: float) -> str:
    """``1:02:03``, ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Stop:
    """The first SIGINT or SIGTERM asks every run to save and stop, the second ends them at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.signum, self.count, self._done = say, 0, 0, 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python hands signals to the main thread only
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.signum, self.count = self.signum or signum, self.count + 1

    def pass_on(self, pool: Pool) -> None:
        """Tell the runs, once for each signal."""
        if self._done < self.count:
            self._done = self.count
            if self.count == 1:
                self.say("asking the runs to save and stop; once more ends them at once")
                pool.ask_to_stop()
            else:
                pool.kill()
