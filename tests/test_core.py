"""Answers as tensors: of a fixed length, from the distribution asked for, from models of both kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from contrl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, create_reference_model
from contrl.core import LengthSampler, draw, respond_to_batch
from contrl.errors import UserError

END = 1


def decoder() -> Any:
    config = LlamaConfig(
        vocab_size=7,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.lm_head.weight.mul_(20)
    return model


def encoder_decoder() -> Any:
    config = T5Config(
        vocab_size=7,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        eos_token_id=END,
        pad_token_id=0,
        dropout_rate=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return T5ForConditionalGeneration(config)


QUERIES = torch.tensor([[2, 3, 4], [5, 6, 2]])


@pytest.fixture(autouse=True)
def _a_fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_every_answer_has_the_length_asked_for(kind: str) -> None:
    """Of 7 tokens one ends an answer, so that of 2 x 20 tokens some are end tokens, and none ends it."""
    if kind == "decoder":
        model: Any = AutoModelForCausalLMWithValueHead.from_pretrained(decoder())
    else:
        model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(encoder_decoder())
    answers = respond_to_batch(model, QUERIES)
    assert (answers.shape, answers.dtype) == ((2, 20), torch.long)
    assert respond_to_batch(create_reference_model(model), QUERIES[:1], txt_len=3).shape == (1, 3)
    if kind == "decoder":
        assert bool((answers == END).any())


def test_answers_are_drawn_from_the_models_own_distribution() -> None:
    """2000 first tokens against the softmax of the last logits: within four standard errors of each share."""
    model = decoder()
    first = torch.cat([respond_to_batch(model, QUERIES[:1].repeat(500, 1), txt_len=1)[:, 0] for _ in range(4)])
    with torch.no_grad():
        wanted = model(QUERIES[:1]).logits[0, -1].softmax(-1)
    shares = torch.bincount(first, minlength=7) / len(first)
    assert bool(((shares - wanted).abs() < 4 * (wanted * (1 - wanted) / len(first)).sqrt() + 1e-9).all())
    assert wanted.max() > 2 * wanted.min()


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_the_nucleus_leaves_unlikely_tokens_out(kind: str) -> None:
    """With top_k 1, or a top_p below the likeliest token's share, every draw is the likeliest."""
    model = decoder() if kind == "decoder" else encoder_decoder()
    start = {} if kind == "decoder" else {"decoder_input_ids": torch.tensor([[0]])}
    with torch.no_grad():
        logits = model.eval()(QUERIES[:1], **start).logits[0, -1]
    if kind == "encoder-decoder":
        # It never draws the end token, which would end the answer.
        logits[END] = -torch.inf
    likeliest = int(logits.argmax())
    many = QUERIES[:1].repeat(20, 1)
    assert set(respond_to_batch(model, many, txt_len=1, top_k=1)[:, 0].tolist()) == {likeliest}
    assert set(respond_to_batch(model, many, txt_len=1, top_p=0.05)[:, 0].tolist()) == {likeliest}
    assert len(set(respond_to_batch(model, many, txt_len=1)[:, 0].tolist())) > 1


def test_torchs_seed_repeats_an_answer() -> None:
    model = decoder()
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(respond_to_batch(model, QUERIES))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_sampling_leaves_the_model_in_its_mode() -> None:
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(encoder_decoder()).train()
    respond_to_batch(model, QUERIES, txt_len=2)
    assert model.pretrained_model.training


def test_queries_must_be_a_table_of_ids() -> None:
    for wrong in (QUERIES[0], QUERIES.float(), QUERIES.tolist()):
        with pytest.raises(UserError, match=r"\[B, T\]"):
            respond_to_batch(decoder(), wrong)


def test_lengths_lie_within_the_bounds() -> None:
    sampler = LengthSampler(2, 5)
    assert {sampler() for _ in range(200)} == {2, 3, 4}
    with pytest.raises(UserError, match="no length"):
        LengthSampler(5, 5)


# --- draw -----------------------------------------------------------------------------------------------


def test_an_end_token_ends_an_answer_unless_it_is_told_not_to() -> None:
    model = decoder()
    with torch.no_grad():
        # The end token is by far the likeliest one.
        model.lm_head.weight[END] = 0
        model.lm_head.weight[:END] -= 1
        model.lm_head.weight[END + 1 :] = model.lm_head.weight[END] - 0.01
    queries = [[2, 3], [4, 5, 6]]
    ended = draw(model, queries, (), {"do_sample": True, "max_new_tokens": 200})
    assert [answer[-1] for answer in ended] == [END, END]
    assert all(answer.index(END) == len(answer) - 1 for answer in ended)
    endless = draw(model, queries, (), {"do_sample": True, "max_new_tokens": 30, "eos_token_id": -1})
    assert [len(answer) for answer in endless] == [30, 30]
    other = draw(model, queries, (), {"do_sample": True, "max_new_tokens": 200, "eos_token_id": 3})
    assert [answer.index(3) for answer in other] == [len(answer) - 1 for answer in other]


def test_each_query_may_have_a_length_of_its_own() -> None:
    how = {"do_sample": True, "eos_token_id": -1}
    assert [len(a) for a in draw(decoder(), [[2], [3, 4]], (4, 2), how)] == [4, 2]
    assert [len(a) for a in draw(encoder_decoder(), [[2], [3, 4]], (4, 2), how)] == [4, 2]


def test_unknown_arguments_are_transformers_own() -> None:
    model = decoder()
    ids = torch.tensor([[2, 3, 4]])
    wanted = model.generate(ids, max_new_tokens=6, num_beams=3, do_sample=False, attention_mask=torch.ones_like(ids))
    assert draw(model, [[2, 3, 4]], (), {"max_new_tokens": 6, "num_beams": 3}) == [wanted[0, 3:].tolist()]
    with pytest.raises(ValueError, match="no_such_argument"):
        draw(model, [[2, 3, 4]], (), {"no_such_argument": 1})
