"""SFT on hand-made batches and rows: cross-entropy of the trained tokens, and which tokens those are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from contrl.engine.batching import to_batch
from contrl.engine.forward import Routing, score_batch
from contrl.engine.lm_head import LMHead
from contrl.errors import UserError
from contrl.interfaces import Batch, Completion, Group, Outputs
from contrl.methods.sft import SFT


def small_model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=13,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).double().eval()


def groups() -> list[Group]:
    """Two rows: one wholly trained answer, one conversation of which two tokens are trained."""
    return [
        Group("0", "t", [2, 3, 4], [Completion([5, 6, 1])]),
        Group("1", "t", [7], [Completion([8, 9, 10, 1], trained=[False, True, False, True])]),
    ]


# --- judging ----------------------------------------------------------------------------------------------


def test_judging_by_hand() -> None:
    """Log-probabilities -1, -2, -3 of three tokens, two of them the likeliest; -1 and -3 of two, both the likeliest."""
    batch = to_batch(groups(), torch.device("cpu"))
    logps = torch.tensor([[-1.0, -2.0, -3.0, 0.0], [0.0, -1.0, 0.0, -3.0]])
    correct = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    judged = SFT().judge(Outputs(logps, correct=correct), batch)
    assert {name: values.tolist() for name, values in judged.items()} == {
        "logp": [-2.0, -2.0],
        "loss": [2.0, 2.0],
        "token_accuracy": [pytest.approx(2 / 3), 1.0],
        "exact": [0.0, 1.0],
    }
    assert (SFT.judged_by, SFT.correct_by) == ("logp", "exact")
    assert set(SFT().judge(Outputs(logps), batch)) == {"logp", "loss"}


# --- the loss -------------------------------------------------------------------------------------------


def test_the_loss_and_every_gradient_equal_torchs_cross_entropy() -> None:
    """Sum over trained tokens / count against ``cross_entropy`` on padded rows with labels -100 elsewhere.

    Labels carry the mask, so a gradient through prompt or untrained tokens would show as a difference.
    """
    model, method = small_model(), SFT()
    batch = to_batch(groups(), torch.device("cpu"))
    out = score_batch(model, LMHead(model), batch, Routing("plain"))
    mine = method.loss(Outputs(out["logps"]), batch).sums["nll"] / method.count(batch.groups)["nll"]
    rows = torch.tensor([[2, 3, 4, 5, 6, 1], [7, 8, 9, 10, 1, 0]])
    labels = torch.tensor([[-100, -100, -100, 5, 6, 1], [-100, -100, 9, -100, 1, -100]])
    logits = model(rows).logits[:, :-1]
    wanted = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    assert mine.item() == pytest.approx(wanted.item(), rel=1e-12)
    parameters = list(model.parameters())
    for got, expected in zip(
        torch.autograd.grad(mine, parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-9)


def test_count_is_the_number_of_trained_tokens() -> None:
    """3 of the first row, 2 of the second: known before any forward."""
    assert SFT().count(groups()) == {"nll": 5.0}


def test_sums_weights_and_metrics_by_hand(make_batch: Callable[..., Batch]) -> None:
    """Row 0: -(-1 - 2) * 1; row 1: -(-4) * .5; logs are means over the three trained tokens, unweighted."""
    batch = make_batch([[1, 1], [1, 0]], weights=[1.0, 0.5])
    logps, entropy = torch.tensor([[-1.0, -2.0], [-4.0, 0.0]]), torch.tensor([[0.5, 1.0], [3.0, 0.0]])
    out = SFT().loss(Outputs(logps, entropy, torch.tensor([[1.0, 0.0], [1.0, 0.0]])), batch)
    assert {name: value.item() for name, value in out.sums.items()} == {"nll": 5.0}
    assert {name: (float(a), float(b)) for name, (a, b) in out.metrics.items()} == {
        "entropy": (4.5, 3.0),
        "logps/mean": (-7.0, 3.0),
        "mean_token_accuracy": (2.0, 3.0),
    }
    assert SFT().loss(Outputs(logps), batch).metrics.keys() == {"logps/mean"}
    assert SFT.needs == {"policy_logps", "entropy", "correct"}


def test_dft_is_half_the_loss_when_two_tokens_are_equally_likely(make_batch: Callable[..., Batch]) -> None:
    batch = make_batch([[1, 1, 1], [1, 0, 0]])
    logps = torch.full((2, 3), 0.5).log() * batch.mask
    nll, dft = (SFT(loss_type=name).loss(Outputs(logps), batch).sums["nll"] for name in ("nll", "dft"))
    torch.testing.assert_close(dft, nll / 2)
    assert nll.item() > 0


def test_dropout_stays_on_in_supervised_training() -> None:
    assert SFT.dropout is True


# --- rows -----------------------------------------------------------------------------------------------


def test_a_pair_trains_the_completion_and_one_end_token(tokenizer: Any) -> None:
    group = SFT().prepare({"id": 3, "task": "sums", "prompt": "1+2=", "completion": "3"}, tokenizer)
    (completion,) = group.completions
    assert (group.row_id, group.task) == ("3", "sums")
    assert tokenizer.decode(group.prompt_ids) == "1+2="
    assert completion.ids == [*tokenizer("3")["input_ids"], tokenizer.eos_token_id]
    assert completion.trained == [True, True]
    assert completion.ended


@pytest.mark.parametrize(("max_length", "kept", "ended"), [(9, 5, True), (8, 4, False), (5, 1, False), (None, 5, True)])
def test_rows_are_cut_at_their_end(max_length: int | None, kept: int, ended: bool, tokenizer: Any) -> None:
    """Prompt 4 tokens, completion 4 and the end token: 9 fit whole, 8 lose the end token, 5 keep one token."""
    row = {"id": 0, "prompt": "1+2=", "completion": "3 ok"}
    (completion,) = SFT(max_length=max_length).prepare(row, tokenizer).completions
    whole = [*tokenizer("3 ok")["input_ids"], tokenizer.eos_token_id]
    assert completion.ids == whole[:kept]
    assert completion.trained == [True] * kept
    assert completion.ended is ended


@pytest.mark.parametrize("max_length", [2, 4])
def test_a_row_whose_prompt_fills_the_limit_is_refused(max_length: int, tokenizer: Any) -> None:
    """Never a row that silently trains nothing; the message gives both lengths and the limit."""
    row = {"id": 0, "prompt": "1+2=", "completion": "3"}
    with pytest.raises(UserError, match=f"of 4 prompt and 2 completion tokens at max_length {max_length}"):
        SFT(max_length=max_length).prepare(row, tokenizer)


def test_a_cut_before_the_first_trained_token_is_refused(tokenizer: Any) -> None:
    """Tokens are left, but none that is trained: the assistant's turn starts behind the limit."""
    messages = [{"role": "user", "content": "a long question"}, {"role": "assistant", "content": "yes"}]
    with pytest.raises(UserError, match="no trained token is left"):
        SFT(assistant_only=True, max_length=10).prepare({"id": 0, "messages": messages}, tokenizer)


