"""A plugin with its fields in one word: ``ewc(coef=10, space=delta_w)`` means ``{name: ewc, coef: 10, ...}``.

One spelling for the command line, overrides and files. Values are raw text until the plugin's own field types
read them, as everywhere else in a configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from contrl.config import tree
from contrl.config.tree import Fields, Scalar
from contrl.errors import UserError

_OPENING, _CLOSING, _QUOTES = "([{", ")]}", "\"'"
_CALL = re.compile(r"([^\s(]+)\s*\((.*)\)", re.DOTALL)
_FIELD = re.compile(r"\s*([A-Za-z_]\w*)\s*=(.*)", re.DOTALL)
_FIX = "write NAME, or NAME(field=value, ...), for example ewc(coef=10)"


def split_words(text: str) -> list[str]:
    """``a, b(x=1, y=2)`` as its words; commas inside brackets and quotes belong to the word."""
    return [word for word in _split(text) if word]


def read_call(node: Scalar) -> Fields:
    """A word as the section it stands for: its name, and the fields in the brackets behind it.

    Raises:
        UserError: the brackets do not close, or hold something other than ``field=value``.
    """
    text, where = node.text.strip(), str(node.place)
    if "(" not in text and ")" not in text:
        return Fields(node.place, {"name": node})
    match = _CALL.fullmatch(text)
    if match is None:
        raise UserError(f"{text!r} cannot be read", where=where, why="its brackets do not match", fix=_FIX)
    fields = Fields(node.place, {"name": Scalar(node.place, match[1])})
    for part in _split(match[2]) if match[2].strip() else ():
        pair = _FIELD.fullmatch(part)
        if pair is None or pair[1] in fields.entries:
            why = f"{part!r} is no field=value" if pair is None else f"{pair[1]} is given twice"
            raise UserError(f"{text!r} cannot be read", where=where, why=why, fix=_FIX)
        value = tree.split_override(f"{pair[1]}={pair[2]}")[1]
        fields.entries[pair[1]] = tree.relocate(value, node.place)
    return fields


def _split(text: str) -> Iterator[str]:
    """The parts between the commas that stand outside of brackets and quotes."""
    depth, quote, start = 0, "", 0
    for position, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in _QUOTES:
            quote = letter
        elif letter == "," and depth == 0:
            yield text[start:position].strip()
            start = position + 1
        else:
            depth += (letter in _OPENING) - (letter in _CLOSING)
    yield text[start:].strip()
