"""``contrl preview``: the first rows as the model will see them, and what is cut, unusable or untrained.

Trained tokens are marked by colour and by brackets, so that the mark survives a pipe and colour-blind eyes.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from contrl.data.lengths import Survey
    from contrl.interfaces import Completion, Method, Row

DESCRIPTION = "Show a data set as the model will see it: first rows, lengths, what is cut and what cannot be used."
EPILOG = """examples:
  contrl preview pairs.jsonl
  contrl preview chats.jsonl --method sft --assistant_only --model_name_or_path smollm2
  contrl preview hh --method dpo --max_length 512
  contrl preview continual.json --dataset_index 1

Nothing is trained and no weights are loaded, only the tokenizer.
"""

SHOWN = 3
"""How many unusable rows are named one by one."""

METHODS = {
    "preference": "dpo",
    "implicit-preference": "dpo",
    "unpaired": "kto",
    "prompt": "rloo",
}
"""The method that rows are shown for when none is named, by their format."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("dataset", metavar="DATASET", help="a file, a folder, a named data set or a name on the hub")
    parser.add_argument(
        "--model_name_or_path",
        default="tiny",
        metavar="MODEL",
        help="whose tokenizer and chat template (default: tiny, a token for each character)",
    )
    parser.add_argument("--method", metavar="NAME", help="what would be trained (default: what the columns are for)")
    parser.add_argument("--split", default="train", help="of a data set that has several (default: train)")
    parser.add_argument("--num_rows", type=int, default=3, metavar="N", help="rows to show (default: 3)")
    parser.add_argument("--max_length", type=int, metavar="N", help="cut at so many tokens (default: the method's)")
    parser.add_argument("--assistant_only", action="store_true", help="of messages, train only assistant turns")
    parser.add_argument("--dataset_index", type=int, metavar="I", help="of a file of tasks, only this one, from 0")


def command(options: argparse.Namespace) -> int:
    """Print the preview of each task."""
    from rich.console import Console

    from contrl.data.lengths import survey

    tasks, notes = _tasks(options)
    tokenizer = _tokenizer(options.model_name_or_path)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for note in notes:
        console.print(note)
    for name, rows in tasks:
        method_name, method = _method(options, rows)
        rows = method.rows(rows, console.print)
        found = survey(rows, method, tokenizer)
        whose = f"the tokenizer of {options.model_name_or_path}"
        if options.model_name_or_path == "tiny":
            whose += " (a token for each character; --model_name_or_path names another)"
        console.print(f"{name}, {options.split}: {len(rows):,} rows, as {method_name} sees them with {whose}\n")
        for group in found.groups[: max(0, options.num_rows)]:
            _show_row(console, group, tokenizer)
        _show_lengths(console, found)
        _show_losses(console, found, method)
    return 0


def _tasks(options: argparse.Namespace) -> tuple[list[tuple[str, list[Row]]], list[str]]:
    """(name, rows) of each task of the data set, a plain one is one task; and what was left out when it was read."""
    from contrl.continual.sequences import Dataset
    from contrl.data.continual import is_continual
    from contrl.data.recipes import RECIPES
    from contrl.data.sources import is_mix, mix, read_rows
    from contrl.errors import UserError

    notes: list[str] = []
    if is_continual(options.dataset):
        made = Dataset(
            options.dataset,
            train_split=options.split,
            test_split=options.split,
            dataset_index=options.dataset_index,
        )
        tasks = [(f"{options.dataset}, task {task.name}", list(task.train)) for task in made.tasks()]
    else:
        if options.dataset_index not in (None, 0):
            raise UserError(f"{options.dataset} has no tasks to choose from", fix="leave --dataset_index out")
        if is_mix(options.dataset) or options.dataset in RECIPES:
            rows, notes = mix(options.dataset, options.split)
        else:
            rows = read_rows(options.dataset, options.split)
        tasks = [(options.dataset, rows)]
    empty = next((name for name, rows in tasks if not rows), None)
    if empty is not None:
        raise UserError(f"there are no rows in split {options.split!r}", where=empty)
    return tasks, notes


def _tokenizer(name: str) -> Any:
    """The tokenizer of a model; a folder that holds nothing else will do."""
    from pathlib import Path

    from transformers import AutoTokenizer

    from contrl.config import ModelConfig
    from contrl.models.pretrained import read_tokenizer

    if (Path(name) / "tokenizer_config.json").exists():
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    return read_tokenizer(name, ModelConfig(name_or_path=name))


