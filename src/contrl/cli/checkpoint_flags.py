"""The flags of ``contrl evaluate-checkpoints``: all of training are accepted, so that AIF-Gen's command runs as it is.

Those that say how rows are read and judged have their effect; those that only training would need are named in one
line. What weights there are, and of which kind, the checkpoints say themselves.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contrl.cli.flags import Flag, read_argv
from contrl.cli.training import rewards
from contrl.cli.training.help import COLUMN, WIDTH
from contrl.cli.training.refused import NO_EFFECT
from contrl.cli.training.request import Asks, Request, read
from contrl.cli.training.table import COMMANDS, flags_of
from contrl.errors import ConfigErrors, UserError

NAME = "evaluate-checkpoints"
METHODS = tuple(name for name in COMMANDS if name not in ("ppo", "rloo", "grpo"))
"""Methods that can judge rows by their own answers; sampled answers are judged by a reward, whatever trained them."""

_WHICH = ("all", "ends")
OWN = (
    Flag(
        "checkpoint_dir",
        help="a run of contrl, a folder with dataset-<i>/checkpoint-<step> or checkpoint-<step>, or one model",
        default="required",
        metavar="FOLDER",
        common=True,
    ),
    Flag(
        "checkpoints",
        help="all, or ends: only the last weights of each stage",
        default="all",
        metavar="WHICH",
        common=True,
    ),
    Flag(
        "method",
        help=f"rows are judged by their own answers as this method does: {', '.join(METHODS)}",
        default="the run's; else reward for classifiers, dpo for pairs, kto for labels, sft",
        metavar="NAME",
        common=True,
    ),
    Flag(
        "reward_funcs",
        "rewards.functions",
        "calls",
        "judge sampled answers by these rewards: countdown, exact_match, my_module.my_fn ...",
        metavar="NAME",
        common=True,
    ),
)
_SHOWN = (
    "model_name_or_path",
    "dataset_name",
    "dataset_test_split",
    "dataset_index",
    "eval_size",
    "reward_model_path",
    "response_length",
    "temperature",
    "max_eval_examples",
    "eval_num_items",
    "max_length",
    "dtype",
    "seed",
    "report_to",
    "use_cpu",
    "output_dir",
    "overwrite_output_dir",
    "dry_run",
)
_MEANING = {
    "model_name_or_path": "the model that training started from: row 0 of the results (of adapters: their base)",
    "dataset_name": "the rows to judge by; a run of contrl has its own",
    "output_dir": "folder of the results (default: the run itself, else CHECKPOINT_DIR-eval)",
    "max_length": "as in training: longer rows are cut",
    "dry_run": "print checkpoints, rows, tasks and cost; then stop",
    "overwrite_output_dir": "delete another evaluation in output_dir first",
}
_JUDGING = ("evaluation.", "tasks.", "rewards.", "method.", "max_bad_rows", "seed", "training.use_cpu")
_MODEL = (
    "dtype",
    "attn_implementation",
    "revision",
    "trust_remote_code",
    "name_or_path",
    "load_in_4bit",
    "load_in_8bit",
)
_TRACKING = ("training.report_to", "training.run_name")
_IDLE = (
    "strategies",
    "rounds",
    "order",
    "order_seed",
    "stages",
    "evaluation.tasks",
    "prompts_per_step",
    "tokens_per_pass",
)
"""Of a sequence that is trained; here every task is judged in every row."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for, as far as the flags alone tell.

    Attributes:
        checkpoint_dir: where the weights are.
        request: the flags; ``request.overrides`` are those of them that change how rows are judged.
        ends_only: leave checkpoints from within a stage out.
        idle: flags that have no effect here, to be named.
    """

    checkpoint_dir: Path
    request: Request
    ends_only: bool
    idle: tuple[str, ...] = field(default=())

    @property
    def output_dir(self) -> Path | None:
        """The folder given for the results."""
        return Path(text) if (text := self.request.text("output_dir")) else None


def flags(method: str) -> dict[str, Flag]:
    """Every accepted spelling -> its flag, where rows are judged as ``method`` does."""
    known = {flag.name: flag for flag in OWN} | {"metric": OWN[-1]}
    return {**flags_of(method), **known}


def chosen_method(argv: Sequence[str]) -> str | None:
    """The method that the words name; None when they name none.

    Raises:
        UserError: no method that judges by a row's own answers is called so.
    """
    every = {name: flag for method in METHODS for name, flag in flags(method).items()}
    found = read_argv(argv, every).given.get("method")
    if found is None or found.text in METHODS:
        return found.text if found is not None else None
    what = f"--method {found.text}: no method that judges rows by their own answers"
    why = "sampled answers are judged by a reward, whatever trained them: --reward_funcs, --reward_model_path"
    raise UserError(what, where=str(found.place), why=why, fix=f"use one of {', '.join(METHODS)}")


def read_flags(argv: Sequence[str], method: str, defaults: Sequence[str] = ()) -> Wanted:
    """The request of a command line.

    Raises:
        ConfigErrors: every mistake at once.
    """
    request = read(method, argv, defaults, flags(method), asks=Asks((), "checkpoint_dir"))
    errors = []
    folder = request.text("checkpoint_dir")
    if not folder:
        errors.append(
            UserError(
                f"contrl {NAME} needs --checkpoint_dir",
                fix=f"for example: contrl {NAME} --checkpoint_dir runs/dpo, a run of contrl or a folder of checkpoints",
            )
        )
    if (text := request.text("checkpoints", _WHICH[0])) not in _WHICH:
        errors.append(UserError(f"--checkpoints {text}", fix=f"use one of {', '.join(_WHICH)}"))
    if errors:
        raise ConfigErrors(errors)
    idle = tuple(name for name, given in request.given.items() if _is_idle(given.flag))
    quiet = {flag.note for flag in NO_EFFECT}
    request.notes = [note for note in request.notes if note not in quiet]
    request.overrides = _judging(request)
    ends_only = request.text("checkpoints", "all") == "ends"
    return Wanted(Path(folder), request, ends_only, idle)


def _is_idle(flag: Flag) -> bool:
    """Whether a flag can have no effect where nothing is trained."""
    if flag.path.startswith("training."):
        return flag.path not in (*_TRACKING, "training.use_cpu")
    if flag.path.startswith("model."):
        return flag.path.removeprefix("model.") not in _MODEL
    return flag.path in _IDLE or flag in NO_EFFECT


def _judging(request: Request) -> list[str]:
    """The overrides that say how rows are read and judged."""
    calls = rewards.functions(request.given)
    kept = []
    for text in request.overrides:
        path = text.partition("=")[0]
        if path in ("evaluation.tasks", "rewards.functions"):
            continue
        if path.startswith(_JUDGING) or path.removeprefix("model.") in _MODEL:
            kept.append(text)
    return [*kept, *([f"rewards.functions={rewards_text(calls)}"] if calls else [])]


def rewards_text(calls: Sequence[str]) -> str:
    """A list of rewards as the value of an override."""
    from contrl.cli.flags import override

    return override("x", rewards.node(list(calls))).partition("=")[2]


# --- the help -------------------------------------------------------------------------------------------------

DESCRIPTION = """Judge saved weights: what training would have logged, afterwards.

