"""Scores of a policy: what an item holds, what is missing, how ranks share the work."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from contrl.errors import UserError
from contrl.evaluation.scores import (
    Item,
    Settings,
    TaskScore,
    evaluate_task,
    in_order,
    pass_at_k,
    remember_start,
    score_share,
    summarise,
)
from contrl.interfaces import LIKELIHOOD, Metric, Row, Task
from contrl.methods.dpo import DPO
from contrl.models.embedded import character_tokenizer

TOKENIZER = character_tokenizer()
ROWS: list[Row] = [
    {"id": f"r{i}", "prompt": prompt, "answer": i} for i, prompt in enumerate(["1+2=", "9", "33-4", "7*7=", "a b"])
]
SETTINGS = Settings(max_new_tokens=6)


@pytest.fixture(scope="module")
def model() -> Any:
    """A random llama over characters with sharp distributions, some of whose completions end by themselves."""
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=TOKENIZER.eos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).double().eval()


def generated(model: Any, prompt: str) -> str:
    """What plain transformers answers, greedily."""
    ids = torch.tensor([TOKENIZER(prompt)["input_ids"]])
    out = model.generate(ids, do_sample=False, max_new_tokens=6, attention_mask=torch.ones_like(ids))
    return str(TOKENIZER.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def share_of_letters(*, prompts: list, completions: list, **columns: list) -> Sequence[float | None]:
    return [sum(c.isalpha() for c in text) / max(len(text), 1) for text in completions]


def item(score: float | None, identity: str = "x") -> Item:
    return Item(identity, "p", "c", score, False)


# --- the mean and its error -----------------------------------------------------------------------------------


def test_mean_and_standard_error_by_hand() -> None:
    """Scores 1, 0, 0, 1, 1: mean .6, sum of squares 1.2, se = sqrt(1.2 / 4 / 5) = .244949."""
    score = summarise("a", "m", [item(value) for value in (1.0, 0.0, 0.0, 1.0, 1.0)])
    assert (score.task, score.metric, score.n) == ("a", "m", 5)
    assert score.value == pytest.approx(0.6)
    assert score.se == pytest.approx(math.sqrt(1.2 / 4 / 5))


def test_a_missing_score_leaves_the_number_and_the_mean() -> None:
    """1, -, 0: mean 1/2 of two, not 1/3; the item itself stays in the list."""
    items = [item(1.0), item(None), item(0.0)]
    score = summarise("a", "m", items)
    assert (score.value, score.n, score.items) == (0.5, 2, items)
    assert score.se == pytest.approx(0.5)


@pytest.mark.parametrize("items", [[], [item(None)], [item(None), item(None)]])
def test_no_score_at_all_is_null_and_not_zero(items: list[Item]) -> None:
    assert summarise("a", "m", items) == TaskScore("a", "m", None, 0, None, items)


def test_one_score_has_no_error() -> None:
    score = summarise("a", "m", [item(0.25), item(None)])
    assert (score.value, score.n, score.se) == (0.25, 1, None)


# --- generation -------------------------------------------------------------------------------------------------


def test_greedy_completions_are_judged_with_the_rows_columns(model: Any) -> None:
    """Completions are those of plain ``generate``; the metric sees them with prompts and every column."""
    seen: dict[str, Any] = {}

    def metric(*, prompts: list, completions: list, **columns: list) -> Sequence[float | None]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.0, 0.5, 1.0, None, 2.0]

    task = Task("sums", [], ROWS, metric=Metric("points", metric, correct_at=1.0))
    score = evaluate_task(model, TOKENIZER, task, SETTINGS)
    wanted = [generated(model, str(row["prompt"])) for row in ROWS]
    assert len(set(wanted)) > 3
    assert seen["completions"] == [found.completion for found in score.items] == wanted
    assert seen["prompts"] == [found.prompt for found in score.items] == [row["prompt"] for row in ROWS]
    assert seen["answer"] == [0, 1, 2, 3, 4]
    assert [found.id for found in score.items] == ["r0", "r1", "r2", "r3", "r4"]
    assert [found.score for found in score.items] == [0.0, 0.5, 1.0, None, 2.0]
    assert [found.correct for found in score.items] == [False, False, True, None, True]
    assert (score.task, score.metric, score.n, score.value) == ("sums", "points", 4, 3.5 / 4)


def test_a_metric_without_any_score_gives_null(model: Any) -> None:
    def silent(*, prompts: list, completions: list, **columns: list) -> Sequence[float | None]:
        return [None] * len(prompts)

    score = evaluate_task(model, TOKENIZER, Task("a", [], ROWS, metric=Metric("m", silent)), SETTINGS)
    assert (score.value, score.se, score.n, len(score.items)) == (None, None, 0, 5)


def test_conversations_are_asked_with_the_template_and_shown_as_text(model: Any) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    task = Task("a", [], [{"id": "0", "prompt": messages}], metric=Metric("m", lambda **columns: [1.0]))
    (found,) = evaluate_task(model, TOKENIZER, task, SETTINGS).items
    assert found.prompt == "system: be brief\nuser: hi"
    assert found.completion == generated(model, "system: be brief\nuser: hi\nassistant: ")


# --- likelihood -----------------------------------------------------------------------------------------------------


def mean_logp(model: Any, prompt: str, completion: str) -> float:
    """Mean log-probability of completion and end token, by one plain forward."""
    before = TOKENIZER(prompt)["input_ids"]
    answer = [*TOKENIZER(completion)["input_ids"], TOKENIZER.eos_token_id]
    with torch.no_grad():
        table = torch.log_softmax(model(torch.tensor([before + answer])).logits[0], -1)
    return sum(float(table[len(before) - 1 + i, token]) for i, token in enumerate(answer)) / len(answer)


def test_likelihood_is_the_mean_over_the_rows_own_tokens(model: Any) -> None:
    """Rows of every length in one batch, and one by one: the same numbers, each row's own mean."""
    pairs = [("1+2=", "3"), ("tell", "a long answer"), ("x", ""), ("9-4=", "5 of course")]
    rows: list[Row] = [{"id": str(i), "prompt": p, "completion": c} for i, (p, c) in enumerate(pairs)]
    task = Task("a", [], rows, metric=LIKELIHOOD)
    wanted = [pytest.approx(mean_logp(model, p, c), abs=1e-6) for p, c in pairs]
    for budget in (2**15, 1):
        score = evaluate_task(model, TOKENIZER, task, Settings(6, tokens_per_chunk=budget))
        assert [found.score for found in score.items] == wanted
    assert (score.metric, score.n) == ("logp", 4)
    assert [found.correct for found in score.items] == [found.extras["exact"] == 1 for found in score.items]
    assert [found.extras["loss"] for found in score.items] == [-found.score for found in score.items]
    assert [found.prompt for found in score.items] == [p for p, _ in pairs]


