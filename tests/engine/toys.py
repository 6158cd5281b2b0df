"""Toy models and stages for the engine's tests: every architecture in miniature, and one engine in one call.

Weights are drawn ten times wider than the libraries do, so that attending to a wrong token changes a
log-probability by tenths and not by millionths; dropout is off unless a test asks for it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from torch import nn

from contrl.continual.values import prepare_value
from contrl.engine.arguments import StageSettings, build_arguments, micro_batch, steps_per_epoch
from contrl.engine.batching import to_batch
from contrl.engine.online import Collector, RolloutWindow
from contrl.engine.reference_scores import ReferenceScores
from contrl.engine.rows import prepare_all, prepare_row
from contrl.engine.services import EngineServices
from contrl.engine.trainer import Engine, Work
from contrl.interfaces import (
    Batch,
    Completion,
    Context,
    Group,
    LossOutput,
    Method,
    OnlineMethod,
    Outputs,
    Stage,
    Strategy,
    Task,
    TaskSequence,
)
from contrl.models.embedded import character_tokenizer
from contrl.models.reference import Reference
from contrl.strategies.naive import Naive

VOCABULARY = 61
CPU = torch.device("cpu")

_LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": None,
    "eos_token_id": 1,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
_OPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "word_embed_proj_dim": 32,
    "dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_NEOX = {name: value for name, value in _LLAMA.items() if name != "num_key_value_heads"}
_GEMMA = {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**_LLAMA),
    "llama-tied": lambda: tf.LlamaConfig(**_LLAMA, tie_word_embeddings=True),
    "qwen2": lambda: tf.Qwen2Config(**_LLAMA),
    "gpt2": lambda: tf.GPT2Config(**_GPT2),
    "gpt-neox": lambda: tf.GPTNeoXConfig(**_NEOX),
    "opt": lambda: tf.OPTConfig(**_OPT),
    # Windows shorter than the prompts of ragged_groups, so that the cache forgets.
    "mistral": lambda: tf.MistralConfig(**_LLAMA, sliding_window=4),
    "gemma2": lambda: tf.Gemma2Config(**_GEMMA, final_logit_softcapping=5.0, attn_logit_softcapping=8.0),
    "gemma3": lambda: tf.Gemma3TextConfig(**_GEMMA, layer_types=["sliding_attention", "full_attention"]),
    "bloom": lambda: tf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "cohere": lambda: tf.CohereConfig(**_LLAMA, logit_scale=0.25),
    "granite": lambda: tf.GraniteConfig(**_LLAMA, logits_scaling=4.0),
    "hyperclovax": lambda: tf.HyperCLOVAXConfig(**_LLAMA, logits_scaling=4.0),
    "phi": lambda: tf.PhiConfig(**_LLAMA),
    "recurrent-gemma": lambda: tf.RecurrentGemmaConfig(
        **{**_LLAMA, "num_hidden_layers": 3}, lru_width=32, attention_window_size=8, logits_soft_cap=5.0
    ),
    "llama4": lambda: tf.Llama4TextConfig(**_LLAMA, head_dim=8, num_local_experts=2),
    "mamba": lambda: tf.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4),
    "lfm2": lambda: tf.Lfm2Config(**_LLAMA, layer_types=["conv", "full_attention"]),
    "falcon-h1": lambda: tf.FalconH1Config(
        **_LLAMA, head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=4
    ),
    "minimax": lambda: tf.MiniMaxConfig(
        **_LLAMA, head_dim=8, num_local_experts=2, block_size=4, layer_types=["linear_attention", "full_attention"]
    ),
    "starcoder2": lambda: tf.Starcoder2Config(**_LLAMA),
}


def build(name: str, seed: int = 0, spread: float = 0.25, **changes: Any) -> Any:
    """A causal language model of the architecture with every matrix drawn from N(0, spread)."""
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tf.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, spread)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def with_lora(model: Any, seed: int = 1, **options: Any) -> Any:
    """The model with LoRA on all linear layers; B is drawn, not zero, so that both factors have gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "r": 4, **options}
        adapted = get_peft_model(model, LoraConfig(**settings))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0.0, 0.1)
    return adapted


