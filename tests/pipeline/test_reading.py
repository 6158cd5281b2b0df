"""The file of a pipeline: defaults, overrides, and every mistake with its line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from contrl.config.tree import Fields, Items, Place, Scalar
from contrl.errors import ConfigErrors
from contrl.pipeline.reading import EXPERIMENT, Outline, kind_of, read, replaced_fields, replaced_text

KEYS = {"teach": ("model", "rate", "section", "report"), "judge": ("model", "report"), EXPERIMENT: ("model",)}


class Words:
    """Two commands: ``teach`` makes a model, ``judge`` does not; ``rate`` is also called ``lr``."""

    names = (EXPERIMENT, "teach", "judge")

    def spelled(self, command: str, key: str) -> str:
        key = "rate" if key == "lr" else key
        return key if key in KEYS[command] else ""

    def makes_model(self, command: str) -> bool:
        return command != "judge"


GOOD = """\
kind: pipeline
output_dir: out
defaults:
  report: none
  section: {b: 2}
steps:
  - name: first
    command: teach
    model: base
    lr: 1
    section: {a: 1}
  - name: second
    model: {name: step:first}
  - name: second/eval
    command: judge
    model: step:second
    report: all
"""


def outline(folder: Path, text: str, overrides: Sequence[str] = ()) -> Outline:
    path = folder / "p.yaml"
    path.write_text(text, encoding="utf-8")
    return read(path, overrides, Words())


def plain(node: object) -> object:
    if isinstance(node, Scalar):
        return node.text
    if isinstance(node, Items):
        return [plain(item) for item in node.items]
    assert isinstance(node, Fields)
    return {key: plain(item) for key, item in node.entries.items()}


def told(found: Outline) -> list[str]:
    return [str(error) for _, error in found.errors]


def test_steps_have_their_own_keys_over_the_defaults_that_they_know(tmp_path: Path) -> None:
    found = outline(tmp_path, GOOD)
    assert found.errors == []
    assert str(found.output_dir) == "out"
    assert [(draft.name, draft.command, draft.uses) for draft in found.drafts] == [
        ("first", "teach", ()),
        ("second", "run", ("first",)),
        ("second/eval", "judge", ("second",)),
    ]
    first, second, judged = (plain(draft.fields) for draft in found.drafts)
    assert first == {"model": "base", "rate": "1", "section": {"a": "1", "b": "2"}, "report": "none"}
    assert second == {"model": {"name": "step:first"}}
    assert judged == {"model": "step:second", "report": "all"}


def test_overrides_reach_steps_by_name_and_number_defaults_and_the_folder(tmp_path: Path) -> None:
    overrides = [
        "steps.first.lr=5",
        "steps.0.section.a=7",
        "steps.second.model.size=3",
        "defaults.rate=9",
        "defaults.report=some",
        "output_dir=elsewhere",
    ]
    found = outline(tmp_path, GOOD, overrides)
    assert found.errors == []
    first = plain(found.drafts[0].fields)
    assert first == {"model": "base", "rate": "5", "section": {"a": "7", "b": "2"}, "report": "some"}
    assert found.drafts[1].overrides == ["model.size=3"]
    assert str(found.output_dir) == "elsewhere"


def test_an_override_may_bring_in_what_another_step_makes(tmp_path: Path) -> None:
    found = outline(tmp_path, GOOD, ["steps.second/eval.model=step:first", "steps.second.model=step:first"])
    assert [draft.uses for draft in found.drafts] == [(), ("first",), ("first",)]


BAD = """\
kind: pipeline
defaults:
  rat: 1
extra: 1
steps:
  - name: one
    command: teach
    model: step:two
  - name: two
    command: teach
    model: step:one
  - name: judged
    command: judge
    model: step:tow
  - name: last
    command: teach
    model: step:judged
    rate: step:last
  - name: last
    command: tech
  - name: two
    command: judge
  - name: 7
  - plain
  - command: teach
