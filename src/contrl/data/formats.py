"""Which columns make an example: TRL's data set formats, found by the names of the columns, as token ids.

A column that holds None is absent, because files with several formats fill up with it. What cannot be used raises
a UserError that names the columns found or the value that is wrong; whoever reads many rows counts these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from contrl.data.chat import (
    Encoded,
    common_prefix,
    encode_answers,
    encode_messages,
    encode_pair,
    encode_text,
    is_conversational,
    template_options,
    value_of,
    whole_ids,
)
from contrl.errors import UserError
from contrl.interfaces import Row

SUPERVISED = "prompt and completion, or messages, or text, or input_ids"
PREFERENCE = "prompt, chosen and rejected, or chosen and rejected, or chosen_ids and rejected_ids"
UNPAIRED = "prompt, completion and label (true or false)"

IGNORED = -100
"""The label of a token that is not trained, in rows that come as token ids."""


@dataclass(frozen=True)
class Side:
    """One answer of a pair: its ids after the shared prompt, and which of them are trained."""

    ids: list[int]
    trained: list[bool]


@dataclass(frozen=True)
class EncodedPair:
    """A preference as token ids; ``prompt_ids`` is shared by both sides."""

    prompt_ids: list[int]
    chosen: Side
    rejected: Side


def kind_of(row: Row) -> str:
    """The format of a row, by its columns.

    Returns:
        tokenized, preference, implicit-preference, unpaired, prompt-completion, messages, text, prompt or unknown.
    """
    columns = _present(_legacy(row)).keys()
    for kind, needed in (
        ("tokenized", {"input_ids"}),
        ("tokenized", {"chosen_ids", "rejected_ids"}),
        ("preference", {"prompt", "chosen", "rejected"}),
        ("implicit-preference", {"chosen", "rejected"}),
        ("unpaired", {"prompt", "completion", "label"}),
        ("prompt-completion", {"prompt", "completion"}),
        ("messages", {"messages"}),
        ("messages", {"conversations"}),
        ("text", {"text"}),
        ("prompt", {"prompt"}),
    ):
        if needed <= columns:
            return kind
    return "unknown"


# --- supervised ------------------------------------------------------------------------------------------


def encode_row(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    *,
    assistant_only: bool = False,
    completion_only: bool | None = None,
) -> Encoded:
    """A supervised row as token ids.

    Args:
        row: ``prompt`` + ``completion``, ``messages`` (or ``conversations``), ``text``, or token ids: ``input_ids``
            with ``labels``, or with ``completion_mask`` and ``assistant_masks``.
        tokenizer: of the model.
        assistant_only: of messages, train only what assistant turns added.
        completion_only: None trains the completion where there is one and everything otherwise; False trains the
            prompt as well (``prompt_ids`` is then the first token).

    Raises:
        UserError: naming the columns found and the formats accepted, or what is wrong with a value.
    """
    present = _present(row)
    if "input_ids" in present:
        return _tokenized(present, assistant_only=assistant_only, completion_only=completion_only)
    options = template_options(present)
    if "completion" in present and "prompt" in present:
        encoded = encode_pair(present["prompt"], present["completion"], tokenizer, **options)
        if assistant_only:
            turns = _conversation(present["prompt"], "prompt") + _conversation(present["completion"], "completion")
            mask = encode_messages(turns, tokenizer, assistant_only=True, **options).trained
            # Both masks hold: of the whole without its first token, or of what follows the prompt.
            trained = mask[len(encoded.prompt_ids) - 1 :]
            encoded = Encoded(encoded.prompt_ids, encoded.completion_ids, trained)
            return encoded if completion_only is not False else _from_first(encoded, mask)
        return encoded if completion_only is not False else _from_first(encoded)
    if completion_only:
        raise _refused(row, "has no completion to train alone", "prompt and completion, or input_ids")
    if "messages" in present or "conversations" in present:
        messages = present.get("messages", present.get("conversations"))
        return encode_messages(messages, tokenizer, assistant_only=assistant_only, **options)
    if "text" in present:
        if assistant_only:
            raise UserError("assistant_only trains assistant turns, and text has none", fix="give messages")
        return encode_text(present["text"], tokenizer)
    raise _refused(row, "are no supervised row", SUPERVISED)


def _conversation(value: Any, column: str) -> list[Any]:
    if not is_conversational(value):
        raise UserError(f"assistant_only trains assistant turns, and {column} is text", fix="give messages")
    return list(value)


def _from_first(encoded: Encoded, trained: list[bool] | None = None) -> Encoded:
    """The same ids, predicted from the first token on."""
    ids = encoded.prompt_ids + encoded.completion_ids
    return Encoded(ids[:1], ids[1:], [True] * len(ids[1:]) if trained is None else trained)


def _tokenized(row: Row, *, assistant_only: bool, completion_only: bool | None) -> Encoded:
    """A row of token ids: given labels win, else the masks that apply, else every token is trained."""
    ids = _ids(row["input_ids"], "input_ids")
    masks = [row[name] for name in ("completion_mask", "assistant_masks") if name in row]
    if completion_only is False and "completion_mask" in row:
        masks = masks[1:]
    if "labels" in row:
        masks = [[label != IGNORED for label in row["labels"]]]
        wrong = [i for i, label in zip(ids, row["labels"], strict=False) if label not in (IGNORED, i)]
        if wrong:
            raise UserError("labels differ from input_ids", fix=f"repeat the ids, with {IGNORED} where none is learnt")
    elif (assistant_only and "assistant_masks" not in row) or (completion_only and "completion_mask" not in row):
        needed = "assistant_masks" if assistant_only else "completion_mask"
        raise UserError(f"a row of input_ids has no {needed} and no labels", fix=f"give {needed}")
    if any(len(mask) != len(ids) for mask in masks):
        raise UserError(f"a mask or labels of another length than the {len(ids)} input_ids")
    trained = [all(mask[position] for mask in masks) for position in range(len(ids))]
    # What precedes the first trained token is the prompt; the first token is never predicted.
    start = max(1, next((position for position, flag in enumerate(trained) if flag), len(ids)))
    return Encoded(ids[:start], ids[start:], trained[start:])


def _ids(value: Any, column: str) -> list[int]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise UserError(f"{column} is no list of token ids, or an empty one")
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value):
        raise UserError(f"{column} holds what is no token id")
    return list(value)


# --- preferences -----------------------------------------------------------------------------------------


def encode_preference(row: Row, tokenizer: PreTrainedTokenizerBase) -> EncodedPair:
    """A pair for methods that compare answers to one prompt: explicit or implicit prompt, or token ids.

    The prompt ends where the prompt alone, the prompt with the chosen and the prompt with the rejected answer still
    have the same tokens; everything after it is trained, on both sides, as in TRL. Plain text ends with the
    end-of-sequence token once, messages with what the template writes.

    Raises:
        UserError: for columns that are no preference, identical or empty answers, a mix of text and messages, content
            that is no text, an unknown role, or an empty prompt.
    """
    present = _present(_legacy(row))
    if "chosen_ids" in present and "rejected_ids" in present:
        return _tokenized_pair(present, shortest_prompt=1)
    prompt, chosen, rejected = preference_of(row)
    if not prompt:
        raise UserError(
            "the prompt is empty", why="chosen and rejected have no beginning in common", fix="give a prompt column"
        )
    before, (good, bad) = encode_answers(
        prompt, {"chosen": chosen, "rejected": rejected}, tokenizer, **template_options(present)
    )
    _refuse_equal(good, bad)
    return EncodedPair(before, _all_trained(good), _all_trained(bad))


def encode_scored(row: Row, tokenizer: PreTrainedTokenizerBase) -> EncodedPair:
    """A pair for reward models: two whole sequences; what their tokens share at the start is ``prompt_ids``.

    ``prompt_ids`` may be empty; each side keeps at least one token. Raises as ``encode_preference`` does.
    """
    present = _present(_legacy(row))
    if "chosen_ids" in present and "rejected_ids" in present:
        return _tokenized_pair(present, shortest_prompt=0)
    prompt, chosen, rejected = preference_of(row)
    options = template_options(present)
    good, bad = (whole_ids(prompt + side if prompt else side, tokenizer, **options) for side in (chosen, rejected))
    _refuse_equal(good, bad)
    return _shared(good, bad)


def preference_of(row: Row) -> tuple[Any, Any, Any]:
    """(prompt, chosen, rejected) as checked text or messages, the prompt taken out of the answers.

    The prompt may be empty. Raises as ``encode_preference`` does.
    """
    present = _present(row)
    if "chosen" not in present or "rejected" not in present:
        raise _refused(row, "are no preference", PREFERENCE)
    chosen, rejected = (value_of(present[column], column) for column in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise UserError("chosen and rejected must both be text or both be messages")
    prompt = value_of(present["prompt"], "prompt") if "prompt" in present and present["prompt"] != [] else None
    _refuse_equal(chosen, rejected)
    _refuse_empty(chosen, rejected)
    if prompt is not None and isinstance(prompt, str) != isinstance(chosen, str):
        # Some data sets carry the first turn as text beside conversations that hold it.
        if isinstance(prompt, list) or not common_prefix(chosen, rejected):
            raise UserError("prompt and chosen must both be text or both be messages")
        prompt = None
    if prompt is None:
        return split_prompt(chosen, rejected)
    if isinstance(prompt, list) and chosen[: len(prompt)] == prompt == rejected[: len(prompt)]:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        _refuse_empty(chosen, rejected)
    return prompt, chosen, rejected


def _refuse_equal(chosen: Any, rejected: Any) -> None:
    if chosen == rejected:
        raise UserError("chosen and rejected are identical: the pair says nothing about preference")


def _refuse_empty(chosen: Any, rejected: Any) -> None:
    for column, value in (("chosen", chosen), ("rejected", rejected)):
        said = value if isinstance(value, str) else [m for m in value if m.get("content") or m.get("tool_calls")]
        if not said:
            raise UserError(f"{column} is empty: it holds no answer")


def split_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """(prompt, chosen, rejected): what two texts or conversations have in common at the start is the prompt.

    As in TRL a space before the difference belongs to the answers, and each answer keeps at least one character or
    message.
    """
    length = min(common_prefix(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    if length > 0 and chosen[length] != rejected[length] and chosen[length - 1] == " ":
        length -= 1
    return chosen[:length], chosen[length:], rejected[length:]


def _tokenized_pair(row: Row, *, shortest_prompt: int) -> EncodedPair:
    chosen, rejected = (_ids(row[column], column) for column in ("chosen_ids", "rejected_ids"))
    _refuse_equal(chosen, rejected)
    if "prompt_ids" in row:
        return EncodedPair(_ids(row["prompt_ids"], "prompt_ids"), _all_trained(chosen), _all_trained(rejected))
    pair = _shared(chosen, rejected)
    if len(pair.prompt_ids) < shortest_prompt:
        raise UserError("chosen_ids and rejected_ids share no first token", fix="give prompt_ids")
    return pair


def _shared(chosen: list[int], rejected: list[int]) -> EncodedPair:
    """Two whole sequences, cut after the tokens they share."""
    length = max(0, min(common_prefix(chosen, rejected), len(chosen) - 1, len(rejected) - 1))
    return EncodedPair(chosen[:length], _all_trained(chosen[length:]), _all_trained(rejected[length:]))


def _all_trained(ids: list[int]) -> Side:
    return Side(ids, [True] * len(ids))


# --- unpaired --------------------------------------------------------------------------------------------


def encode_unpaired(row: Row, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """A prompt with one answer that is good or bad (``label_of``); every token of the answer is trained.

    Raises:
        UserError: for columns that are no unpaired preference, or as ``encode_pair`` does.
    """
    present = _present(row)
    if "completion" not in present and "chosen" in present:
        # A pair that was not taken apart because something is wrong with it: say what.
        preference_of(row)
    if not {"prompt", "completion", "label"} <= present.keys():
        raise _refused(row, "are no unpaired preference", UNPAIRED)
    label_of(present)
    return encode_pair(present["prompt"], present["completion"], tokenizer, **template_options(present))


def label_of(row: Row) -> bool:
    """Whether an unpaired answer is a good one. Raises UserError when its label is neither a bool nor 0 or 1."""
    label = row.get("label")
    if not isinstance(label, bool | int | float) or label not in (0, 1):
        raise UserError(f"the label is {label!r}", fix="use true or false (or 1 and 0)")
    return bool(label)


# --- columns ---------------------------------------------------------------------------------------------


def _present(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def _legacy(row: Row) -> Mapping[str, Any]:
    """Token columns under their present names."""
    return {name.replace("_input_ids", "_ids"): value for name, value in row.items()}


def _refused(row: Row, what: str, accepted: str) -> UserError:
    names = ", ".join(sorted(_present(row))) or "(none)"
    null = sorted(row.keys() - _present(row).keys())
    also = f" (null: {', '.join(null)})" if null else ""
    return UserError(f"columns {names} {what}{also}", fix=f"give {accepted}")
