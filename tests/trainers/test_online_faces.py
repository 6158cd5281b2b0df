"""RLOOTrainer, GRPOTrainer and PPOTrainer as TRL's programs use them: constructors, batch sizes, training, resuming."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from pyarrow import parquet
from tokenizers import normalizers
from transformers import AutoModelForCausalLM, TrainerCallback

from contrl import GRPOConfig, GRPOTrainer, PPOConfig, PPOTrainer, RLOOConfig, RLOOTrainer, Task, UserError
from contrl.experiment import find
from contrl.models.value_head import ValueHead, value_of
from contrl.trainers.batches import Batches, Counts, of_generations
from contrl.trainers.online_faces import PPOFace, is_step_call

Rows = list[dict[str, Any]]
Make = Callable[..., Any]
QUICK: dict[str, Any] = {
    "output_dir": "out",
    "max_steps": 3,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "disable_tqdm": True,
}
GROUPS: dict[str, Any] = QUICK | {"num_generations": 4, "max_completion_length": 5}
PPO: dict[str, Any] = QUICK | {"response_length": 5, "num_ppo_epochs": 2, "num_mini_batches": 2}


def digits(completions: list[str], **columns: Any) -> list[float]:
    return [float(sum(c.isdigit() for c in text)) for text in completions]


async def brevity(completions: list[str], **columns: Any) -> list[float]:
    return [-float(len(text)) for text in completions]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def logged(trainer: Any, name: str) -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


@pytest.fixture
def prompts() -> Rows:
    """Ten prompts."""
    return [{"prompt": f"{i}+{i}="} for i in range(10)]


class Crash(TrainerCallback):
    """A power cut when a step begins."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


# --- batch sizes --------------------------------------------------------------------------------------


def test_completions_become_prompts() -> None:
    """16 per device x 3 accumulated x 2 ranks = 96 completions a step, 8 of a prompt: 12 prompts; 6 = 2 x 3."""
    counts = Counts(16, 3, 8, 2)
    assert of_generations(counts, None, None) == Batches(12, 1, 1)
    assert of_generations(counts, 6, None) == of_generations(counts, None, 192) == Batches(12, 2, 1)
    # Micro-batches sampled one by one come from the same weights as all of the step.
    assert of_generations(counts, 1, None) == Batches(12, 1, 1)


def test_a_generation_serves_several_steps(make_model: Make, tokenizer: Any) -> None:
    """TRL's schedule, its case of 24 samples: batch 6, steps_per_generation 4, 4 of a prompt, iterations 2.

    A generation batch is 6 x 4 = 24 completions of 6 prompts, which serve 4 x 2 = 8 micro-batches: with accumulation 2
    four optimizer steps, of 3 prompts each. 17 prompts are three such windows an epoch, the last of 5 prompts, so the
    reward is asked three times in 12 steps, and a prompt's four completions stand in a row.
    """
    asked: list[list[str]] = []

    def reward(prompts: list[str], **columns: Any) -> list[float]:
        asked.append(prompts)
        return [float(i % 3) for i in range(len(prompts))]

    config = GRPOConfig(
        "out",
        per_device_train_batch_size=6,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        num_generations=4,
        num_iterations=2,
        num_train_epochs=1,
        max_completion_length=3,
        disable_tqdm=True,
    )
    assert config.batches(1) == Batches(3, 2, 2)
    rows = [{"prompt": f"{i}="} for i in range(17)]
    trainer = GRPOTrainer(make_model(), reward, config, rows, processing_class=tokenizer)
    trainer.train()
    assert trainer.state.global_step == 12
    assert [len(window) for window in asked] == [24, 24, 20]
    assert all(len(set(window[i : i + 4])) == 1 for window in asked for i in range(0, len(window), 4))
    assert sorted({prompt for window in asked for prompt in window}) == sorted(row["prompt"] for row in rows)


