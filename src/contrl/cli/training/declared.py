"""What a method or a wiring table declares, read from its source: nothing is imported, so help comes at once.

Importing a method costs torch. The fields are those of the dataclass in the source file, their meaning its
docstring's "Attributes" section; tests hold them equal to what importing the class gives.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Any, Literal

from contrl.config.walk import Parameter

_PACKAGE = Path(__file__).parents[2]
_PLAIN: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "None": None, "dict": dict, "Any": Any}


@functools.cache
def known(name: str) -> dict[str, str]:
    """A table of ``contrl.experiment``, such as METHODS: name -> "module:Class"."""
    return ast.literal_eval(_assigned(_module("contrl.experiment"))[name])


@functools.cache
def fields_of(target: str) -> dict[str, Parameter]:
    """The fields of the dataclass ``module:Class``, as ``contrl.config.walk.parameters`` gives them, with help.

    Those of a dataclass that it derives from come first, in their own order, as Python has it.
    """
    module, _, name = target.partition(":")
    tree = _module(module)
    found = _class(tree, name)
    fields: dict[str, Parameter] = {}
    for base in found.bases:
        home = _home(tree, module, ast.unparse(base))
        if home and any(
            ast.unparse(mark).startswith("dataclass") for mark in _class(_module(home), base).decorator_list
        ):
            fields |= fields_of(f"{home}:{ast.unparse(base)}")
    meaning = _attributes(ast.get_docstring(found) or "")
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            annotation = ast.unparse(node.annotation)
            if not annotation.startswith("ClassVar"):
                field = node.target.id
                default = ast.literal_eval(node.value)
                text = meaning.get(field) or (fields[field].help if field in fields else "")
                fields[field] = Parameter(field, _type(node.annotation, tree), default, text)
    return fields


def _class(tree: ast.Module, name: str | ast.expr) -> ast.ClassDef:
    called = name if isinstance(name, str) else ast.unparse(name)
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == called)


def _home(tree: ast.Module, module: str, name: str) -> str:
    """The module that a class used in ``module`` stands in; "" for one from outside of contrl, or from a package."""
    if any(isinstance(node, ast.ClassDef) and node.name == name for node in tree.body):
        return module
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            home = str(node.module)
            return home if home.startswith("contrl.") and _path(home).exists() else ""
    return ""


@functools.cache
def _module(name: str) -> ast.Module:
    return ast.parse(_path(name).read_text(encoding="utf-8"))


def _path(module: str) -> Path:
    return _PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")


def _assigned(tree: ast.Module) -> dict[str, ast.expr]:
    """Name -> value of the module's plain assignments."""
    return {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def _type(node: ast.expr, tree: ast.Module) -> Any:
    """The type that an annotation means; a name that is not Python's is looked up, here or where it comes from."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.BinOp):
        return _type(node.left, tree) | _type(node.right, tree)
    if isinstance(node, ast.Subscript):
        outer = ast.unparse(node.value)
        if outer == "Literal":
            return Literal[tuple(ast.literal_eval(part) for part in _parts(node.slice))]
        inner = [Ellipsis if ast.unparse(part) == "..." else _type(part, tree) for part in _parts(node.slice)]
        outers: dict[str, Any] = {"tuple": tuple, "list": list, "dict": dict}
        return outers[outer][tuple(inner)]
    name = ast.unparse(node)
    if name in _PLAIN:
        return _PLAIN[name]
    if name in _assigned(tree):
        return _type(_assigned(tree)[name], tree)
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and any(alias.name == name for alias in statement.names):
            return _type(node, _module(str(statement.module)))
    raise LookupError(f"no type called {name}")


def _parts(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def _attributes(docstring: str) -> dict[str, str]:
    """Name -> meaning, of an "Attributes" section; names with commas between share one."""
    section = docstring.partition("Attributes:\n")[2].partition("\n\n")[0]
    meaning: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", "\n" + section):
        names, _, text = entry.strip().partition(":")
        words = " ".join(text.split()).replace("``", "")
        meaning |= {name.strip(): words for name in names.split(",") if words}
    return meaning
