"""A plugin with its fields in one word, wherever strategies are named."""

from __future__ import annotations

import re

import pytest

from contrl.config import load, tree
from contrl.config.calls import read_call, split_words
from contrl.config.tree import Place, Scalar
from contrl.errors import ConfigErrors, UserError
from contrl.experiment import find

MINIMAL = "output_dir: o\nmodel: tiny\nmethod: sft\ntasks: [{name: a, data: nobody/rows}]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("replay", ["replay"]),
        ("a, b ,", ["a", "b"]),
        ("a(x=1,y=2),b", ["a(x=1,y=2)", "b"]),
        ("a(x=[1, 2]), b(y='p,q')", ["a(x=[1, 2])", "b(y='p,q')"]),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("replay", "name: replay\n"),
        ("ewc(coef=10)", "name: ewc\ncoef: 10\n"),
        ("ewc( coef = 1e-3 , space=delta_w )", "name: ewc\ncoef: 1e-3\nspace: delta_w\n"),
        ("my.module:Own(sizes=[1, 2])", "name: my.module:Own\nsizes: [1, 2]\n"),
        ("naive()", "name: naive\n"),
    ],
)
def test_calls(text: str, written: str) -> None:
    place = Place("my.yaml", 3)
    fields = read_call(Scalar(place, text))
    expected, _ = tree.parse(written, "x")
    assert texts(fields) == texts(expected)
    assert all(node.place == place for node in fields.entries.values())


def texts(node: tree.Node) -> object:
    """The tree without places."""
    if isinstance(node, tree.Fields):
        return {key: texts(item) for key, item in node.entries.items()}
    return [texts(item) for item in node.items] if isinstance(node, tree.Items) else node.text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ewc(coef=10", "its brackets do not match"),
        ("ewc)", "its brackets do not match"),
        ("(coef=10)", "its brackets do not match"),
        ("ewc(10)", "'10' is no field=value"),
        ("ewc(coef=1, coef=2)", "coef is given twice"),
        ("ewc(coef=[1)", "not valid YAML"),
    ],
)
def test_what_cannot_be_read(text: str, why: str) -> None:
    with pytest.raises(UserError, match=re.escape(why)):
        read_call(Scalar(Place("my.yaml", 3), text))


@pytest.mark.parametrize(
    "written",
    [
        "strategies: replay(share=0.25, buffer_size=7), naive",
        'strategies: ["replay(share=0.25, buffer_size=7)", naive]',
        "strategies: [{name: replay, share: 0.25, buffer_size: 7}, naive]",
    ],
)
def test_every_way_to_write_it_means_the_same(written: str) -> None:
    replay, naive = load(MINIMAL + written, resolve=find).config.strategies
    assert (replay.name, replay.fields["share"], replay.fields["buffer_size"]) == ("replay", 0.25, 7)
    assert naive.name == "naive"


def test_overrides_too() -> None:
    (replay,) = load(MINIMAL, ["strategies=replay(share=0.25)"], resolve=find).config.strategies
    assert replay.fields["share"] == 0.25


def test_mistakes_stand_beside_the_others_with_their_line() -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(MINIMAL + "strategies: [replay(0.5), replay(shre=1)]\nseed: x", resolve=find, source="my.yaml")
    said = str(caught.value)
    assert "my.yaml:5: 'replay(0.5)' cannot be read" in said
    assert "my.yaml:5: strategies.1.shre: unknown key" in said
    assert "my.yaml:6: seed: expected a whole number" in said
