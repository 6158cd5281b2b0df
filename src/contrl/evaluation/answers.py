"""The answers of models to the same prompts, each sampled once: kept by content, made in batches, found again.

How prompts are put together depends on all of them and never on what is kept already, so an evaluation that was killed
gives the answers it would have given. One model is in memory at a time.
"""

from __future__ import annotations

import gc
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from contrl.config import ModelConfig
from contrl.data.chat import encode_prompt, is_conversational, template_options
from contrl.errors import UserError
from contrl.evaluation.kept import Kept, key_of
from contrl.evaluation.lineage import weights_digest
from contrl.faults import reach
from contrl.interfaces import Completion, Row
from contrl.models.load import Policy, end_tokens, load_policy
from contrl.rollout.sampler import Noise, Sampling, chunks, generate

EVERY = 30.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class Answer:
    """A completion: its text, its tokens without the end token, and whether it ended by itself."""

    text: str
    ids: list[int]
    ended: bool

    @property
    def words(self) -> int:
        """Words between white space."""
        return len(self.text.split())


@dataclass(frozen=True)
class Generation:
    """How every model answers.

    Attributes:
        sampling: length, temperature, top-p; one sample of each prompt.
        seed: of the noise, which is the same for every model.
        tokens_per_chunk: how much decodes side by side.
        dtype, trust_remote_code: as in ``ModelConfig``.
        device: where models run.
    """

    sampling: Sampling
    seed: int = 0
    tokens_per_chunk: int = 2**15
    dtype: Any = "auto"
    trust_remote_code: bool = False
    device: str = "cpu"

    def describe(self) -> list[Any]:
        """What an answer depends on; a greedy one on no seed."""
        drawn = [self.sampling.temperature, self.sampling.top_p, self.seed] if self.sampling.temperature else [0.0]
        return [self.dtype, self.sampling.max_new_tokens, *drawn]


@dataclass
class Answers:
    """Answers to these rows' prompts, by model.

    Attributes:
        folder: where they are kept, ``<digest of the model>.jsonl``.
        rows: with ``id`` and ``prompt``: text, or messages.
        how: sampling.
        say: told which model is loaded, and how far it is.
    """

    folder: Path
    rows: Sequence[Row]
    how: Generation
    say: Callable[[str], None]
    _digests: dict[str, str] = field(default_factory=dict)

    def missing(self, models: Sequence[str]) -> dict[str, int]:
        """Answers still to be made, of each different model; nothing is loaded."""
        found: dict[str, int] = {}
        for model, digest in {weights_digest(model) or model: model for model in models}.items():
            kept = self._kept(model)
            found[digest] = sum(key not in kept for key in self._keys(model))
        return found

    def of(self, model: str) -> list[Answer]:
        """The answers of a model, one for each row; those not kept are made.

        Raises:
            UserError: no such model, a prompt that cannot be rendered or does not fit the model.
            EnvironmentFault: a hub that cannot be reached, or no room to keep them.
        """
        digest, policy = weights_digest(model), None
        if digest is None:  # of a hub: loading it says which version it is
            policy = self._load(model)
            digest = weights_digest(model) or model.replace("/", "--")
        kept, keys = self._kept(digest), self._keys(digest)
        if any(key not in kept for key in keys):
            policy = policy or self._load(model)
            self._make(policy, kept, keys)
            del policy
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self._digests[model] = digest
        return [Answer(**kept[key]) for key in keys]

    def digest(self, model: str) -> str:
        """The digest of a model that has answered."""
        return self._digests[model]

    def _load(self, model: str) -> Policy:
        config = ModelConfig(model, dtype=self.how.dtype, trust_remote_code=self.how.trust_remote_code)
        policy = load_policy(config, 0, device=self.how.device)
        self.say(f"answering: {policy.source}")
        return policy

    def _kept(self, digest: str) -> Kept:
        return Kept(self.folder / f"{digest.replace('/', '--')}.jsonl")

    def _keys(self, digest: str) -> list[str]:
        how = self.how.describe()
        return [key_of(digest, how, str(row["id"]), row["prompt"], template_options(row)) for row in self.rows]

    def _make(self, policy: Policy, kept: Kept, keys: Sequence[str]) -> None:
        tokenizer, ends = policy.tokenizer, end_tokens(policy.model)
        prompts = [(str(row["id"]), prompt_ids(row, tokenizer)) for row in self.rows]
        done, last = sum(key in kept for key in keys), time.monotonic()
        for places, sampling in _batches([ids for _, ids in prompts], policy.model, self.how):
            due = [place for place in places if keys[place] not in kept]
            if not due:
                continue
            asked, noise = [prompts[place] for place in due], Noise((self.how.seed,))
            sampled = generate(
                policy.model, asked, sampling, noise, ends, self.how.tokens_per_chunk, tokenizer=tokenizer
            )
            reach("saving")
            kept.add({keys[place]: _as_kept(one, tokenizer, ends) for place, (one,) in zip(due, sampled, strict=True)})
            done += len(due)
            if time.monotonic() - last >= EVERY:
                self.say(f"  {done} of {len(keys)} answers")
                last = time.monotonic()


def _as_kept(completion: Completion, tokenizer: Any, ends: Sequence[int]) -> dict[str, Any]:
    ids = completion.ids[:-1] if completion.ids and completion.ids[-1] in ends else completion.ids
    return {
        "text": str(tokenizer.decode(ids, skip_special_tokens=True)),
        "ids": ids,
        "ended": completion.ended,
    }


def prompt_ids(row: Row, tokenizer: Any) -> list[int]:
    """A row's prompt as the model sees it: messages through its chat template, plainly where it has none.

    Raises:
        UserError: naming the row.
    """
    prompt = row["prompt"]
    try:
        if is_conversational(prompt) and not tokenizer.chat_template:
            ids = list(tokenizer(as_plain(prompt))["input_ids"])
        else:
            ids = encode_prompt(prompt, tokenizer, **template_options(row))
        if not ids:
            raise UserError("the prompt is empty")
    except UserError as error:
        raise UserError(error.what, where=f"row {row['id']}", why=error.why, fix=error.fix) from error
    return ids


def as_plain(messages: Sequence[Any]) -> str:
    """Messages for a model that knows no turns: one is its text, several are a transcript that ends with its turn."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    turns = [f"{str(message['role']).capitalize()}: {message['content']}" for message in messages]
    return "\n\n".join([*turns, "Assistant:"])


def _batches(prompts: Sequence[list[int]], model: Any, how: Generation) -> Iterator[tuple[list[int], Sampling]]:
    """The places of the prompts that decode together, and their sampling: near the end of its context a model stops.

    Raises:
        UserError: a prompt leaves no room for an answer.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    by_room: dict[int, list[int]] = defaultdict(list)
    for place, ids in enumerate(prompts):
        room = min(how.sampling.max_new_tokens, (limit or len(ids) + how.sampling.max_new_tokens) - len(ids))
        if room < 1:
            raise UserError(
                f"prompt {place} has {len(ids)} tokens, the model's context {limit}",
                why="there is no room for an answer",
                fix="leave such prompts out of the file, or evaluate a model with a longer context",
            )
        by_room[room].append(place)
    for room, places in sorted(by_room.items(), reverse=True):
        sampling = replace(how.sampling, max_new_tokens=room)
        for chunk in chunks([len(prompts[place]) for place in places], sampling, how.tokens_per_chunk):
            yield [places[span.prompt] for span in chunk], sampling


def shown(prompt: Any) -> str:
    """A prompt as text for tables."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