def refusal(make: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as error:
        make()
    return str(error.value)


def test_batch_sizes_that_leave_a_remainder_are_refused_with_the_nearest_that_do_not() -> None:
    """TRL's case itself: accumulation 3 makes 18 completions a step, which are 4.5 prompts of 4."""
    sizes: dict[str, Any] = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 3}
    text = refusal(lambda: GRPOConfig("x", num_generations=4, **sizes))
    assert "18 completions" in text
    assert "use per_device_train_batch_size 4 or 8, or num_generations 3 or 6" in text
    # 6 x 3 = 18 are 6 prompts of 3, but four micro-batches are no whole steps of three.
    assert "use 3 or 6" in refusal(lambda: GRPOConfig("x", num_generations=3, steps_per_generation=4, **sizes))
    config = GRPOConfig("x", num_generations=3, generation_batch_size=48, **sizes)
    # Of two ranks a micro-batch is 12 and a step 36 completions.
    assert "use 36 or 72" in refusal(lambda: config.batches(2))
    assert "both given" in refusal(lambda: GRPOConfig("x", generation_batch_size=8, steps_per_generation=1))
    # PPO's batch of 12 has no 8 equal mini-batches.
    text = refusal(lambda: PPOConfig("x", per_device_train_batch_size=12, num_mini_batches=8))
    assert "use per_device_train_batch_size 8 or 16" in text


def test_ppo_counts_episodes() -> None:
    """4 x 4 = 16 episodes a batch in 2 mini-batches of 8; 40 episodes are 3 batches, each 2 epochs x 2 steps."""
    config = PPOConfig(
        "x",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        num_mini_batches=2,
        num_ppo_epochs=2,
        total_episodes=40,
    )
    assert config.batches(1) == Batches(8, 2, 2)
    assert config.training()["max_steps"] == 12
    assert config.training(2)["max_steps"] == 8
    assert "one of them" in refusal(PPOConfig("x", total_episodes=40, max_steps=3).training)


# --- configurations -----------------------------------------------------------------------------------


def test_defaults_are_trls_and_reach_the_method() -> None:
    grpo, rloo, ppo = (
        find("method", name)(**config.method_fields(find("method", name)))
        for name, config in (("grpo", GRPOConfig("x")), ("rloo", RLOOConfig("x")), ("ppo", PPOConfig("x")))
    )
    assert (grpo.samples_per_prompt, grpo.max_new_tokens, grpo.beta, grpo.loss_type) == (8, 512, 0.0, "dapo")
    assert (rloo.samples_per_prompt, rloo.max_new_tokens, rloo.beta, rloo.clip) == (2, 512, 0.05, 0.2)
    assert (ppo.samples_per_prompt, ppo.max_new_tokens, ppo.num_epochs, ppo.temperature) == (1, 53, 4, 0.7)
    assert (ppo.kl_coef, ppo.value_coef, ppo.gae_lambda, ppo.target_kl) == (0.05, 0.1, 0.95, None)
    assert [c("x").learning_rate for c in (GRPOConfig, RLOOConfig, PPOConfig)] == [1e-6, 1e-6, 3e-6]


def test_fields_are_called_as_in_trl() -> None:
    config = GRPOConfig(
        "x",
        epsilon=0.1,
        epsilon_high=0.3,
        delta=2.0,
        scale_rewards=False,
        importance_sampling_level="sequence",
        multi_objective_aggregation="normalize_then_sum",
        reward_weights=[1.0, 0.5],
        mask_truncated_completions=True,
        generation_kwargs={"top_k": 5, "min_p": 0.1, "stop_strings": "\n", "temperature": 0.5},
        top_k=50,
        shuffle_dataset=False,
    )
    method = find("method", "grpo")(**config.method_fields(find("method", "grpo")))
    assert (method.clip, method.clip_high, method.delta, method.scale_rewards) == (0.1, 0.3, 2.0, "none")
    assert (method.level, method.aggregate, method.reward_weights) == ("sequence", "normalize_then_sum", (1.0, 0.5))
    assert (method.top_k, method.min_p, method.stop, method.temperature) == (5, 0.1, ("\n",), 0.5)
    assert method.mask_truncated
    assert config.training()["train_sampling_strategy"] == "sequential"
    rloo = RLOOConfig("x", reward_clip_range=(-1.0, 1.0), normalize_advantages=True)
    fields = rloo.method_fields(find("method", "rloo"))
    assert (fields["reward_clip"], fields["normalize_advantages"]) == ((-1.0, 1.0), True)
    ppo = PPOConfig("x", adap_kl_ctrl=True, target=3.0, cliprange_value=0.4, lam=0.9, missing_eos_penalty=1.0)
    fields = ppo.method_fields(find("method", "ppo"))
    assert (fields["target_kl"], fields["clip_value"], fields["gae_lambda"]) == (3.0, 0.4, 0.9)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: GRPOConfig("x", loss_type="cispo"), "use grpo, bnpo, dapo or dr_grpo"),
        (lambda: GRPOConfig("x", use_vllm=True), "sampler="),
        (lambda: GRPOConfig("x", top_entropy_quantile=0.2), "top_entropy_quantile"),
        (lambda: GRPOConfig("x", entropy_coef=0.1), "entropy_coef"),
        (lambda: GRPOConfig("x", generation_kwargs={"num_beams": 2}), "generation_kwargs has num_beams"),
        (lambda: GRPOConfig("x", generation_kwargs={"do_sample": False}), "do_sample"),
        (lambda: RLOOConfig("x", num_generations=1), "use 2 or more"),
        (lambda: RLOOConfig("x", max_completion_length=None), "give a number"),
        (lambda: RLOOConfig("x", sync_ref_model=True, reference="ema"), "moves the reference"),
        (lambda: PPOConfig("x", stop_token="period"), "stop_token"),
        (lambda: PPOConfig(batch_size=10, mini_batch_size=4), "use batch_size 8 or 12"),
        (lambda: PPOConfig(batch_size=4, response_length=20), "give one kind"),
        (lambda: PPOConfig("x", response_length=4).step_values(), "not of the step API"),
    ],
)
def test_what_is_not_there_is_refused_with_its_place(make: Callable[[], Any], expected: str) -> None:
    assert expected in refusal(make)