"""


def test_every_mistake_is_told_with_its_line(tmp_path: Path) -> None:
    found = outline(tmp_path, BAD, ["steps.thre.rate=1", "steps.one=2", "nonsense"])
    where = {str(error.where).rpartition("/")[2]: error for _, error in found.errors}
    assert sorted(where) == sorted(
        [f"p.yaml:{line}" for line in (3, 4, 8, 14, 17, 18, 20, 21, 23, 24, 25)] + ["p.yaml", "command line"]
    )
    words = {place: f"{error.what} | {error.why} | {error.fix}" for place, error in where.items()}
    assert "no step has such a key" in words["p.yaml:3"]
    assert "extra: unknown key" in words["p.yaml:4"]
    assert "stands later | two uses one in turn: the two wait for each other" in words["p.yaml:8"]
    assert "no such step |  | did you mean step:two?" in words["p.yaml:14"]
    assert "which makes no model | its command is judge" in words["p.yaml:17"]
    assert "which is itself" in words["p.yaml:18"]
    assert "no command of a step is called 'tech' |  | did you mean teach?" in words["p.yaml:20"]
    assert "two steps are called 'two' | the other one is at" in words["p.yaml:21"]
    assert "'7' cannot name a step" in words["p.yaml:23"]
    assert "expected a step" in words["p.yaml:24"]
    assert "a step needs a name" in words["p.yaml:25"]
    assert "output_dir: a pipeline needs a folder" in words["p.yaml"]
    line = [str(error) for _, error in found.errors if error.where == "command line"]
    assert len(line) == 3
    assert "steps.thre: there is no such step\n  the steps: one, two, judged, last" in line[0]


def test_a_later_step_without_a_circle_is_to_be_moved(tmp_path: Path) -> None:
    text = GOOD.replace("model: base", "model: step:second").replace("name: step:first", "name: base")
    ((place, error),) = outline(tmp_path, text).errors
    assert place.line == 9
    assert (error.why, error.fix) == ("", "put second before it")


@pytest.mark.parametrize("text", ["kind: pipeline\noutput_dir: x\n", "kind: pipeline\noutput_dir: x\nsteps: {a: 1}\n"])
def test_a_pipeline_has_a_list_of_steps(tmp_path: Path, text: str) -> None:
    (error,) = told(outline(tmp_path, text))
    assert "a pipeline needs a list of steps" in error


def test_what_is_no_mapping_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match="keys and values"):
        outline(tmp_path, "- a\n")
    with pytest.raises(ConfigErrors, match=r"p\.yaml:3: this is not valid YAML"):
        outline(tmp_path, "a: 1\nb: [\n")


def test_the_kind_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for text, kind in ((GOOD, "pipeline"), ("method: sft\n", ""), ("a: [", ""), ("- a\n", ""), ("kind: odd\n", "odd")):
        path.write_text(text, encoding="utf-8")
        assert kind_of(path) == kind
    assert kind_of(tmp_path / "absent.yaml") == ""


def test_what_steps_make_is_put_in_place_of_their_names() -> None:
    assert replaced_text('classifier(model="step:a/b"), length', "made of {}".format) == (
        'classifier(model="made of a/b"), length'
    )
    assert replaced_text("[step:a,step:b]", str.upper) == "[A,B]"
    assert replaced_text("instep:a", str.upper) == "instep:a"
    place = Place("p.yaml", 3)
    fields = Fields(place, {"a": Items(place, [Scalar(place, "step:x"), Scalar(place, "1e-5")])})
    assert plain(replaced_fields(fields, "/models/{}".format)) == {"a": ["/models/x", "1e-5"]}
    assert plain(fields) == {"a": ["step:x", "1e-5"]}


def test_a_step_lies_in_the_folder_of_an_earlier_one_and_not_where_that_keeps_its_own(tmp_path: Path) -> None:
    steps = "".join(
        f"  - {{name: {name}, command: teach}}\n" for name in ("a/eval", "a", "a/final", "ab/final", "a/b/c")
    )
    found = outline(tmp_path, f"kind: pipeline\noutput_dir: x\nsteps:\n{steps}")
    assert [(place.line, error.what) for place, error in found.errors] == [
        (4, "steps.a/eval: it lies in the folder of a, which stands later"),
        (6, "steps.a/final: no step can be called final below another"),
    ]
