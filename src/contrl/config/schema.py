"""Every key of a configuration file: its name, type, default, bounds and meaning, once.

The loader, the errors, `explain` and docs/configuration.md all read these dataclasses. Arguments of
transformers.TrainingArguments are not repeated here: they stand in ``training`` under their own names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from contrl.config.walk import Mark
from contrl.errors import UserError


def about(help: str, **bounds: float) -> Mapping[str, Any]:
    """Metadata of a key: what it means, and optionally ``at_least`` and ``below`` for its value."""
    return {"help": help, **bounds}


@dataclass(frozen=True)
class PluginConfig:
    """A method, a strategy or a reward: its name or import path ``module:Class``, and its fields, defaults included."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SequenceConfig:
    """A named sequence of tasks (``countdown``, or ``module:function``) and its fields, defaults included."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)


# What the text or section under a key is, beyond its type; sections.py has one handler for each.
MethodPlugin = Annotated[PluginConfig, Mark("method", "the name of a method, with its fields")]
StrategyPlugin = Annotated[PluginConfig, Mark("strategy", "the name of a strategy, with its fields")]
Rewards = Annotated[
    tuple[PluginConfig, ...], Mark("rewards", "one or a list of NAME, NAME(field=value), module:function")
]
MetricName = Annotated[str | None, Mark("metric", "a name or module:function")]
DataPath = Annotated[str, Mark("data", "a path, a name on the hub, or module:function")]
EvalDataPath = Annotated[str | None, Mark("data", "a path, a name on the hub, module:function, or null")]
ModelPath = Annotated[str, Mark("model", "a name or a path")]
OutputFolder = Annotated[str, Mark("folder", "a folder")]
TaskName = Annotated[str, Mark("task_name", "a name")]
HeldOut = Annotated[int | float | None, Mark("held_out", "a number of rows, a share below 1, or null")]
Training = Annotated[dict[str, Any], Mark("training", "training arguments")]
MethodFields = Annotated[dict[str, Any], Mark("method_fields", "fields of the method")]
Order = Annotated[str | tuple[str, ...], Mark("order", "given, reversed, random, or a list of the tasks' names")]
Stages = Annotated[
    tuple[tuple[str, ...], ...] | None, Mark("stages", "a list of stages, each a list of tasks' names, or null")
]


@dataclass(frozen=True)
class ModelConfig:
    """The model that is trained. ``model: tiny`` is short for ``model: {name_or_path: tiny}``."""

    name_or_path: ModelPath = field(
        metadata=about("a model on the hub, a folder, a run, stage or checkpoint folder, or a built-in: tiny, smollm2")
    )
    revision: str | None = field(default=None, metadata=about("branch, tag or commit on the hub"))
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata=about("precision of the weights; auto takes what device and model allow")
    )
    attn_implementation: str | None = field(
        default=None, metadata=about("attention kernel (sdpa, eager, flash_attention_2); null lets transformers choose")
    )
    use_peft: bool = field(default=False, metadata=about("train a LoRA adapter, the same one through all stages"))
    lora_r: int = field(default=16, metadata=about("rank of the adapter", at_least=1))
    lora_alpha: int = field(
        default=32, metadata=about("scale of the adapter: its output is times alpha / r", at_least=1)
    )
    lora_dropout: float = field(default=0.05, metadata=about("dropout before the adapter", at_least=0, below=1))
    lora_target_modules: tuple[str, ...] | None = field(
        default=None,
        metadata=about("names of the layers that get an adapter, or all-linear; null takes peft's choice"),
    )
    lora_modules_to_save: tuple[str, ...] | None = field(
        default=None, metadata=about("names of layers trained whole and saved with the adapter")
    )
    lora_task_type: Literal["CAUSAL_LM", "SEQ_CLS"] | None = field(
        default=None, metadata=about("kind of model the adapter is for; null takes the one the method trains")
    )
    use_rslora: bool = field(
        default=False, metadata=about("the adapter's output is times alpha / sqrt(r) and not alpha / r")
    )
    use_dora: bool = field(default=False, metadata=about("train the length of each weight's columns apart (DoRA)"))
    load_in_4bit: bool = field(
        default=False, metadata=about("4-bit frozen weights under a LoRA adapter (QLoRA); needs the extra quant")
    )
    load_in_8bit: bool = field(
        default=False, metadata=about("8-bit frozen weights under a LoRA adapter; needs the extra quant")
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = field(default="nf4", metadata=about("the sixteen values of 4 bits"))
    use_bnb_nested_quant: bool = field(default=False, metadata=about("quantise the 4-bit blocks' scales as well"))
    trust_remote_code: bool = field(default=False, metadata=about("run Python code that comes with the model"))

    def bare(self) -> ModelConfig:
        """The same model without adapter and without quantisation: what an adapter is put on."""
        return replace(self, use_peft=False, load_in_4bit=False, load_in_8bit=False)


@dataclass(frozen=True)
class TaskConfig:
    """One task of the sequence. A training argument may stand directly on the task and goes to ``training``."""

    name: TaskName = field(metadata=about("names the task in tables, folders and overrides"))
    data: DataPath = field(
        metadata=about("the rows: a file, a folder, a dataset on the hub, or module:function giving rows")
    )
    eval_data: EvalDataPath = field(
        default=None, metadata=about("rows to judge by, given like data; null takes eval_split, or holds eval_size out")
    )
    train_split: str = field(default="train", metadata=about("split of data to train on, where data has splits"))
    eval_split: str = field(default="test", metadata=about("split of data to judge by, where data has splits"))
    eval_size: HeldOut = field(
        default=None, metadata=about("rows (or, below 1, the share of rows) held out of data to judge by")
    )
    reward: Rewards = field(
        default=(), metadata=about("rewards of a completion, summed; none takes those of the section rewards")
    )
    reward_weights: tuple[float, ...] | None = field(
        default=None, metadata=about("a weight for each of several rewards; null weighs all by 1")
    )
    metric: MetricName = field(
        default=None, metadata=about("how the task is judged: a name or module:function; null follows the reward")
    )
    method: MethodFields = field(
        default_factory=dict, metadata=about("fields of the run's method that differ for this task")
    )
    training: Training = field(
        default_factory=dict, metadata=about("training arguments that differ for this task; they win over the run's")
    )


Tasks = Annotated[tuple[TaskConfig, ...] | SequenceConfig, Mark("tasks", "a list of tasks, or the name of a sequence")]


@dataclass(frozen=True)
class EvaluationConfig:
    """Which tasks are judged before the first stage and after every stage, and how."""

    tasks: Literal["all", "seen", "seen+next", "none"] = field(
        default="all",
        metadata=about("judged after a stage: all tasks, those trained so far, also the next stage's, or none"),
    )
    num_items: int | None = field(default=None, metadata=about("rows judged per task; null takes all", at_least=1))
    max_new_tokens: int | None = field(
        default=None, metadata=about("length limit of an answer; null takes the method's", at_least=1)
    )
    batch_tokens: int = field(default=16_384, metadata=about("tokens that are run at once", at_least=1))
    reward_model: str | None = field(
        default=None,
        metadata=about("judge answers by a classifier: a hub id, or a folder P (P/<i> or P_<i> of task i first)"),
    )
    temperature: float = field(
        default=0.0, metadata=about("of answers that are judged; 0 takes the likeliest token", at_least=0)
    )
    num_samples: int = field(
        default=1,
        metadata=about("answers to each prompt, averaged; several need a temperature and also give pass@k", at_least=1),
    )
    at_start: bool = field(default=True, metadata=about("judge the untrained model too: row 0 of the results"))
    drift_prompts: int = field(
        default=32,
        metadata=about(
            "prompts of each task for the KL of the first weights to the policy; 0 leaves it out", at_least=0
        ),
    )

    def __post_init__(self) -> None:
        if self.num_samples > 1 and self.temperature == 0:
            raise UserError(
                f"num_samples is {self.num_samples} and temperature 0",
                why="the likeliest answer is the same every time",
                fix="give a temperature above 0, or num_samples 1",
            )


@dataclass(frozen=True)
class BetweenTasksConfig:
    """What a stage takes over from the one before, besides the weights, the strategies' state and the results.

    By default optimizer and schedule start anew: moments of the old task's gradients would steer the first steps of the
    new one, and the stage's arguments are then the whole story. The adapter stays, else task 2 would begin at the base.
    """

    optimizer: Literal["reset", "keep"] = field(
        default="reset", metadata=about("the optimizer's moments: start anew with each stage, or go on")
    )
    schedule: Literal["restart", "continue"] = field(
        default="restart", metadata=about("the learning rate's schedule: one per stage, or one over the whole sequence")
    )
    adapter: Literal["keep", "reset"] = field(
        default="keep", metadata=about("the LoRA adapter: the same one goes on, or each stage starts a new one")
    )


@dataclass(frozen=True)
class RewardsConfig:
    """Rewards of all tasks, and what happens when one fails; tasks may name rewards of their own."""

    functions: Rewards = field(default=(), metadata=about("rewards of every task that names none, summed"))
    weights: tuple[float, ...] | None = field(
        default=None, metadata=about("a weight for each of them; null weighs all by 1")
    )
    errors: Literal["raise", "missing"] = field(
        default="raise", metadata=about("a reward that fails stops the run, or the completion's reward is missing")
    )
    seconds: float | None = field(
        default=None, metadata=about("time limit of one call of a reward; null waits as long as it takes", at_least=0)
    )


@dataclass(frozen=True)
class BaseStageConfig:
    """A stage before the sequence, on the tasks' train rows mixed, cached; ``base: sft`` is short for its method."""

    method: MethodPlugin = field(metadata=about("method of the base stage, usually sft"))
    training: Training = field(default_factory=dict, metadata=about("training arguments of the base stage"))
    prompts_per_step: int | None = field(
        default=None, metadata=about("prompts per optimizer step over all devices", at_least=1)
    )
    seed: int = field(default=0, metadata=about("seed of the base stage, apart from the run's", at_least=0))


