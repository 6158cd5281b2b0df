"""Data sets known by a short name, and how each one's raw rows become rows of ours: pure functions of a row.

Two families. The small-RLHF recipes (``uc ufb hh shp``) write plain text with "### Human" and "### Assistant" turns;
``smoltalk`` and ``ultrafeedback`` keep messages, for the model's own chat template. A row that a recipe leaves out
by design is counted; a row that it cannot convert is kept as unusable, with the reason, so that it counts as bad.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contrl.errors import UserError
from contrl.interfaces import Row

HUMAN, ASSISTANT = "\n### Human:", "\n### Assistant:"
HH_HUMAN, HH_ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

UNUSABLE = "unusable"
"""Column of a row that could not be converted: the reason."""

MIN_SCORE_RATIO = 2.0
"""shp keeps pairs whose better score is at least this many times the other."""


@dataclass(frozen=True)
class Recipe:
    """A named data set.

    Attributes:
        hub: its name on the hub.
        splits: our name of a split -> the origin's.
        columns: the origin's columns that are read.
        convert: a raw row -> columns of ours, or None for a row the recipe leaves out; UserError for a bad one.
        leaves_out: which rows ``convert`` leaves out, to be read after a number.
        kind: what the converted rows are: supervised, or preference pairs.
        folders: our name of a split -> the folder on the hub that holds it, where splits are folders.
    """

    name: str
    hub: str
    splits: Mapping[str, str]
    licence: str
    columns: tuple[str, ...]
    convert: Callable[[Row], dict[str, Any] | None]
    leaves_out: str
    kind: str = "preference"
    folders: Mapping[str, str] = field(default_factory=dict)


# --- conversions ----------------------------------------------------------------------------------------


def _answer(text: Any, column: str) -> str:
    """A response, which starts with one space: prompts end with a colon."""
    return " " + _string(text, column).lstrip(" ")


def _string(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{column} holds {_kind(value)}, not text")
    return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _messages(row: Row, column: str) -> list[dict[str, str]]:
    """The messages of a column, with role and content alone."""
    value = row.get(column)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise UserError(f"{column} holds {_kind(value) if value != [] else 'no message'}, not a list of messages")
    result = []
    for message in value:
        if not isinstance(message, Mapping) or "role" not in message:
            raise UserError(f"{column} holds a message without role")
        content = _string(message.get("content"), f"the content of a message in {column}")
        result.append({"role": _string(message["role"], f"a role in {column}"), "content": content})
    return result


def _ends_with_assistant(messages: Sequence[Mapping[str, str]]) -> bool:
    return messages[-1]["role"] == "assistant"


def _transcript(messages: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """Prompt and response: all messages but the last as "###" turns, the last as it is.

    Raises:
        UserError: for a role the transcript has no word for.
    """
    words = {"user": HUMAN, "assistant": ASSISTANT}
    for message in messages:
        if message["role"] not in words:
            raise UserError(f"the role {message['role']!r} has no turn of its own", fix="user and assistant have")
    turns = [f"{words[message['role']]} {message['content']}" for message in messages[:-1]]
    return "".join([*turns, ASSISTANT]), _answer(messages[-1]["content"], "the last message")


def ultrachat(row: Row) -> dict[str, Any] | None:
    """uc: the last message is the response; there is no worse one, so chosen = rejected = response."""
    messages = _messages(row, "messages")
    if not _ends_with_assistant(messages):
        return None
    prompt, response = _transcript(messages)
    return {"prompt": prompt, "chosen": response, "rejected": response}


def ultrafeedback_text(row: Row) -> dict[str, Any] | None:
    """ufb: the last messages of both conversations are the responses."""
    chosen, rejected = _messages(row, "chosen"), _messages(row, "rejected")
    if not (_ends_with_assistant(chosen) and _ends_with_assistant(rejected)):
        return None
    prompt, better = _transcript(chosen)
    return {"prompt": prompt, "chosen": better, "rejected": _transcript(rejected)[1]}


def helpful_harmless(row: Row) -> dict[str, Any] | None:
    """hh: two transcripts, each cut after its own last assistant marker; the prompt is that of the chosen one.

    The origin cut the rejected one at the same character as the chosen one, which tears words where the turns before
    differ.
    """
    parts = [_string(row.get(column), column).rpartition(HH_ASSISTANT) for column in ("chosen", "rejected")]
    if not all(marker for _, marker, _ in parts):
        raise UserError("a transcript has no assistant turn", fix="turns begin with 'Human:' and 'Assistant:'")
    if any(HH_HUMAN in answer for _, _, answer in parts):
        return None
    prompt = (parts[0][0] + HH_ASSISTANT).replace(HH_HUMAN, HUMAN).replace(HH_ASSISTANT, ASSISTANT)
    chosen, rejected = (_answer(answer, "an answer") for _, _, answer in parts)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def human_preferences(row: Row) -> dict[str, Any] | None:
    """shp: two replies to a post, where one has at least twice the score of the other; ``labels`` 1 means A wins."""
    a, b = (_number(row.get(column), column) for column in ("score_A", "score_B"))
    label = _number(row.get("labels"), "labels")
    if label not in (0, 1):
        raise UserError(f"labels is {row['labels']!r}, not 0 or 1")
    prompt = f"{HUMAN} {_string(row.get('history'), 'history')}{ASSISTANT}"
    replies = [_answer(row.get(column), column) for column in ("human_ref_A", "human_ref_B")]
    if max(_ratio(a, b), _ratio(b, a)) < MIN_SCORE_RATIO:
        return None
    chosen, rejected = replies if label == 1 else replies[::-1]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _number(value: Any, column: str) -> float:
    if not isinstance(value, int | float):
        raise UserError(f"{column} holds {_kind(value)}, not a number")
    return float(value)


def _ratio(a: float, b: float) -> float:
    """a / b in the limit: nothing is infinitely more than 0, and two zeros are equal."""
    if b == 0:
        return 1.0 if a == 0 else math.copysign(math.inf, a)
    return a / b


def chat(row: Row) -> dict[str, Any] | None:
    """smoltalk: the messages as they are."""
    messages = _messages(row, "messages")
    return {"messages": messages} if _ends_with_assistant(messages) else None


def chat_pairs(row: Row) -> dict[str, Any] | None:
    """ultrafeedback: the prompt as messages, and of each answer only its own message."""
    chosen, rejected = _messages(row, "chosen"), _messages(row, "rejected")
    if not (_ends_with_assistant(chosen) and _ends_with_assistant(rejected)):
        return None
    if len(chosen) < 2:
        raise UserError("chosen holds an answer without a question")
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def stack_exchange(row: Row) -> dict[str, Any] | None:
    """se-paired: a question, the better answer (j) and the worse one (k), as StackLLaMA 2 puts them."""
    return {
        "prompt": f"Question: {_string(row.get('question'), 'question')}\n\nAnswer: ",
        "chosen": _string(row.get("response_j"), "response_j"),
        "rejected": _string(row.get("response_k"), "response_k"),
    }


# --- the names --------------------------------------------------------------------------------------------

_NO_ANSWER = "do not end with an assistant turn"
_ULTRAFEEDBACK = ("HuggingFaceH4/ultrafeedback_binarized", {"train": "train_prefs", "test": "test_prefs"}, "MIT")

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "uc",
            "HuggingFaceH4/ultrachat_200k",
            {"train": "train_sft", "test": "test_sft"},
            "MIT",
            ("messages",),
            ultrachat,
            _NO_ANSWER,
            "supervised",
        ),
        Recipe("ufb", *_ULTRAFEEDBACK, ("chosen", "rejected"), ultrafeedback_text, _NO_ANSWER),
        Recipe(
            "hh",
            "Anthropic/hh-rlhf",
            {"train": "train", "test": "test"},
            "MIT",
            ("chosen", "rejected"),
            helpful_harmless,
            _NO_ANSWER,
        ),
        Recipe(
            "shp",
            "stanfordnlp/SHP",
            {"train": "train", "validation": "validation", "test": "test"},
            "see dataset card",
            ("history", "human_ref_A", "human_ref_B", "labels", "score_A", "score_B"),
            human_preferences,
            f"have scores closer than a factor of {MIN_SCORE_RATIO:g}",
        ),
        Recipe(
            "smoltalk",
            "HuggingFaceTB/smol-smoltalk",
            {"train": "train", "test": "test"},
            "Apache-2.0",
            ("messages",),
            chat,
            _NO_ANSWER,
            "supervised",
        ),
        Recipe("ultrafeedback", *_ULTRAFEEDBACK, ("chosen", "rejected"), chat_pairs, _NO_ANSWER),
        Recipe(
            "se-paired",
            "lvwerra/stack-exchange-paired",
            {"train": "train", "test": "test"},
            "CC BY-SA 4.0",
            ("question", "response_j", "response_k"),
            stack_exchange,
            "are left out",
            folders={"train": "data/rl", "test": "data/evaluation"},
        ),
    )
}


def convert_all(recipe: Recipe, raw: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Every raw row through a recipe, in order.

    Returns:
        The rows, with ``source`` and an ``id`` of source and raw id ("hh/12"); one that cannot be converted has the
        column ``unusable`` instead of its text. And notes: how many rows the recipe left out.

    Raises:
        UserError: when the rows have not the origin's columns.
    """
    absent = [column for column in recipe.columns if raw and not any(column in row for row in raw)]
    if absent:
        raise UserError(
            f"the rows for {recipe.name} have no column {', '.join(absent)}",
            why=f"found {', '.join(sorted(set(raw[0]) - {'id'}))}; it reads {recipe.hub} in its own columns",
            fix="give rows that are converted already by the path of their file",
        )
    rows: list[Row] = []
    for row in raw:
        known = {"id": f"{recipe.name}/{row['id']}", "source": recipe.name}
        try:
            columns = recipe.convert(row)
        except UserError as error:
            columns = {UNUSABLE: error.what}
        if columns is not None:
            rows.append({**columns, **known})
    left = len(raw) - len(rows)
    return rows, [f"{recipe.name}: {left} of {len(raw)} rows left out: they {recipe.leaves_out}"] if left else []


