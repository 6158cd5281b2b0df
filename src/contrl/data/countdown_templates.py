"""How a Countdown instance is put to a model: the prompts, the completions, and the columns of the rows.

Three templates. ``base`` is one raw text for models without a chat template, ``qwen-instruct`` is a chat,
``compact`` is a line that a character-level model of a million parameters can learn to read. No prompt shows
an expression that the verifier could take for the model's own answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEMPLATES = ("base", "qwen-instruct", "compact")

COMPACT_ALPHABET = " ()*+-/0123456789:="
"""Every character that a compact prompt or completion can hold."""

Progress = Callable[[str, str, int, int], None]
"""Called with group, split, rows done and rows in all."""

_TASK = (
    "Write an arithmetic expression with the value {target}. Its numbers are {numbers}: use each of them exactly once "
    "and no others. You may use {operators} and parentheses. Think inside <think> </think>, then give nothing but "
    "the expression inside <answer> </answer>."
)
_BASE = (
    "Below, a user asks for the solution of a number puzzle. The assistant works it out in writing before giving it.\n"
    f"User: {_TASK}\n"
    "Assistant: I will look for a way to combine the numbers.\n<think>"
)
_SYSTEM = "You solve number puzzles. You work the solution out in writing before you give it."

_ROWS_AT_A_TIME = 10_000


@dataclass(frozen=True, slots=True)
class Instance:
    """One puzzle: numbers in the order they are shown, the target, a solution with the group's newest operator."""

    numbers: tuple[int, ...]
    target: int
    solution: str
    operators: str


def prompt_text(item: Instance, template: str) -> str:
    """What the user says; for ``base`` and ``compact`` the whole prompt. Compact: ``3 14 5 +-*=37:``."""
    if template == "compact":
        return f"{' '.join(map(str, item.numbers))} {item.operators}={item.target}:"
    numbers, operators = ", ".join(map(str, item.numbers)), " ".join(item.operators)
    return (_BASE if template == "base" else _TASK).format(target=item.target, numbers=numbers, operators=operators)


def messages(item: Instance, template: str) -> list[dict[str, str]]:
    """The prompt as chat messages: one user message that holds all of it; ``qwen-instruct`` has a system one."""
    user = {"role": "user", "content": prompt_text(item, template)}
    return [{"role": "system", "content": _SYSTEM}, user] if template == "qwen-instruct" else [user]


def completion_text(item: Instance, template: str) -> str:
    """A completion that continues the prompt and that the verifier scores 1.0."""
    if template == "compact":
        return item.solution
    opening = "" if template == "base" else "<think>"  # the base prompt has opened the tag
    return f"{opening}{item.solution} = {item.target}</think>\n<answer>{item.solution}</answer>"


def ground_truth(item: Instance, template: str) -> dict[str, Any]:
    """What the verifier reads, and the stored solution."""
    return {
        "target": item.target,
        "numbers": list(item.numbers),
        "operators": item.operators,
        "template": template,
        "solution": item.solution,
    }


def verl_row(item: Instance, group: str, template: str, split: str, index: int) -> dict[str, Any]:
    """One row in the columns that veRL reads."""
    return {
        "data_source": f"countdown/{group}",
        "prompt": messages(item, template),
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": ground_truth(item, template)},
        "extra_info": {"split": split, "index": index, "operator_group": group},
    }


def task_row(item: Instance, group: str, template: str) -> dict[str, Any]:
    """One row for contrl's own engine: prompt and completion are text, for ``qwen-instruct`` messages.

    ``base`` has opened the answer itself, as veRL's trainer reads it: a chat template would close it again.
    """
    completion = completion_text(item, template)
    is_chat = template == "qwen-instruct"
    return {
        "id": f"{group}:{'.'.join(map(str, sorted(item.numbers)))}={item.target}",
        "prompt": messages(item, template) if is_chat else prompt_text(item, template),
        "completion": [{"role": "assistant", "content": completion}] if is_chat else completion,
        "ground_truth": ground_truth(item, template),
        "operator_group": group,
        "data_source": f"countdown/{group}",
        "template": template,
    }


def write_parquet(
    path: Path, instances: Sequence[Instance], group: str, template: str, split: str, progress: Progress | None
) -> None:
    """One file in veRL's columns. It holds no time and no path, so equal rows give equal bytes."""
    import pyarrow as pa  # here, so that a command's help does not wait for it
    import pyarrow.parquet as parquet

    texts = {name: pa.string() for name in ("operators", "template", "solution")}
    truth = pa.struct({"target": pa.int64(), "numbers": pa.list_(pa.int64()), **texts})
    schema = pa.schema(
        {
            "data_source": pa.string(),
            "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
            "ability": pa.string(),
            "reward_model": pa.struct({"style": pa.string(), "ground_truth": truth}),
            "extra_info": pa.struct({"split": pa.string(), "index": pa.int64(), "operator_group": pa.string()}),
        }
    )
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, len(instances), _ROWS_AT_A_TIME):
            block = range(start, min(start + _ROWS_AT_A_TIME, len(instances)))
            lines = [verl_row(instances[index], group, template, split, index) for index in block]
            writer.write_table(pa.Table.from_pylist(lines, schema))
            if progress:
                progress(group, split, block.stop, len(instances))
