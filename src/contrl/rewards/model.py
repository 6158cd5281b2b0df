"""A reward model as a reward: any sequence classifier scores prompt + completion at the last real token.

The text is made as for training a reward model (end-of-sequence token once, or the chat template's own), and the
score is read by the attention mask, so that neither the padding side nor a pad token equal to the end token moves it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from contrl.errors import UserError

Loaded = tuple[Any, Any]
"""A classifier and its tokenizer."""


class ClassifierReward:
    """A reward: the score a classifier gives to prompt + completion, as one number per completion.

    Args:
        name: a classifier's folder or its name on the hub.
        label: which label's score, by name or index; needed when there are several.
        batch_size: texts scored at once.
        max_length: longest text in tokens; None takes what the model's positions allow. Longer ones lose their
            beginning, so that the completion is always seen.
        device: where it runs; None takes a GPU where there is one.
        load: gives model and tokenizer of a name, on the first call: ``contrl.models.load.load_scorer``.
    """

    is_costly = True  # as a metric it is not asked at every step

    def __init__(
        self,
        name: str | Path,
        label: str | int | None = None,
        batch_size: int = 16,
        *,
        load: Callable[[str], Loaded],
        max_length: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.name, self.label, self.batch_size, self.max_length = str(name), label, batch_size, max_length
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._load = load
        self._loaded: Loaded | None = None
        self._index = 0

    def __call__(self, *, prompts: list, completions: list, **columns: list) -> list[float]:
        """One score per completion; prompts and completions are text or messages. Raises UserError."""
        model, tokenizer = self._ready()
        rows = [
            self._ids(prompt, completion, tokenizer) for prompt, completion in zip(prompts, completions, strict=True)
        ]
        scores = [0.0] * len(rows)
        # Texts of about equal length together, the longest first: what does not fit fails at once.
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            ids, mask = _padded([rows[row] for row in part], self.device)
            with torch.inference_mode():
                given = end_scores(model, ids, mask)[:, self._index].float().tolist()
            for row, score in zip(part, given, strict=True):
                scores[row] = score
        return scores

    def _ready(self) -> Loaded:
        if self._loaded is None:
            model, tokenizer = self._load(self.name)
            self._index = label_index(model.config, self.label, self.name)
            model.requires_grad_(False).eval()
            self._loaded = (model.to(self.device), tokenizer)
        return self._loaded

    def _ids(self, prompt: Any, completion: Any, tokenizer: Any) -> list[int]:
        ids = whole_ids(prompt, completion, tokenizer)
        limit = self.max_length or int(getattr(self._ready()[0].config, "max_position_embeddings", None) or len(ids))
        if len(ids) > limit:
            warnings.warn(f"{self.name}: texts of over {limit} tokens lose their beginning", stacklevel=3)
        return ids[-limit:]


def whole_ids(prompt: Any, completion: Any, tokenizer: Any) -> list[int]:
    """Token ids of prompt and completion as one text.

    Args:
        prompt: text, or messages.
        completion: text, or messages that follow; text after messages is an assistant's turn.

    Raises:
        UserError: for messages without a chat template, or messages after text.
    """
    if isinstance(prompt, str):
        if not isinstance(completion, str):
            raise UserError("the prompt is text and the completion messages", fix="give both as text or as messages")
        ids = list(tokenizer(prompt + completion)["input_ids"])
        end = tokenizer.eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, int(end)]
    turns = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)
    if not tokenizer.chat_template:
        raise UserError(
            "the prompt has messages but the reward model's tokenizer has no chat template",
            fix="give prompts as text, or save a chat template with the reward model",
        )
    text = tokenizer.apply_chat_template(_joined([*prompt, *turns]), tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _joined(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A prompt that ends in the middle of an assistant's turn and what follows are one turn."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if turns and turns[-1]["role"] == message["role"] == "assistant":
            turns[-1]["content"] += message["content"]
        else:
            turns.append(dict(message))
    return turns


def end_scores(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Scores ``[N, labels]`` at the last position where ``mask`` ``[N, T]`` is 1; padding on either side.

    A model without a head on its last token (an encoder with a pooled state) gives its own logits.
    """
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    head: Any = getattr(inner, "score", None)
    if not isinstance(head, nn.Module):
        return model(input_ids=ids, attention_mask=mask).logits
    trunk = inner.base_model
    options: dict[str, Any] = {}
    if "position_ids" in inspect.signature(trunk.forward).parameters:
        # Learned positions would count the padding on the left.
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    hidden = trunk(input_ids=ids, attention_mask=mask, use_cache=False, **options).last_hidden_state
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(-1)
    return head(hidden[torch.arange(len(ids), device=ids.device), last])


def _padded(rows: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(1, *(len(row) for row in rows)) if rows else 1
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[row, : len(tokens)] = 1
    return ids.to(device), mask.to(device)


def label_index(config: Any, label: str | int | None, where: str = "") -> int:
    """The index of a label given by name or index; None is the only one there is.

    Raises:
        UserError: naming the labels, when there are several and none is chosen, or none is called so.
    """
    names = {int(index): str(name) for index, name in config.id2label.items()}
    if label is None and len(names) == 1:
        return 0
    for index, name in names.items():
        if label is not None and (label == index or str(label) in (name, str(index))):
            return index
    what = "the classifier has several labels" if label is None else f"the classifier has no label {label!r}"
    listed = ", ".join(f"{index}: {name}" for index, name in sorted(names.items()))
    raise UserError(what, where=where, why=f"it has {listed}", fix="choose one with label, by name or number")


# --- which reward model ---------------------------------------------------------------------------------


def resolve_reward_model(path: str | Path, index: int | None = None) -> tuple[Path, str]:
    """The reward model of task ``index``: ``P/<i>``, then ``P_<i>``, then ``P`` for all tasks.

    Returns:
        Its folder (or, for a name that can only be a hub's, that name), and which was taken and why, in words.

    Raises:
        UserError: listing what was tried.
    """
    whole = Path(path)
    choices = [(whole, "the one given" if index is None else "one reward model for all tasks")]
    if index is not None:
        own = f"its own, of task {index}"
        choices = [(whole / str(index), own), (whole.with_name(f"{whole.name}_{index}"), own), *choices]
    for folder, why in choices:
        if _holds_model(folder):
            return folder, f"{folder}: {why}"
    text = str(path)
    if text.count("/") == 1 and text[0] not in "./~" and not whole.parent.exists():
        return whole, f"{text}: the one on the hub, for all tasks"
    tried = ", ".join(str(folder) for folder, _ in choices)
    task = "" if index is None else f" for task {index}"
    raise UserError(f"there is no reward model{task}", why=f"looked for {tried}", fix="train one: contrl reward --help")


def _holds_model(folder: Path) -> bool:
    places = (folder, folder / "final", *folder.glob("stages/*/final"))
    return any((place / name).exists() for place in places for name in ("config.json", "adapter_config.json"))