# --- rows for a method --------------------------------------------------------------------------------------


def to_supervised(rows: Sequence[Row]) -> list[Row]:
    """Preference rows as rows to imitate: the chosen answer is the completion. Other rows stay as they are."""
    return [as_supervised(row) for row in rows]


def as_supervised(row: Row) -> Row:
    """One row as ``to_supervised`` does; without a prompt of its own kind the chosen conversation is the whole text."""
    if row.get("chosen") is None or any(row.get(name) is not None for name in ("completion", "messages", "text")):
        return row
    rest = {name: value for name, value in row.items() if name not in ("prompt", "chosen", "rejected", "margin")}
    prompt, chosen = row.get("prompt"), row["chosen"]
    if prompt is not None and isinstance(prompt, str) == isinstance(chosen, str):
        return {**rest, "prompt": prompt, "completion": chosen}
    return {**rest, "text" if isinstance(chosen, str) else "messages": chosen}


def without_signal(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Leave out every source none of whose rows prefers anything: chosen equals rejected in all of them.

    A single such pair within another source stays: it is a bad row of that source. Unusable rows have no say.

    Returns:
        The rows kept, and one note for each source left out.

    Raises:
        UserError: when nothing is left.
    """
    pairs = [row for row in rows if row.get("chosen") is not None and row.get("rejected") is not None]
    all_of = Counter(row.get("source") for row in pairs)
    equal = Counter(row.get("source") for row in pairs if row["chosen"] == row["rejected"])
    silent = {source for source, number in all_of.items() if equal[source] == number}
    kept = [row for row in rows if row.get("source") not in silent]
    if rows and not kept:
        names = ", ".join(str(source or "the data") for source in silent)
        raise UserError(
            f"no preferences to learn from: in {names} every chosen answer equals the rejected one",
            fix="add a source with preferences, or train on it with sft",
        )
    left = Counter(row.get("source") for row in rows)
    return kept, [
        f"{source or 'data'}: all {left[source]} rows left out: chosen and rejected are equal, so nothing is preferred"
        for source in all_of
        if source in silent
    ]