Every checkpoint is judged on every task. The results are those of a run: a matrix with row 0 before training, item
scores, intervals and a report. A run of contrl gets what it has not judged itself in its own folder, with the numbers
that training would have logged. A command that was killed is continued by repeating it."""
EXAMPLES = f"""examples:
  contrl {NAME} runs/dpo                                  fill in what a run of contrl has not judged
  contrl {NAME} runs/dpo --dataset_name other.json --output_dir runs/dpo-on-other
  contrl {NAME} --checkpoint_dir Qwen2-0.5B-DPO-test --dataset_name tasks.json \\
      --model_name_or_path Qwen/Qwen2-0.5B-Instruct --output_dir Qwen2-0.5B-DPO-test-eval
  contrl {NAME} elsewhere --model_name_or_path gpt2 --dataset_name p.jsonl --metric countdown --dry_run
"""


def help_text(*, everything: bool = False) -> str:
    """The help: the flags that matter here, or every accepted one."""
    lines = [
        f"usage: contrl {NAME} --checkpoint_dir FOLDER [--dataset_name DATA] [FLAGS]",
        "",
        DESCRIPTION,
        "",
        "flags:",
    ]
    known = flags("dpo")
    names = [flag.name for flag in OWN] + [name for name in _SHOWN if name in known]
    for name in names:
        flag = known[name]
        lines += _entry(flag, _MEANING.get(name, flag.help))
    rest = [name for name, flag in known.items() if flag.name == name and name not in names]
    lines += ["", "Flags that only training needs are accepted and named as without effect, so that a training command"]
    lines += ["with another first word runs."]
    if everything:
        lines += ["", *textwrap.wrap("Also accepted: " + ", ".join(f"--{name}" for name in sorted(rest)), WIDTH)]
    else:
        lines.append(f"All of them: contrl {NAME} --help-all")
    return "\n".join([*lines, "", EXAMPLES.rstrip()])


def _entry(flag: Flag, text: str) -> list[str]:
    head = f"  --{flag.name} {flag.metavar}".rstrip()
    default = flag.default.strip('"[]')
    if default and flag.name not in _MEANING and (flag.kind, default) != ("switch", "no"):
        text = f"{text.rstrip('.')} ({default if default == 'required' else f'default: {default}'})"
    body = textwrap.wrap(text, WIDTH - COLUMN, break_on_hyphens=False)
    indented = [f"{'':{COLUMN}}{line}" for line in body]
    return [f"{head:{COLUMN}}{body[0]}", *indented[1:]] if len(head) < COLUMN - 1 else [head, *indented]
