"""The first screen in words: which run this is, four tiles, one sentence on what was learnt and what was forgotten.

A difference is only called a change when its 95 % interval excludes 0; otherwise the words say "within noise".
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from contrl.continual.matrix import Metric
from contrl.continual.metrics import FORMULAS
from contrl.continual.results import Results
from contrl.report.numbers import interval, number

TILES = ("average", "forgetting", "fwt", "own_stage_gain")


@dataclass(frozen=True)
class Tile:
    """One headline number: title, value, ``[low, high]`` or "", one sentence in words, and ``good|bad|neutral``.

    ``n`` counts the evaluation items behind it, "" when it is not known.
    """

    name: str

    title: str
    value: str
    interval: str
    words: str
    tone: str
    formula: str
    n: str


def facts(results: Results) -> list[str]:
    """Folder name, model, method, strategies and seed of the run, those that are known."""
    run = results.run
    strategies = [item.get("name", "?") if isinstance(item, dict) else item for item in run.get("strategies") or []]
    known = [results.folder.resolve().name, run.get("model"), run.get("method"), "+".join(map(str, strategies))]
    return [str(fact) for fact in known if fact] + ([f"seed {run['seed']}"] if run.get("seed") is not None else [])


def tiles(results: Results) -> list[Tile]:
    """The four numbers of the first screen."""
    words = {
        "average": _average_words(results),
        "forgetting": _forgetting_words(results.metrics["forgetting"]),
        "fwt": _transfer_words(results.metrics["fwt"]),
        "own_stage_gain": _gain_words(results.metrics["own_stage_gain"]),
    }
    return [_tile(results.metrics[name], words[name]) for name in TILES]


def sentence(results: Results) -> str:
    """The run in one or two sentences; names the task that lost most when the loss is outside noise."""
    average = results.metrics["average"]
    if average.value is None:
        return "There are not enough scores yet to say what was learnt and what was forgotten."
    when = "At the end" if results.finished else f"After {results.rows[results.end]}"
    parts = [f"{when} the model scores {number(average.value)} on average over {len(results.tasks)} tasks."]
    worst = _worst_loss(results)
    if worst is None:
        return parts[0]
    column, change = worst
    task, last = results.tasks[column], results.numbers.last_visit(column, results.end)
    if change.value is None or change.value >= 0 or not change.outside_noise or last is None:
        parts.append("No task that was trained earlier has lost more than noise explains.")
    else:
        scores = results.numbers.scores
        parts.append(
            f"The largest loss is on {task}: {number(scores[last][column])} after {results.rows[last]}, "
            f"{number(scores[results.end][column])} now, a change of {number(change.value)} {interval(change)}, "
            "outside noise."
        )
    return " ".join(parts)


def _worst_loss(results: Results) -> tuple[int, Metric] | None:
    """(column, change since its last visit) of the task that lost most; None when no task can have lost anything."""
    changes = ((column, results.change(results.end, column)) for column in range(len(results.tasks)))
    known = [(column, change) for column, change in changes if change is not None and change.value is not None]
    return min(known, key=lambda pair: pair[1].value or 0.0, default=None)


def _tile(metric: Metric, words: str) -> Tile:
    formula = FORMULAS[metric.name]
    tone = "neutral"
    if metric.name != "average" and metric.value is not None and metric.outside_noise:
        tone = "good" if (metric.value > 0) == metric.higher_is_better else "bad"
    return Tile(
        metric.name, formula.title, number(metric.value), interval(metric), words, tone, formula.text,
        "" if metric.n is None else str(metric.n),
    )  # fmt: skip


def _average_words(results: Results) -> str:
    value, start = results.metrics["average"].value, [cell for cell in results.matrix[0] if cell is not None]
    if value is None:
        return "Some task has no score in the last row yet."
    if len(start) < len(results.tasks):
        return "Mean final score over all tasks."
    return f"Mean final score over all tasks; before training it was {number(fmean(c.value for c in start))}."


def _forgetting_words(metric: Metric) -> str:
    if metric.value is None:
        return "Not defined yet: it needs a task that was trained before the last stage, with its scores."
    if not metric.outside_noise:
        return "What was learnt was kept: the difference is within noise."
    if metric.value > 0:
        return "Lost, on average, of what each earlier task scored when it was last trained."
    return "Nothing was lost: earlier tasks score higher now than when they were last trained."


def _transfer_words(metric: Metric) -> str:
    if metric.value is None:
        return "Not defined yet: it needs a task that was first trained after stage 1, with its scores."
    if not metric.outside_noise:
        return "Earlier stages neither helped nor hurt tasks still to come beyond noise."
    return f"Earlier stages {'helped' if metric.value > 0 else 'hurt'} the tasks that were still to come."


def _gain_words(metric: Metric) -> str:
    if metric.value is None:
        return "Not known: a score before or after some stage is missing."
    if not metric.outside_noise:
        return "The stages did not change their own task's score beyond noise."
    verb = "gained" if metric.value > 0 else "lost"
    return f"A stage {verb} this much, on average, on the task it trained."
