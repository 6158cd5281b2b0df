"""An evaluation in the trackers: one run with the metrics as its summary and the choices as its configuration.

The trackers are those of training, and as polite: one that fails is dropped with a line, and the files
are there anyway.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


def track(options: Any, folder: Path, name: str, metrics: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Show the metrics in the trackers that are asked for.

    Args:
        options: with ``report_to``, ``use_wandb``, ``wandb_project``.
        folder: of the results; offline files go there.
        name: of the tracker run.
        metrics: what evaluation_metrics.json holds.
        say: told which trackers cannot be used.
    """
    wanted = [*(options.report_to or ()), *(["wandb"] if options.use_wandb else [])]
    if not wanted or wanted == ["none"]:
        return
    from transformers import TrainerState, TrainingArguments

    from contrl.continual.run_folder import RunFolder
    from contrl.continual.trackers import Trackers

    if options.wandb_project:
        os.environ["WANDB_PROJECT"] = options.wandb_project
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    choices = {key: value for key, value in metrics.items() if isinstance(value, str)}
    bounds = {
        f"{key}_{end}": value[place]
        for key, value in metrics.items()
        if isinstance(value, list)
        for place, end in enumerate(("low", "high"))
    }
    with _no_model():
        trackers = Trackers.of(wanted, RunFolder(folder), name, choices, say)
        state = TrainerState(global_step=0, is_world_process_zero=True)
        arguments = TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True)
        trackers.begin(arguments, state, {})
        trackers.log(state, {f"eval_{key}": value for key, value in {**numbers, **bounds}.items()})
        _summarise({**numbers, **bounds})
        trackers.close()


def _summarise(numbers: Mapping[str, Any]) -> None:
    """Under their own names in the summary of the W&B run, where there is one."""
    wandb = sys.modules.get("wandb")
    run = getattr(wandb, "run", None)
    if run is not None:
        with contextlib.suppress(Exception):  # a guest: the files hold the same
            run.summary.update(dict(numbers))


@contextlib.contextmanager
def _no_model() -> Iterator[None]:
    """While open W&B is not asked to upload a trained model: there is none here."""
    given = os.environ.pop("WANDB_LOG_MODEL", None)
    try:
        yield
    finally:
        if given is not None:
            os.environ["WANDB_LOG_MODEL"] = given