def ragged_groups(seed: int = 0, vocabulary: int = VOCABULARY) -> list[Group]:
    """Three groups of 3, 2 and 4 completions: ragged prompts (one of a single token), lengths and trained masks."""
    draw = random.Random(seed)

    def ids(number: int) -> list[int]:
        return [draw.randrange(3, vocabulary) for _ in range(number)]

    partly = [True, False, True, True, False, False, True]
    return [
        Group("a", "task", ids(9), [Completion(ids(5)), Completion(ids(2)), Completion(ids(7), trained=partly)]),
        Group("b", "task", ids(1), [Completion(ids(1)), Completion(ids(6), trained=[False] * 5 + [True])]),
        Group("c", "task", ids(6), [Completion(ids(3)), Completion(ids(4)), Completion(ids(1)), Completion(ids(8))]),
    ]


def ragged_batch(seed: int = 0) -> Batch:
    """The tensors of ``ragged_groups``."""
    return to_batch(ragged_groups(seed), CPU)


def gradients(model: nn.Module, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradient of ``value`` by every trainable parameter; zero where it has no part."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)}


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest difference of two sets of tensors, relative to the largest entry of the first."""
    assert a.keys() == b.keys()
    largest = max(float(value.abs().max()) for value in a.values())
    return max(float((a[name] - b[name]).abs().max()) for name in a) / largest


# --- a whole stage --------------------------------------------------------------------------------------


def digits(*, completions: list[str], **columns: list) -> list[float]:
    """Reward: the share of digits in the completion. About one character in ten is one."""
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]


def policy(name: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A toy over the character tokenizer's vocabulary, calm enough to sample every character."""
    tokenizer = character_tokenizer()
    model = build(name, seed, 0.1, vocab_size=len(tokenizer), **changes)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def sft_rows(number: int, start: int = 0) -> list[dict[str, Any]]:
    """Ragged prompt and completion pairs."""
    draw = random.Random(start)
    text = "abcdefghij 0123456789"
    return [
        {
            "id": str(i),
            "prompt": "".join(draw.choices(text, k=draw.randint(1, 9))),
            "completion": "".join(draw.choices(text, k=draw.randint(1, 12))),
        }
        for i in range(start, start + number)
    ]


def pair_rows(number: int, start: int = 0) -> list[dict[str, Any]]:
    """Ragged preference pairs."""
    draw = random.Random(start)
    text = "abcdefghij 0123456789"

    def some(least: int, most: int) -> str:
        return "".join(draw.choices(text, k=draw.randint(least, most)))

    return [
        {"id": str(i), "prompt": some(1, 9), "chosen": some(2, 12), "rejected": some(1, 12) + "!"}
        for i in range(start, start + number)
    ]


class Recorder(tf.TrainerCallback):
    """Copies every step's gradient just before the optimizer uses it."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.gradients.append({n.removeprefix("module."): p.grad.detach().clone() for n, p in named if p.requires_grad})


@dataclasses.dataclass
class Settled(Strategy):
    """A test strategy with a loss term of its own count, weights and a closed-form penalty.

    The term is the squared log-probability of a completion, averaged over completions; the penalty pulls every
    parameter to 0.
    """

    name = "settled"
    coef: float = 0.01

    def weights(self, ctx: Context, batch: Batch) -> torch.Tensor | None:
        return 1.0 + 0.1 * batch.mask.sum(-1)

    def count(self, ctx: Context, groups: Sequence[Group]) -> dict[str, float]:
        return {"settled": float(sum(len(group.completions) for group in groups))}

    def loss(self, ctx: Context, batch: Batch, out: Outputs) -> LossOutput | None:
        return LossOutput({"settled": self.coef * out.logps.sum(-1).square().sum()})

    def penalty(self, ctx: Context) -> None:
        for _, parameter in ctx.params():
            assert parameter.grad is not None
            parameter.grad.add_(parameter.detach(), alpha=self.coef)


@dataclasses.dataclass
class Setup:
    """What a test may say about a stage; ``make_engine`` fills in the rest."""

    method: Method
    rows: list[dict[str, Any]]
    strategy: Strategy = dataclasses.field(default_factory=Naive)
    earlier: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    prompts_per_step: int = 8
    num_steps: int | None = None
    tokens_per_pass: int = 10**6
    seed: int = 3
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    reward: Any = digits
    sampler: Any = None
    rank: int = 0
    world_size: int = 1


FROZEN = {"learning_rate": 0.0, "optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
"""Training arguments under which nothing moves and no gradient is clipped."""


def make_engine(model: Any, folder: Path, setup: Setup, kind: type[Engine] = Engine) -> Engine:
    """An engine for one stage on the task "now", as the runner would build it."""
    tokenizer, method = character_tokenizer(), setup.method
    tasks = (Task("now", setup.rows, reward=setup.reward), Task("earlier", setup.earlier, reward=setup.reward))
    stage = Stage(2, ("now",))
    sequence = TaskSequence(tasks, (Stage(1, ("earlier",)), stage))
    context = Context(model, tokenizer, method, sequence, stage, seed=7, rank=setup.rank, world_size=setup.world_size)
    groups = prepare_all([(tasks[0], row) for row in setup.rows], method, tokenizer, say=lambda text: None)
    each = steps_per_epoch(len(groups), setup.prompts_per_step, method)
    num_steps = setup.num_steps or each
    training = {"use_cpu": True, "logging_steps": 1, "save_strategy": "no", **setup.training}
    rows = micro_batch(setup.prompts_per_step, training, setup.world_size)
    arguments = build_arguments(training, StageSettings(folder, setup.seed, num_steps, each, rows))
    by_id = {task.name: {str(row["id"]): row for row in task.train} for task in tasks}
    work = Work(
        method=method,
        strategy=setup.strategy,
        context=context,
        groups=groups,
        prompts_per_step=setup.prompts_per_step,
        num_steps=num_steps,
        tokens_per_pass=setup.tokens_per_pass,
        seed=setup.seed,
        prepare=lambda task, row: prepare_row(task, row, method, tokenizer),
        find_row=lambda task, row_id: by_id[task][row_id],
    )
    method.pair(groups, setup.seed)
    measures = method.measures if isinstance(method, OnlineMethod) else frozenset()
    prepare_value(model, method, None, setup.seed)
    if "reference_logps" in method.needs | measures:
        work.reference = ReferenceScores(lambda: Reference(model, method.reference), is_policy=True)
    context.services = EngineServices(context, lambda origin: Reference(model, origin), lambda: None, groups=groups)
    if setup.strategy.needs_start:
        context.services.start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    engine = kind(model, arguments, work, tokenizer)
    context.services.settings = engine.pass_settings
    if isinstance(method, OnlineMethod):
        collector = Collector(
            model, tokenizer, method, sequence, context, (7, 2), engine.links(), sampler=setup.sampler
        )
        work.window = RolloutWindow(method, collector, (7, 2))
    return engine


@dataclasses.dataclass
class Trace:
    """What a stage did: the gradient and loss of every step, and what it logged."""

    gradients: list[dict[str, torch.Tensor]]
    logs: list[dict[str, float]]
    engine: Engine

    @property
    def losses(self) -> list[float]:
        return [record["loss"] for record in self.logs]


def trace(model: Any, folder: Path, setup: Setup) -> Trace:
    """Train the stage and tell what happened."""
    engine, recorder = make_engine(model, folder, setup), Recorder()
    setup.strategy.before_task(engine.work.context)
    engine.add_callback(recorder)
    engine.fit()
    return Trace(recorder.gradients, [log for log in engine.state.log_history if "loss" in log], engine)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def slot_ids(groups: Sequence[Group]) -> Iterator[str]:
    """The row ids of the groups, in order."""
    return (group.row_id for group in groups)