def test_what_has_no_effect_is_noted_and_vllms_own_fields_are_not() -> None:
    with pytest.warns(FutureWarning, match="own loop"):
        RLOOConfig("x", use_transformers_paged=True)
    assert GRPOConfig("x", vllm_mode="server", vllm_server_port=9000).vllm_server_port == 9000


def test_a_configuration_of_the_step_api_needs_no_folder() -> None:
    config = PPOConfig(batch_size=8, mini_batch_size=2, gradient_accumulation_steps=2)
    assert config.is_step_api
    values = config.step_values()
    assert (values["learning_rate"], values["init_kl_coef"], values["adap_kl_ctrl"]) == (1.41e-5, 0.2, True)
    assert (values["max_grad_norm"], values["output_dir"], config.backward_batch_size) == (None, None, 4)
    assert not PPOConfig("x").is_step_api
    assert PPOConfig().is_step_api


# --- constructors -------------------------------------------------------------------------------------


def test_the_second_argument_says_which_ppo_is_meant(tokenizer: Any) -> None:
    config, model = PPOConfig(batch_size=1), torch.nn.Linear(1, 1)
    assert is_step_call((config, model, None, tokenizer), {})
    assert is_step_call((), {"config": config, "model": model, "tokenizer": tokenizer})
    assert is_step_call((config,), {"model": model, "tokenizer": tokenizer})
    assert not is_step_call((config, tokenizer, model), {})
    assert not is_step_call((), {"args": config, "processing_class": tokenizer, "model": model})


def test_what_trl_has_and_contrl_has_not_is_refused_with_the_reason(
    make_model: Make, make_scorer: Make, tokenizer: Any, prompts: Rows
) -> None:
    def grpo(**changes: Any) -> Any:
        given = {"train_dataset": prompts, "processing_class": tokenizer} | changes
        return GRPOTrainer(make_model(), given.pop("reward_funcs", digits), GRPOConfig(**GROUPS), **given)

    assert "tools" in refusal(lambda: grpo(tools=[print]))
    assert "sampler=" in refusal(lambda: grpo(rollout_func=print))
    assert "one answer to one prompt" in refusal(lambda: grpo(environment_factory=print))
    assert "no reward to learn from" in refusal(lambda: grpo(reward_funcs={}))
    assert "gives no score" in refusal(lambda: grpo(reward_funcs=make_model()))
    assert "reward_funcs holds a float" in refusal(lambda: grpo(reward_funcs=[1.0]))
    assert "2 reward_processing_classes for 1" in refusal(lambda: grpo(reward_processing_classes=[None, None]))
    assert "columns answer, id" in refusal(lambda: grpo(train_dataset=[{"answer": "1"}]))
    scorer = make_scorer()
    assert "same object" in refusal(
        lambda: PPOTrainer(
            PPOConfig(**PPO), tokenizer, make_model(), None, scorer, train_dataset=prompts, value_model=scorer
        )
    )
    step = PPOConfig(batch_size=4)
    assert "of the step API" in refusal(
        lambda: PPOTrainer(
            args=step, processing_class=tokenizer, model=make_model(), reward_funcs=digits, train_dataset=prompts
        )
    )


