"""The step API: it learns, by the arithmetic of PPO, on models of every kind; what does not fit is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaForSequenceClassification, T5Config, T5ForConditionalGeneration

from contrl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, create_reference_model
from contrl.core import respond_to_batch
from contrl.errors import GuardStop, UserError
from contrl.trainers.ppo_config import PPOConfig
from contrl.trainers.step import StepTrainer
from contrl.trainers.step_settings import StepSettings

QUERY = torch.tensor([5, 6, 7])
GOOD = 9
Make = Callable[..., Any]


def encoder_decoder(tokenizer: Any, seed: int = 0) -> Any:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
        dropout_rate=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5ForConditionalGeneration(config)


def settings(**changes: Any) -> SimpleNamespace:
    values = {"batch_size": 2, "mini_batch_size": 1, "learning_rate": 1e-3}
    return SimpleNamespace(**{**values, **changes})


def chance(model: Any) -> float:
    """The probability that an answer begins with the good token."""
    first = {"decoder_input_ids": torch.tensor([[0]])} if model.has_encoder else {}
    with torch.no_grad():
        logits = model.eval()(input_ids=QUERY[None], **first)[0]
    return float(logits[0, -1].softmax(-1)[GOOD])


def batch(number: int = 2, length: int = 4) -> tuple[list[torch.Tensor], ...]:
    draw = torch.Generator().manual_seed(1)
    answers = torch.randint(3, 60, (number, length), generator=draw)
    return [QUERY] * number, list(answers), [torch.tensor(float(row)) for row in range(number)]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def moved(before: dict[str, torch.Tensor], model: Any) -> set[str]:
    return {name for name, tensor in model.named_parameters() if not torch.equal(before[name], tensor)}


# --- it learns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "rate", "factor"), [("full", 2e-2, 20), ("lora", 2e-2, 4), ("seq2seq", 2e-2, 20)])
def test_sixty_steps_raise_the_probability_of_a_rewarded_token(
    kind: str, rate: float, factor: float, make_model: Make, tokenizer: Any
) -> None:
    torch.manual_seed(0)
    if kind == "seq2seq":
        model: Any = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(encoder_decoder(tokenizer))
    else:
        adapter = LoraConfig(r=4, target_modules="all-linear") if kind == "lora" else None
        policy = make_model()
        with torch.no_grad():
            # The adapter leaves the head alone, which as it is drawn can hardly tell the tokens apart.
            policy.lm_head.weight.mul_(20 if adapter else 1)
        model = AutoModelForCausalLMWithValueHead.from_pretrained(policy, peft_config=adapter)
    config = settings(batch_size=8, mini_batch_size=8, ppo_epochs=1, learning_rate=rate, init_kl_coef=0.01)
    trainer = StepTrainer(config, model, None, tokenizer)
    before = chance(model)
    for _ in range(60):
        answers = respond_to_batch(model, QUERY.repeat(8, 1), txt_len=4)
        scores = [(answer == GOOD).float().sum() for answer in answers]
        trainer.step([QUERY] * 8, list(answers), scores)
    assert chance(model) > factor * before


def test_the_penalised_token_becomes_rarer(make_model: Make, tokenizer: Any) -> None:
    """The sign: one token is given minus what the other answers are given."""
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
    trainer = StepTrainer(settings(init_kl_coef=0.0, learning_rate=1e-2), model, None, tokenizer)
    before = chance(model)
    for _ in range(5):
        trainer.step([QUERY] * 2, [torch.tensor([GOOD]), torch.tensor([20])], [torch.tensor(-1.0), torch.tensor(1.0)])
    assert chance(model) < before


# --- the arithmetic ---------------------------------------------------------------------------------------


def test_one_step_is_ppo_by_hand(make_model: Make, tokenizer: Any) -> None:
    """One answer of two tokens, a fresh value head (V = 0), gamma = lambda = 1, reward 2, no KL.

    Returns are (2, 2), advantages whitened to 0 as they are equal; so without whitening: A = (2, 2). The policy has not
    moved: ratio 1, policy loss -2, value loss (0 - 2)^2 / 2 = 2, loss = -2 + 0.1 x 2 = -1.8. The head's bias has the
    gradient 0.1 x (0 - 2) = -0.2, and SGD with rate 0.5 moves it to 0.1.
    """
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
    before = weights(model)
    own = make_model()
    logps = own(torch.tensor([[5, 6, 7, 8, 9]])).logits[0].log_softmax(-1)
    (2.0 * (logps[2, 8] + logps[3, 9]) / 2).backward()
    wanted = own.lm_head.weight + 0.5 * own.lm_head.weight.grad
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    config = settings(
        batch_size=1, ppo_epochs=1, init_kl_coef=0.0, lam=1.0, whiten_advantages=False, cliprange_value=None
    )
    trainer = StepTrainer(config, model, None, tokenizer, optimizer=sgd)
    stats = trainer.step([QUERY], [torch.tensor([8, 9])], [torch.tensor(2.0)])
    assert stats["loss/policy_avg"] == pytest.approx(-2.0)
    assert stats["loss/value_avg"] == pytest.approx(2.0)
    assert stats["loss"] == pytest.approx(-1.8)
    assert (stats["val/ratio"], stats["objective/scores"]) == (1.0, 2.0)
    assert float(model.v_head.summary.bias.detach()) == pytest.approx(0.1, abs=1e-6)
    torch.testing.assert_close(model.pretrained_model.lm_head.weight, wanted, atol=1e-6, rtol=0)
    assert moved(before, model) == set(before)


def test_the_kl_to_the_reference_is_taken_off_the_reward(make_model: Make, tokenizer: Any) -> None:
    """objective/kl is the sum over tokens of log p - log r, and the reward loses 0.5 of it."""
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model(seed=0))
    other = make_model(seed=1)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        p, r = (m(ids).logits[0].log_softmax(-1) for m in (make_model(seed=0), other))
    kl = float(p[2, 8] + p[3, 9] - r[2, 8] - r[3, 9])
    config = settings(batch_size=1, init_kl_coef=0.5, adap_kl_ctrl=False)
    trainer = StepTrainer(config, model, other, tokenizer)
    stats = trainer.step([QUERY], [torch.tensor([8, 9])], [torch.tensor(1.0)])
    assert stats["objective/kl"] == pytest.approx(kl, abs=1e-4)
    assert stats["objective/non_score_reward"] == pytest.approx(-0.5 * kl, abs=1e-4)
    assert stats["objective/rlhf_reward"] == pytest.approx(1 - 0.5 * kl, abs=1e-4)


def test_without_a_reference_the_first_kl_is_nothing_and_the_coefficient_adapts(
    make_model: Make, tokenizer: Any
) -> None:
    """KL 0 is below the target: 0.2 x (1 - 0.2 x 2 / 10000)."""
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
    trainer = StepTrainer(settings(), model, None, tokenizer)
    first, second = trainer.step(*batch()), trainer.step(*batch())
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert first["objective/kl_coef"] == 0.2
    assert second["objective/kl_coef"] == pytest.approx(0.2 * (1 - 0.2 * 2 / 10000))
    assert abs(second["objective/kl"]) > 1e-3
    assert (second["episode"], second["lr"]) == (4, 1e-3)


def test_each_query_is_trained_on_in_every_epoch(make_model: Make, tokenizer: Any) -> None:
    """4 queries in steps of 1 x 2 for 3 epochs: 6 optimizer steps; each token counts once an epoch in the loss."""
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
    config = settings(batch_size=4, gradient_accumulation_steps=2, ppo_epochs=3, learning_rate=0.0)
    trainer = StepTrainer(config, model, None, tokenizer)
    steps = 0
    update = trainer.optimizer.step

    def counted(*args: Any) -> Any:
        nonlocal steps
        steps += 1
        return update(*args)

    trainer.optimizer.step = counted
    stats = trainer.step(*batch(4))
    assert steps == 6
    assert stats["val/ratio"] == pytest.approx(1.0)
    assert stats["objective/scores"] == 1.5


def test_masked_tokens_are_not_learnt(make_model: Make, tokenizer: Any) -> None:
    """The mask leaves the first token; with the answer cut behind it the gradient would be another only by GAE."""
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
    head = model.v_head.summary
    config = settings(batch_size=1, ppo_epochs=1, init_kl_coef=0.0, whiten_advantages=False, lam=1.0)
    trainer = StepTrainer(config, model, None, tokenizer, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
    answer, score = [torch.tensor([8, 9, 10])], [torch.tensor(1.0)]
    trainer.step([QUERY], answer, score, [torch.tensor([1, 0, 0])])
    assert head.weight.grad is not None
    state = model.pretrained_model(QUERY[None], output_hidden_states=True).hidden_states[-1][0, -1]
    torch.testing.assert_close(head.weight.grad[0], -0.1 * state, atol=1e-5, rtol=0)


def test_a_schedule_moves_after_every_step(make_model: Make, tokenizer: Any) -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(sgd, 0.1)
    trainer = StepTrainer(settings(ppo_epochs=1), model, None, tokenizer, optimizer=sgd, lr_scheduler=schedule)
    rates = [trainer.step(*batch())["lr"] for _ in range(3)]
    assert rates == pytest.approx([1.0, 0.1, 0.01])


def test_the_gradient_is_clipped_only_when_asked(make_model: Make, tokenizer: Any) -> None:
    """SGD with rate 1: the weights move by the gradient, whose norm is at most the limit."""
    lengths = []
    for limit in (None, 1e-3):
        model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
        before = weights(model)
        config = settings(batch_size=1, ppo_epochs=1, max_grad_norm=limit)
        trainer = StepTrainer(config, model, None, tokenizer, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
        norm = trainer.step([QUERY], [torch.tensor([8, 9])], [torch.tensor(1.0)])["grad_norm"]
        lengths.append(sum(float((p.detach() - before[n]).square().sum()) for n, p in model.named_parameters()) ** 0.5)
    assert lengths == pytest.approx([norm, 1e-3], rel=1e-3)


# --- models and references --------------------------------------------------------------------------------


def test_the_reference_stays_what_it_was(make_model: Make, tokenizer: Any) -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
    reference = create_reference_model(model)
    before, of_policy = weights(reference), weights(model)
    trainer = StepTrainer(settings(), model, reference, tokenizer)
    trainer.step(*batch())
    assert trainer.ref_model is reference
    assert moved(before, reference) == set()
    assert moved(of_policy, model)
    assert not any(parameter.requires_grad for parameter in reference.parameters())


def test_an_adapter_alone_is_trained_and_its_base_is_the_reference(make_model: Make, tokenizer: Any) -> None:
    adapter = LoraConfig(r=4, target_modules="all-linear")
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model(), peft_config=adapter)
    before = weights(model)
    trainer = StepTrainer(settings(learning_rate=1e-2), model, None, tokenizer)
    first, second = trainer.step(*batch()), trainer.step(*batch())
    names = moved(before, model)
    assert {"lora_" in name or "value_head" in name for name in names} == {True}
    assert any("lora_B" in name for name in names)
    assert any("value_head" in name for name in names)
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert abs(second["objective/kl"]) > 1e-3


def test_a_plain_language_model_is_given_a_head(make_model: Make, tokenizer: Any) -> None:
    policy = make_model()
    trainer = StepTrainer(settings(), policy, None, tokenizer)
    trainer.step(*batch())
    assert isinstance(trainer.model, AutoModelForCausalLMWithValueHead)
    assert trainer.model.pretrained_model is policy


def test_the_start_token_of_a_decoder_is_no_part_of_an_answer(tokenizer: Any) -> None:
    """transformers' generate returns it, and training with and without it is the same."""
    found = []
    for answer in ([0, 8, 9], [8, 9]):
        model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(encoder_decoder(tokenizer))
        trainer = StepTrainer(settings(batch_size=1, max_kl=None), model, None, tokenizer)
        found.append(trainer.step([QUERY], [torch.tensor(answer)], [torch.tensor(1.0)]))
    names = found[0].keys() - {"eps", "seconds"}
    assert {name: found[0][name] for name in names} == {name: found[1][name] for name in names}
    assert found[0]["completions/mean_length"] == 2


