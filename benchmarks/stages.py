"""One training stage in contrl's engine and in TRL's trainers, on the same rows, weights and settings.

Both are ``transformers.Trainer`` with AdamW, constant learning rate, float32 and no gradient checkpointing. What is
timed is a step, from its begin to its end, without the first one (buffers, and contrl's check of its layouts).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from side_by_side import Run
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from contrl.engine.arguments import StageSettings, build_arguments
from contrl.engine.batching import BlockSampler
from contrl.engine.online import RolloutWindow
from contrl.engine.reference_scores import ReferenceScores
from contrl.engine.rows import prepare_all, prepare_row
from contrl.engine.trainer import Engine
from contrl.engine.work import Work
from contrl.experiment import find
from contrl.interfaces import Completion, Context, Group, Method, Stage, Task, TaskSequence
from contrl.methods.rloo import RLOO
from contrl.methods.sft import SFT
from contrl.models.reference import Reference
from contrl.strategies.naive import Naive

SEED = 0
TRAINING: dict[str, Any] = {
    "learning_rate": 2e-5,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
}
"""Training arguments of both sides."""


class Clock(TrainerCallback):
    """Seconds of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[Run] = []
        self._start = (0.0, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = (time.perf_counter(), time.process_time())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        clock, cpu = self._start
        self.steps.append(Run(None, time.perf_counter() - clock, time.process_time() - cpu))


@dataclasses.dataclass
class Trained:
    """What a stage did: its timed steps, and what it logged at each step under ``name``."""

    steps: list[Run]
    logs: list[dict[str, float]]
    parts: dict[str, float] = dataclasses.field(default_factory=dict)

    def curve(self, name: str) -> list[float]:
        """The values logged under ``name``, step after step."""
        return [float(record[name]) for record in self.logs if name in record]


def _train(trainer: Any, start: Callable[[], object]) -> Trained:
    clock = Clock()
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)
    start()
    return Trained(clock.steps[1:], [log for log in trainer.state.log_history if "loss" in log])


# --- contrl ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Job:
    """A stage: the model it starts from (copied, never changed), rows, and rows (prompts) of one step."""

    model: Any
    tokenizer: Any
    rows: list[dict[str, Any]]
    rows_per_step: int
    num_steps: int
    folder: Path

    def in_order(self) -> list[dict[str, Any]]:
        """The rows in the order in which contrl visits them, so that TRL can be given the same."""
        order = BlockSampler(len(self.rows), self.rows_per_step, self.num_steps, 1, SEED)
        return [self.rows[index] for index in order]


def _engine(job: Job, method: Method, *, bf16: bool = False, copied: bool = True) -> Engine:
    model = copy.deepcopy(job.model) if copied else job.model
    task, stage = Task("text", job.rows), Stage(1, ("text",))
    context = Context(model, job.tokenizer, method, TaskSequence((task,), (stage,)), stage, SEED)
    settings = StageSettings(job.folder, SEED, job.num_steps, job.num_steps, job.rows_per_step)
    by_id = {row["id"]: row for row in job.rows}
    work = Work(
        method=method,
        strategy=Naive(),
        context=context,
        groups=prepare_all([(task, row) for row in job.rows], method, job.tokenizer, lambda text: None),
        prompts_per_step=job.rows_per_step,
        num_steps=job.num_steps,
        tokens_per_pass=2**14,
        seed=SEED,
        prepare=lambda task, row: prepare_row(task, row, method, job.tokenizer),
        find_row=lambda task, row_id: by_id[row_id],
    )
    method.pair(work.groups, SEED)
    if "reference_logps" in method.needs:
        work.reference = ReferenceScores(lambda: Reference(model, "previous"), is_policy=True)
    return Engine(model, build_arguments(TRAINING | {"bf16": bf16}, settings), work, job.tokenizer)


def contrl_offline(job: Job, name: str, *, bf16: bool, cached: bool) -> Trained:
    """An offline method in contrl; where the time of the timed steps goes is in ``parts``.

    The reference's table is always filled before the first step; with one epoch its cost belongs to the steps.
    """
    if name == "reward":
        from contrl.models.classifier import on_trunk

        job.model = on_trunk(job.model, SEED)
    engine = _engine(job, find("method", name)(), bf16=bf16, copied=False)
    parts = {"reference": 0.0, "forward and loss": 0.0, "backward": 0.0}
    _timed(engine, "_prepare_reference", parts, "reference")
    _timed(engine, "_loss_of", parts, "forward and loss")
    _timed(engine.accelerator, "backward", parts, "backward")
    engine.add_callback(_AfterFirst(parts))
    trained = _train(engine, engine.fit)
    # One epoch: what filling the table took is shared out over the steps, as TRL pays for it in each.
    each = 0.0 if cached else parts["reference"] / job.num_steps
    trained.steps = [Run(None, run.seconds + each, run.cpu_seconds + each) for run in trained.steps]
    return dataclasses.replace(trained, parts=parts | {"reference": each * len(trained.steps)})


