"""Some processes at once, each forked from one that has loaded everything: a run starts in a fraction of a second.

Python's forkserver is that process: it imports ``contrl.study.warm`` once and computes nothing, so forking it is safe.
Each process has one thread, because as many run as there are cores.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess

from contrl.study.worker import Job, main

_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def default_workers(*, on_cpu: bool) -> int:
    """As many processes as this one may use cores; a GPU runs one at a time."""
    if not on_cpu:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Pool:
    """The running processes, by run id."""

    running: dict[str, ForkServerProcess] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["contrl.study.warm"])

    def start(self, job: Job) -> None:
        """Begin a run."""
        # Not a daemon, so that the run may have processes of its own.
        process = self._context.Process(target=main, args=(job,), name=job.run_id)
        with _environment(_ONE_THREAD):
            process.start()
        self.running[job.run_id] = process

    def ended(self, timeout: float) -> list[tuple[str, int]]:
        """Id and exit code (minus the signal, of a killed one) of the runs that ended, waiting for one if none did."""
        ready = wait([process.sentinel for process in self.running.values()], timeout)
        found = []
        for run_id, process in list(self.running.items()):
            if process.sentinel in ready:
                process.join()
                found.append((run_id, process.exitcode if process.exitcode is not None else -signal.SIGKILL))
                del self.running[run_id]
                process.close()
        return found

    def ask_to_stop(self) -> None:
        """Ask each run once to save and stop."""
        for process in self.running.values():
            process.terminate()

    def kill(self) -> None:
        """End every run at once; it is continued from its last checkpoint."""
        for process in self.running.values():
            process.kill()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for the process that is started here; what the user set stays."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
