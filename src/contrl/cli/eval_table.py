"""The numbers of an evaluation in the terminal: one model in full, several side by side.

Every rate is shown with its interval, and n beside it: a number without them says little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from contrl.evaluation.win_rate import conclusion

_ROWS = (
    ("win_rate", "wins"),
    ("tie_rate", "ties"),
    ("loss_rate", "losses"),
    ("win_rate_ties_half", "wins + half the ties"),
    ("avg_reward", "reward"),
    ("avg_reference_reward", "reward of the reference"),
    ("reward_improvement", "reward improvement"),
    ("avg_model_length", "words"),
    ("avg_ref_length", "words of the reference"),
    ("length_ratio", "length ratio, words"),
    ("length_ratio_tokens", "length ratio, tokens"),
)
_COLUMNS = ("win_rate", "tie_rate", "win_rate_ties_half", "reward_improvement", "length_ratio")


def print_one(metrics: Mapping[str, Any], console: Console | None = None) -> None:
    """All numbers of one model, and what they say."""
    console = console or Console(highlight=False)
    table = Table(title=None, box=None, pad_edge=False)
    for name, side in (("", "left"), ("value", "right"), ("95 % interval", "left")):
        table.add_column(name, justify="right" if side == "right" else "left")
    for name, called in _ROWS:
        if metrics[name] is not None:
            table.add_row(called, _number(metrics[name]), _interval(metrics[f"{name}_ci"]))
    console.print()
    console.print(table)
    console.print(_counted(metrics))
    console.print(conclusion(metrics))


def print_comparison(listed: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """One line for each model."""
    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    called = dict(_ROWS)
    for name in _COLUMNS:
        table.add_column(called[name], justify="right")
    table.add_column("n (missing)", justify="right")
    table.add_column("against")
    for metrics in listed:
        cells = [_with_interval(metrics[name], metrics[f"{name}_ci"]) for name in _COLUMNS]
        count = f"{metrics['num_scored']} ({metrics['missing']})"
        table.add_row(str(metrics["name"]), *cells, count, str(metrics["reference_model"]))
    console.print()
    console.print(table)


def _counted(metrics: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{metrics[f'num_{kind}']} {kind}" for kind in ("wins", "ties", "losses"))
    missing = f"; {metrics['missing']} missing, which count in no rate" if metrics["missing"] else ""
    return f"{metrics['num_scored']} of {metrics['num_prompts']} prompts judged: {counts}{missing}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{_number(bounds[0])} to {_number(bounds[1])}"


def _with_interval(value: float | None, bounds: Sequence[float] | None) -> str:
    if value is None:
        return "-"
    return _number(value) if bounds is None else f"{_number(value)}\n({_interval(bounds)})"
