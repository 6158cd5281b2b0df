"""The tree: lines, aliases, overrides, and text that comes back as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contrl.config import scalars, tree
from contrl.config.tree import Fields, Items, Node, Place, Scalar
from contrl.errors import UserError


def plain(node: Node) -> object:
    """The tree without places."""
    if isinstance(node, Fields):
        return {key: plain(item) for key, item in node.entries.items()}
    if isinstance(node, Items):
        return [plain(item) for item in node.items]
    return node.text if node.quoted else scalars.guess(node.text)


def parsed(text: str) -> Fields:
    root, errors = tree.parse(text, "f")
    assert errors == []
    assert isinstance(root, Fields)
    return root


def patched(text: str, *overrides: str) -> object:
    root = parsed(text)
    for override in overrides:
        tree.patch(root, *tree.split_override(override))
    return plain(root)


def test_a_value_stands_on_the_line_of_its_key_and_an_item_on_its_own() -> None:
    root = parsed("a:\n  b: 1\n  c:\n  - x\n  - y\n")
    section = root.entries["a"]
    assert isinstance(section, Fields)
    listed = section.entries["c"]
    assert isinstance(listed, Items)
    assert [str(node.place) for node in (section, section.entries["b"], listed, *listed.items)] == [
        "f:1",
        "f:2",
        "f:3",
        "f:4",
        "f:5",
    ]


def test_an_alias_is_a_copy() -> None:
    """Overriding one of two sections that share an anchor leaves the other alone."""
    text = "a: &x {lr: 1}\nb: *x\n"
    assert patched(text, "b.lr=2") == {"a": {"lr": 1}, "b": {"lr": 2}}


def test_merge_keys_give_way_to_keys_of_the_section() -> None:
    text = "a: &x {lr: 1, steps: 5}\nb:\n  lr: 2\n  <<: *x\n"
    assert plain(parsed(text)) == {"a": {"lr": 1, "steps": 5}, "b": {"steps": 5, "lr": 2}}


def test_an_alias_to_its_own_section_is_refused() -> None:
    with pytest.raises(UserError, match=r"^f:2: an alias refers to the section it stands in"):
        tree.parse("a: &x\n  b: *x\n", "f")


def test_aliases_that_expand_without_end_are_refused() -> None:
    """Nine levels of ten aliases each would be 10^9 values."""
    lines = ["a0: &a0 [1]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(UserError, match="more than 10000 values"):
        tree.parse("\n".join(lines), "f")


def test_yaml_nested_beyond_reading_is_refused() -> None:
    with pytest.raises(UserError, match="nested too deeply"):
        tree.parse("a: " + "[" * 2000, "f")


@pytest.mark.parametrize(
    ("text", "where"),
    [("a: 1\nb: [1\nc: 2\n", "f:3"), ("a: 1\n  b: 2\n", "f:2"), ("a: 1\n\tb: 2\n", "f:2"), ("a: 1\nb: \x07\n", "f:2")],
)
def test_broken_yaml_names_the_line(text: str, where: str) -> None:
    with pytest.raises(UserError) as caught:
        tree.parse(text, "f")
    assert (caught.value.where, caught.value.what) == (where, "this is not valid YAML")


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: 1\nb: 2\na: 3\n", "f:3", "a: this key is given twice"),
        ("a: 1\n? [x]\n: 2\n", "f:2", "a key must be a single word"),
        ("a: 1\nb: !!python/name:os.system x\n", "f:2", "unknown tag 'tag:yaml.org,2002:python/name:os.system'"),
        ("a: 1\n<<: 3\n", "f:2", "<< merges mappings, and this is none"),
    ],
)
def test_mistakes_that_leave_the_rest_readable(text: str, where: str, what: str) -> None:
    root, errors = tree.parse(text, "f")
    assert [(str(place), error.where, error.what) for place, error in errors] == [(where, where, what)]
    assert isinstance(root, Fields)
    assert "a" in root.entries


def test_an_empty_file_is_an_empty_section() -> None:
    assert plain(parsed("# nothing yet\n")) == {}


def test_python_values_become_the_same_tree() -> None:
    value = {"a": [1, 2.5, None, True], "b": {"c": "null", "d": (1e-5,)}}
    assert plain(tree.from_python(value, Place("here"))) == {"a": [1, 2.5, None, True], "b": {"c": "null", "d": [1e-5]}}


def test_a_python_value_that_no_file_holds_is_named() -> None:
    with pytest.raises(UserError, match=r"^here: a\.1\.b: a function cannot stand"):
        tree.from_python({"a": [1, {"b": plain}]}, Place("here"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.lr=1e-5", {"a": {"lr": 1e-5}, "l": [{"name": "x"}, {"name": "y"}]}),
        ("a.new.deep=3", {"a": {"lr": 1, "new": {"deep": 3}}, "l": [{"name": "x"}, {"name": "y"}]}),
        ("l.1.lr=2", {"a": {"lr": 1}, "l": [{"name": "x"}, {"name": "y", "lr": 2}]}),
        ("l.y.lr=2", {"a": {"lr": 1}, "l": [{"name": "x"}, {"name": "y", "lr": 2}]}),
        ("l=[1, {b: 2}]", {"a": {"lr": 1}, "l": [1, {"b": 2}]}),
        ("a='3'", {"a": "3", "l": [{"name": "x"}, {"name": "y"}]}),
        ("a=x=y", {"a": "x=y", "l": [{"name": "x"}, {"name": "y"}]}),
        ("a=", {"a": None, "l": [{"name": "x"}, {"name": "y"}]}),
    ],
)
def test_an_override_replaces_one_node(override: str, expected: object) -> None:
    assert patched("a: {lr: 1}\nl: [{name: x}, {name: y}]\n", override) == expected


def test_an_override_gives_a_section_that_was_left_empty() -> None:
    assert patched("a:\n", "a.b=1") == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("lr", "'lr' is not an override"),
        ("=3", "'=3' is not an override"),
        ("a..b=3", "'a..b=3' is not an override"),
        ("a=[1", "'a=[1': the value is not valid YAML"),
        ("a={b: 1, b: 2}", "'a={b: 1, b: 2}': the value is not valid YAML"),
        ("n.x=1", "n is the single value '3', so it has no 'x'"),
        ("l.2.x=1", "l.2: no item has the number 2"),
        ("l.z.x=1", "l.z: no item is called z"),
        ("l.x.y=1", "l.x: more than one item is called x"),
        ("l.0.name.y=1", "l.0.name is the single value 'x', so it has no 'y'"),
    ],
)
def test_an_override_that_leads_nowhere(override: str, what: str) -> None:
    with pytest.raises(UserError) as caught:
        patched("n: 3\nl: [{name: x}, {name: x}]\n", override)
    assert (caught.value.where, caught.value.what) == ("command line", what)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_what_is_written_is_what_is_read(value: dict[str, object]) -> None:
    assert plain(parsed(tree.write(value))) == value


@given(VALUES)
def test_inline_stays_on_one_line(value: object) -> None:
    assert "\n" not in tree.inline(value)


def test_inline() -> None:
    values: list[object] = [1e-5, None, True, "no", "plain text", [1, "a,b"], {}, [], ""]
    shown = ["1e-05", "null", "true", '"no"', "plain text", '[1, "a,b"]', "{}", "[]", '""']
    assert [tree.inline(value) for value in values] == shown


def test_a_null_word_in_quotes_is_text() -> None:
    assert [Scalar(Place("f"), "none", quoted).is_null for quoted in (False, True)] == [True, False]
