"""contrl from Python: the same runs as on the command line, given as a file or as dictionaries."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from contrl.config import load
from contrl.continual.results import Results, read
from contrl.experiment import find
from contrl.launch import Options, start
from contrl.launch import resume as resume_run


def run(config: str | Path | Mapping[str, Any], *overrides: str, say: Callable[[str], None] = print) -> Results:
    """Run an experiment, or continue it where it stopped; a finished one is only read.

    Args:
        config: a YAML file, or the same as dictionaries. A function of the calling script is named ``__main__:name``.
        overrides: ``"dotted.path=value"``, as on the command line.
        say: receives each line of progress.

    Returns:
        The results matrix and its metrics.

    Raises:
        ConfigErrors: every mistake in the configuration at once.
        UserError: anything else the user can mend.
    """
    transformers_logging.disable_progress_bar()
    return read(start(load(config, overrides, resolve=find), Options(command=sys.argv, say=say)))


def resume(folder: str | Path, *, say: Callable[[str], None] = print) -> Results:
    """Continue the run in ``folder`` with the configuration it was started with."""
    transformers_logging.disable_progress_bar()
    return read(resume_run(Path(folder), Options(command=sys.argv, say=say)))