def test_a_row_with_nothing_to_predict_is_missing_and_not_nan(model: Any) -> None:
    """Empty text is one end token, which nothing precedes."""
    rows: list[Row] = [{"id": "0", "text": ""}, {"id": "1", "text": "ab"}]
    score = evaluate_task(model, TOKENIZER, Task("a", [], rows, metric=LIKELIHOOD), SETTINGS)
    assert [found.score for found in score.items] == [None, pytest.approx(mean_logp(model, "a", "b"), abs=1e-6)]
    assert score.n == 1
    assert [found.prompt for found in score.items] == ["", "ab"]


# --- the model afterwards -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [LIKELIHOOD, Metric("m", share_of_letters)])
def test_every_module_is_in_its_own_mode_afterwards(metric: Metric, model: Any) -> None:
    """Evaluated without dropout, in whatever mode it came, also after an exception of the metric."""
    rows: list[Row] = [{"id": "0", "prompt": "a", "completion": "b"}]
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    try:
        evaluate_task(model, TOKENIZER, Task("a", [], rows, metric=metric), SETTINGS)
        assert [module.training for module in model.modules()] == modes
        broken = Task("a", [], rows, metric=Metric("m", lambda **columns: [1 / 0]))
        with pytest.raises(UserError, match="ZeroDivisionError"):
            evaluate_task(model, TOKENIZER, broken, SETTINGS)
        assert [module.training for module in model.modules()] == modes
    finally:
        model.eval()


