"""From a tree of nodes to typed values, by the annotations of dataclasses and functions.

The walker never stops at the first mistake: it notes it with file and line, goes on, and the caller raises
all of them together. It knows types only; what a section of contrl's own file means is told to it by markers
(``Annotated[T, Mark("name")]``), each answered by one handler.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from contrl.config import scalars
from contrl.config.tree import Fields, Finding, Items, Node, Place, Scalar
from contrl.errors import UserError

BAD: Any = object()
"""What a conversion returns when it has noted a mistake; such a value is never used."""

Handler = Callable[["Walker", str, Any, Node], Any]

_LISTS = (list, tuple, Sequence)
_SCALARS = {bool: "yes or no", int: "a whole number", float: "a number", Path: "a path", str: "text"}
_MAX_LISTED = 12  # more names than this are not listed in an error
_REQUIRED = dataclasses.MISSING


class Mark(NamedTuple):
    """Metadata of ``Annotated[type, Mark("name")]``: the walker leaves such values to the handler of that name.

    ``words`` say to a reader what is expected; by default that is told by the type.
    """

    name: str
    words: str = ""


class Parameter(NamedTuple):
    """One key that a section may hold. ``at_least`` and ``below`` bound its value where they are given."""

    name: str
    annotation: Any
    default: Any = _REQUIRED
    help: str = ""
    at_least: float | None = None
    below: float | None = None

    @property
    def required(self) -> bool:
        return self.default is _REQUIRED


# --- what a dataclass or function takes -------------------------------------------------------------


def parameters(target: Any) -> tuple[dict[str, Parameter], bool]:
    """The keys that configure ``target`` (a dataclass, class or function), and whether it takes any others too.

    Raises:
        UserError: Python cannot tell what the target takes (it is not callable, or not written in Python).
    """
    if isinstance(target, type) and dataclasses.is_dataclass(target):
        return {f.name: _from_field(target, f) for f in dataclasses.fields(target) if f.init}, False
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError) as error:
        raise UserError("its parameters cannot be read", why=str(error)) from None
    result, others = {}, False
    function = inspect.getattr_static(target, "__init__") if isinstance(target, type) else target
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            others = True
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            default = _REQUIRED if parameter.default is parameter.empty else parameter.default
            hint = None if parameter.annotation is parameter.empty else parameter.annotation
            result[name] = Parameter(name, _annotation(hint, scope, default), default)
    return result, others


def _from_field(target: type, field: dataclasses.Field) -> Parameter:
    owner = next(base for base in target.__mro__ if field.name in inspect.get_annotations(base))
    default = field.default_factory() if field.default_factory is not _REQUIRED else field.default
    annotation = _annotation(field.type, vars(sys.modules[owner.__module__]), default)
    known = {key: field.metadata[key] for key in ("help", "at_least", "below") if key in field.metadata}
    return Parameter(field.name, annotation, default, **known)


def _annotation(hint: Any, scope: Mapping[str, Any], default: Any) -> Any:
    """The type meant by an annotation, which may be text; without one, the type of the default."""
    if hint is None:
        return type(default) if type(default) in _SCALARS else Any
    if isinstance(hint, str):
        # One at a time: a class may well have other annotations that only a type checker can resolve.
        holder = types.SimpleNamespace(__annotations__={"hint": hint})
        try:
            hint = typing.get_type_hints(holder, dict(scope), include_extras=True)["hint"]
        except NameError:
            return hint
    base, marker = split_annotated(hint)
    return hint if marker or default is not None or types.NoneType in members(base) else hint | None


def split_annotated(annotation: Any) -> tuple[Any, Mark | None]:
    """The plain type of ``Annotated[type, ...]`` and its Mark, if it has one."""
    if typing.get_origin(annotation) is not typing.Annotated:
        return annotation, None
    return annotation.__origin__, next((data for data in annotation.__metadata__ if isinstance(data, Mark)), None)


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def describe(annotation: Any, max_choices: int = sys.maxsize) -> str:
    """A type in a reader's words: "a whole number or null". Of more choices than the limit only the number is told."""
    annotation, marker = split_annotated(annotation)
    if marker is not None and marker.words:
        return marker.words
    options = members(annotation)
    # Every whole number is a number, and null is said last.
    told = [option for option in options if option is not types.NoneType and not (option is int and float in options)]
    words = [_describe_one(option, max_choices) for option in told]
    return " or ".join([*words, "null"] if types.NoneType in options else words)