def test_the_output_folder_is_named_by_model_and_method(model_folder: str, prompts: Rows) -> None:
    for kind, name in ((RLOOTrainer, "llama-RLOO"), (GRPOTrainer, "llama-GRPO")):
        trainer = kind(model_folder, digits, train_dataset=Dataset.from_list(prompts))
        assert Path(trainer.args.output_dir) == Path(name)
    trainer = PPOTrainer(model=model_folder, reward_funcs=digits, train_dataset=prompts)
    assert Path(trainer.args.output_dir) == Path("llama-PPO")
    assert isinstance(trainer, PPOTrainer)
    assert isinstance(trainer, PPOFace)


# --- training -----------------------------------------------------------------------------------------


def test_grpo_learns_from_two_functions_one_of_them_async(make_model: Make, tokenizer: Any, prompts: Rows) -> None:
    """reward = 1 x digits + 0.5 x brevity, and both means are logged by name."""
    config = GRPOConfig(**GROUPS, reward_weights=[1.0, 0.5], log_completions=True, num_completions_to_print=1)
    model = make_model()
    before = weights(model)
    trainer = GRPOTrainer(model, [digits, brevity], config, prompts, processing_class=tokenizer)
    trainer.train()
    assert trainer.model is model
    assert not same(before, weights(model))
    total, first, second = (logged(trainer, name) for name in ("reward", "rewards/digits/mean", "rewards/brevity/mean"))
    assert len(total) == 3
    assert total == pytest.approx([a + 0.5 * b for a, b in zip(first, second, strict=True)])
    for name in ("completions/mean_length", "completions/clipped_ratio", "entropy", "clip_ratio/region_mean"):
        assert len(logged(trainer, name)) == 3
    table = parquet.read_table("out/completions/completions_00002.parquet").to_pylist()
    assert len(table) == 8
    assert {"step", "prompt", "completion", "digits", "brevity", "reward", "advantage"} <= table[0].keys()
    assert sum(row["reward"] for row in table) / 8 == pytest.approx(total[1])


def test_weights_of_scores_that_are_normalised_first(make_model: Make, tokenizer: Any, prompts: Rows) -> None:
    config = GRPOConfig(
        **GROUPS, reward_weights=[1.0, -1.0], multi_objective_aggregation="normalize_then_sum", beta=0.1
    )
    trainer = GRPOTrainer(make_model(), [digits, digits], config, prompts, processing_class=tokenizer)
    trainer.train()
    # Equal scores with opposite weights cancel: only the KL, 0 at the first step, has a gradient.
    assert logged(trainer, "grad_norm")[0] == pytest.approx(0.0, abs=1e-6)
    assert logged(trainer, "rewards/digits_2/mean") == logged(trainer, "rewards/digits/mean")


def test_rloo_learns_from_a_classifier_and_judges_by_it(
    make_model: Make, make_scorer: Make, tokenizer: Any, prompts: Rows
) -> None:
    scorer = make_scorer(1)
    before = weights(scorer)
    config = RLOOConfig(**GROUPS, eval_strategy="steps", eval_steps=2)
    trainer = RLOOTrainer(make_model(), scorer, config, prompts, prompts[:3], tokenizer)
    trainer.train()
    assert same(before, weights(scorer))
    assert len(logged(trainer, "rewards/LlamaForSequenceClassification/mean")) == 3
    assert [line["step"] for line in trainer.state.log_history if "eval_reward" in line] == [2]
    # k1 of a policy that has not moved.
    assert logged(trainer, "kl")[0] == pytest.approx(0.0, abs=1e-5)
    assert trainer.evaluate().keys() == {"eval_reward"}
    assert trainer.evaluate({"a": prompts[:2], "b": prompts[2:4]}).keys() == {
        "eval_reward",
        "eval_a_reward",
        "eval_b_reward",
    }


