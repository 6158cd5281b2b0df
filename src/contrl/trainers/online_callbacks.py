"""What happens while a trainer that samples trains: held-out prompts are judged, sampled completions kept.

Both read what the engine has anyway. Neither draws random numbers, so a training with them ends in the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet
from transformers import TrainerCallback

from contrl.engine.arguments import steps_per_epoch
from contrl.rollout.score import text_of
from contrl.trainers.online_configs import OnlineConfig


class EvaluateWhileTraining(TrainerCallback):
    """Judges held-out prompts every ``eval_steps``, or after every epoch.

    Args:
        args: eval_strategy, eval_steps, eval_on_start.
        evaluate: gives the numbers.
        engine: gives the engine that logs them.
    """

    def __init__(self, args: OnlineConfig, evaluate: Callable[[], dict[str, float]], engine: Callable[[], Any]) -> None:
        self.args, self.evaluate, self.engine = args, evaluate, engine

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.args.eval_on_start and state.global_step == 0:
            self._log(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._every(state) == 0:
            self._log(control)

    def _log(self, control: Any) -> None:
        logs = control.should_log
        self.engine().log(self.evaluate())
        # Logging anything says that the step is logged, and its own line would be missing.
        control.should_log = logs

    def _every(self, state: Any) -> int:
        if getattr(self.args.eval_strategy, "value", self.args.eval_strategy) == "epoch":
            work = self.engine().work
            return steps_per_epoch(len(work.groups), work.prompts_per_step, work.method)
        every = float(self.args.eval_steps or self.args.logging_steps)
        return max(1, int(every if every >= 1 else every * state.max_steps))


class KeepCompletions(TrainerCallback):
    """At every log line prints some of the last completions, and writes all of them to a parquet file.

    Args:
        args: num_completions_to_print, log_unique_prompts.
        folder: of the files, ``completions_00010.parquet`` of step 10.
        rank: each writes its own; rank 0 prints.
        engine: has the rollouts.
        say: prints.
    """

    def __init__(
        self, args: OnlineConfig, folder: Path, rank: int, engine: Callable[[], Any], say: Callable[[str], None]
    ) -> None:
        self.args, self.folder, self.rank, self.engine, self.say = args, folder, rank, engine, say

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" not in (logs or {}):
            return
        records = self._records(state.global_step)
        if not records:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        mark = f"-{self.rank}" if self.rank else ""
        names = dict.fromkeys(name for record in records for name in record)
        table = pyarrow.Table.from_pylist([{name: record.get(name) for name in names} for record in records])
        parquet.write_table(table, self.folder / f"completions_{state.global_step:05d}{mark}.parquet")
        shown = list({record["prompt"]: record for record in records}.values()) if self._unique else records
        for record in shown[: self.args.num_completions_to_print]:
            score = "–" if record["reward"] is None else f"{record['reward']:.3g}"
            self.say(f"  {score:>8}  {record['prompt']!r} -> {record['completion']!r}")

    @property
    def _unique(self) -> bool:
        return self.args.log_unique_prompts

    def _records(self, step: int) -> list[dict[str, Any]]:
        engine = self.engine()
        tokenizer, records = engine.processing_class, []
        for group in engine.work.window.rollouts:
            prompt = str(tokenizer.decode(group.prompt_ids))
            for completion, text in zip(group.completions, text_of(group, tokenizer), strict=True):
                scores = {name: score for name, score in completion.scores.items() if name != "reward"}
                place = {"step": step, "task": group.task, "prompt": prompt, "completion": text}
                records.append(
                    {**place, **scores, "reward": completion.reward, "advantage": float(completion.advantage)}
                )
        return records
