"""``contrl datasets``: the data sets that have a name, and where their rows would come from on this machine."""

from __future__ import annotations

import argparse
import json
import sys

DESCRIPTION = "List the named data sets: where each comes from, its licence, its columns, and whether it is on disk."
EPILOG = """examples:
  contrl datasets
  contrl datasets --json
  CONTRL_DATA_DIR=~/data contrl datasets

A copy in $CONTRL_DATA_DIR/NAME/ (train and test as .jsonl or .parquet, also .gz, in the origin's columns) is read
instead of the hub.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def command(options: argparse.Namespace) -> int:
    """Print every named data set."""
    entries = [entry(name) for name in names()]
    if options.json:
        print(json.dumps(entries, indent=2))
        return 0
    if sys.stdout.isatty():
        _table(entries)
        return 0
    # One line each, with tabs: for grep, cut and the like.
    print("\t".join(("name", "source", "licence", "columns", "rows come from")))
    for known in entries:
        print("\t".join((known["name"], known["source"], known["licence"], ",".join(known["columns"]), place(known))))
    return 0


def names() -> list[str]:
    """The names, in the order they are listed."""
    from contrl.data.recipes import RECIPES

    return list(RECIPES)


def entry(name: str) -> dict:
    """What is known of a named data set: name, source, licence, kind, columns, splits, and ``path`` when on disk."""
    from contrl.data.folders import copy_of
    from contrl.data.hub import downloaded
    from contrl.data.recipes import RECIPES

    recipe = RECIPES[name]
    path = copy_of(name) or copy_of(recipe.hub) or downloaded(recipe.hub)
    return {
        "name": name,
        "source": recipe.hub,
        "licence": recipe.licence,
        "kind": recipe.kind,
        "columns": list(recipe.columns),
        "splits": list(recipe.splits),
        "on_disk": path is not None,
        "path": None if path is None else str(path),
    }


def place(known: dict) -> str:
    """Where the rows would come from."""
    return known["path"] or "hub"


def _table(entries: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "source", "licence", "rows"):
        table.add_column(title, no_wrap=True)
    for known in entries:
        disk = known["on_disk"]
        table.add_row(
            f"[cyan]{known['name']}[/cyan]",
            known["source"],
            known["licence"],
            "[green]disk[/green]" if disk else "[yellow]hub[/yellow]",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print()
    for known in entries:
        console.print(f"[cyan]{known['name']}[/cyan] reads {', '.join(known['columns'])}", soft_wrap=True)
        if known["on_disk"]:
            console.print(f"  from {known['path']}", style="green", markup=False, soft_wrap=True)