def _describe_one(annotation: Any, max_choices: int) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        names = [choice if isinstance(choice, str) else scalars.format_number(choice) for choice in arguments]
        return f"one of {', '.join(names)}" if len(names) <= max_choices else f"one of {len(names)} words"
    if annotation in _LISTS or origin in _LISTS:
        return "a list" if not arguments else f"a list ({describe(arguments[0], max_choices)})"
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    return "a value" if annotation in (Any, object) else "a section"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that ``word`` most probably meant, or None."""
    by_form = {name.lower().replace("-", "_"): name for name in known}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), by_form, n=1, cutoff=0.6)
    return by_form[found[0]] if found else None


# --- the walker -------------------------------------------------------------------------------------


class Walker:
    """Converts nodes by type, noting each mistake (``errors``) and where each value came from (``origins``).

    Args:
        markers: handlers for annotated types.
        home: given the path of a section and a key unknown there, where such a key belongs, or None.
    """

    def __init__(self, markers: Mapping[str, Handler], home: Callable[[str, str], str | None]) -> None:
        self.markers, self.home = markers, home
        self.errors: list[Finding] = []
        self.origins: dict[str, Place] = {}

    def refuse(self, place: Place, what: str, *, why: str = "", fix: str = "") -> Any:
        """Note a mistake; returns BAD."""
        self.errors.append((place, UserError(what, where=str(place), why=why, fix=fix)))
        return BAD

    def value(self, path: str, annotation: Any, node: Node) -> Any:
        """The node as a value of the annotated type, or BAD."""
        annotation, marker = split_annotated(annotation)
        if marker is not None:
            return self.markers[marker.name](self, path, annotation, node)
        options = members(annotation)
        if any(option in (Any, object) for option in options):
            return self.untyped(path, node)
        if isinstance(node, Fields) or _is_blank(node):
            section = next((option for option in options if _is_section(option)), None)
            if section is not None and not (types.NoneType in options and isinstance(node, Scalar)):
                return self._section(path, section, node if isinstance(node, Fields) else Fields(node.place))
        if isinstance(node, Items) or (isinstance(node, Scalar) and self._is_list(options, node)):
            listed = next((option for option in options if _is_list_type(option)), None)
            if listed is not None:
                return self._list(path, listed, node if isinstance(node, Items) else _split(node))
        return self._scalar(path, annotation, node)

    def untyped(self, path: str, node: Node) -> Any:
        """A value whose type nobody declared, as YAML would be read by its core rules."""
        if isinstance(node, Fields):
            if not node.entries:
                self.origins[path] = node.place
            return {key: self.untyped(f"{path}.{key}", item) for key, item in node.entries.items()}
        if isinstance(node, Items):
            self.origins[path] = node.place
            return [self.untyped(f"{path}.{index}", item) for index, item in enumerate(node.items)]
        self.origins[path] = node.place
        return node.text if node.quoted else scalars.guess(node.text)

    def section(self, path: str, target: Any, node: Fields, *, also: Iterable[str] = (), partial: bool = False) -> Any:
        """The values for ``target``'s parameters that the mapping gives, or BAD.

        Args:
            also: further names that a misspelt key may have meant.
            partial: required parameters may be absent (a task overriding some fields of the method).
        """
        known, others = parameters(target)
        num_errors, values = len(self.errors), {}
        strangers = [key for key in node.entries if key not in known]
        # In the order of the declaration, so that a handler may rely on the sections declared before it.
        for name, parameter in known.items():
            here = f"{path}.{name}" if path else name
            if name in node.entries:
                values[name] = self._bounded(here, parameter, node.entries[name])
            # A misspelt key is one mistake, not also a missing one.
            elif parameter.required and not partial and not any(nearest(key, [name]) for key in strangers):
                why = parameter.help or f"it must be {describe(parameter.annotation)}"
                self.refuse(node.place, f"{here}: missing", why=why)
        for key in strangers:
            item = node.entries[key]
            if others:
                values[key] = self.untyped(f"{path}.{key}", item)
            else:
                self.unknown(path, key, item.place, [*known], also)
        return values if len(self.errors) == num_errors else BAD

    def unknown(self, path: str, key: str, place: Place, known: Sequence[str], also: Iterable[str] = ()) -> None:
        """Note that ``path`` has no such key, and say which was probably meant."""
        home = self.home(path, key)
        meant = nearest(key, [*known, *also])
        fix = f"write it as {home}" if home else f"did you mean {meant}?" if meant else ""
        why = "" if known else "it takes no keys"
        if 0 < len(known) <= _MAX_LISTED:
            why = f"known here: {', '.join(known)}"
        self.refuse(place, f"{f'{path}.{key}' if path else key}: unknown key", why=why, fix=fix)

    # --- one kind of node each ---

    def _bounded(self, path: str, parameter: Parameter, node: Node) -> Any:
        value = self.value(path, parameter.annotation, node)
        if isinstance(value, int | float) and not isinstance(value, bool):
            low, high = parameter.at_least, parameter.below
            if (low is not None and value < low) or (high is not None and value >= high):
                bounds = [f"at least {low:g}"] if low is not None else []
                bounds += [f"below {high:g}"] if high is not None else []
                return self.refuse(node.place, f"{path}: must be {' and '.join(bounds)}, found {_show(node)}")
        return value

    def _section(self, path: str, annotation: Any, node: Fields) -> Any:
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            values = self.section(path, annotation, node)
            try:
                return values if values is BAD else annotation(**values)
            except (UserError, ValueError) as error:  # the dataclass checks its fields together
                return self.refuse(node.place, f"{path}: {error}")
        if not node.entries:
            self.origins[path] = node.place
        item_type = (*typing.get_args(annotation), Any, Any)[1]
        return {key: self.value(f"{path}.{key}", item_type, item) for key, item in node.entries.items()}

    def _list(self, path: str, annotation: Any, node: Items) -> Any:
        self.origins[path] = node.place
        arguments = typing.get_args(annotation)
        is_tuple = (typing.get_origin(annotation) or annotation) is tuple
        if is_tuple and arguments and arguments[-1] is not Ellipsis and len(arguments) != len(node.items):
            return self.refuse(node.place, f"{path}: expected {len(arguments)} values, found {len(node.items)}")
        item_types = arguments if is_tuple and Ellipsis not in arguments else ()
        item_types = item_types or (arguments[:1] or (Any,)) * len(node.items)
        pairs = zip(item_types, node.items, strict=True)
        values = [self.value(f"{path}.{index}", kind, item) for index, (kind, item) in enumerate(pairs)]
        return tuple(values) if is_tuple else values

    @staticmethod
    def _is_list(options: Sequence[Any], node: Scalar) -> bool:
        """Whether one word stands for a list: ``a,b``, or any word where only a list is possible."""
        if node.is_null and types.NoneType in options:
            return False
        return ("," in node.text and not node.quoted) or not any(option in _SCALARS for option in options)

    def _scalar(self, path: str, annotation: Any, node: Node) -> Any:
        if not isinstance(node, Scalar):
            return self._mismatch(path, annotation, node)
        options = members(annotation)
        self.origins[path] = node.place
        if node.is_null and types.NoneType in options:
            return None
        if node.quoted and str in options:
            return node.text
        for option in sorted(options, key=_attempt_order):
            value = _convert(option, node, whole=int in options and float in options)
            if value is not BAD:
                return value
        return self._mismatch(path, annotation, node)

    def _mismatch(self, path: str, annotation: Any, node: Node) -> Any:
        if not any(_is_known(option) for option in members(annotation)):
            return self.refuse(node.place, f"{path}: no configuration can give a value of this type ({annotation})")
        choices = [c for o in members(annotation) if typing.get_origin(o) is Literal for c in typing.get_args(o)]
        meant = nearest(node.text, [c for c in choices if isinstance(c, str)]) if isinstance(node, Scalar) else None
        what = f"{path}: expected {describe(annotation, _MAX_LISTED)}, found {_show(node)}"
        return self.refuse(node.place, what, fix=f"did you mean {meant}?" if meant else "")


# --- single words -----------------------------------------------------------------------------------


def _attempt_order(option: Any) -> int:
    """Text last, since every word is text; fixed words first."""
    order = [bool, int, float, Path, str]
    return order.index(option) if option in order else -1


def _convert(option: Any, node: Scalar, *, whole: bool) -> Any:
    """The word as one scalar type, or BAD. ``whole``: an int must be written as one, since a float may be meant."""
    text = node.text
    if typing.get_origin(option) is Literal:
        matches = (choice for choice in typing.get_args(option) if _READERS.get(type(choice), str)(text) == choice)
        return next(matches, BAD)
    if option is str:
        return BAD if node.is_null and text.lower() != "none" else text
    if option is Path:
        return BAD if node.is_null else Path(text).expanduser()
    if option not in _READERS or (option is int and whole and not scalars.is_whole(text)):
        return BAD
    parsed = _READERS[option](text)
    return BAD if parsed is None else parsed


_READERS: dict[Any, Callable[[str], Any]] = {
    bool: scalars.parse_bool,
    int: scalars.parse_int,
    float: scalars.parse_float,
}


def _split(node: Scalar) -> Items:
    """``a, b`` as a list of its words; a quoted text is one word, an empty one none."""
    words = [node.text] if node.quoted else [word.strip() for word in node.text.split(",")]
    return Items(node.place, [] if node.is_null else [Scalar(node.place, word, node.quoted) for word in words])


def _is_blank(node: Node) -> bool:
    return isinstance(node, Scalar) and node.is_null


def _is_list_type(option: Any) -> bool:
    return option in _LISTS or typing.get_origin(option) in _LISTS


def _is_section(option: Any) -> bool:
    kind = typing.get_origin(option) or option
    return dataclasses.is_dataclass(option) or kind in (dict, Mapping)


def _is_known(option: Any) -> bool:
    simple = option in _SCALARS or option is types.NoneType or typing.get_origin(option) is Literal
    return simple or _is_list_type(option) or _is_section(option)


def _show(node: Node) -> str:
    if isinstance(node, Scalar):
        return repr(node.text) if node.text else "nothing"
    return "a list" if isinstance(node, Items) else "a section"
