"""Frames of ``contrl watch``: of one run large curves, of several the same curve under each other on one scale.

The numbers drawn are those the method names (``Method.watched``, kept in run.json), or the ones asked for. Text alone,
no colour, so it reads the same over ssh, in a log and on an old console.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contrl.report.follow import Followed
from contrl.report.plot import bounds, draw
from contrl.report.terminal import age, clean
from contrl.report.watched import MOST, chosen, clock, label, told, value

AXIS = 9
"""Columns of the numbers beside a curve."""
TALL, LOW = 5, 2
"""Lines of a curve of one run, and of each of several."""
MOST_SCORES = 12
FIRST = ("reward", "success", "accuracy", "accuracies", "margin", "margins", "kl", "entropy", "loss")
"""What a reader looks for in an old run, whose run.json names no numbers to watch."""


@dataclass(frozen=True)
class Screen:
    """Where a frame goes: its width in characters, and whether only ASCII may be written."""

    width: int = 100
    ascii: bool = False


def frame(runs: Sequence[Followed], names: Sequence[str], screen: Screen) -> str:
    """Everything there is to see now, as lines.

    Args:
        runs: already looked at.
        names: of the curves; those the methods name when empty.
    """
    lines = [line for run in runs for line in _wrapped(head(run), screen.width)]
    shown = names or default_names(runs)
    missing = [name for name in names if not any(name in run.values for run in runs)]
    for name in shown:
        if name not in missing:
            lines += ["", *_curves(runs, name, screen)]
    lines += [f"no run has logged {clean(name)}" for name in missing]
    if not any(run.values for run in runs):
        lines += ["", "nothing was logged yet"]
    for run in runs:
        lines += ["", *_scores(run, screen, titled=len(runs) > 1)] if run.scores else []
    return "\n".join(line.rstrip() for line in lines)


def default_names(runs: Sequence[Followed]) -> list[str]:
    """The curves of the runs' methods; of old runs what a reader looks for first."""
    found: dict[str, None] = {}
    for run in runs:
        watched = [str(name) for name in run.overview.run.get("watched") or []]
        names = sorted((name for name in run.values if name != "learning_rate"), key=_rank)
        found |= dict.fromkeys(chosen(run.values, watched) or names[:MOST])
    return list(found)


def _rank(name: str) -> tuple[int, str]:
    """Position of a name: by its last part, so that ``train/reward`` stands with ``reward``."""
    short = name.rsplit("/", 1)[-1]
    return (FIRST.index(short) if short in FIRST else len(FIRST), name)


def head(run: Followed) -> str:
    """``runs/demo | rloo | replay | running | stage 2/4 plus_minus, step 120/400 | last written 4 s ago``."""
    overview = run.overview
    facts = [str(run.folder), str(overview.run.get("method") or ""), overview.strategies, overview.status, _where(run)]
    if overview.status == "running":
        facts.append(f"last written {age(overview.idle)} ago")
    elif overview.seconds is not None:
        facts.append(f"took {clock(overview.seconds)}")
    return " | ".join(clean(fact) for fact in facts if fact)


def line(run: Followed) -> str:
    """A run in one line: place and the numbers that matter; what a log gets in place of frames."""
    numbers = told(run.last(), default_names([run]))
    return "  ".join([clean(str(run.folder)), run.overview.status, _where(run), *numbers])


def _where(run: Followed) -> str:
    overview, total = run.overview, len(run.overview.stages)
    now = overview.current
    if now is None:
        return f"{overview.num_done}/{total} stages done"
    steps = f"/{now.steps}" if now.steps else ""
    place = f"stage {now.stage}/{total} {now.task}, step {run.steps.get(now.stage, 0)}{steps}"
    return f"{place}, trained, being judged" if now.state == "trained" else place


# --- curves ------------------------------------------------------------------------------------------------


