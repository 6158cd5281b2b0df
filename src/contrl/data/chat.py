"""From a row's text or messages to token ids and the mask of trained tokens.

Nothing is asked of the chat template: what an assistant turn adds is found by rendering the conversation up to
it and comparing prefixes. Plain text gets the end-of-sequence token once; a template already writes its own.
"""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from contrl.errors import UserError
from contrl.interfaces import Group, Row

ROLES = ("system", "developer", "user", "assistant", "tool")

_SHAREGPT = {"human": "user", "gpt": "assistant", "bot": "assistant"}
_OURS = frozenset({"conversation", "tokenize", "return_dict", "add_generation_prompt", "continue_final_message"})


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example, cut where prediction starts; ``trained`` has one flag per completion token."""

    prompt_ids: list[int]
    completion_ids: list[int]
    trained: list[bool]


# --- what a row may hold ---------------------------------------------------------------------------------


def is_conversational(value: Any) -> bool:
    """Whether a column holds messages (a list of mappings with a role) and not plain text."""
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and isinstance(value[0], Mapping)


def text_of(value: Any, column: str) -> str:
    """The value as text. Raises UserError for anything else and for text that is no UTF-8."""
    if not isinstance(value, str):
        raise UserError(
            f"{column} holds {_kind(value)}, neither text nor a list of messages",
            fix='give a string, or messages like [{"role": "user", "content": "..."}]',
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{column} holds broken UTF-8 (half of a surrogate pair at character {error.start})", fix="mend the text"
        ) from None
    return value


def messages_of(value: Any, column: str) -> list[dict[str, Any]]:
    """Messages with role and content; ``from`` and ``value`` are renamed, human and gpt become user and assistant.

    Raises:
        UserError: for a message without a known role, or whose content is not text.
    """
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(value, start=1):
        where = f"message {number} of {column}"
        if not isinstance(item, Mapping):
            raise UserError(f"{where} is {_kind(item)}, not a mapping with role and content")
        # Files with tables inside fill up with None what only some messages have.
        message = {name: part for name, part in item.items() if part is not None or name == "content"}
        if "from" in message:
            role = message.pop("from")
            message["role"] = _SHAREGPT.get(role, role) if isinstance(role, str) else role
        if "value" in message:
            message["content"] = message.pop("value")
        if message.get("role") not in ROLES:
            raise UserError(f"{where} has the role {message.get('role')!r}", fix=f"known roles: {', '.join(ROLES)}")
        # A turn that only calls tools has no content.
        if not (message.get("tool_calls") and message.get("content") is None):
            text_of(message.get("content"), f"the content of {where}")
        messages.append(message)
    return messages


def value_of(value: Any, column: str) -> str | list[dict[str, Any]]:
    """A column's text or messages, checked."""
    return messages_of(value, column) if is_conversational(value) else text_of(value, column)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    empty = isinstance(value, list | tuple | dict) and not value
    return f"{'an empty' if empty else 'a'} {type(value).__name__}"


def template_options(row: Row) -> dict[str, Any]:
    """What a row itself hands to the chat template: its ``tools`` and ``chat_template_kwargs``.

    Both may be JSON text. An empty list of tools is none, because some templates write their preamble for it.

    Raises:
        UserError: for text that is no JSON, or options that are not a mapping or that contrl sets itself.
    """
    tools, given = (_parsed(row.get(name), name) for name in ("tools", "chat_template_kwargs"))
    if given and not isinstance(given, Mapping):
        raise UserError(f"chat_template_kwargs holds {_kind(given)}, not a mapping")
    options = {name: value for name, value in (given or {}).items() if value is not None}
    taken = sorted(_OURS & options.keys())
    if taken:
        raise UserError(f"chat_template_kwargs sets {', '.join(taken)}", why="contrl decides these")
    return {"tools": tools, **options} if tools else options


