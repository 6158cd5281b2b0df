"""From a row's text or messages to token ids and the mask of trained tokens.

Nothing is asked of the chat template: what an assistant turn adds is found by rendering the conversation up to
it and comparing prefixes. Plain text gets the end-of-sequence token once; a template already writes its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from contrl.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example, cut where prediction starts; ``trained`` has one flag per completion token."""

    prompt_ids: list[int]
    completion_ids: list[int]
    trained: list[bool]


def is_conversational(value: Any) -> bool:
    """Whether a column holds messages (a list of mappings with a role) and not plain text."""
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and isinstance(value[0], Mapping)


def render(messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, **options: Any) -> list[int]:
    """The conversation through the tokenizer's chat template, as ids. Raises as ``render_text`` does."""
    return _rendered_ids(render_text(messages, tokenizer, **options), tokenizer)


def render_text(messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, **options: Any) -> str:
    """The conversation through the tokenizer's chat template, as text.

    Raises:
        UserError: when the tokenizer has no template or the template refuses the conversation.
    """
    if not tokenizer.chat_template:
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


def _require_prefix(part: str, whole: str) -> None:
    """Refuse a template under which turns look different once others follow: no boundary would be right."""
    if not whole.startswith(part):
        raise UserError(
            "the chat template rewrites earlier turns once a later one follows",
            why="what a turn added cannot be told from the prompt",
            fix="let each row end with the turn to learn, or use a template that keeps its turns",
        )


def encode_prompt(prompt: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A prompt to complete: text as it is, messages with the template's generation prompt.

    A conversation that ends with an assistant turn is continued, as in TRL.
    """
    if is_conversational(prompt):
        if prompt[-1]["role"] == "assistant":
            return render(prompt, tokenizer, continue_final_message=True)
        return render(prompt, tokenizer, add_generation_prompt=True)
    return list(tokenizer(str(prompt))["input_ids"])


def encode_pair(prompt: Any, completion: Any, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Prompt and completion, both text or both messages; every completion token is trained.

    The boundary is the longest common token prefix of the prompt and of prompt + completion, because some
    tokenizers merge across it.

    Raises:
        UserError: for a mix of text and messages, an empty prompt, or a template that rewrites the prompt.
    """
    if is_conversational(prompt) != is_conversational(completion):
        raise UserError("prompt and completion must both be text or both be messages")
    before = encode_prompt(prompt, tokenizer)
    if is_conversational(prompt):
        text = render_text([*prompt, *completion], tokenizer)
        _require_prefix(render_text(prompt, tokenizer), text)
        whole = _rendered_ids(text, tokenizer)
    else:
        whole = _text_ids(str(prompt) + str(completion), tokenizer)
    boundary = _common_prefix(before, whole)
    if not before:
        raise UserError("the prompt is empty", fix="give every row a prompt, or use a `text` column")
    if boundary == 0:
        raise UserError("the tokenizer merges the whole prompt into the completion", fix="give the row a longer prompt")
    return Encoded(whole[:boundary], whole[boundary:], [True] * (len(whole) - boundary))


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """Plain text: every token but the first is predicted and trained."""
    ids = _text_ids(text, tokenizer)
    return Encoded(ids[:1], ids[1:], [True] * len(ids[1:]))


def encode_messages(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, assistant_only: bool
) -> Encoded:
    """A conversation: every token, or only what assistant turns added, is trained.

    Raises:
        UserError: with ``assistant_only``, for a template under which earlier turns change when others follow.
    """
    text = render_text(messages, tokenizer)
    ids = _rendered_ids(text, tokenizer)
    trained = [not assistant_only] * len(ids)
    for turn, message in enumerate(messages) if assistant_only else ():
        if message["role"] == "assistant":
            before = render_text(messages[:turn], tokenizer, add_generation_prompt=True) if turn else ""
            after = render_text(messages[: turn + 1], tokenizer)
            _require_prefix(after, text)
            start, end = (_common_prefix(_rendered_ids(part, tokenizer), ids) for part in (before, after))
            trained[start:end] = [True] * (end - start)
    return Encoded(ids[:1], ids[1:], trained[1:])


def _common_prefix(a: list[int], b: list[int]) -> int:
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