def test_what_was_trained_is_saved_and_comes_back(make_model: Make, tokenizer: Any, tmp_path: Path) -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
    trainer = StepTrainer(settings(learning_rate=1e-2), model, None, tokenizer)
    trainer.step(*batch())
    trainer.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "saved").eval()
    for mine, theirs in zip(model.eval()(QUERY[None]), again(QUERY[None]), strict=True):
        assert mine is theirs is None or torch.equal(mine, theirs)
    assert float(again.v_head.summary.bias.detach().abs()) > 0
    # And can be trained on.
    StepTrainer(settings(), again, None, tokenizer).step(*batch())


# --- sampling, logging, data ------------------------------------------------------------------------------


def test_generate_answers_one_query_or_several(make_model: Make, tokenizer: Any) -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
    trainer = StepTrainer(settings(), model, None, tokenizer)
    how = {"do_sample": True, "top_k": 0.0, "top_p": 1.0, "min_length": -1, "eos_token_id": -1, "pad_token_id": 0}
    one = trainer.generate(QUERY, max_new_tokens=5, **how)
    assert one.shape == (1, 8)
    assert one[0, :3].tolist() == QUERY.tolist()
    lengths = iter((2, 6))
    several = trainer.generate([QUERY, QUERY[:2]], lambda: next(lengths), return_prompt=False, **how)
    assert [len(answer) for answer in several] == [2, 6]
    policy, reference = trainer.generate(QUERY, max_new_tokens=3, generate_ref_response=True)
    assert torch.equal(policy, reference)


