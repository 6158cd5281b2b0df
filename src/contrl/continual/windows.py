"""The rollout window of a stage: what the plan says about sampling and scoring, tied to the stage's engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contrl.continual.plan import Plan
from contrl.continual.run_folder import RunFolder
from contrl.continual.samples import RolloutSamples
from contrl.engine.checkpoint import load_state
from contrl.engine.online import Collector, RolloutWindow
from contrl.engine.trainer import Engine
from contrl.errors import UserError
from contrl.interfaces import Group, OnlineMethod
from contrl.models.load import Policy
from contrl.rollout.external import Sampler


def open_window(engine: Engine, plan: Plan, policy: Policy, folder: RunFolder, sampler: Sampler | None) -> None:
    """Give the engine the window that its method samples in.

    Args:
        engine: of the stage.
        plan: of the run.
        policy: model and tokenizer.
        folder: gets tables of sampled answers.
        sampler: another program that samples, or None.
    """
    context, method = engine.work.context, engine.work.method
    assert isinstance(method, OnlineMethod)
    check_room(engine.work.groups, method.max_new_tokens, policy.model)
    key = (plan.seed, context.stage.index)
    collector = Collector(
        model=policy.model,
        tokenizer=policy.tokenizer,
        method=method,
        sequence=plan.sequence,
        context=context,
        noise_key=key,
        links=engine.links(),
        tokens_per_chunk=plan.tokens_per_chunk,
        scoring=plan.scoring,
        sampler=sampler,
        say=engine.work.say,
        keep=RolloutSamples(folder, context.stage.index, plan.log_samples_every, policy.tokenizer),
    )
    engine.work.window = RolloutWindow(method, collector, key)


def check_room(groups: Sequence[Group], max_new_tokens: int, model: Any) -> None:
    """Refuse prompts that leave no room for a completion among the positions the model was made for.

    Raises:
        UserError: naming how many, the first of them and the longest prompt that fits.
    """
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    limit = getattr(inner.config.get_text_config(), "max_position_embeddings", None)
    if not limit:
        return
    room = int(limit) - max_new_tokens
    long = [group for group in groups if len(group.prompt_ids) > room]
    if room < 1 or long:
        named = (
            f"{len(long)} of {len(groups)} prompts, the first of row {long[0].row_id}, leave" if long else "there is"
        )
        raise UserError(
            f"{named} no room for {max_new_tokens} new tokens",
            why=f"the model has {limit} positions",
            fix=f"max_prompt_tokens: {room} leaves them out" if room > 0 else "lower max_new_tokens",
        )


def check_window(checkpoint: Path, world_size: int) -> None:
    """Rollouts of an open window belong to the process that sampled them, so its number cannot change there.

    Raises:
        UserError: when it has.
    """
    windows = [load_state(checkpoint, path.stem) or {} for path in checkpoint.glob("window-*.json")]
    if any(window.get("rollouts") for window in windows) and len(windows) != world_size:
        raise UserError(
            f"{checkpoint.name} was saved by {len(windows)} processes, and there are {world_size} now",
            where=str(checkpoint),
            why="each holds its share of rollouts that are still in use",
            fix=f"resume with {len(windows)} processes, as in torchrun --nproc_per_node {len(windows)}",
        )