class _AfterFirst(TrainerCallback):
    """Forgets the parts of the first step, which is not timed; the table is filled before it."""

    def __init__(self, parts: dict[str, float]) -> None:
        self.parts = parts

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.parts |= {part: 0.0 for part in self.parts if part != "reference"}


def _timed(owner: Any, name: str, parts: dict[str, float], part: str) -> None:
    call = getattr(owner, name)

    def timed_call(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*arguments, **options)
        finally:
            parts[part] += time.perf_counter() - start

    setattr(owner, name, timed_call)


def contrl_sft(job: Job) -> Trained:
    """Supervised fine-tuning in contrl."""
    engine = _engine(job, SFT())
    return _train(engine, engine.fit)


def contrl_rloo(job: Job) -> Trained:
    """RLOO in contrl on the completions and rewards that the rows bring along."""
    method = RLOO(samples_per_prompt=len(job.rows[0]["completions"]))
    engine = _engine(job, method)

    def collect(prompts: Sequence[Group]) -> list[Group]:
        groups = [
            dataclasses.replace(
                group,
                completions=[
                    Completion(ids=ids, reward=reward)
                    for ids, reward in zip(group.row["completions"], group.row["rewards"], strict=True)
                ],
            )
            for group in prompts
        ]
        engine.record(method.credit(groups))
        return groups

    engine.work.window = RolloutWindow(method, collect, (SEED, 1))
    return _train(engine, engine.fit)


# --- TRL ------------------------------------------------------------------------------------------------

PEER_ONLY: dict[str, Any] = {
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "report_to": [],
    "seed": SEED,
    "remove_unused_columns": False,
}


def peer_sft(job: Job) -> Trained:
    """Supervised fine-tuning in TRL."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=str(job.folder),
        per_device_train_batch_size=job.rows_per_step,
        max_steps=job.num_steps,
        train_sampling_strategy="sequential",
        **(TRAINING | PEER_ONLY),
    )
    with contextlib.redirect_stdout(None):
        trainer = SFTTrainer(
            model=copy.deepcopy(job.model),
            args=config,
            train_dataset=Dataset.from_list([{k: row[k] for k in ("prompt", "completion")} for row in job.in_order()]),
            processing_class=job.tokenizer,
        )
        return _train(trainer, trainer.train)


def peer_rloo(job: Job) -> Trained:
    """RLOO in TRL, its generation replaced by the completions that the rows bring along; everything else is TRL's.

    Every row is in every step, so the completions of a step are those of all rows.
    """
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    samples = len(job.rows[0]["completions"])

    class GivenCompletions(RLOOTrainer):
        def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> list[list[int]]:
            return [ids for row in job.rows for ids in row["completions"]]

    config = RLOOConfig(
        output_dir=str(job.folder),
        per_device_train_batch_size=job.rows_per_step * samples,
        num_generations=samples,
        beta=0.0,
        max_steps=job.num_steps,
        shuffle_dataset=False,
        **(TRAINING | PEER_ONLY),
    )
    with contextlib.redirect_stdout(None):
        trainer = GivenCompletions(
            model=copy.deepcopy(job.model),
            reward_funcs=lambda prompts, **columns: [r for row in job.rows for r in row["rewards"]],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in job.rows]),
            processing_class=job.tokenizer,
        )
        return _train(trainer, trainer.train)


def peer_offline(job: Job, name: str, *, bf16: bool, cached: bool) -> Trained:
    """An offline method in TRL; ``cached`` precomputes the reference where TRL can, outside the timed steps."""
    import trl
    from datasets import Dataset

    kind = {"dpo": "DPO", "kto": "KTO", "sft": "SFT", "reward": "Reward"}[name]
    own = {"precompute_ref_log_probs": True} if cached and name in ("dpo", "kto") else {}
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(job.folder),
        per_device_train_batch_size=job.rows_per_step,
        max_steps=job.num_steps,
        train_sampling_strategy="sequential",
        **(TRAINING | PEER_ONLY | {"bf16": bf16} | own),
    )
    model: Any = job.model
    if name == "reward":
        from contrl.models.classifier import on_trunk

        model = on_trunk(model, SEED)
    elif name in ("dpo", "kto"):
        own = {"ref_model": copy.deepcopy(model)}
    columns = [{key: value for key, value in row.items() if key != "id"} for row in job.in_order()]
    with contextlib.redirect_stdout(None):
        trainer = getattr(trl, f"{kind}Trainer")(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(columns),
            processing_class=job.tokenizer,
            **({"ref_model": own["ref_model"]} if "ref_model" in own else {}),
        )
        return _train(trainer, trainer.train)