def _method(options: argparse.Namespace, rows: list[Row]) -> tuple[str, Method]:
    """The method named, or the one that rows of this format are for."""
    import dataclasses

    from contrl.data.formats import kind_of
    from contrl.errors import UserError
    from contrl.experiment import find

    name = options.method or METHODS.get(kind_of(rows[0]), "sft")
    if not options.method and "chosen_ids" in rows[0]:
        name = "reward"
    target: Any = find("method", name)
    known = {field.name for field in dataclasses.fields(target)}
    wanted = {"max_length": options.max_length, "assistant_only": options.assistant_only or None}
    given = {field: value for field, value in wanted.items() if value is not None}
    unknown = sorted(given.keys() - known)
    if unknown:
        raise UserError(
            f"{name} has no {', '.join(unknown)}", fix=f"leave --{unknown[0]} out, or name another --method"
        )
    return name, target(**given)


# --- what is printed -------------------------------------------------------------------------------------


def _show_row(console: Console, group: Any, tokenizer: Any) -> None:
    """The prompt and each answer, with what is trained in brackets."""
    console.print(f"row {group.row_id}", style="bold")
    whole = len(group.prompt_ids) <= 1 and len(group.completions) == 1
    before = [(group.prompt_ids, False)]
    parts = [] if whole else [("prompt", len(group.prompt_ids), _text(before, tokenizer, []))]
    names = ("chosen", "rejected") if len(group.completions) == 2 else ("completion",) * len(group.completions)
    for name, completion in zip(names, group.completions, strict=True):
        label = "" if group.label is None else f" ({'good' if group.label else 'bad'})"
        cut = "" if completion.ended else ", cut"
        if whole:
            # Text and conversations have no prompt but their first token, which nothing predicts.
            text = _text([*before, *_spans(completion)], tokenizer, [])
            parts.append((f"whole row{label}{cut}", len(group.prompt_ids) + len(completion.ids), text))
        else:
            text = _text(_spans(completion), tokenizer, group.prompt_ids)
            parts.append((f"{name}{label}{cut}", len(completion.ids), text))
    for name, length, text in parts:
        console.print(f"{name}, {length:,} tokens:", style="cyan")
        console.print(text)
    if not group.completions:
        console.print("its completions are sampled while it is trained", style="cyan")
    console.print()


def _spans(completion: Completion) -> list[tuple[list[int], bool]]:
    """Runs of tokens that are all trained or all not."""
    import itertools

    trained = completion.trained or [True] * len(completion.ids)
    pairs = zip(completion.ids, trained, strict=True)
    return [([i for i, _ in run], flag) for flag, run in itertools.groupby(pairs, key=lambda pair: pair[1])]


def _text(spans: list[tuple[list[int], bool]], tokenizer: Any, before: list[int]) -> Any:
    """Decoded spans, each as what it adds to all before it, because some tokenizers drop a first space."""
    from rich.text import Text

    text = Text()
    ids = list(before)
    so_far = len(tokenizer.decode(ids)) if ids else 0
    for span, trained in spans:
        ids += span
        whole = _visible(tokenizer.decode(ids)[so_far:])
        so_far = len(tokenizer.decode(ids))
        text.append(f"⟦{whole}⟧" if trained else whole, style="bold green" if trained else "dim")
    return text


def _visible(text: str) -> str:
    """Control characters as escapes: what stands in a data set must not steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _show_lengths(console: Console, found: Survey) -> None:
    console.print(f"{'tokens':<12}{'min':>9}{'median':>9}{'95%':>9}{'max':>9}", style="bold")
    for part in found.lengths:
        numbers = (part.smallest, part.median, part.most, part.largest)
        console.print(f"{part.part:<12}" + "".join(f"{number:>9,.0f}" for number in numbers))


def _show_losses(console: Console, found: Survey, method: Method) -> None:
    """What is cut, what is left with nothing, what cannot be used."""
    usable = found.num_rows - len(found.unusable)
    limits = [(name, getattr(method, name, None)) for name in ("max_length", "max_prompt_length")]
    limit = " and ".join(f"{name} {value}" for name, value in limits if value is not None)
    if any(group.completions for group in found.groups):
        console.print(f"\n{found.share_trained:.1%} of the tokens are trained")
    console.print(f"{_share(found.num_cut, usable)} of the usable rows are cut{f' at {limit}' if limit else ''}")
    console.print(f"{_share(len(found.nothing_left), usable)} are left with nothing to train on by the cut")
    _name_rows(console, found.nothing_left)
    style = "bold red" if found.unusable else None
    console.print(f"{_share(len(found.unusable), found.num_rows)} of all rows cannot be used", style=style)
    _name_rows(console, found.unusable)
    console.print()


def _share(number: int, whole: int) -> str:
    return f"{number:,} ({number / max(whole, 1):.1%})"


def _name_rows(console: Console, rows: list[tuple[str, str]]) -> None:
    for row_id, reason in rows[:SHOWN]:
        console.print(f"  row {row_id}: {reason}")