def test_a_reward_model_by_its_folder(
    make_model: Make, make_scorer: Make, tokenizer: Any, prompts: Rows, tmp_path: Path
) -> None:
    place = tmp_path / "scorers" / "final"
    make_scorer(1).save_pretrained(place)
    tokenizer.save_pretrained(place)
    config = RLOOConfig(**GROUPS | {"max_steps": 1})
    trainer = RLOOTrainer(make_model(), [str(place), "length(target=3)"], config, prompts, processing_class=tokenizer)
    trainer.train()
    assert len(logged(trainer, "rewards/scorers/mean")) == len(logged(trainer, "rewards/length/mean")) == 1


def test_ppo_trains_a_value_function_that_is_kept_beside(
    make_model: Make, make_scorer: Make, tokenizer: Any, prompts: Rows
) -> None:
    model = make_model()
    trainer = PPOTrainer(PPOConfig(**PPO), tokenizer, model, None, make_scorer(1), prompts)
    assert isinstance(trainer, PPOTrainer)
    trainer.train()
    head = value_of(model)
    assert isinstance(head, ValueHead)
    assert head.summary.weight.abs().sum() > 0
    for name in ("objective/scores", "objective/kl", "policy/clipfrac_avg", "loss/value_avg", "val/ratio"):
        assert logged(trainer, name)
    trainer.save_model("kept")
    assert Path("kept/value_head.safetensors").exists()
    plain = AutoModelForCausalLM.from_pretrained("kept")
    assert torch.equal(plain.get_output_embeddings().weight, model.get_output_embeddings().weight)


def test_ppo_with_a_value_model_of_its_own(make_model: Make, make_scorer: Make, tokenizer: Any, prompts: Rows) -> None:
    model, value = make_model(), make_scorer(2)
    before = weights(value)
    PPOTrainer(
        args=PPOConfig(**PPO),
        processing_class=tokenizer,
        model=model,
        ref_model=make_model(),
        reward_funcs=[digits, brevity],
        train_dataset=prompts,
        value_model=value,
    ).train()
    assert not same(before, weights(value))


def test_ppo_takes_tokenised_prompts(make_model: Make, tokenizer: Any, prompts: Rows) -> None:
    """Padded on the left, as TRL's collator made them; rewards read the text."""
    asked: list[str] = []

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        asked.extend(prompts)
        return digits(completions)

    pad = tokenizer.pad_token_id
    rows = [{"input_ids": [pad, *tokenizer(row["prompt"])["input_ids"]]} for row in prompts]
    config = PPOConfig(**PPO | {"max_steps": 1})
    PPOTrainer(config, tokenizer, make_model(), None, None, Dataset.from_list(rows), reward_funcs=reward).train()
    assert asked
    assert set(asked) <= {row["prompt"] for row in prompts}
    rows = [{"input_ids": tokenizer("A=")["input_ids"]}] * 8
    # A tokenizer that loses the case: the policy would be asked something else.
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(UserError, match="give the text"):
        PPOTrainer(config, tokenizer, make_model(), None, None, rows, reward_funcs=reward)


def test_a_reference_that_follows_the_policy(make_model: Make, tokenizer: Any, prompts: Rows) -> None:
    """Moved all the way after every step, it equals the policy that samples: the KL stays 0."""

    def kl(**changes: Any) -> float:
        config = RLOOConfig(**GROUPS, **changes)
        trainer = RLOOTrainer(make_model(), digits, config, prompts, processing_class=tokenizer)
        trainer.train()
        return max(map(abs, logged(trainer, "kl")))

    assert kl(sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=1.0) < 1e-4 < kl()


def test_resuming_in_the_middle_of_a_window_changes_nothing(make_model: Make, tokenizer: Any, prompts: Rows) -> None:
    """Windows of 4 steps, power cut before step 4 of 6, the last checkpoint at step 3: all weights bit for bit."""

    def make(folder: str, **further: Any) -> Any:
        config = PPOConfig(**PPO | {"output_dir": folder, "max_steps": 6, "save_steps": 3})
        return PPOTrainer(
            args=config,
            processing_class=tokenizer,
            model=make_model(),
            reward_funcs=digits,
            train_dataset=prompts,
            **further,
        )

    whole = make("whole")
    whole.train()
    broken = make("broken", callbacks=[Crash(4)])
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = make("broken")
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(whole.model), weights(resumed.model))
    assert logged(whole, "loss") == logged(resumed, "loss")


