"""Flags of ``contrl ppo|rloo|grpo`` beyond those of every training command: rewards, sampling, TRL's spellings.

A field of a method is a flag under its own name; what TRL calls otherwise is a further spelling of the same flag.
Rollout engines and losses that contrl does not have are refused with the reason, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping

from contrl.cli.flags import Flag

REWARD, SAMPLED = "reward", "strategies"

COMMON = {
    "samples_per_prompt",
    "max_new_tokens",
    "temperature",
    "top_p",
    "num_epochs",
    "num_minibatches",
    "clip",
    "mask_truncated",
    "beta",
    "loss_type",
    "level",
    "scale_rewards",
    "normalize_advantages",
    "kl_coef",
    "target_kl",
    "value",
    "value_model",
    "gae_lambda",
    "missing_eos_penalty",
    "reference",
}
"""Fields of methods that the short help shows."""

SPELLED: Mapping[str, Mapping[str, str]] = {
    "": {
        "num_generations": "samples_per_prompt",
        "max_completion_length": "max_new_tokens",
        "response_length": "max_new_tokens",
        "num_iterations": "num_epochs",
        "epsilon": "clip",
        "epsilon_high": "clip_high",
        "mask_truncated_completions": "mask_truncated",
        "reward_model_path": "reward_model_name_or_path",
        "max_prompt_length": "max_prompt_tokens",
    },
    "grpo": {
        "importance_sampling_level": "level",
        "multi_objective_aggregation": "aggregate",
        "use_bias_correction_kl": "unbiased_kl",
    },
    "rloo": {"reward_clip_range": "reward_clip"},
    "ppo": {
        "num_ppo_epochs": "num_epochs",
        "ppo_epochs": "num_epochs",
        "num_mini_batches": "num_minibatches",
        "init_kl_coef": "kl_coef",
        "target": "target_kl",
        "horizon": "kl_horizon",
        "cliprange": "clip",
        "cliprange_value": "clip_value",
        "vf_coef": "value_coef",
        "lam": "gae_lambda",
        "value_model_path": "value_model",
    },
}
"""TRL's name of a flag -> contrl's; under "" those of all three commands."""

METHOD_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "grpo": {"max_new_tokens": "512"},
    "rloo": {"samples_per_prompt": "2", "max_new_tokens": "512", "beta": "0.05"},
    "ppo": {"max_new_tokens": "53", "temperature": "0.7"},
}
"""TRL's defaults where the method's own differ; they hold on the command line only."""

FLAGS = (
    Flag(
        "reward_funcs",
        "rewards.functions",
        "calls",
        'rewards, summed: countdown, "length(target=50)" ..., or a function of your own as module.function',
        "",
        "NAME",
        REWARD,
        common=True,
    ),
    Flag(
        "reward_model_name_or_path",
        kind="one",
        help="a reward model, before the functions: any classifier; of a folder P first P/<i> and P_<i> of task i",
        metavar="MODEL",
        group=REWARD,
        common=True,
    ),
    Flag(
        "reward_label",
        help="which output of a classifier with several labels, by name or number",
        metavar="NAME",
        group=REWARD,
        common=True,
    ),
    Flag(
        "judge",
        kind="maybe",
        help="an OpenAI-style endpoint as a reward, after the functions; without a URL NVIDIA's",
        metavar="URL",
        group=REWARD,
        common=True,
    ),
    Flag(
        "judge_model",
        help="the model to ask there",
        default="nvidia/llama-3.1-nemotron-70b-reward",
        metavar="NAME",
        group=REWARD,
        common=True,
    ),
    Flag("judge_kind", help="reward: a reward model; grade: any chat model", default="reward", group=REWARD),
    Flag(
        "nemotron_api_key",
        help="its key, the same as the variable NVIDIA_API_KEY; written nowhere",
        metavar="KEY",
        group=REWARD,
        common=True,
        secret=True,
    ),
    Flag("max_judge_calls", help="requests in all", metavar="N", group=REWARD, common=True),
    Flag(
        "reward_weights",
        "rewards.weights",
        "list",
        "a weight for each reward, in the order model, functions, judge",
        "all 1",
        "X Y ...",
        REWARD,
        common=True,
    ),
    Flag(
        "reward_errors",
        "rewards.errors",
        help="when a reward fails: raise stops the run, missing leaves the completion without it",
        default="raise",
        metavar="WORD",
        group=REWARD,
        common=True,
    ),
    Flag("reward_seconds", "rewards.seconds", help="time limit of one call of a reward", metavar="X", group=REWARD),
    Flag("max_prompt_tokens", "max_prompt_tokens", help="longer prompts are left out", metavar="N", group="data"),
    Flag(
        "log_samples_every",
        "log_samples_every",
        help="steps between tables of sampled answers, samples/*.parquet; 0 writes none",
        default="50",
        metavar="N",
        group="output",
    ),
    Flag("max_length", help="bounds prompt plus completion: longer prompts are left out", metavar="N", group="data"),
    Flag("sft_model_path", help="the same as --model_name_or_path, and wins over it", metavar="MODEL", group="model"),
    Flag(
        "steps_per_generation",
        help="passes of the batch size that one rollout serves, a multiple of --gradient_accumulation_steps",
        metavar="N",
        group="training",
    ),
    Flag("generation_batch_size", help="the same, in completions over all devices", metavar="N", group="training"),
    Flag(
        "eval_temperature",
        "evaluation.temperature",
        help="of answers that are judged; 0 takes the likeliest token",
        default="0",
        group=SAMPLED,
    ),
    Flag(
        "eval_max_new_tokens",
        "evaluation.max_new_tokens",
        help="length limit of answers that are judged",
        default="--max_new_tokens",
        metavar="N",
        group=SAMPLED,
    ),
    Flag(
        "eval_num_samples",
        "evaluation.num_samples",
        help="answers to each prompt that are judged; several also give pass@k",
        default="1",
        metavar="N",
        group=SAMPLED,
    ),
)
_PPO_FLAGS = (
    Flag("total_episodes", help="completions in all, instead of epochs or steps", metavar="N", group="training"),
    Flag("batch_size", help="completions of a rollout on each device", metavar="N", group="training"),
    Flag("mini_batch_size", help="completions of a pass, of --batch_size", metavar="N", group="training"),
    Flag("adap_kl_ctrl", kind="switch", help="adapt kl_coef to target_kl (6 when it is not given)", group="training"),
)

_QUIET = {
    "log_completions": "judged answers are kept in the run's folder",
    "num_completions_to_print": "judged answers are kept in the run's folder",
    "log_unique_prompts": "judged answers are kept in the run's folder",
    "log_multimodal": "there are no images here",
    "num_sample_generations": "judged answers are kept in the run's folder",
    "num_generations_eval": "one answer to each prompt is judged; --eval_num_samples is pass@k",
    "local_rollout_forward_batch_size": "passes are counted in tokens: --tokens_per_pass",
    "forward_batch_size": "passes are counted in tokens: --tokens_per_pass",
    "ds3_gather_for_generation": "the sampler has whole weights",
    "cache_implementation": "the sampler has a cache of its own",
    "disable_dropout": "dropout is off while sampling and training, always",
    "cast_lm_head_to_fp32": "log-probabilities are computed in float32, always",
    "optimize_cuda_cache": "memory is bounded by tokens: --tokens_per_pass",
    "ratio_threshold": "the ratio is clipped; --max_kl stops a run that leaves its reference",
}
_VLLM = "completions are sampled by contrl's own loop, in the training process: leave --use_vllm and --vllm_* out"
_VLLM_NAMES = (
    "mode model_impl enable_sleep_mode structured_outputs_regex guided_decoding_regex server_base_url server_host "
    "server_port server_timeout group_port gpu_memory_utilization max_model_length tensor_parallel_size "
    "importance_sampling_correction importance_sampling_mode importance_sampling_clip_max importance_sampling_clip_min "
    "importance_sampling_cap"
)
_ENGINE = "contrl has one sampler of its own"
_ENTROPY = "no method here has a term for entropy"
_LOSSES = "grpo's losses are grpo, bnpo, dapo and dr_grpo"
_REFUSED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "use_vllm": (_VLLM, ("false",)),
    **{f"vllm_{name}": (_VLLM, ()) for name in _VLLM_NAMES.split()},
    "use_transformers_paged": (_ENGINE, ("false",)),
    "use_transformers_continuous_batching": (_ENGINE, ("false",)),
    "transformers_continuous_batching_config": (_ENGINE, ("none",)),
    "generation_kwargs": ("sampling has flags: --temperature, --top_p, --top_k, --min_p, --stop ...", ("none",)),
    "chat_template_kwargs": ("give them in the rows, in a column chat_template_kwargs", ("none",)),
    "max_tool_calling_iterations": ("tools are not called while sampling", ("none",)),
    "log_completions_hub_repo": ("answers are kept in the run's folder, and nothing is sent anywhere", ("none",)),
    "sync_ref_model": ("--reference ema follows the policy slowly", ("false",)),
    "ref_model_mixup_alpha": ("--reference ema follows the policy slowly", ("0.6",)),
    "ref_model_sync_steps": ("--reference ema follows the policy slowly", ("512",)),
    "top_entropy_quantile": (_ENTROPY, ("1", "1.0")),
    "entropy_coef": (_ENTROPY, ("0", "0.0")),
    "use_adaptive_entropy": (_ENTROPY, ("false",)),
    **{f"entropy_{name}": (_ENTROPY, ()) for name in ("coef_min", "coef_max", "coef_delta", "target")},
    "off_policy_mask_threshold": ("--max_kl stops a run that leaves its reference", ("none",)),
    **{f"sapo_temperature_{name}": (_LOSSES, ()) for name in ("neg", "pos")},
    **{f"vespo_{name}": (_LOSSES, ()) for name in ("k_pos", "k_neg", "lambda_pos", "lambda_neg")},
    "stop_token": ("completions end with the end token; --stop has further strings", ("eos",)),
    "stop_token_id": ("completions end with the end token; --stop has further strings", ("none",)),
    "early_stopping": ("--max_kl stops a run that leaves its reference", ("false",)),
    "use_score_scaling": ("--whiten_rewards scales what a token earns", ("false",)),
    "use_score_norm": ("--whiten_rewards scales what a token earns", ("false",)),
    "kl_penalty": ("--kl_estimator k1, k2 or k3", ("kl",)),
}
_SWITCHES = {
    "use_vllm",
    "log_completions",
    "log_unique_prompts",
    "disable_dropout",
    "cast_lm_head_to_fp32",
    "use_transformers_paged",
    "use_transformers_continuous_batching",
    "sync_ref_model",
    "use_adaptive_entropy",
    "early_stopping",
    "use_score_scaling",
    "use_score_norm",
    "optimize_cuda_cache",
    "ds3_gather_for_generation",
    "log_multimodal",
}

WITHOUT_EFFECT = (
    *(
        Flag(name, kind="switch" if name in _SWITCHES else "one", note=f"--{name} has no effect: {why}")
        for name, why in _QUIET.items()
    ),
    *(
        Flag(name, kind="switch" if name in _SWITCHES else "one", refusal=why, harmless=harmless)
        for name, (why, harmless) in _REFUSED.items()
    ),
)
"""Flags that are accepted and noted, or refused."""


def is_online(command: str) -> bool:
    """Whether the command samples its own completions."""
    return command in METHOD_DEFAULTS


def flags(command: str) -> tuple[Flag, ...]:
    """The flags of an online command that no other has; they win over others of the same name."""
    return (*FLAGS, *(_PPO_FLAGS if command == "ppo" else ()))


def spellings(command: str) -> dict[str, str]:
    """Further spelling -> the flag it means."""
    return {**SPELLED[""], **SPELLED.get(command, {})}