def test_text_trains_everything_but_its_first_token(tokenizer: Any) -> None:
    group = SFT().prepare({"id": 0, "text": "abc"}, tokenizer)
    (completion,) = group.completions
    assert tokenizer.decode(group.prompt_ids) == "a"
    assert completion.ids == [*tokenizer("bc")["input_ids"], tokenizer.eos_token_id]


def test_empty_text_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no trained token"):
        SFT().prepare({"id": 0, "text": ""}, tokenizer)


def test_assistant_only_trains_what_assistant_turns_added(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "yes"},
    ]
    group = SFT(assistant_only=True).prepare({"id": 0, "messages": messages}, tokenizer)
    (completion,) = group.completions
    assert completion.trained is not None
    trained = [token for token, flag in zip(completion.ids, completion.trained, strict=True) if flag]
    end = tokenizer.eos_token_id
    assert trained == [*tokenizer("4")["input_ids"], end, *tokenizer("yes")["input_ids"], end]
    assert completion.num_trained() == 6
    everything = SFT().prepare({"id": 0, "messages": messages}, tokenizer).completions[0]
    assert everything.trained == [True] * len(everything.ids)


def test_trls_name_for_assistant_only_means_the_same(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    row = {"id": 0, "messages": messages}
    ours, theirs = (SFT(**{name: True}).prepare(row, tokenizer) for name in ("assistant_only", "assistant_only_loss"))
    assert ours == theirs
    assert ours.completions[0].num_trained() == 2


def test_the_prompt_is_trained_when_told_to(tokenizer: Any) -> None:
    """1+2= and 3 and the end: all but the first token are predicted."""
    row = {"id": 0, "prompt": "1+2=", "completion": "3"}
    group = SFT(completion_only_loss=False).prepare(row, tokenizer)
    assert tokenizer.decode(group.prompt_ids) == "1"
    assert group.completions[0].num_trained() == 5
    with pytest.raises(UserError, match="completion"):
        SFT(completion_only_loss=True).prepare({"id": 0, "text": "abc"}, tokenizer)


def test_of_a_pair_the_chosen_answer_is_learnt(tokenizer: Any) -> None:
    pair = {"id": 0, "prompt": "1+2=", "chosen": "3", "rejected": "4"}
    plain = {"id": 1, "prompt": "1+2=", "completion": "5"}
    rows = SFT().rows([pair, plain], lambda text: None)
    found = [tokenizer.decode(SFT().prepare(row, tokenizer).completions[0].ids[:-1]) for row in rows]
    assert found == ["3", "5"]


# --- hyperparameters --------------------------------------------------------------------------------------


def test_impossible_fields_are_refused() -> None:
    unknown: Any = "crossentropy"
    with pytest.raises(UserError, match="unknown loss_type 'crossentropy'\n  use one of nll, dft"):
        SFT(loss_type=unknown)
    with pytest.raises(UserError, match="max_length is 1"):
        SFT(max_length=1)


def test_answers_labelled_bad_are_not_imitated() -> None:
    """Of pairs the chosen side, of labelled rows the good ones; a class label of other data (0, 1) is no judgement."""
    said: list[str] = []
    rows = [
        {"id": "0", "prompt": "a", "chosen": "b", "rejected": "c"},
        {"id": "1", "prompt": "a", "completion": "d", "label": True},
        {"id": "2", "prompt": "a", "completion": "e", "label": False},
        {"id": "3", "text": "f", "label": 0},
        {"id": "4", "text": "g", "label": False},
    ]
    kept = SFT().rows(rows, said.append)
    assert [row["id"] for row in kept] == ["0", "1", "3", "4"]
    assert kept[0]["completion"] == "b"
    assert said == ["1 of 5 rows left out: their answers are labelled bad"]