@pytest.mark.slow
def test_a_list_of_data_sets_is_a_sequence_with_rewards_of_its_own(
    make_model: Make, tokenizer: Any, prompts: Rows
) -> None:
    config = GRPOConfig(**GROUPS | {"max_steps": 2})
    trainer = GRPOTrainer(
        make_model(),
        {"more": digits, "less": [brevity]},
        config,
        {"more": prompts[:8], "less": prompts[:8]},
        {"more": prompts[8:], "less": prompts[8:]},
        tokenizer,
        strategies=["replay(share=0.5)"],
    )
    trainer.train()
    assert trainer.results is not None
    assert list(trainer.results.tasks) == ["more", "less"]
    assert len(trainer.results.matrix) == 3
    assert {"eval_more_digits", "eval_less_brevity"} <= trainer.evaluate().keys()
    # Replay mixes both tasks into the second stage, each scored by its own.
    second = [line for line in trainer.state.log_history if line.get("stage") == 2 and "reward" in line]
    assert all("rewards/digits/mean" in line and "rewards/brevity/mean" in line for line in second)


def test_tasks_bring_their_own_rewards(make_model: Make, tokenizer: Any, prompts: Rows) -> None:
    tasks = [Task("own", prompts[:4], reward=digits), Task("shared", prompts[4:])]
    trainer = RLOOTrainer(make_model(), brevity, RLOOConfig(**GROUPS), tasks, processing_class=tokenizer)
    assert [task.reward[0].name for task in trainer._plan.sequence.tasks] == ["digits", "brevity"]
    with pytest.raises(UserError, match="task shared"):
        RLOOTrainer(make_model(), {}, RLOOConfig(**GROUPS), tasks, processing_class=tokenizer)


def test_an_adapter_and_a_sampler_of_the_callers(make_model: Make, tokenizer: Any, prompts: Rows) -> None:
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    config = GRPOConfig(**GROUPS | {"max_steps": 1})
    sampler = object()
    trainer = GRPOTrainer(
        make_model(), digits, config, prompts, processing_class=tokenizer, peft_config=adapter, sampler=sampler
    )
    assert trainer.is_peft
    assert trainer._runner(lambda folder: None).sampler is sampler
    trainer.sampler = None
    trainer.train()
    assert Path("out/checkpoint-1/adapter_model.safetensors").exists()


def test_pairs_are_prompts_and_the_template_gets_its_options(make_model: Make, tokenizer: Any, pairs: Rows) -> None:
    config = RLOOConfig(**GROUPS, chat_template_kwargs={"enable_thinking": False})
    trainer = RLOOTrainer(make_model(), digits, config, pairs, processing_class=tokenizer)
    rows = trainer._plan.sequence[0].train
    assert {row["prompt"] for row in rows} == {pair["prompt"] for pair in pairs}
    assert all(row["chat_template_kwargs"] == {"enable_thinking": False} for row in rows)


def test_the_step_api_under_the_same_name(make_model: Make, tokenizer: Any) -> None:
    """A reward for one token alone, as in TRL's example of 2024; the trainer is a PPOTrainer."""
    from contrl import AutoModelForCausalLMWithValueHead

    model = AutoModelForCausalLMWithValueHead(make_model())
    config = PPOConfig(batch_size=2, mini_batch_size=1, learning_rate=1e-3)
    trainer = PPOTrainer(config, model, None, tokenizer)
    assert isinstance(trainer, PPOTrainer)
    query = torch.tensor(tokenizer("1=")["input_ids"])
    answers = [torch.tensor(tokenizer(text)["input_ids"]) for text in ("2", "3")]
    before = weights(model)
    stats = trainer.step([query, query], answers, [torch.tensor(1.0), torch.tensor(-1.0)])
    assert stats["objective/scores"] == pytest.approx(0.0)
    assert not same(before, weights(model))


def test_every_field_of_the_configurations_is_one_of_trls_or_documented() -> None:
    """contrl's own fields stand in the docstrings."""
    own = {"reference", "stop", "max_kl", "correction_cap", "reward_errors", "reward_seconds", "max_prompt_length"}
    for kind in (GRPOConfig, RLOOConfig, PPOConfig):
        names = {field.name for field in dataclasses.fields(kind)}
        assert own <= names
        text = "".join(base.__doc__ or "" for base in kind.__mro__)
        assert not [name for name in own if f"{name}:" not in text]
