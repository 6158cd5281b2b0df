"""Conversions between data set formats, under TRL's names, for a row or a whole data set.

A row is a mapping; a data set is a ``datasets.Dataset`` or a ``DatasetDict``. Nothing is changed in place. Where these
are called by contrl itself they work on rows; data sets are converted for users who come with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from contrl.data import chat
from contrl.data.chat import common_prefix, render_text, template_options
from contrl.data.formats import preference_of, split_prompt
from contrl.data.packing import pack_dataset
from contrl.errors import UserError
from contrl.interfaces import Row

__all__ = [
    "apply_chat_template",
    "extract_prompt",
    "is_conversational",
    "maybe_apply_chat_template",
    "maybe_convert_to_chatml",
    "maybe_extract_prompt",
    "maybe_unpair_preference_dataset",
    "pack_dataset",
    "unpair",
    "unpair_preference_dataset",
]

_CONTENT = ("prompt", "chosen", "rejected", "completion", "messages")


def is_conversational(example: Any) -> bool:
    """Whether a row (or a data set's first row) holds messages with a role and not plain text."""
    row = example if isinstance(example, Mapping) and not _is_splits(example) else _first(example)
    return any(chat.is_conversational(row[name]) and "role" in row[name][0] for name in _CONTENT if name in row)


# --- prompts ---------------------------------------------------------------------------------------------


def extract_prompt(example: Any) -> Any:
    """``chosen`` and ``rejected`` with what they have in common at the start as the ``prompt``.

    A row gives those three columns alone; a data set keeps its others.
    """
    if _is_dataset(example):
        return example.map(extract_prompt)
    prompt, chosen, rejected = split_prompt(example["chosen"], example["rejected"])
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def maybe_extract_prompt(example: Any) -> Any:
    """``extract_prompt`` unless there is a prompt of the answers' own kind, or no pair at all."""
    if _is_dataset(example):
        return example.map(maybe_extract_prompt)
    if "chosen" not in example or "rejected" not in example:
        return example
    prompt = example.get("prompt")
    # A prompt in plain text beside conversations that hold it is a mere label.
    if prompt is not None and chat.is_conversational(prompt) == chat.is_conversational(example["chosen"]):
        return example
    return extract_prompt(example)


# --- pairs taken apart -----------------------------------------------------------------------------------


def unpair(rows: Sequence[Row]) -> list[Row]:
    """Each pair as two rows with a label, the chosen one first, so that both labels occur all along.

    Further columns are repeated; ids become ``<id>/chosen`` and ``<id>/rejected``; a prompt that the answers hold or
    repeat is taken out of them. What is no pair, or a pair that cannot be used, stays as it is: encoding says why.
    """
    unpaired: list[Row] = []
    for row in rows:
        try:
            prompt, chosen, rejected = preference_of(row)
        except UserError:
            unpaired.append(row)
            continue
        rest = {name: value for name, value in row.items() if name not in ("chosen", "rejected")}
        for side, answer in (("chosen", chosen), ("rejected", rejected)):
            identity = {"id": f"{row['id']}/{side}"} if "id" in row else {}
            unpaired.append({**rest, **identity, "prompt": prompt, "completion": answer, "label": side == "chosen"})
    return unpaired


def unpair_preference_dataset(dataset: Any, num_proc: int | None = None, desc: str | None = None) -> Any:
    """Pairs as rows of prompt, completion and label, in TRL's order: the chosen of a batch, then its rejected.

    For a list of rows use ``unpair``, which alternates them. ``id`` values stay unique: ``<id>/chosen``.
    """
    splits = dict(dataset) if _is_splits(dataset) else {"": dataset}
    if any("chosen" not in part.column_names or "rejected" not in part.column_names for part in splits.values()):
        names = ", ".join(next(iter(splits.values())).column_names)
        raise UserError(f"columns {names} are no preference", fix="give chosen and rejected")
    options = {"num_proc": num_proc, "desc": desc}
    done = {
        name: part.map(_unpaired, batched=True, remove_columns=part.column_names, **options)
        for name, part in splits.items()
    }
    return type(dataset)(done) if _is_splits(dataset) else done[""]


def _unpaired(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    size = len(batch["chosen"])
    rest = {name: values * 2 for name, values in batch.items() if name not in ("chosen", "rejected")}
    if "id" in batch:
        rest["id"] = [f"{value}/{side}" for side in ("chosen", "rejected") for value in batch["id"]]
    return {
        **rest,
        "completion": list(batch["chosen"]) + list(batch["rejected"]),
        "label": [True] * size + [False] * size,
    }


def maybe_unpair_preference_dataset(dataset: Any, num_proc: int | None = None, desc: str | None = None) -> Any:
    """``unpair_preference_dataset`` for pairs; anything else as it is."""
    part = next(iter(dataset.values())) if _is_splits(dataset) else dataset
    is_paired = {"chosen", "rejected"} <= set(part.column_names)
    return unpair_preference_dataset(dataset, num_proc, desc) if is_paired else dataset


# --- messages --------------------------------------------------------------------------------------------


def maybe_convert_to_chatml(example: Any) -> Any:
    """``from`` and ``value`` of messages become ``role`` and ``content``, ``conversations`` becomes ``messages``."""
    if _is_dataset(example):
        if _is_splits(example):
            return type(example)({name: maybe_convert_to_chatml(part) for name, part in example.items()})
        gone = [name for name in ("conversations",) if name in example.column_names]
        return example.map(maybe_convert_to_chatml, remove_columns=gone)
    converted = dict(example)
    for name in (*_CONTENT, "conversations"):
        if isinstance(converted.get(name), list):
            converted[name] = [_renamed(item) if isinstance(item, Mapping) else item for item in converted[name]]
    if "conversations" in converted:
        converted["messages"] = converted.pop("conversations")
    return converted


def _renamed(message: Mapping[str, Any]) -> dict[str, Any]:
    names = {"from": "role", "value": "content"}
    return {names.get(name, name): part for name, part in message.items()}


_TEMPLATED = (
    {"messages"},
    {"prompt"},
    {"prompt", "completion"},
    {"prompt", "completion", "label"},
    {"prompt", "chosen", "rejected"},
    {"chosen", "rejected"},
)


def apply_chat_template(
    example: Any, tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None = None, **template_kwargs: Any
) -> Any:
    """Conversations as the text that the chat template makes of them; ``messages`` becomes ``text``.

    Where a prompt stands beside answers, it is what the rendered prompt and all rendered wholes have in common, so
    that prompt + answer is always the rendered conversation. A row gives the rendered columns (and its label) alone;
    its own ``tools`` and ``chat_template_kwargs`` reach the template.

    Raises:
        UserError: for columns that are no known format, or a prompt that ends with a system message.
    """
    if _is_dataset(example):
        return example.map(lambda row: apply_chat_template(row, tokenizer, tools, **template_kwargs))
    found = {name for name in (*_CONTENT, "label") if example.get(name) is not None}
    if found not in _TEMPLATED:
        raise UserError(
            f"columns {', '.join(sorted(example))} are no conversation",
            fix="give messages; prompt; prompt and completion (and label); or (prompt,) chosen and rejected",
        )
    options = {**template_options(example), **({"tools": tools} if tools else {}), **template_kwargs}
    if "messages" in found:
        return {"text": render_text(example["messages"], tokenizer, **options)}
    answers = [name for name in ("chosen", "rejected", "completion") if name in found]
    before = list(example["prompt"]) if "prompt" in found else []
    rendered = {name: render_text([*before, *example[name]], tokenizer, **options) for name in answers}
    result: dict[str, Any] = {}
    if before:
        prompt = _rendered_prompt(before, tokenizer, options)
        length = min([common_prefix(prompt, text) for text in rendered.values()], default=len(prompt))
        result["prompt"] = prompt[:length]
        rendered = {name: text[length:] for name, text in rendered.items()}
    return {**result, **rendered, **({"label": example["label"]} if "label" in found else {})}


def _rendered_prompt(messages: list[Any], tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> str:
    role = messages[-1]["role"]
    if role == "assistant":
        return render_text(messages, tokenizer, continue_final_message=True, **options)
    if role in ("user", "tool"):
        return render_text(messages, tokenizer, add_generation_prompt=True, **options)
    raise UserError(f"the prompt ends with a message of the role {role!r}", fix="end it with user, tool or assistant")


def maybe_apply_chat_template(
    example: Any, tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None = None, **template_kwargs: Any
) -> Any:
    """``apply_chat_template`` for conversations; plain text as it is."""
    if not is_conversational(example):
        return example
    return apply_chat_template(example, tokenizer, tools, **template_kwargs)


# --- rows or data sets -----------------------------------------------------------------------------------


def _is_dataset(value: Any) -> bool:
    return hasattr(value, "map")


def _is_splits(value: Any) -> bool:
    """Whether this is a ``DatasetDict``: splits by name."""
    return isinstance(value, dict) and _is_dataset(value)


def _first(dataset: Any) -> Mapping[str, Any]:
    part = next(iter(dataset.values())) if _is_splits(dataset) else dataset
    return next(iter(part), {})