@dataclass(frozen=True)
class RunConfig:
    """Everything a run needs to know, checked and typed."""

    output_dir: OutputFolder = field(metadata=about("the folder the run writes to, and only to"))
    model: ModelConfig = field(metadata=about("the model that is trained"))
    method: MethodPlugin = field(metadata=about("how to learn: name or module:Class, its fields beside the name"))
    tasks: Tasks = field(metadata=about("what is learnt, in order: a list of tasks, or a named sequence"))
    strategies: tuple[StrategyPlugin, ...] = field(
        default=(), metadata=about("how not to forget: any number, each a name or module:Class with its fields")
    )
    base: BaseStageConfig | None = field(default=None, metadata=about("an optional stage before the sequence"))
    rounds: int = field(default=1, metadata=about("how often the sequence is gone through", at_least=1))
    order: Order = field(
        default="given", metadata=about("in which order the stages of a round are learnt, the same in every round")
    )
    order_seed: int = field(default=0, metadata=about("of the order random; independent of seed", at_least=0))
    stages: Stages = field(
        default=None,
        metadata=about(
            "which tasks are learnt together; null gives each its own stage; tasks left out are only judged"
        ),
    )
    prompts_per_step: int | None = field(
        default=None, metadata=about("prompts per optimizer step over all devices", at_least=1)
    )
    tokens_per_pass: int | None = field(
        default=None,
        metadata=about(
            "padded tokens of one forward and backward; only speed and memory; null takes 2048 on a CPU, else 16384",
            at_least=1,
        ),
    )
    max_bad_rows: int = field(
        default=0, metadata=about("rows that may be unusable and left out before the run refuses to start", at_least=0)
    )
    training: Training = field(
        default_factory=dict, metadata=about("arguments of transformers.TrainingArguments under their own names")
    )
    rewards: Annotated[RewardsConfig, Mark("rewards_section", "a section")] = field(
        default_factory=RewardsConfig, metadata=about("rewards of all tasks, for methods that sample")
    )
    max_prompt_tokens: int | None = field(
        default=None, metadata=about("longer prompts are left out, by methods that sample", at_least=1)
    )
    log_samples_every: int = field(
        default=50,
        metadata=about(
            "optimizer steps between tables of sampled answers (samples/*.parquet); 0 writes none", at_least=0
        ),
    )
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig, metadata=about("how every task is judged"))
    between_tasks: BetweenTasksConfig = field(
        default_factory=BetweenTasksConfig, metadata=about("what a stage takes over from the one before")
    )
    seed: int = field(default=0, metadata=about("everything random in the run follows from it", at_least=0))

    def training_for(self, task: TaskConfig) -> dict[str, Any]:
        """The training arguments of a stage on ``task``: the run's, overridden by the task's own."""
        return self.training | dict(task.training)

    def method_for(self, task: TaskConfig) -> PluginConfig:
        """The method of a stage on ``task``: the run's, with the fields the task overrides."""
        return PluginConfig(self.method.name, self.method.fields | dict(task.method))
