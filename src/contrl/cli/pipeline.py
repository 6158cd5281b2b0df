"""``contrl run`` of a file with ``kind: pipeline``: check all of it, carry its steps out, print one table."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrl.config.tree import Items, Node, Scalar
from contrl.errors import UserError

if TYPE_CHECKING:
    from contrl.pipeline.reading import Draft
    from contrl.pipeline.steps import Step

COMPARISON = "comparison.json"
_COLUMNS = ("win_rate", "tie_rate", "loss_rate", "missing", "win_rate_ties_half", "avg_reward", "avg_reference_reward")
_SECRET = re.compile(r"^((?:steps|defaults)\..*(?:key|token|password))=.*", re.DOTALL)
_FURTHER = ("reward_improvement", "avg_model_length", "avg_ref_length", "length_ratio", "num_prompts")


def run_pipeline(file: Path, overrides: Sequence[str], options: argparse.Namespace) -> None:
    """Run a pipeline, or continue it where it stopped.

    Args:
        file: the YAML.
        overrides: ``path=value``.
        options: the flags.

    Raises:
        UserError: every mistake of the file at once, or what the first failing step raised.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fix = "start it without torchrun, and give the launcher of its runs: launcher='torchrun --nproc_per_node 2'"
        raise UserError("a pipeline is started by one process", fix=fix)
    from contrl.cli.steps import Steps, check
    from contrl.pipeline.reading import read

    # Manifests and trackers record the command line, so it must hold no key once a step begins.
    sys.argv[:] = [_SECRET.sub(r"\1=***", word) for word in sys.argv]

    outline = read(file, overrides, Steps())
    steps = check(outline)
    # Only now, because these load everything: a mistake in the file is told before that.
    from contrl.cli.console import quiet_libraries, say
    from contrl.pipeline import carry_out, summary

    quiet_libraries()
    folder = outline.output_dir
    if options.dry_run:
        carry_out.plan(steps, folder, say)
        return
    again = shlex.join(["contrl", *sys.argv[1:]])
    rows = carry_out.carry_out(steps, folder, say, overwrite=options.overwrite_output_dir, again=again)
    _compare(steps, folder, tracked=any(_tracks(draft) for draft in outline.drafts))
    say(f"\n{summary.table(rows)}\n\npipeline: {folder / 'pipeline.json'}")


def _compare(steps: Sequence[Step], folder: Path, *, tracked: bool) -> None:
    """One table of all evaluated models: printed, in comparison.json and in W&B; the same again tells nobody twice."""
    from contrl.cli.console import say
    from contrl.cli.eval_table import print_comparison
    from contrl.continual.records import write_atomic
    from contrl.pipeline.summary import EVALUATION

    files = {step.name: step.folder / EVALUATION for step in steps if step.command == "evaluate"}
    listed = [
        {"name": _judged(name), **json.loads(path.read_text(encoding="utf-8"))}
        for name, path in files.items()
        if path.exists()
    ]
    if len(listed) < 2:
        return
    print_comparison(listed)
    text = f"{json.dumps({'models': listed}, ensure_ascii=False, allow_nan=False, indent=1)}\n".encode()
    path = folder / COMPARISON
    if path.exists() and path.read_bytes() == text:
        return
    if tracked:
        columns = ("model", *_COLUMNS, *_FURTHER)
        table = [[metrics["name"], *(metrics.get(name) for name in columns[1:])] for metrics in listed]
        _track(folder, columns, table)
    write_atomic(path, text)
    say(f"\n{path}")


def _judged(name: str) -> str:
    """What an evaluation is called in the table: ``dpo/eval`` is about dpo."""
    return name.removesuffix("/eval")


def _tracks(draft: Draft) -> bool:
    """Whether a step is an evaluation that is shown in W&B."""
    fields = draft.fields.entries
    words = [word for key in ("report_to", "use_wandb") if key in fields for word in _words(fields[key])]
    return draft.command == "evaluate" and bool({"wandb", "all", "true", "yes", "on"} & set(words))


def _words(node: Node) -> list[str]:
    """The words of a value, be it a list or one with commas."""
    texts = [node] if isinstance(node, Scalar) else node.items if isinstance(node, Items) else []
    return [word.strip().lower() for text in texts if isinstance(text, Scalar) for word in text.text.split(",")]


def _track(folder: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """The table in a W&B run of its own."""
    from transformers import TrainerState, TrainingArguments

    from contrl.cli.console import say
    from contrl.continual.run_folder import RunFolder
    from contrl.continual.trackers import Trackers

    trackers = Trackers.of("wandb", RunFolder(folder), f"compare_{folder.absolute().name}", {}, say)
    arguments = TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True)
    trackers.begin(arguments, TrainerState(global_step=0, is_world_process_zero=True), {})
    trackers.table("models", columns, rows)
    trackers.close()
