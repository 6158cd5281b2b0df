"""results.json as an object: the matrix with null for what was not measured, and every number with its formula.

Derived from the logs of a run folder and nothing else, so it can be made again at any time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from contrl.continual.flips import flips_of
from contrl.continual.movement import drift, weight_change
from contrl.continual.records import SCHEMA_VERSION

FLIPS = (
    "shares of a task's items between stage last(j) and stage end: lost right -> wrong, gained wrong -> right, "
    "kept right in both, never right in neither"
)

if TYPE_CHECKING:
    from contrl.continual.matrix import Metric
    from contrl.continual.results import Results


def as_json(results: Results) -> dict[str, Any]:
    """results.json as an object: the matrix with null for what was not measured, and every metric with its formula."""
    return {
        "schema_version": SCHEMA_VERSION,
        "status": results.run.get("status"),
        "metric": results.metric,
        "tasks": list(results.tasks),
        "rows": list(results.rows),
        "trained": [[results.tasks[column] for column in columns] for columns in results.trained],
        "matrix": [
            [cell and {"value": cell.value, "se": cell.se, "n": cell.n} for cell in row] for row in results.matrix
        ],
        "final_row": results.rows[results.end] if results.end >= 0 else None,
        "metrics": {name: _metric(metric) for name, metric in results.metrics.items()},
        "flips": _flips(results),
        "drift": drift(results),
        "weight_change": weight_change(results),
        "notes": list(results.notes),
    }


def _metric(metric: Metric) -> dict[str, Any]:
    found = {
        "value": metric.value,
        "low": metric.low,
        "high": metric.high,
        "n": metric.n,
        "formula": metric.formula,
        "higher_is_better": metric.higher_is_better,
        "basis": metric.basis,
    }
    return found if metric.bias is None else found | {"bias": metric.bias}


def _flips(results: Results) -> dict[str, Any]:
    """Of every task trained before the final row: its items between just-learned and final; null without bits."""
    tasks: dict[str, Any] = {}
    for column, task in enumerate(results.tasks):
        last = results.numbers.last_visit(column, results.end)
        if last is None or last == results.end:
            continue
        flips = flips_of(results.numbers, column, last, results.end)
        place = {"since": results.rows[last], "until": results.rows[results.end]}
        shares = {name: getattr(flips, name, None) for name in ("lost", "gained", "kept", "never", "n")}
        tasks[task] = place | shares
    return {"formula": FLIPS, "tasks": tasks}
