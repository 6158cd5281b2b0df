"""What one stage hands to the next besides the weights, as the user's ``between_tasks`` says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from contrl.continual.plan import Plan
from contrl.continual.run_folder import RunFolder
from contrl.engine.arguments import count_steps
from contrl.engine.carrying import Carried
from contrl.engine.checkpoint import load_state, newest_checkpoint, save_state
from contrl.interfaces import Stage, Strategy

OPTIMIZER = "optimizer"


def carried_into(stage: Stage, num_steps: int, plan: Plan, folder: RunFolder, strategy: Strategy) -> Carried:
    """What the stage of ``num_steps`` steps begins with.

    Args:
        stage: about to be trained.
        num_steps: its optimizer steps.
        plan: of the run.
        folder: where earlier stages left their optimizers and noted their steps.
        strategy: may give later stages other rows.
    """
    between, stages = plan.between_tasks, plan.sequence.stages
    optimizer = None
    if between.optimizer == "keep" and stage.index > 1:
        state = load_state(folder.stage(stages[stage.index - 2]) / "final", OPTIMIZER) or {}
        optimizer = {int(position): moments for position, moments in state.items()}
    schedule = None
    if between.schedule == "continue":
        before = [int((folder.noted(s.index, "trained") or {}).get("steps", 0)) for s in stages[: stage.index - 1]]
        after = [_planned_steps(later, plan, strategy) for later in stages[stage.index :]]
        schedule = (sum(before), sum(before) + num_steps + sum(after))
    return Carried(optimizer, schedule)


def _planned_steps(stage: Stage, plan: Plan, strategy: Strategy) -> int:
    rows = plan.num_rows(stage, strategy)
    return count_steps(plan.training_for(stage), rows, plan.prompts_per_step, plan.method_for(stage))


def keep_optimizer(stage_folder: Path, target: Path) -> None:
    """Write the optimizer's moments at the end of a stage, from its last checkpoint, as safetensors.

    Args:
        stage_folder: holds the checkpoints.
        target: the stage's model folder.
    """
    checkpoint = newest_checkpoint(stage_folder)
    assert checkpoint is not None
    saved = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
    save_state(target, OPTIMIZER, {str(position): moments for position, moments in saved["state"].items()})


def reset_adapter(model: torch.nn.Module, start: Mapping[str, torch.Tensor]) -> None:
    """Give the trained parameters the values they had when the run began."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name in start:
                parameter.copy_(start[name])


def describe(plan: Plan) -> str:
    """One line: what a stage takes over from the one before."""
    between, method = plan.between_tasks, plan.method_for(plan.sequence.stages[0])
    parts = [f"optimizer {between.optimizer}", f"schedule {between.schedule}", f"adapter {between.adapter}"]
    needs = set(method.needs) | set(getattr(method, "measures", ()))
    if "reference_logps" in needs:
        parts.append(f"reference {method.reference}")
    if "values" in method.needs:
        parts.append(f"value function {'keep' if getattr(method, 'keep_value', True) else 'reset'}")
    return f"between  tasks: {', '.join(parts)}"