# --- ranks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [LIKELIHOOD, Metric("m", share_of_letters)])
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_shares_cover_every_row_once_and_together_equal_one_rank(world_size: int, metric: Metric, model: Any) -> None:
    """Also with more ranks than rows, where some have nothing to do."""
    rows: list[Row] = [{**row, "completion": str(row["answer"])} for row in ROWS]
    task = Task("a", [], rows, metric=metric)
    alone = evaluate_task(model, TOKENIZER, task, SETTINGS)
    shares = [
        score_share(model, TOKENIZER, task, Settings(6, rank=r, world_size=world_size)) for r in range(world_size)
    ]
    assert sorted(found.id for share in shares for found in share) == sorted(str(row["id"]) for row in rows)
    together = in_order(shares, rows)
    assert [found.id for found in together] == [found.id for found in alone.items]
    assert [found.completion for found in together] == [found.completion for found in alone.items]
    assert [found.score for found in together] == pytest.approx([found.score for found in alone.items], abs=1e-6)


@given(number=st.integers(0, 30), world_size=st.integers(1, 9))
def test_order_is_restored_from_any_shares(number: int, world_size: int) -> None:
    rows: list[Row] = [{"id": str(i)} for i in range(number)]
    shares = [[item(float(i), str(i)) for i in range(number)][rank::world_size] for rank in range(world_size)]
    assert [found.score for found in in_order(shares[::-1], rows)] == list(range(number))


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_task_without_rows_or_metric_is_refused(model: Any) -> None:
    with pytest.raises(UserError, match="task a: there are no evaluation rows"):
        evaluate_task(model, TOKENIZER, Task("a", [], (), metric=LIKELIHOOD), SETTINGS)
    with pytest.raises(UserError, match="task a: there is no metric"):
        evaluate_task(model, TOKENIZER, Task("a", [], ROWS), SETTINGS)


def test_a_row_without_a_prompt_cannot_be_judged_by_its_completion(model: Any) -> None:
    rows: list[Row] = [{"id": "0", "prompt": "a"}, {"id": "1", "text": "a"}]
    with pytest.raises(UserError, match=r"task a: row 1 has no prompt to complete\n.*judge the task by logp"):
        evaluate_task(model, TOKENIZER, Task("a", [], rows, metric=Metric("m", share_of_letters)), SETTINGS)


# --- judged by the method, by source, by sampling -----------------------------------------------------------------

PAIRS: list[Row] = [
    {"id": f"p{i}", "prompt": f"{i}?", "chosen": "yno"[i % 3 :], "rejected": "noyes"[i:], "source": "ab"[i % 2]}
    for i in range(5)
]


def change(model: Any, row: Row, moved: Any) -> float:
    """By how much the chosen side gained on the rejected one, from plain log-probabilities of both models."""

    def margin(of: Any) -> float:
        sums = []
        for side in ("chosen", "rejected"):
            prompt, whole = TOKENIZER(row["prompt"])["input_ids"], TOKENIZER(row["prompt"] + row[side])["input_ids"]
            ids = torch.tensor([[*whole, TOKENIZER.eos_token_id]])
            with torch.no_grad():
                logps = of(input_ids=ids).logits[0].log_softmax(-1)
            at = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
            sums.append(float(logps[at, ids[0, 1:][at]].sum()))
        return sums[0] - sums[1]

    return margin(moved) - margin(model)


