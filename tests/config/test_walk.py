"""Typed values from nodes, one type at a time, and the names a mistyped word may have meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from contrl.config import tree
from contrl.config.walk import BAD, Parameter, Walker, describe, nearest, parameters


def read(annotation: Any, text: str) -> tuple[Any, list[str]]:
    """The value of ``key: text`` by the type, and the mistakes."""
    walker = Walker({}, lambda path, key: None)
    root, errors = tree.parse(f"key: {text}\n", "f")
    assert errors == []
    assert isinstance(root, tree.Fields)
    value = walker.value("key", annotation, root.entries["key"])
    return value, [error.what for _, error in walker.errors]


@dataclasses.dataclass(frozen=True)
class Inner:
    low: float = 0.0
    words: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (float, "1e-5", 1e-5),
        (float, "3", 3.0),
        (float, "'3'", 3.0),
        (int, "012", 12),
        (int, "1e3", 1000),
        (bool, "off", False),
        (str, "no", "no"),
        (str, "012", "012"),
        (str, "1e-5", "1e-5"),
        (str, "none", "none"),
        (str | None, "none", None),
        (str | None, "'none'", "none"),
        (str | None, "", None),
        (int | None, "null", None),
        (int | float, "1", 1),
        (int | float, "1.0", 1.0),
        (bool | str, "no", False),
        (bool | str, "'no'", "no"),
        (bool | str, "auto", "auto"),
        (str | None | Literal[False], "false", False),
        (Literal["auto", 2, True], "2", 2),
        (Literal["auto", 2, True], "yes", True),
        (tuple[str, ...], "[a, b]", ("a", "b")),
        (tuple[str, ...], "a, b", ("a", "b")),
        (tuple[str, ...], "'a, b'", ("a, b",)),
        (tuple[str, ...] | None, "all-linear", ("all-linear",)),
        (tuple[str, ...] | None, "null", None),
        (tuple[int, float], "[1, 1]", (1, 1.0)),
        (list[int], "", []),
        (Sequence[int], "[1, 2]", [1, 2]),
        (str | list[str], "a,b", ["a", "b"]),
        (str | list[str], "a", "a"),
        (dict[str, int], "{a: 1, b: 1e1}", {"a": 1, "b": 10}),
        (Mapping[str, float], "{a: 1}", {"a": 1.0}),
        (dict[str, Any] | str | None, "{a: [1e-3, no]}", {"a": [0.001, "no"]}),
        (dict[str, Any] | str | None, "file.json", "file.json"),
        (dict, "", {}),
        (Path, "a/b", Path("a/b")),
        (Inner, "{low: 1, words: x}", Inner(1.0, ("x",))),
        (Inner | None, "null", None),
        (dict[str, Inner], "{a: {low: 2}}", {"a": Inner(2.0)}),
        (list[Inner], "[{low: 2}]", [Inner(2.0)]),
        (Any, "1e-5", 1e-5),
        (Any, "[1, {a: null}]", [1, {"a": None}]),
    ],
)
def test_a_word_is_read_by_the_type_of_its_field(annotation: Any, text: str, value: Any) -> None:
    found, errors = read(annotation, text)
    assert errors == []
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text", "what"),
    [
        (float, "fast", "key: expected a number, found 'fast'"),
        (int, "1.5", "key: expected a whole number, found '1.5'"),
        (int | float, "x", "key: expected a number, found 'x'"),
        (bool, "maybe", "key: expected yes or no, found 'maybe'"),
        (int | None, "[1]", "key: expected a whole number or null, found a list"),
        (str, "", "key: expected text, found nothing"),
        (str, "null", "key: expected text, found 'null'"),
        (Literal["a", "b"], "c", "key: expected one of a, b, found 'c'"),
        (list[int], "[1, x]", "key.1: expected a whole number, found 'x'"),
        (tuple[int, int], "[1]", "key: expected 2 values, found 1"),
        (dict[str, int], "{a: b}", "key.a: expected a whole number, found 'b'"),
        (dict[str, int], "[1]", "key: expected a section, found a list"),
        (Inner, "{low: x}", "key.low: expected a number, found 'x'"),
        (Inner, "word", "key: expected a section, found 'word'"),
        (Path, "", "key: expected a path, found nothing"),
        (complex, "1", "key: no configuration can give a value of this type (<class 'complex'>)"),
    ],
)
def test_a_word_of_another_type_is_refused(annotation: Any, text: str, what: str) -> None:
    assert read(annotation, text)[1] == [what]


def test_every_mistake_in_a_value_is_found() -> None:
    assert len(read(dict[str, list[int]], "{a: [x, 1, y], b: z}")[1]) == 3


def test_a_long_choice_is_not_listed_but_the_nearest_is_told() -> None:
    walker = Walker({}, lambda path, key: None)
    words: Any = Literal[tuple(f"word{letter}" for letter in "abcdefghijklmnop")]
    walker.value("key", words, tree.Scalar(tree.Place("f", 3), "wordc_"))
    ((_, error),) = walker.errors
    assert (error.what, error.fix) == ("key: expected one of 16 words, found 'wordc_'", "did you mean wordc?")


def test_bounds() -> None:
    """Each side: 0 and 0.999 lie inside [0, 1), -0.1 and 1 outside."""

    @dataclasses.dataclass
    class Bounded:
        share: float = dataclasses.field(default=0.5, metadata={"at_least": 0, "below": 1})

    for text, is_inside in [("0", True), ("0.999", True), ("-0.1", False), ("1", False)]:
        value, errors = read(Bounded, f"{{share: {text}}}")
        assert (value is not BAD) is is_inside
        expected = [] if is_inside else [f"key.share: must be at least 0 and below 1, found '{text}'"]
        assert errors == expected


def test_the_own_checks_of_a_nested_section_are_told_at_its_line() -> None:
    @dataclasses.dataclass
    class Span:
        low: int
        high: int

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError(f"low {self.low} is above high {self.high}")

    assert read(Span, "{low: 1, high: 2}") == (Span(1, 2), [])
    assert read(Span, "{low: 3, high: 2}") == (BAD, ["key: low 3 is above high 2"])


# --- what a target takes ------------------------------------------------------------------------------


def plugin(a: int, b: float = 1, c=True, *, d: str | None = None, e=None, **rest: Any) -> None:
    """The ways a parameter can be declared."""


def test_parameters_of_a_function() -> None:
    known, others = parameters(plugin)
    assert others is True
    assert {name: parameter.annotation for name, parameter in known.items()} == {
        "a": int,
        "b": float,
        "c": bool,
        "d": str | None,
        "e": Any,
    }
    assert [name for name, parameter in known.items() if parameter.required] == ["a"]


def test_a_default_of_none_makes_none_a_value() -> None:
    """As in ``coef: float = None``, which many a plugin has."""
    target = dataclasses.make_dataclass("Target", [("coef", float, None)])
    assert parameters(target)[0]["coef"].annotation == float | None


def test_parameters_of_a_class_without_its_own_init() -> None:
    class Bare:
        pass

    assert parameters(Bare) == ({}, False)


def test_fields_that_are_not_given_to_init_are_no_keys() -> None:
    @dataclasses.dataclass
    class Target:
        shown: int = 1
        state: Callable[[], None] | None = dataclasses.field(default=None, init=False)

    assert [*parameters(Target)[0]] == ["shown"]


def test_keyword_arguments_are_taken_as_yaml_reads_them() -> None:
    walker = Walker({}, lambda path, key: None)
    root, _ = tree.parse("a: 1e1\nextra: [1e-3]\n", "f")
    assert isinstance(root, tree.Fields)
    assert walker.section("x", plugin, root) == {"a": 10, "extra": [0.001]}
    assert walker.errors == []


# --- words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("learning_rat", "learning_rate"),
        ("learning-rate", "learning_rate"),
        ("Learning_Rate", "learning_rate"),
        ("max_step", "max_steps"),
        ("zzz", None),
    ],
)
def test_the_nearest_name(word: str, meant: str | None) -> None:
    assert nearest(word, ["learning_rate", "max_steps", "seed"]) == meant


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int | None, "a whole number or null"),
        (int | float, "a number"),
        (None | str | list[str], "text or a list (text) or null"),
        (Literal["a", 1, False], "one of a, 1, false"),
        (tuple[int, ...], "a list (a whole number)"),
        (dict, "a section"),
        (Any, "a value"),
    ],
)
def test_types_in_words(annotation: Any, words: str) -> None:
    assert describe(annotation) == words


def test_a_parameter_without_default_is_required() -> None:
    assert [Parameter("a", int).required, Parameter("a", int, None).required] == [True, False]
