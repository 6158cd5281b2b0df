"""Two named sequences that run anywhere, ``tables_and_rules`` and ``opposite_preferences``; docs/tasks/ describes them.

The first is judged by generation (or, as pairs, by the method), the second always by the method: by how many held-out
pairs the chosen side gained in, so a task whose opposite was learnt after it falls from above one half to below.
"""

from __future__ import annotations

from dataclasses import dataclass

from contrl.data.synthetic import (
    TABLES,
    OppositePreferencesConfig,
    TablesAndRulesConfig,
    preference_rows,
    rule_rows,
    table_rows,
)
from contrl.interfaces import Metric, Task
from contrl.rewards.rules import exact_match

EXACT_MATCH = Metric("exact_match", exact_match)


@dataclass(frozen=True)
class TablesAndRules(TablesAndRulesConfig):
    """Random key -> value tables and rules on strings, one task each; a token in the prompt says which."""

    def tasks(self) -> list[Task]:
        """The tasks with their rows; a table is judged on the keys it was taught, which is what memory means."""
        return [self._task(name) for name in self.names]

    def _task(self, name: str) -> Task:
        is_table = name in TABLES
        rows = table_rows(self, name) if is_table else []
        train, held_out = (rows, rows) if is_table else rule_rows(self, name)
        if self.pairs:
            return Task(name, train, held_out, recalls=is_table)
        return Task(name, train, held_out, exact_match, EXACT_MATCH, recalls=is_table)


@dataclass(frozen=True)
class OppositePreferences(OppositePreferencesConfig):
    """Pairs whose preferred side flips from task to task: longer, shorter, yes first, no first."""

    def tasks(self) -> list[Task]:
        """The tasks with their pairs, judged by the method."""
        return [Task(name, *preference_rows(self, name)) for name in self.names]
