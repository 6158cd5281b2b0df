"""The size budget: files a reader holds in mind, functions that fit a screen, calls one can remember.

A file has at most 400 lines, a function 60 (its docstring not counted), a signature 7 parameters (self and
cls not counted; what a dataclass generates is not written, so it is not counted). Raising a cap is a commit
of its own: one entry below, with the reason.
"""

from __future__ import annotations

import ast
from pathlib import Path

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 400, 60, 7
# "file" or "file:function" -> (cap, reason)
RAISED: dict[str, tuple[int, str]] = {}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> list[Function]:
    """Every function and method of a file, nested ones too."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def num_lines(function: Function) -> int:
    """Lines from ``def`` to the end, less the docstring."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function, clean=False) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def num_parameters(function: Function) -> int:
    """Parameters a caller passes: *args and **kwargs count one each, self and cls none."""
    names = function.args
    every = [*names.posonlyargs, *names.args, *names.kwonlyargs]
    own = 1 if every and every[0].arg in ("self", "cls") else 0
    return len(every) - own + (names.vararg is not None) + (names.kwarg is not None)


def over(measured: dict[str, int], cap: int) -> dict[str, int]:
    """The entries above their cap."""
    return {name: size for name, size in measured.items() if size > RAISED.get(name, (cap, ""))[0]}


def test_no_file_is_longer_than_a_reader_can_hold(root: Path, sources: dict[str, ast.Module]) -> None:
    folder = root / "src" / "contrl"
    lengths = {path: len((folder / path).read_text(encoding="utf-8").splitlines()) for path in sources}
    assert over(lengths, MAX_FILE_LINES) == {}


def test_functions_fit_a_screen(sources: dict[str, ast.Module]) -> None:
    lengths = {f"{path}:{f.name}": num_lines(f) for path, tree in sources.items() for f in functions(tree)}
    assert over(lengths, MAX_FUNCTION_LINES) == {}


def test_signatures_can_be_remembered(sources: dict[str, ast.Module]) -> None:
    counts = {f"{path}:{f.name}": num_parameters(f) for path, tree in sources.items() for f in functions(tree)}
    assert over(counts, MAX_PARAMETERS) == {}


def test_the_rulers_measure_what_they_say() -> None:
    """The function has 3 lines less a 1-line docstring, and 4 parameters: a, b, *rest, **more."""
    (method,) = functions(ast.parse('class A:\n  def f(self, a, *rest, b, **more):\n    """d"""\n    return a'))
    assert (num_lines(method), num_parameters(method)) == (2, 4)
