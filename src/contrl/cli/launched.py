"""A run in processes of its own: ``torchrun ... -m contrl run FILE``, waited for, its signals passed on.

A step of a pipeline that is to train on several devices is started this way; the pipeline itself stays one process.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from contrl.errors import Interrupted, UserError

if TYPE_CHECKING:
    from contrl.config import Resolved

_PATIENCE = 0.5
"""Seconds between two looks at whether somebody asked to stop."""


def launch(launcher: str, resolved: Resolved) -> None:
    """Run a configuration under a launcher, or continue it.

    Args:
        launcher: ``torchrun --nproc_per_node 8``, ``accelerate launch ...``: what ``-m contrl run FILE`` follows.
        resolved: the run's; written beside its folder.

    Raises:
        UserError: the launcher is not there, or the run failed (it has said why).
        Interrupted: it was asked to stop, and has saved.
    """
    from contrl.cli.console import say
    from contrl.continual.processes import StopSignal
    from contrl.continual.records import write_atomic

    folder = Path(resolved.config.output_dir)
    file = folder.with_name(f".{folder.name}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, resolved.text.encode())
    command = [*shlex.split(launcher), "-m", "contrl", "run", str(file)]
    say(f"         {shlex.join(command)}")
    with StopSignal(lambda text: None) as stop:
        try:
            process = subprocess.Popen(command)
        except OSError as error:
            raise UserError(f"launcher: {command[0]} cannot be started", why=error.strerror or "") from None
        told = False
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
            # A terminal sends Ctrl-C to all its processes; only what was sent to this one alone is passed on.
            if stop.signum == signal.SIGTERM and not told:
                process.send_signal(signal.SIGTERM)
                told = True
    if process.returncode and stop.signum:
        raise Interrupted("stopped on request", signum=stop.signum)
    if process.returncode:
        raise UserError(f"the run ended with code {process.returncode}", why="what went wrong is told above")