def test_pairs_are_judged_by_the_change_since_the_start(model: Any) -> None:
    """All ties before training; afterwards each item's margin is that of the models' own log-probabilities."""
    task, settings = Task("a", [], PAIRS, metric=LIKELIHOOD), Settings(6, method=DPO())
    model = copy.deepcopy(model).float()  # the start is kept in single precision
    remember_start(model, TOKENIZER, task, settings)
    start = evaluate_task(model, TOKENIZER, task, settings)
    assert (start.metric, start.value, start.extras["margin"]) == ("accuracy", 0.5, pytest.approx(0, abs=1e-6))
    moved = copy.deepcopy(model)
    with torch.no_grad():
        noise = torch.randn(moved.lm_head.weight.shape, generator=torch.Generator().manual_seed(1))
        moved.lm_head.weight.add_(0.3 * noise)
    after = evaluate_task(moved, TOKENIZER, task, settings)
    wanted = [change(model, row, moved) for row in PAIRS]
    assert [item.extras["margin"] for item in after.items] == pytest.approx(wanted, abs=1e-4)
    assert [item.score for item in after.items] == [float(value > 0) for value in wanted]
    assert len({item.score for item in after.items}) == 2, "a judge that says the same of every pair shows nothing"


def test_sources_are_told_apart(model: Any) -> None:
    """Rows 0, 2, 4 are of a, rows 1 and 3 of b; one source alone is not broken down."""
    task, settings = Task("a", [], PAIRS, metric=Metric("letters", share_of_letters)), Settings(6)
    score = evaluate_task(model, TOKENIZER, task, settings)
    by_hand = [item.score for item in score.items if item.score is not None]
    assert score.by_source == pytest.approx({"a": sum(by_hand[0::2]) / 3, "b": sum(by_hand[1::2]) / 2})
    alone = Task("a", [], PAIRS[:1], metric=Metric("letters", share_of_letters))
    assert evaluate_task(model, TOKENIZER, alone, settings).by_source == {}


# --- several samples, and answers that were cut ----------------------------------------------------------------


def test_pass_at_k_by_hand() -> None:
    """n = 4, c = 1: one of C(4,1), 3 of C(4,2) = 6, and the only choice of 4 hold it. n = 3 asks no four."""
    assert pass_at_k(4, 1) == pytest.approx({"pass@1": 1 / 4, "pass@2": 3 / 6, "pass@4": 1.0})
    assert pass_at_k(3, 1) == pytest.approx({"pass@1": 1 / 3, "pass@2": 2 / 3})
    assert pass_at_k(8, 0) == {f"pass@{k}": 0.0 for k in (1, 2, 4, 8)}
    assert pass_at_k(0, 0) == {}


@given(total=st.integers(1, 8), k=st.sampled_from([1, 2, 4, 8]), data=st.data())
def test_pass_at_k_is_the_share_of_choices_with_a_correct_one(total: int, k: int, data: Any) -> None:
    correct = data.draw(st.integers(0, total))
    found = pass_at_k(total, correct)
    assert (f"pass@{k}" in found) == (k <= total)
    if k <= total:
        choices = list(itertools.combinations(range(total), k))
        wanted = sum(any(sample < correct for sample in choice) for choice in choices) / len(choices)
        assert found[f"pass@{k}"] == pytest.approx(wanted)


