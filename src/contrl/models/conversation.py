"""A conversation with a policy: what was said, how answers are drawn, and the row it makes for training.

A model without a chat template is not asked to chat: each text is a prompt of its own that the model continues.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TextStreamer

from contrl.errors import UserError
from contrl.models.load import Policy, end_tokens


@dataclass
class Sampling:
    """How an answer is drawn; the names are those of ``generate`` in transformers."""

    max_new_tokens: int = 256
    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def check(self) -> None:
        """Refuse what cannot be drawn with. Raises UserError."""
        wrong = {
            "max_new_tokens must be at least 1": self.max_new_tokens < 1,
            "temperature must be above 0; for the most likely answer set do_sample=False": self.temperature <= 0,
            "top_k must not be negative; 0 takes every token": self.top_k < 0,
            "top_p must be above 0 and at most 1": not 0 < self.top_p <= 1,
            "repetition_penalty must be above 0": self.repetition_penalty <= 0,
        }
        for text, is_wrong in wrong.items():
            if is_wrong:
                raise UserError(text)

    def options(self) -> dict[str, Any]:
        """Arguments of ``generate``."""
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": self.do_sample}
        if self.repetition_penalty != 1.0:
            options["repetition_penalty"] = self.repetition_penalty
        if not self.do_sample:
            # The model's own generation config may hold these, and generate complains of what it does not use.
            return options | {"temperature": None, "top_p": None, "top_k": None}
        return options | {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}


@dataclass
class Conversation:
    """What was said so far, with the policy that answers.

    Attributes:
        policy: model and tokenizer.
        system: the system prompt, first in every request; empty for none (or the template's own).
        turns: user and assistant messages in order.
    """

    policy: Policy
    system: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    turns: list[dict[str, str]] = field(default_factory=list)

    @property
    def has_template(self) -> bool:
        """Whether the model was taught to chat; else it continues text."""
        return bool(self.policy.tokenizer.chat_template)

    def say(self, text: str, write: Callable[[str], None]) -> str:
        """Answer ``text``; pieces of the answer go to ``write`` as they come.

        Raises:
            UserError: when the text is longer than the model's context.
        """
        self.turns.append({"role": "user", "content": text})
        try:
            return self._answer(write)
        except UserError:
            self.turns.pop()
            raise

    def again(self, write: Callable[[str], None]) -> str | None:
        """Another answer to the last text; None when nothing was said."""
        if not self.turns:
            return None
        if self.turns[-1]["role"] == "assistant":
            self.turns.pop()
        return self._answer(write)

    def row(self) -> dict[str, Any] | None:
        """The conversation as a training row, ending with an answer; None when there is none."""
        answered = self.turns if self.turns and self.turns[-1]["role"] == "assistant" else self.turns[:-1]
        if not answered:
            return None
        if not self.has_template:
            return {"prompt": answered[-2]["content"], "completion": answered[-1]["content"]}
        return {"messages": [*self._head(), *answered]}

    def _head(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _answer(self, write: Callable[[str], None]) -> str:
        self.sampling.check()
        ids = self._fitting_ids()
        device = next(self.policy.model.parameters()).device
        tokens = torch.tensor([ids], device=device)
        pieces = _Pieces(self.policy.tokenizer, write)
        try:
            with torch.inference_mode():
                self.policy.model.generate(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    eos_token_id=end_tokens(self.policy.model) or None,
                    pad_token_id=self.policy.tokenizer.pad_token_id,
                    streamer=pieces,
                    **self.sampling.options(),
                )
        except KeyboardInterrupt:
            # What was said is kept, as in a conversation between people.
            pieces.end()
        answer = pieces.text
        self.turns.append({"role": "assistant", "content": answer})
        return answer

    def _fitting_ids(self) -> list[int]:
        """The prompt's ids; the oldest turns are left out of what is sent when all do not fit the context."""
        limit = getattr(self.policy.model.config.get_text_config(), "max_position_embeddings", None)
        turns = list(self.turns) if self.has_template else self.turns[-1:]
        while True:
            ids = self._ids(turns)
            if limit is None or len(ids) + self.sampling.max_new_tokens <= limit:
                return ids
            if len(turns) <= 1:
                raise UserError(
                    f"{len(ids)} tokens and an answer of {self.sampling.max_new_tokens} exceed the context of {limit}",
                    fix="say less, or /set max_new_tokens=N",
                )
            turns = turns[2:]

    def _ids(self, turns: list[dict[str, str]]) -> list[int]:
        tokenizer = self.policy.tokenizer
        if not self.has_template:
            ids = list(tokenizer(self.system + turns[-1]["content"])["input_ids"])
            if not ids:
                raise UserError("there is nothing to continue", fix="type some text")
            return ids
        try:
            text = tokenizer.apply_chat_template([*self._head(), *turns], tokenize=False, add_generation_prompt=True)
        except Exception as error:  # jinja2 raises what the template's author chose
            raise UserError(f"the chat template refused the conversation: {error}") from error
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])


class _Pieces(TextStreamer):
    """The answer as it grows, without special tokens."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write, self.text = write, ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        self.write(text)
