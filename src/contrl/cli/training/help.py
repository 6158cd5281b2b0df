"""The help of a training command: common flags in groups, or every one; made of the table alone."""

from __future__ import annotations

import textwrap

from contrl.cli.flags import Flag
from contrl.cli.training.online import is_online, spellings
from contrl.cli.training.table import COMMANDS, GROUPS, METHOD, flags_of

WIDTH, COLUMN = 110, 34


def text(command: str, *, everything: bool = False) -> str:
    """The help.

    Args:
        everything: every flag instead of the common ones.
    """
    about, flags = COMMANDS[command], [flag for name, flag in flags_of(command).items() if flag.name == name]
    reward = "--reward_funcs NAME " if is_online(command) else ""
    lines = [
        f"usage: contrl {command} --model_name_or_path MODEL --dataset_name DATA {reward}[FLAGS]",
        "",
        f"{about.title[0].upper()}{about.title[1:]}.",
        "",
        *textwrap.wrap(
            "A file of tasks is learnt in order, in one run folder with a results matrix; a plain dataset is a "
            "sequence of one. A run that was killed is continued by repeating the command. "
            f"Without flags, {command} learns {_default('num_train_epochs', flags)} epochs at a learning rate of "
            f"{about.learning_rate}.",
            WIDTH,
        ),
    ]
    # Of fields that TRL calls otherwise, its name stands beside the meaning.
    others = {name: spelled for spelled, name in reversed(spellings(command).items())} if is_online(command) else {}
    for group, title in GROUPS.items():
        shown = [flag for flag in flags if flag.group == group and (flag.common or everything)]
        if shown:
            heading = f"fields of {command}" if group == METHOD else title
            lines += ["", f"{heading}:", *(line for flag in shown for line in _entry(flag, others.get(flag.name, "")))]
    lines += ["", *_ending(command, everything)]
    return "\n".join(lines)


def _default(name: str, flags: list[Flag]) -> str:
    return next(flag.default for flag in flags if flag.name == name)


def _entry(flag: Flag, other: str = "") -> list[str]:
    """``  --flag VALUE   what it means (default: x)``, the meaning wrapped in a column of its own."""
    head = f"  --{flag.name} {flag.metavar}".rstrip()
    text = flag.help if flag.help.endswith("...") else flag.help.rstrip(".")
    text += f"; also --{other}" if other else ""
    default = flag.default.strip('"[]')
    if default and (flag.kind, default) != ("switch", "no"):
        text = f"{text} ({default if default == 'required' else f'default: {default}'})"
    body = textwrap.wrap(text, WIDTH - COLUMN, break_on_hyphens=False) or [""]
    indented = [f"{'':{COLUMN}}{line}" for line in body]
    if len(head) < COLUMN - 1:
        return [f"{head:{COLUMN}}{body[0]}", *indented[1:]]
    return [head, *indented]


def _ending(command: str, everything: bool) -> list[str]:
    about = COMMANDS[command]
    start = f"contrl {command} --model_name_or_path"
    lines = [
        "Switches are written --flag, --flag True or --no_flag; lists with spaces or commas; other fields of a",
        "configuration as PATH=VALUE, e.g. evaluation.batch_tokens=4096.",
    ]
    if not everything:
        lines.append(f"Every flag, all training arguments among them: contrl {command} --help-all")
    if is_online(command):
        functions = "--reward_funcs"
        return [
            *lines,
            "",
            "examples:",
            f"  {start} tiny --dataset_name prompts.jsonl {functions} 'length(target=20)' --max_steps 20",
            f"  {start} gpt2 --dataset_name tasks.json --reward_model_name_or_path runs/rewards",
            f"  {start} gpt2 --dataset_name ultrafeedback {functions} my_module.my_fn --reward_weights 1",
            f"  contrl {command} --config my.yaml --seed 1 --dry_run",
        ]
    lines += [
        "",
        "examples:",
        f"  {start} tiny --dataset_name {about.dataset} --max_steps 20",
        f"  {start} Qwen/Qwen2.5-0.5B --dataset_name {about.dataset} --use_peft --learning_rate 1e-5",
    ]
    if command == "reward":
        lines.append(f"  {start} gpt2 --dataset_name tasks.json --all_datasets --output_dir runs/rewards")
    else:
        lines.append(f"  {start} gpt2 --dataset_name tasks.json --strategies replay --output_dir runs/{command}")
    lines.append(f"  contrl {command} --config my.yaml --seed 1 --dry_run")
    return lines
