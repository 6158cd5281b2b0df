"""Rows of any format as prompts, for methods that sample the answers themselves.

Of a pair and of a chat only the question is kept, with every further column: verifiers read those. Pairs often repeat
a question, so it is kept once; rows that are prompts already stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from contrl.data.formats import kind_of, preference_of
from contrl.errors import UserError
from contrl.interfaces import Row

_PAIRS = ("preference", "implicit-preference")
_ANSWERS = ("chosen", "rejected", "margin", "messages")


def to_prompts(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Rows with a ``prompt``, and printable lines about what was left out.

    A row that cannot be read stays as it is: encoding it says why.
    """
    kept: list[Row] = []
    seen: set[str] = set()
    num_pairs = num_repeated = 0
    for row in rows:
        kind = kind_of(row)
        if kind not in (*_PAIRS, "messages"):
            kept.append(row)
            continue
        asked = _question(row, kind)
        num_pairs += kind in _PAIRS
        text = json.dumps(asked.get("prompt"), sort_keys=True, default=str)
        if kind in _PAIRS and text in seen:
            num_repeated += 1
            continue
        seen.add(text)
        kept.append(asked)
    if not num_repeated:
        return kept, []
    return kept, [f"{num_pairs} pairs ask {num_pairs - num_repeated} different questions; each is a prompt once"]


def _question(row: Row, kind: str) -> Row:
    rest = {name: value for name, value in row.items() if name not in _ANSWERS}
    if kind == "messages":
        messages = row.get("messages")
        if not messages or messages[-1].get("role") != "assistant" or len(messages) < 2:
            return row
        return {**rest, "prompt": list(messages[:-1]), "completion": [messages[-1]]}
    prompt, chosen = row.get("prompt"), row["chosen"]
    if prompt and isinstance(prompt, str) == isinstance(chosen, str):
        return {**rest, "prompt": prompt}
    if chosen == row["rejected"] and not isinstance(chosen, str):
        # Nothing is preferred here, and nothing needs to be: the question is what counts.
        return {**rest, "prompt": list(chosen[:-1])}
    try:
        return {**rest, "prompt": preference_of(row)[0]}
    except UserError:
        return row