def test_an_item_of_several_samples_has_their_mean_and_pass_at_k(model: Any) -> None:
    """Four samples of each of five rows, scored by their place; a missing one leaves the mean and n.

    Row 0: 1, 0, -, 1: mean 2/3, pass@1 = 2/3, pass@2 of n = 3, c = 2 is 1. Row 1: none. Row 2: all. Row 3: none right.
    """
    asked: dict[str, list] = {}
    table = [[1, 0, None, 1], [None] * 4, [1] * 4, [0, 0, 0.5, 0], [1, 0, 0, 0]]

    def metric(*, prompts: list, completions: list, **columns: list) -> Sequence[float | None]:
        asked.update(columns, prompts=prompts, completions=completions)
        return [value for row in table for value in row]

    task = Task("a", [], ROWS, metric=Metric("m", metric))
    score = evaluate_task(model, TOKENIZER, task, Settings(6, temperature=1.5, num_samples=4))
    assert asked["answer"] == [answer for answer in range(5) for _ in range(4)]
    assert [item.completion for item in score.items] == asked["completions"][::4]
    assert len(set(asked["completions"])) > 10
    assert [item.score for item in score.items] == [pytest.approx(2 / 3), None, 1.0, 0.125, 0.25]
    assert [item.correct for item in score.items] == [False, None, True, False, False]
    assert (score.n, score.value) == (4, pytest.approx((2 / 3 + 1 + 0.125 + 0.25) / 4))
    passes = [{k: v for k, v in item.extras.items() if k != "clipped"} for item in score.items]
    assert passes[0] == pytest.approx({"pass@1": 2 / 3, "pass@2": 1.0})
    assert passes[1] == {}
    assert passes[4] == pytest.approx({"pass@1": 0.25, "pass@2": 0.5, "pass@4": 1.0})
    assert score.extras["pass@1"] == pytest.approx((2 / 3 + 1 + 0 + 0.25) / 4)
    assert score.extras["pass@4"] == pytest.approx(2 / 3)


def test_the_first_of_several_samples_is_the_only_one_of_one(model: Any) -> None:
    """More samples change no answer that was there, nor do ranks."""
    task = Task("a", [], ROWS, metric=Metric("letters", share_of_letters))
    one = evaluate_task(model, TOKENIZER, task, Settings(6, temperature=1.5))
    four = evaluate_task(model, TOKENIZER, task, Settings(6, temperature=1.5, num_samples=4))
    assert [item.completion for item in one.items] == [item.completion for item in four.items]
    assert not any(name.startswith("pass@") for name in one.extras)
    shares = [
        score_share(model, TOKENIZER, task, Settings(6, rank=rank, world_size=2, temperature=1.5, num_samples=4))
        for rank in range(2)
    ]
    assert [item.extras for item in in_order(shares, ROWS)] == [item.extras for item in four.items]


def test_answers_that_did_not_end_are_seen(model: Any) -> None:
    """An answer that is cut at 6 goes on at 7: it has as many tokens as it may have, and no end token."""
    task = Task("a", [], ROWS, metric=Metric("letters", share_of_letters))
    score = evaluate_task(model, TOKENIZER, task, SETTINGS)
    wanted = []
    for row in ROWS:
        ids = torch.tensor([TOKENIZER(row["prompt"])["input_ids"]])
        out = model.generate(ids, do_sample=False, max_new_tokens=6, attention_mask=torch.ones_like(ids))
        wanted.append(float(TOKENIZER.eos_token_id not in out[0, ids.shape[1] :].tolist()))
    assert [item.extras for item in score.items] == [{"clipped": value} for value in wanted]
    assert score.extras == {"clipped": sum(wanted) / 5}
    assert 0 < sum(wanted) < 5


def test_several_greedy_samples_are_refused() -> None:
    with pytest.raises(UserError, match=r"evaluation\.num_samples: 3 greedy answers"):
        Settings(6, num_samples=3)


def test_sampled_answers_follow_from_the_seed(model: Any) -> None:
    task = Task("a", [], ROWS, metric=Metric("letters", share_of_letters))

    def answers(temperature: float, seed: int) -> list[str]:
        score = evaluate_task(model, TOKENIZER, task, Settings(6, temperature=temperature, seed=seed))
        return [item.completion for item in score.items]

    assert answers(3.0, 1) == answers(3.0, 1) != answers(3.0, 2)
    assert answers(0.0, 1) == answers(0.0, 2)
