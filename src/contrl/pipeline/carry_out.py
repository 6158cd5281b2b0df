"""The loop of a pipeline: skip what is finished, continue what was begun, run the rest, stop at the first failure.

What a step is worth is decided before the first one starts, so nothing is trained for hours only to be refused
later; and a step's record is written before its folder, so the same command continues wherever it was killed.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from contrl.errors import Interrupted, UserError
from contrl.faults import reach
from contrl.pipeline import summary
from contrl.pipeline.state import Plan, State, clear, decide, refuse_to_delete
from contrl.pipeline.steps import Step, origin

_DONE = {"skip": "finished", "continue": "continued", "run": "run", "anew": "run anew"}


def plan(steps: Sequence[Step], folder: Path, say: Callable[[str], None]) -> None:
    """Tell what carrying out would do with each step; nothing is written."""
    known = {step.name: step for step in steps}
    for number, planned in enumerate(decide(steps, State(folder)), start=1):
        step = planned.step
        say(f"step {number}/{len(steps)} {step.name}: {_line(planned)}")
        if planned.action == "skip":
            continue
        absent = [name for name in step.uses if not _made(known[name])]
        if [name for name in absent if f"step:{name}" != step.work.model] and step.command != "evaluate":
            say(f"         checked; steps, memory and disk are told once {' and '.join(absent)} has made its model")
            continue
        step.work.plan(lambda name: _place(known[name]) if _made(known[name]) else origin(name, known))
    say("nothing was run")


def carry_out(
    steps: Sequence[Step], folder: Path, say: Callable[[str], None], *, overwrite: bool = False, again: str = ""
) -> list[summary.Row]:
    """Bring every step to its end.

    Args:
        steps: in order.
        folder: the pipeline's.
        say: prints a line.
        overwrite: delete the folders of steps that changed.
        again: the command that continues, for messages.

    Returns:
        The rows of the summary.

    Raises:
        UserError: what the first failing step raised; or steps changed and must not be overwritten.
    """
    known, state = {step.name: step for step in steps}, State(folder)
    plans = decide(steps, state)
    if not overwrite:
        refuse_to_delete(plans)
    for number, planned in enumerate(plans, start=1):
        say(f"step {number}/{len(steps)} {planned.step.name}: {_line(planned)}")
        if planned.action != "skip":
            _one(planned, known, state, again)
        reach("between_steps")
    state.order(list(known))
    return summary.rows(steps, state)


def _one(planned: Plan, known: Mapping[str, Step], state: State, again: str) -> None:
    """Bring one step to its end, and keep its record."""
    step, started = planned.step, time.monotonic()
    if planned.action == "anew":
        clear(step.folder)
    state.begin(step, _began_as(step, known))
    numbers: Mapping[str, float | None] | None = None
    try:
        step.work.run(lambda name: _place(known[name]))
        numbers = summary.numbers(step)
    except Interrupted as stopped:
        raise Interrupted(stopped.what, signum=stopped.exit_code - 128, fix=_continue(again)) from None
    except UserError as error:
        error.fix = "\n  ".join(filter(None, (error.fix, f"this is step {step.name}; {_continue(again)}")))
        raise
    finally:
        state.end(step, time.monotonic() - started, numbers)
        _free()


def _free() -> None:
    """Give the memory of one step's models back before the next one starts."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _line(planned: Plan) -> str:
    why = f": {planned.why}" if planned.why and planned.action != "skip" else ""
    uses = f", using {' and '.join(planned.step.uses)}" if planned.step.uses else ""
    return f"{planned.step.command}{uses}, {_DONE[planned.action]}{why}"


def _began_as(step: Step, known: Mapping[str, Step]) -> str:
    """The model in words: ``gpt2``, or ``gpt2 via sft``."""
    via = step.work.model.removeprefix("step:")
    return (origin(step.name, known) + (f" via {via}" if via in known else "")) if via else ""


def _place(step: Step) -> str:
    """Where the model of a step lies, from anywhere."""
    return str((step.output or step.folder).absolute())


def _made(step: Step) -> bool:
    return step.output is not None and any(
        (step.output / name).exists() for name in ("config.json", "adapter_config.json")
    )


def _continue(again: str) -> str:
    return f"what is finished is kept; continue with the same command{f': {again}' if again else ''}"
