"""Words of a command line and keys of a file become values of flags; mistakes are collected, nothing stops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrl.cli.flags import Flag, kind_of, override, read_argv, read_section
from contrl.config import tree
from contrl.config.tree import COMMAND_LINE, Fields, Items, Scalar

FLAGS = {
    flag.name: flag
    for flag in (
        Flag("name", "n"),
        Flag("rate", "r"),
        Flag("bf16", "b", "switch"),
        Flag("fsdp", "f", "maybe"),
        Flag("kinds", "k", "list"),
        Flag("strategies", "s", "calls"),
        Flag("no_limit", "l", "switch"),
    )
}
FLAGS["alias"] = FLAGS["name"]


def plain(node: tree.Node) -> object:
    """A node as text and lists."""
    if isinstance(node, Items):
        return [plain(item) for item in node.items]
    return node.text if isinstance(node, Scalar) else {key: plain(item) for key, item in node.entries.items()}


def values(*argv: str, flags: Mapping[str, Flag] = FLAGS) -> dict[str, object]:
    """What the words give, without mistakes."""
    found = read_argv(argv, flags)
    assert [str(error) for error in found.errors] == []
    return {name: plain(value.node) for name, value in found.given.items()}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--name", "x"], {"name": "x"}),
        (["--name=x"], {"name": "x"}),
        (["--name=a=b c"], {"name": "a=b c"}),
        (["--name="], {"name": ""}),
        (["--alias", "x"], {"name": "x"}),
        (["--name", "x", "--alias", "y"], {"name": "y"}),
        (["--rate", "-1e-5"], {"rate": "-1e-5"}),
        (["--bf16"], {"bf16": "true"}),
        (["--bf16", "True", "--rate", "1"], {"bf16": "true", "rate": "1"}),
        (["--bf16=False"], {"bf16": "false"}),
        (["--bf16", "0"], {"bf16": "false"}),
        (["--no_bf16"], {"bf16": "false"}),
        (["--no-bf16"], {"bf16": "false"}),
        (["--no_limit"], {"no_limit": "true"}),
        (["--fsdp"], {"fsdp": "true"}),
        (["--fsdp", "full_shard auto_wrap"], {"fsdp": "full_shard auto_wrap"}),
        (["--kinds", "a", "b,c", "--bf16"], {"kinds": ["a", "b", "c"], "bf16": "true"}),
        (["--kinds", "a,b"], {"kinds": "a,b"}),
        (
            ["--strategies", "replay", "ewc(coef=10, x=2),naive"],
            {"strategies": ["replay", "ewc(coef=10, x=2)", "naive"]},
        ),
    ],
)
def test_ways_of_writing(argv: list[str], expected: dict[str, object]) -> None:
    assert values(*argv) == expected


def test_words_and_overrides_that_are_no_flags() -> None:
    found = read_argv(["rows.jsonl", "--bf16", "evaluation.batch_tokens=7", "--", "a=b"], FLAGS)
    assert (found.words, found.overrides) == (["rows.jsonl", "a=b"], ["evaluation.batch_tokens=7"])


def test_every_mistake_at_once() -> None:
    found = read_argv(["--nam", "x", "--rate", "--bf16", "--no_rate", "--no_bf16=1", "-n", "3"], FLAGS)
    assert [error.what for error in found.errors] == [
        "--nam: there is no such flag",
        "--rate: it needs a value",
        "--no_rate: there is no such flag",
        "--no_bf16: it takes no value",
        "-n: there is no such flag",
    ]
    assert found.errors[0].fix == "did you mean --name?"
    assert found.words == []
    assert found.valueless == {"rate", "bf16"}


def test_keys_of_a_file_keep_their_line() -> None:
    section, _ = tree.parse("name: x\nkinds: [a, b]\nbf16: no\nnmae: y\n", "my.yaml")
    assert isinstance(section, Fields)
    found = read_section(section, FLAGS)
    assert {name: plain(value.node) for name, value in found.given.items()} == {
        "name": "x",
        "kinds": ["a", "b"],
        "bf16": "no",
    }
    assert str(found.given["kinds"].place) == "my.yaml:2"
    assert found.given["bf16"].is_no
    assert str(found.errors[0]) == "my.yaml:4: nmae: there is no such flag\n  did you mean name?"


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="\ufeff"))
NODES = st.recursive(
    st.builds(lambda text: Scalar(COMMAND_LINE, text, quoted=True), TEXT),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: Items(COMMAND_LINE, items))
        | st.dictionaries(TEXT, inner, max_size=3).map(lambda entries: Fields(COMMAND_LINE, entries))
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(NODES)
def test_an_override_reads_back_as_the_same_value(node: tree.Node) -> None:
    names, back = tree.split_override(override("a.b", node))
    assert names == ["a", "b"]
    assert back == node


@pytest.mark.parametrize("text", ["1e-5", "none", "a b", "[1, 2]", "[x", "{", " x ", '"q', "", "it's", "a: b", "#x"])
def test_unquoted_words_stay_the_words_they_are(text: str) -> None:
    back = tree.split_override(override("a", Scalar(COMMAND_LINE, text)))[1]
    assert plain(back) == (["1", "2"] if text == "[1, 2]" else text)


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (bool, "switch"),
        (bool | None, "switch"),
        (bool | str | None, "maybe"),
        (int | None, "one"),
        (str | list[str], "list"),
        (tuple[str, ...], "list"),
        (Literal["a", "b"], "one"),
        (dict | str | None, "one"),
    ],
)
def test_how_types_are_written(annotation: object, kind: str) -> None:
    assert kind_of(annotation) == kind