def test_greedy_answers_are_those_of_transformers(make_model: Make, tokenizer: Any) -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
    trainer = StepTrainer(settings(), model, None, tokenizer)
    wanted = model.generate(QUERY[None], max_new_tokens=6, do_sample=False)
    assert torch.equal(trainer.generate(QUERY, max_new_tokens=6), wanted)
    # num_beams is nothing that contrl's own loop knows.
    beams = model.generate(QUERY[None], max_new_tokens=6, num_beams=2, do_sample=False)
    assert torch.equal(trainer.generate(QUERY, max_new_tokens=6, num_beams=2), beams)


def test_statistics_are_appended_to_the_log(make_model: Make, tokenizer: Any, tmp_path: Path) -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
    trainer = StepTrainer(settings(output_dir=str(tmp_path / "out")), model, None, tokenizer)
    queries, answers, scores = batch()
    for _ in range(2):
        trainer.log_stats(trainer.step(queries, answers, scores), {"query": ["a", "b"]}, scores)
    lines = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    rewards = [(r["step"], r["value"]) for r in records if r["name"] == "env/reward_mean"]
    assert rewards == [(1, 0.5), (2, 0.5)]
    assert {"objective/kl", "policy/approxkl_avg", "loss"} <= {r["name"] for r in records}


def test_the_dataloader_gives_whole_shuffled_batches(make_model: Make, tokenizer: Any) -> None:
    rows = [{"query": str(number)} for number in range(7)]
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
    trainer = StepTrainer(
        settings(), model, None, tokenizer, dataset=rows, data_collator=lambda part: [row["query"] for row in part]
    )
    batches = list(trainer.dataloader)
    assert [len(part) for part in batches] == [2, 2, 2]
    assert [query for part in batches for query in part] != [str(number) for number in range(6)]


