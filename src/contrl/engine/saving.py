"""Checkpoints of a stage: Trainer's own, and beside them what it does not know, whole or not at all.

The value function of actor-critic methods is written to a file of its own, so that a checkpoint's weights are those of
a plain language model.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from contrl.engine.carrying import CarryingTrainer
from contrl.engine.checkpoint import STAGING, load_state, publish, save_state
from contrl.engine.work import Work
from contrl.faults import reach
from contrl.models.value_head import NAME, load_value, save_value, without_value

STATE = "contrl_state"


class SavingTrainer(CarryingTrainer):
    """Trainer with checkpoints that hold everything of a stage.

    Attributes:
        work: what is trained on.
        memory: numbers that methods keep from step to step.
        num_tokens: trained so far.
    """

    work: Work
    memory: dict[str, float]
    num_tokens: float
    _staging: Path | None = None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The policy alone, and its value function beside it."""
        folder, model = Path(str(output_dir or self.args.output_dir)), self.accelerator.unwrap_model(self.model)
        if state_dict is not None:
            state_dict = {name: tensor for name, tensor in state_dict.items() if not name.startswith(f"{NAME}.")}
        with without_value(model):
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_value(model, folder)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Trainer's checkpoint and our state, under a temporary name until it is whole."""
        target = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        self._staging = target.with_name(f"{STAGING}{target.name}")
        if self.args.should_save:
            shutil.rmtree(self._staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            reach("saving")
            folder = self._staging / target.name
            if self.work.window is not None:
                folder.mkdir(parents=True, exist_ok=True)
                save_state(
                    folder, f"window-{self.args.process_index}", self.work.window.state_dict(self.state.global_step)
                )
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                (folder / "training_args.bin").unlink(missing_ok=True)
                save_state(folder, STATE, self._state())
                publish(folder, target)
                shutil.rmtree(self._staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()
        finally:
            self._staging = None

    def _state(self) -> dict[str, Any]:
        state = {"strategy": self.work.strategy.state_dict(), "num_tokens": self.num_tokens, "memory": self.memory}
        live = self.work.reference.live if self.work.reference else None
        moves = self.work.method.reference == "ema" or self.work.method.sync_every > 0
        return state | ({"reference": live.state_dict()} if live is not None and moves else {})

    def restore(self, checkpoint: Path) -> None:
        """Load what Trainer does not know: the strategies' state, a moving reference, and the rollout window."""
        state = load_state(checkpoint, STATE) or {}
        self.work.strategy.load_state_dict(state.get("strategy", {}))
        self.num_tokens, self.memory = state.get("num_tokens", 0.0), dict(state.get("memory", {}))
        if "reference" in state and self.work.reference is not None and self.work.reference.live is not None:
            self.work.reference.live.load_state_dict(state["reference"])
        window = load_state(checkpoint, f"window-{self.args.process_index}")
        if self.work.window is not None and window is not None:
            self.work.window.load_state_dict(window, self.work.find_row)
        load_value(self.accelerator.unwrap_model(self.model), checkpoint)
