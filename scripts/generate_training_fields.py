"""Write src/contrl/training_fields.py: what transformers.TrainingArguments takes, as a table without transformers.

Importing TrainingArguments takes seconds; help and configuration errors need only names, types and defaults.
Run it after an upgrade of transformers (tests/test_training_fields.py fails until it was run):

    python scripts/generate_training_fields.py
"""

from __future__ import annotations

import dataclasses
import enum
import textwrap
import types
import typing
from pathlib import Path
from typing import Any, Literal

TARGET = Path(__file__).parents[1] / "src" / "contrl" / "training_fields.py"

# Fields that accept more than their annotation says; the help text of the field is the source.
CORRECTED = {"fsdp": "bool | str | None"}

HEADER = '''"""The fields of transformers.TrainingArguments: name -> (type, default, first sentence of its help).

Written by scripts/generate_training_fields.py from transformers {version} (Apache-2.0), whose help is quoted;
do not edit. It stands in for transformers where a start-up in milliseconds matters: help, and errors in a
configuration.
"""

# fmt: off
TRAINING_FIELDS: dict[str, tuple[str, str, str]] = {{
'''


def type_text(annotation: Any) -> str:
    """``int``, ``str | None``, ``Literal['a', 'b']``: alternatives joined by " | "; enumerations as their values."""
    if annotation in (None, types.NoneType):
        return "None"
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        options = typing.get_args(annotation)
        # An enumeration beside str takes exactly the texts of its members, so the str adds nothing.
        if any(_is_enum(option) for option in options):
            options = tuple(option for option in options if option is not str)
        return " | ".join(type_text(option) for option in options)
    if _is_enum(annotation):
        return type_text(Literal[tuple(member.value for member in annotation)])
    if typing.get_origin(annotation) is Literal:
        return f"Literal[{', '.join(map(repr, typing.get_args(annotation)))}]"
    if typing.get_origin(annotation) is list and _is_enum(typing.get_args(annotation)[0]):
        return "list[str]"
    if typing.get_origin(annotation) is not None:
        return str(annotation).replace("typing.", "")
    # Objects of other libraries (ParallelismConfig) cannot be written in a file; no field type reads this word.
    return annotation.__name__ if annotation in (bool, int, float, str, list, dict) else "object"


def _is_enum(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, enum.Enum)


def first_sentence(text: str) -> str:
    """Help up to its first full stop that ends a sentence; ``%%`` is argparse's escape for ``%``."""
    text = " ".join(text.replace("%%", "%").split())
    head, stop, _ = text.partition(". ")
    return head + "." if stop else text


def table() -> dict[str, tuple[str, str, str]]:
    """The table for the installed transformers, sorted by name."""
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    rows = {}
    for field in dataclasses.fields(TrainingArguments):
        if not field.init:
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        default = default.value if isinstance(default, enum.Enum) else default
        kind = CORRECTED.get(field.name) or type_text(hints[field.name])
        if default == "none":
            # "none" is a word of this field (report_to); with None among its types it would be read as no value.
            kind = " | ".join(option for option in kind.split(" | ") if option != "None")
        rows[field.name] = (kind, repr(default), first_sentence(field.metadata.get("help", "")))
    return dict(sorted(rows.items()))


def render(rows: dict[str, tuple[str, str, str]], version: str) -> str:
    """The source of the module."""
    lines = [HEADER.format(version=version)]
    for name, (kind, default, text) in rows.items():
        head = f'    "{name}": ('
        parts = [*_literal(kind, 120 - len(head)), _quote(default)]
        lines.append(f"{head}{parts[0]}" + "".join(f"\n        {part}" for part in parts[1:-1]))
        lines[-1] += f", {parts[-1]}," + "".join(f"\n        {part}" for part in _literal(text, 108)) + "),\n"
    return "".join(lines) + "}\n# fmt: on\n"


def _literal(text: str, width: int) -> list[str]:
    """The text as string literals that stand under each other, none wider than ``width``."""
    pieces = textwrap.wrap(text, width - 24, drop_whitespace=False, break_on_hyphens=False) or [""]
    return [_quote(piece) for piece in pieces]


def _quote(text: str) -> str:
    """Double quotes unless the text holds some: the form the formatter and the linter leave alone."""
    return f'"{text}"' if '"' not in text and "\\" not in text else repr(text)


def main() -> None:
    """Write the module for the installed transformers."""
    import transformers

    TARGET.write_text(render(table(), transformers.__version__), encoding="utf-8")
    print(f"{TARGET}: {len(table())} fields of transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