# --- what is refused --------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_refused(make_model: Make, tokenizer: Any) -> None:
    trainer = StepTrainer(settings(), AutoModelForCausalLMWithValueHead.from_pretrained(make_model()), None, tokenizer)
    before = weights(trainer.model)
    queries, answers, scores = batch()
    cases: list[tuple[str, tuple[Any, ...]]] = [
        ("queries has 1 entries, batch_size is 2", (queries[:1], answers, scores)),
        ("responses has 4 entries", (queries, answers * 2, scores)),
        ("scores has 1 entries", (queries, answers, scores[:1])),
        ("scores must be a list", (queries, answers, torch.tensor([1.0, 2.0]))),
        (r"scores\[0\] must be a tensor, and is a float", (queries, answers, [1.0, 2.0])),
        (r"queries\[1\] must be a tensor, and is a str", ([QUERY, "7"], answers, scores)),
        (r"scores\[1\] has the shape \[2\]", (queries, answers, [torch.tensor(1.0), torch.tensor([1.0, 2.0])])),
        (r"scores\[1\] is nan", (queries, answers, [torch.tensor(1.0), torch.tensor(float("nan"))])),
        (r"responses\[0\] has the shape \[0\]", (queries, [answers[0][:0], answers[1]], scores)),
        (r"responses\[0\] must be a tensor of token ids", (queries, [answers[0].float(), answers[1]], scores)),
        (r"response_masks\[0\] has 1 entries", (queries, answers, scores, [torch.ones(1), torch.ones(4)])),
    ]
    for message, given in cases:
        with pytest.raises(UserError, match=message):
            trainer.step(*given)
    assert moved(before, trainer.model) == set()


def test_a_batch_of_one_may_be_a_table(make_model: Make, tokenizer: Any) -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
    trainer = StepTrainer(settings(batch_size=1), model, None, tokenizer)
    stats = trainer.step(QUERY[None], [torch.tensor([[8, 9]])], [torch.tensor([1.0])])
    assert (stats["objective/scores"], stats["completions/mean_length"]) == (1.0, 2.0)