def _curves(runs: Sequence[Followed], name: str, screen: Screen) -> list[str]:
    """The title and the curve of every run that logged the name, on one scale."""
    having = [run for run in runs if name in run.values]
    curves = [run.curve(name) for run in having]
    scale = bounds([part for parts in curves for part in parts])
    title = clean(name if label(name) == name else f"{label(name)} ({name})")
    if scale is None:
        return [f"{title}: no finite value"]
    end = max(sum(run.steps.values()) for run in having)
    width = max(10, screen.width - AXIS - 1)
    lines = [title if len(runs) > 1 else f"{title}  {_last(having[0], name)}"]
    for run, parts in zip(having, curves, strict=True):
        if len(runs) > 1:
            lines.append(f"{' ' * AXIS} {clean(str(run.folder))}  {_last(run, name)}")
        drawn = draw(parts, width, TALL if len(runs) == 1 else LOW, end, *scale, ascii=screen.ascii)
        lines += _with_axis(drawn, *scale)
    return [*lines, *(_boundaries(having[0], width, end) if len(runs) == 1 else [])]


def _with_axis(drawn: Sequence[str], low: float, high: float) -> list[str]:
    marks = {0: f"{high:.3g}", len(drawn) - 1: f"{low:.3g}"}
    return [f"{marks.get(number, ''):>{AXIS}} {row}" for number, row in enumerate(drawn)]


def _last(run: Followed, name: str) -> str:
    """``0.61, 2 values were no finite numbers``."""
    series = run.values[name]
    lost = sum(number is None for number in series.values())
    newest = series[max(series)]
    shown = "not a finite number" if newest is None else value(name, newest)
    return shown + (f", {lost} of {len(series)} values are no finite numbers" if lost else "")


def _boundaries(run: Followed, width: int, end: float) -> list[str]:
    """Where each stage begins, under the curve: ``|1 plus      |2 plus_minus``."""
    marks = [" "] * width
    tasks = {visit.stage: visit.task for visit in run.overview.stages}
    starts = run.starts()
    places = [(min(width - 1, int(start / end * width)) if end else 0, stage) for stage, start in starts.items()]
    for number, (place, stage) in enumerate(places):
        room = (places[number + 1][0] if number + 1 < len(places) else width) - place
        for offset, character in enumerate(clean(f"|{stage} {tasks.get(stage, '')}")[:room]):
            marks[place + offset] = character
    return [f"{' ' * AXIS} {''.join(marks)}"]


def _scores(run: Followed, screen: Screen, *, titled: bool) -> list[str]:
    """Every task's score after each stage that judged it: ``plus  0.99 0.97 0.86``."""
    arrow = ">" if screen.ascii else "→"
    title = f"scores of {clean(str(run.folder))}" if titled else "scores after each stage"
    lines = []
    for (task, metric), series in headline_scores(run.scores).items():
        numbers = f" {arrow} ".join(f"{series[stage]:.2f}" for stage in sorted(series))
        lines.append(f"  {clean(task)}, {clean(metric)}: {numbers}")
    more = [f"  and {len(lines) - MOST_SCORES} more tasks"] if len(lines) > MOST_SCORES else []
    return [title, *(part for text in lines[:MOST_SCORES] for part in _wrapped(text, screen.width)), *more]


def headline_scores(
    scores: Mapping[tuple[str, str], Mapping[int, float]],
) -> dict[tuple[str, str], Mapping[int, float]]:
    """Of each task the metric that the results matrix shows: success, else the first recorded."""
    by_task: dict[str, list[str]] = {}
    for task, metric in scores:
        by_task.setdefault(task, []).append(metric)
    kept = {task: "success" if "success" in metrics else metrics[0] for task, metrics in by_task.items()}
    return {(task, metric): scores[task, metric] for task, metric in kept.items()}


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width, subsequent_indent="    ", break_on_hyphens=False) or [""]


def record_of(run: Followed, record: Mapping[str, Any]) -> dict[str, Any]:
    """A record for ``--json``, with the run it belongs to."""
    return {"run": str(run.folder), **record}