def _parsed(value: Any, column: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except json.JSONDecodeError as error:
        raise UserError(f"{column} is text but not JSON: {error.msg}") from None


# --- rendering -------------------------------------------------------------------------------------------


def render(messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, **options: Any) -> list[int]:
    """The conversation through the tokenizer's chat template, as ids. Raises as ``render_text`` does."""
    return _rendered_ids(render_text(messages, tokenizer, **options), tokenizer)


def render_text(messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, **options: Any) -> str:
    """The conversation through the tokenizer's chat template, as text.

    Raises:
        UserError: when the tokenizer has no template or the template refuses the conversation.
    """
    if not (tokenizer.chat_template or options.get("chat_template")):
        raise UserError(
            "the row has messages but the tokenizer has no chat template", fix="use a chat model's tokenizer"
        )
    try:
        return str(tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, **options))
    except Exception as error:  # jinja2 raises what the template's author chose
        raise UserError(f"the chat template refused the conversation: {error}") from error


def _rendered_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # The template has written the special tokens itself.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of plain text that ends here: the end-of-sequence token once, where the tokenizer has one."""
    ids = list(tokenizer(text)["input_ids"])
    end = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, int(end)]


def whole_ids(value: str | list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **options: Any) -> list[int]:
    """A whole example that ends here: plain text with its end token, or a rendered conversation."""
    return _text_ids(value, tokenizer) if isinstance(value, str) else render(value, tokenizer, **options)


def _require_prefix(part: str, whole: str) -> None:
    """Refuse a template under which turns look different once others follow: no boundary would be right."""
    if not whole.startswith(part):
        raise UserError(
            "the chat template rewrites earlier turns once a later one follows",
            why="what a turn added cannot be told from the prompt",
            fix="let each row end with the turn to learn, or use a template that keeps its turns",
        )


# --- prompts, pairs, texts, conversations ----------------------------------------------------------------


def encode_prompt(prompt: Any, tokenizer: PreTrainedTokenizerBase, **options: Any) -> list[int]:
    """A prompt to complete: text as it is, messages with the template's generation prompt.

    A conversation that ends with an assistant turn is continued, as in TRL. ``options`` go to the template
    (``template_options`` takes them from the row).
    """
    prompt = value_of(prompt, "prompt")
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if prompt[-1]["role"] == "assistant":
        return render(prompt, tokenizer, continue_final_message=True, **options)
    return render(prompt, tokenizer, add_generation_prompt=True, **options)


def encode_answers(
    prompt: Any, answers: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, **options: Any
) -> tuple[list[int], list[list[int]]]:
    """The prompt's ids and those of the prompt with each answer, cut at one boundary that all share.

    The boundary is where the prompt alone and all of the wholes still agree, because some tokenizers merge across
    it and some templates write a generation prompt that no rendered conversation holds. So an answer may start
    with the end of the prompt; the ids together are always those of the whole.

    Args:
        prompt: text or messages.
        answers: column -> text or messages, of the prompt's kind.
        options: for the chat template.

    Returns:
        (prompt ids, ids of each answer in order).

    Raises:
        UserError: for a mix of text and messages, an empty prompt, or a template that rewrites the prompt.
    """
    before = value_of(prompt, "prompt")
    wholes: list[list[int]] = []
    rendered = "" if isinstance(before, str) else render_text(before, tokenizer, add_generation_prompt=True, **options)
    for column, value in answers.items():
        answer = value_of(value, column)
        if isinstance(before, str) and isinstance(answer, str):
            wholes.append(_text_ids(before + answer, tokenizer))
        elif isinstance(before, list) and isinstance(answer, list):
            text = render_text([*before, *answer], tokenizer, **options)
            if not text.startswith(rendered):
                _require_prefix(render_text(before, tokenizer, **options), text)
            wholes.append(_rendered_ids(text, tokenizer))
        else:
            raise UserError(f"prompt and {column} must both be text or both be messages")
    alone = list(tokenizer(before)["input_ids"]) if isinstance(before, str) else _rendered_ids(rendered, tokenizer)
    if not alone:
        raise UserError("the prompt is empty", fix="give every row a prompt, or use a `text` column")
    boundary = min(common_prefix(alone, whole) for whole in wholes)
    if boundary == 0:
        raise UserError("the tokenizer merges the whole prompt into the completion", fix="give the row a longer prompt")
    return alone[:boundary], [whole[boundary:] for whole in wholes]