def test_what_a_trainer_cannot_be_made_of_is_refused(make_model: Make, tokenizer: Any) -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
    classifier = LlamaForSequenceClassification(model.config)
    cases: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("same object", (settings(), model, model, tokenizer), {}),
        ("there is no tokenizer", (settings(), model), {}),
        ("model is a NoneType", (settings(), None, None, tokenizer), {}),
        ("no language model", (settings(), classifier, None, tokenizer), {}),
        ("create_reference_model", (settings(), model, None, tokenizer), {"num_shared_layers": 1}),
        ("no argument 'steps'", (settings(), model, None, tokenizer), {"steps": 1}),
        ("use batch_size 6 or 3", (settings(batch_size=5, mini_batch_size=3), model, None, tokenizer), {}),
        ("kl_penalty is 'full'", (settings(kl_penalty="full"), model, None, tokenizer), {}),
        ("use_score_scaling", (settings(use_score_scaling=True), model, None, tokenizer), {}),
        ("gamma is 2", (settings(gamma=2.0), model, None, tokenizer), {}),
    ]
    plain = make_model()
    sgd = torch.optim.SGD(plain.parameters(), lr=1.0)
    cases.append(("without value head", (settings(), plain, None, tokenizer, None, sgd), {}))
    for message, given, further in cases:
        with pytest.raises(UserError, match=message):
            StepTrainer(*given, **further)


def test_pushing_is_refused(make_model: Make, tokenizer: Any) -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
    with pytest.raises(UserError, match="save_pretrained"):
        StepTrainer(settings(), model, None, tokenizer).push_to_hub("name")


def test_a_policy_far_from_its_reference_stops(make_model: Make, tokenizer: Any) -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
    other = make_model(seed=1)
    with torch.no_grad():
        other.lm_head.weight.mul_(1000)
    trainer = StepTrainer(settings(max_kl=1e-3), model, other, tokenizer)
    draw = torch.Generator().manual_seed(0)
    answers = [torch.randint(3, 60, (8,), generator=draw) for _ in range(2)]
    with pytest.raises(GuardStop, match="max_kl"):
        trainer.step([QUERY] * 2, answers, [torch.tensor(1.0)] * 2)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(make_model: Make, tokenizer: Any) -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(make_model())
    trainer = StepTrainer(settings(init_kl_coef=0.0), model, None, tokenizer)
    model.v_head.summary.weight.register_hook(lambda gradient: gradient * float("nan"))
    before = weights(model)
    with pytest.raises(GuardStop, match="not finite"):
        trainer.step(*batch())
    assert moved(before, model) == set()


# --- the configuration ------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_2024() -> None:
    method = StepSettings.of(None).method()
    assert (method.num_epochs, method.num_minibatches, method.clip, method.clip_value) == (4, 1, 0.2, 0.2)
    assert (method.kl_coef, method.target_kl, method.kl_horizon, method.kl_estimator) == (0.2, 6.0, 10000.0, "k1")
    assert (method.value_coef, method.gamma, method.gae_lambda) == (0.1, 1.0, 0.95)
    assert StepSettings.of(None).learning_rate == 1.41e-5


def test_a_ppo_config_says_the_same() -> None:
    config = PPOConfig(batch_size=4, mini_batch_size=1, kl_penalty="mse", score_clip=3.0, adap_kl_ctrl=False, seed=5)
    mine = StepSettings.of(config)
    method = mine.method()
    assert (mine.batch_size, mine.num_minibatches(), mine.seed, mine.output_dir) == (4, 4, 5, None)
    assert (mine.learning_rate, mine.max_grad_norm) == (1.41e-5, None)
    assert (method.kl_estimator, method.reward_clip, method.target_kl) == ("k2", (-3.0, 3.0), None)
    free = StepSettings.of(PPOConfig(batch_size=1, mini_batch_size=1, max_kl=None, cliprange_value=None)).method()
    assert (free.max_kl, free.clip_value) == (None, None)
    with pytest.raises(UserError, match="value is 'model'"):
        StepSettings.of(PPOConfig(batch_size=1, mini_batch_size=1, value="model"))
    assert StepSettings.of(PPOConfig(batch_size=1, mini_batch_size=1, output_dir="there")).output_dir == "there"
