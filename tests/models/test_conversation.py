"""Talking: what the model sees, what is kept, what is left out when it grows too long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from contrl.errors import UserError
from contrl.models.conversation import Conversation, Sampling
from contrl.models.embedded import character_tokenizer
from contrl.models.load import Policy

Make = Callable[..., Any]


@pytest.fixture
def talk(make_llama: Make) -> Conversation:
    """With a model of random weights: what it says is noise, but always the same noise."""
    model = make_llama(vocab_size=100, max_position_embeddings=96)
    return Conversation(
        Policy(model, character_tokenizer(), "toy"), sampling=Sampling(max_new_tokens=8, do_sample=False)
    )


def greedy(talk: Conversation, prompt: str) -> str:
    """The most likely continuation, one full forward a token."""
    tokenizer = talk.policy.tokenizer
    ids = tokenizer(prompt)["input_ids"]
    made: list[int] = []
    for _ in range(talk.sampling.max_new_tokens):
        with torch.no_grad():
            token = int(talk.policy.model(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax())
        made.append(token)
        if token == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(made, skip_special_tokens=True))


def test_the_model_sees_the_template_with_system_and_history(talk: Conversation) -> None:
    talk.system = "be brief"
    pieces: list[str] = []
    first = talk.say("1+1", pieces.append)
    assert "".join(pieces) == first == greedy(talk, "system: be brief\nuser: 1+1\nassistant: ")
    second = talk.say("2+2", pieces.append)
    assert second == greedy(talk, f"system: be brief\nuser: 1+1\nassistant: {first}<eos>user: 2+2\nassistant: ")


def test_a_conversation_is_a_training_row(talk: Conversation) -> None:
    assert talk.row() is None
    talk.system = "be brief"
    answer = talk.say("1+1", lambda text: None)
    assert talk.row() == {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "1+1"},
            {"role": "assistant", "content": answer},
        ]
    }


def test_without_a_template_each_text_is_continued_by_itself(talk: Conversation) -> None:
    talk.policy.tokenizer.chat_template = None
    talk.say("abc", lambda text: None)
    answer = talk.say("xyz", lambda text: None)
    assert answer == greedy(talk, "xyz")
    assert talk.row() == {"prompt": "xyz", "completion": answer}


def test_again_answers_the_same_question(talk: Conversation) -> None:
    assert talk.again(lambda text: None) is None
    first = talk.say("1+1", lambda text: None)
    assert talk.again(lambda text: None) == first
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"]


def test_the_oldest_turns_go_when_the_context_is_full(talk: Conversation) -> None:
    """96 positions hold two questions of this length and the answer, not three."""
    for _ in range(3):
        answer = talk.say("a" * 20, lambda text: None)
    assert len(talk.turns) == 6
    assert answer == talk.turns[-1]["content"]
    with pytest.raises(UserError, match="exceed the context of 96"):
        talk.say("a" * 96, lambda text: None)
    assert len(talk.turns) == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"repetition_penalty": 0},
    ],
)
def test_what_cannot_be_drawn_with_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        Sampling(**changes).check()


def test_sampling_follows_the_options(talk: Conversation) -> None:
    """top_k of 1 is the most likely token at any temperature; a hot draw from all is not."""
    likely = talk.say("1+1", lambda text: None)
    talk.sampling = Sampling(max_new_tokens=8, top_k=1, temperature=5.0)
    assert talk.again(lambda text: None) == likely
    talk.sampling = Sampling(max_new_tokens=8, top_k=0, temperature=50.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert talk.again(lambda text: None) != likely
