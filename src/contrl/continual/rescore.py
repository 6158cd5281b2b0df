"""Judging a run afterwards: the rows of its matrix from the weights it saved, with the numbers training would have had.

``rescore(runner, which="all", again=False)`` fills rows 0..K of a run that contrl trained; the runner comes from
``contrl.launch.reopen(folder, options)``. For models made elsewhere build a ``Runner`` on a plan and a folder of your
own, call ``runner.remember_start()`` while the policy has the first weights, then for every model put its weights into
``runner.policy.model`` and call ``runner.evaluate(stage, "all")``: that fills row ``stage.index``, and ``Stage(0, ())``
is the row before training. ``continual.results.write`` makes results.json of it, as ever.
"""

from __future__ import annotations

from contrl.continual.runner import Runner
from contrl.interfaces import Stage


def rescore(runner: Runner, which: str = "all", *, again: bool = False) -> list[int]:
    """Judge the first weights and those of every stage that is trained; what was scored already stays.

    Args:
        runner: its policy has the weights that the run started from.
        which: the tasks of each row: all, seen, seen+next.
        again: judge also what has a score; the new one counts.

    Returns:
        The rows that are filled now.
    """
    runner.folder.tidy()
    runner.remember_start()
    runner.evaluate(Stage(0, ()), which, again=again)
    rows = [0]
    for stage in runner.plan.sequence.stages:
        if runner.folder.done(stage.index, "after_task"):
            runner.restore(stage)
            runner.evaluate(stage, which, again=again)
            rows.append(stage.index)
    return rows