def encode_pair(prompt: Any, completion: Any, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Encoded:
    """Prompt and completion, both text or both messages; every completion token is trained. See ``encode_answers``."""
    before, (answer,) = encode_answers(prompt, {"completion": completion}, tokenizer, **options)
    return Encoded(before, answer, [True] * len(answer))


def encode_text(text: Any, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Plain text: every token but the first is predicted and trained."""
    ids = _text_ids(text_of(text, "text"), tokenizer)
    return Encoded(ids[:1], ids[1:], [True] * len(ids[1:]))


def encode_messages(
    messages: Any, tokenizer: PreTrainedTokenizerBase, *, assistant_only: bool, **options: Any
) -> Encoded:
    """A conversation: every token, or only what assistant turns added, is trained.

    Raises:
        UserError: with ``assistant_only``, for a template under which earlier turns change when others follow.
    """
    if not is_conversational(messages):
        raise UserError(f"messages holds {_kind(messages)}", fix='give [{"role": "user", "content": "..."}, ...]')
    turns = messages_of(messages, "messages")
    text = render_text(turns, tokenizer, **options)
    ids = _rendered_ids(text, tokenizer)
    trained = [not assistant_only] * len(ids)
    for turn, message in enumerate(turns) if assistant_only else ():
        if message["role"] == "assistant":
            before = render_text(turns[:turn], tokenizer, add_generation_prompt=True, **options) if turn else ""
            after = render_text(turns[: turn + 1], tokenizer, **options)
            _require_prefix(after, text)
            start, end = (common_prefix(_rendered_ids(part, tokenizer), ids) for part in (before, after))
            trained[start:end] = [True] * (end - start)
    return Encoded(ids[:1], ids[1:], trained[1:])


def common_prefix(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many leading items two sequences share."""
    differs = map(operator.ne, a, b)
    return next(itertools.compress(itertools.count(), differs), min(len(a), len(b)))


# --- the never-stops bug ---------------------------------------------------------------------------------


def check_end_trained(groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase) -> str:
    """A warning when answers that were not cut do not end with a trained end token; "" when all of them do.

    A model learns to stop only where its end-of-sequence or end-of-turn token is itself a trained token. Padding
    does not matter here: contrl masks it by length, so a pad token that equals the end token masks no end.
    """
    without, _ = _ends(groups, tokenizer)
    if not without:
        return ""
    answers = sum(completion.ended for group in groups for completion in group.completions)
    named = ", ".join(dict.fromkeys(group.row_id for group in without[:3]))
    return (
        f"{len(without)} of {answers} answers do not end with a trained end token, so the model does not learn to "
        f"stop after them (rows {named} ...)"
    )


def require_end_trained(groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse conversations of which not a single uncut answer ends with a trained end token.

    Raises:
        UserError: a model trained on them would never stop.
    """
    chats = [group for group in groups if any(is_conversational(value) for value in group.row.values())]
    without, with_end = _ends(chats, tokenizer)
    if without and not with_end:
        raise UserError(
            f"none of {len(without)} answers ends with a trained end token: the model would never learn to stop",
            why="the chat template writes no end-of-turn or end-of-sequence token after the assistant's words",
            fix="use a chat template that does, or end each row with an assistant turn",
        )


def _ends(groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase) -> tuple[list[Group], list[Group]]:
    """The groups of uncut answers without and with a trained end token, one entry an answer."""
    if not any(group.completions for group in groups):
        return [], []
    ends, width = _end_tokens(tokenizer)
    found: tuple[list[Group], list[Group]] = ([], [])
    for group in groups:
        for completion in group.completions:
            if completion.ended:
                last = completion.ids[-width:]
                flags = [True] * len(last) if completion.trained is None else completion.trained[-width:]
                found[any(flag and i in ends for i, flag in zip(last, flags, strict=True))].append(group)
    return found


def _end_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[set[int], int]:
    """The tokens that end an answer, and among how many last tokens of it they stand."""
    ends = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    if not tokenizer.chat_template:
        return ends, 1
    probe = "contrl"
    try:
        text = render_text([{"role": "user", "content": "?"}, {"role": "assistant", "content": probe}], tokenizer)
    except UserError:  # a template for other conversations than this one; the end-of-sequence token remains
        return ends, 1
    tail = _rendered_ids(text.rpartition(probe)[2], tokenizer)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return ends | (special & set(tail)), max(1, len(tail))
