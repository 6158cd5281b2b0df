"""What every text on a terminal needs: names that cannot steer it, characters it can write, columns, ages.

Names, prompts and answers come from files and models, so control characters never reach the terminal.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TextIO


def wants_colour(stream: TextIO) -> bool:
    """https://no-color.org and the convention of FORCE_COLOR: a variable counts when it is not empty."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def clean(text: str) -> str:
    """A name without control characters: it comes from a file and must not steer the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def one_line(text: str, most: int) -> str:
    """A text of a model in one line, line breaks written out; cut after ``most`` characters, saying how many follow."""
    shown = clean(text[:most].replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t"))
    return shown if len(text) <= most else f"{shown} ... ({len(text) - most} more characters)"


def can_write(text: str, encoding: str | None) -> bool:
    """Whether an encoding has all these characters."""
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def encodable(text: str, encoding: str | None) -> str:
    """The text with ``?`` for what the encoding lacks."""
    encoding = encoding or "ascii"
    return text.encode(encoding, errors="replace").decode(encoding)


def say(text: str, stream: TextIO) -> None:
    """Lines to a stream, whatever its encoding, at once."""
    stream.write(encodable(text if text.endswith("\n") else f"{text}\n", stream.encoding))
    stream.flush()


def columns(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table as text: a line of titles, every column as wide as its longest word."""
    rows = [[clean(word) for word in row] for row in (head, *lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(w.ljust(n) for w, n in zip(row, widths, strict=True)).rstrip() for row in rows)


def age(seconds: float | None) -> str:
    """``40 s``, ``12 min``, ``3 h``, ``5 d``; a dash when it is not known."""
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"
