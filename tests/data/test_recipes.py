"""The named data sets: each raw format to rows of ours, exactly; what is left out, and what is bad."""

from __future__ import annotations

import copy
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrl.continual.sequences import Dataset
from contrl.data.recipes import RECIPES, UNUSABLE, Recipe, convert_all, to_supervised, without_signal
from contrl.data.sources import find_splits, mix, read_file, read_rows
from contrl.errors import ENVIRONMENT, UserError

FIXTURES = Path(__file__).parents[1] / "fixtures"
ALL = ",".join(RECIPES)
TEXT = ("uc", "ufb", "hh", "shp")


@pytest.fixture(autouse=True)
def data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named data sets come from the fixtures."""
    monkeypatch.setenv("CONTRL_DATA_DIR", str(FIXTURES / "data"))


def rows_of(name: str, split: str = "train") -> dict[str, dict[str, Any]]:
    """The rows of a recipe by the number of their raw row."""
    return {row["id"].removeprefix(f"{name}/"): dict(row) for row in read_rows(name, split)}


def human(text: str) -> str:
    return f"\n### Human: {text}"


def assistant(text: str) -> str:
    return f"\n### Assistant: {text}"


END = "\n### Assistant:"


# --- one data set each ------------------------------------------------------------------------------------


def test_uc_has_the_response_on_both_sides() -> None:
    rows = rows_of("uc")
    assert rows["0"] == {
        "id": "uc/0",
        "source": "uc",
        "prompt": human("Name a fruit that is red.") + END,
        "chosen": " An apple.",
        "rejected": " An apple.",
    }
    assert rows["2"]["prompt"] == human("Say hello in French.") + assistant("Bonjour.") + human("And in Spanish?") + END
    assert rows["6"]["chosen"] == " Yes, it is."
    # Row 3 ends with the user.
    assert sorted(rows) == ["0", "1", "2", "4", "5", "6", "7"]


def test_ufb_takes_both_last_messages() -> None:
    rows = rows_of("ufb")
    turns = human("Name a river.") + assistant("The Nile.") + human("Where is it?")
    assert rows["3"] == {
        "id": "ufb/3",
        "source": "ufb",
        "prompt": turns + END,
        "chosen": " In Africa.",
        "rejected": " In Europe.",
    }
    # One space, also where the raw text begins with one.
    assert rows["7"]["rejected"] == " Schiller."
    assert "6" not in rows


def test_hh_renames_every_turn_and_cuts_at_the_last_one() -> None:
    rows = rows_of("hh")
    assert rows["0"]["prompt"] == human("Where do whales live?") + END
    assert (rows["0"]["chosen"], rows["0"]["rejected"]) == (" In the sea.", " In trees.")
    three_turns = human("One") + assistant("Two") + human("Three") + assistant("Four") + human("Five") + END
    assert (rows["2"]["prompt"], rows["2"]["chosen"]) == (three_turns, " Six, of course.")
    assert rows["5"]["chosen"] == " first\nsecond"
    # "Human:" inside a sentence is no marker; an empty answer is an answer; row 8 ends with the human.
    assert rows["7"]["prompt"] == human("What does Human: mean?") + END
    assert rows["6"]["chosen"] == " "
    assert "8" not in rows


def test_hh_cuts_the_rejected_transcript_at_its_own_last_turn() -> None:
    """Row 3: its turns before differ in length, so a cut at the chosen one's character would tear a word."""
    rows = rows_of("hh")
    assert rows["3"]["prompt"] == human("Name a city") + assistant("Rome.") + human("In which country?") + END
    assert (rows["3"]["chosen"], rows["3"]["rejected"]) == (" Italy.", " I do not know.")
    # Row 4: the rejected transcript has a turn more.
    assert rows["4"]["prompt"] == human("Is it late?") + END
    assert (rows["4"]["chosen"], rows["4"]["rejected"]) == (" It is ten o'clock.", " I have no watch.")


def test_shp_keeps_clear_preferences_and_survives_zero() -> None:
    """Scores (A, B): 4:0 and 0:5 are kept, 5:6 and 0:0 are not, 4:2 is just enough."""
    rows = rows_of("shp")
    assert sorted(rows) == ["0", "1", "2", "3", "5", "7", "8"]
    assert rows["0"] == {
        "id": "shp/0",
        "source": "shp",
        "prompt": human("How do I keep bread fresh?") + END,
        "chosen": " In a box.",
        "rejected": " Eat it.",
    }
    # labels 0: B wins.
    assert (rows["1"]["chosen"], rows["1"]["rejected"]) == (" Too much lemon.", " No clue.")
    assert rows["3"]["chosen"] == " Yes, but shake it after."
    assert rows["7"]["chosen"] == " A small non-stick one."


def test_smoltalk_keeps_its_messages() -> None:
    rows = rows_of("smoltalk")
    assert rows["1"] == {
        "id": "smoltalk/1",
        "source": "smoltalk",
        "messages": [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": "Sum up: the cat sat on the mat."},
            {"role": "assistant", "content": "A cat sat."},
        ],
    }
    assert "5" not in rows


def test_ultrafeedback_keeps_messages_and_of_the_answers_only_themselves() -> None:
    row = rows_of("ultrafeedback")["3"]
    assert [message["content"] for message in row["prompt"]] == ["Name a river.", "The Nile.", "Where is it?"]
    assert row["chosen"] == [{"role": "assistant", "content": "In Africa."}]
    assert row["rejected"] == [{"role": "assistant", "content": "In Europe."}]


# --- what is left out, and what is bad --------------------------------------------------------------------


def test_what_a_recipe_leaves_out_is_counted() -> None:
    rows, notes = mix(ALL)
    assert notes == [
        "uc: 1 of 8 rows left out: they do not end with an assistant turn",
        "ufb: 1 of 8 rows left out: they do not end with an assistant turn",
        "hh: 1 of 9 rows left out: they do not end with an assistant turn",
        "shp: 2 of 9 rows left out: they have scores closer than a factor of 2",
        "smoltalk: 1 of 8 rows left out: they do not end with an assistant turn",
        "ultrafeedback: 1 of 8 rows left out: they do not end with an assistant turn",
    ]
    assert list(dict.fromkeys(row["source"] for row in rows)) == list(RECIPES)
    assert not [row for row in rows if UNUSABLE in row]


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        (
            "uc",
            [
                "the role 'system' has no turn of its own",
                "messages holds no message, not a list of messages",
                "messages holds nothing, not a list of messages",
            ],
        ),
        (
            "ufb",
            [
                "the role 'system' has no turn of its own",
                "the role 'tool' has no turn of its own",
                "the content of a message in chosen holds nothing, not text",
                "rejected holds a str, not a list of messages",
            ],
        ),
        (
            "hh",
            ["a transcript has no assistant turn", "rejected holds nothing, not text", "chosen holds a int, not text"],
        ),
        (
            "shp",
            [
                "history holds nothing, not text",
                "labels is 2, not 0 or 1",
                "score_A holds nothing, not a number",
                "human_ref_B holds a int, not text",
            ],
        ),
        (
            "smoltalk",
            [
                "the content of a message in messages holds a list, not text",
                "messages holds a str, not a list of messages",
            ],
        ),
        (
            "ultrafeedback",
            [
                "chosen holds an answer without a question",
                "chosen holds nothing, not a list of messages",
                "chosen holds a message without role",
            ],
        ),
        ("se-paired", ["question holds nothing, not text", "response_j holds a list, not text"]),
    ],
)
def test_a_row_that_cannot_be_converted_is_kept_with_the_reason(name: str, reasons: list[str]) -> None:
    """The last row of every file is good; none of the bad ones is counted as left out."""
    rows, notes = convert_all(RECIPES[name], read_file(FIXTURES / "bad" / f"{name}.jsonl"))
    assert [row.get(UNUSABLE) for row in rows] == [*reasons, None]
    assert [row["id"] for row in rows] == [f"{name}/{index}" for index in range(len(rows))]
    assert notes == []


def test_stack_exchange_is_put_as_a_question_and_two_answers() -> None:
    """The prompt of StackLLaMA 2; j is the better answer."""
    (row, *_), _ = convert_all(RECIPES["se-paired"], read_file(FIXTURES / "data" / "se-paired" / "train.jsonl"))
    assert row["prompt"] == "Question: How do I sort a list?\n\nAnswer: "
    assert (row["chosen"], row["rejected"]) == ("Use sorted().", "Write a loop.")


def test_rows_in_other_columns_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shp").mkdir()
    (tmp_path / "shp" / "train.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}', encoding="utf-8")
    monkeypatch.setenv("CONTRL_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="the rows for shp have no column history, human_ref_A") as error:
        read_rows("shp")
    assert "found chosen, prompt, rejected" in error.value.why


def test_a_recipe_that_leaves_everything_out_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "uc").mkdir()
    raw = '{"messages": [{"role": "user", "content": "Hi"}]}'
    (tmp_path / "uc" / "train.jsonl").write_text(raw, encoding="utf-8")
    monkeypatch.setenv("CONTRL_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="there are no rows"):
        read_rows("uc")
    with pytest.raises(UserError, match="there are no rows\n  uc: 1 of 1 rows left out"):
        Dataset("uc").tasks()


# --- where the raw rows come from -----------------------------------------------------------------------------


def test_without_a_copy_they_come_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tests have no network, so the name of the hub's data set shows in the error."""
    monkeypatch.setenv("CONTRL_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="hh is the hub's Anthropic/hh-rlhf") as error:
        read_rows("hh")
    assert error.value.exit_code == ENVIRONMENT
    assert "$CONTRL_DATA_DIR/hh/" in error.value.fix


def test_a_copy_may_have_the_origins_splits_or_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raw = gzip.compress((FIXTURES / "data" / "uc" / "train.jsonl").read_bytes())
    for name in (
        "uc/train.jsonl.gz",
        "theirs/uc/train_sft.jsonl.gz",
        "mirror/HuggingFaceH4/ultrachat_200k/train_sft.jsonl.gz",
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(raw)
    expected = read_rows("uc")
    for folder in ("", "theirs", "mirror"):
        monkeypatch.setenv("CONTRL_DATA_DIR", str(tmp_path / folder))
        assert read_rows("uc") == expected
    monkeypatch.setenv("CONTRL_DATA_DIR", str(tmp_path / "theirs"))
    assert find_splits("uc") == ("train",)


def test_splits_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="uc has no split 'dev'\n  it has train, test"):
        read_rows("uc", "dev")
    (tmp_path / "uc").mkdir()
    (tmp_path / "uc" / "train.jsonl").write_bytes((FIXTURES / "data" / "uc" / "train.jsonl").read_bytes())
    monkeypatch.setenv("CONTRL_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="has no split 'test'\n  it has train"):
        read_rows("uc", "test")


# --- laws ---------------------------------------------------------------------------------------------------


@given(
    names=st.lists(st.sampled_from(sorted(RECIPES)), min_size=1, unique=True), split=st.sampled_from(["train", "test"])
)
@settings(deadline=None)
def test_ids_are_unique_in_any_mix_and_do_not_depend_on_it(names: list[str], split: str) -> None:
    rows, _ = mix(",".join(names), split)
    identities = [row["id"] for row in rows]
    assert len(set(identities)) == len(identities)
    assert rows == [row for name in names for row in read_rows(name, split)]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_conversions_are_pure(recipe: Recipe) -> None:
    """Equal rows give equal rows, and the raw ones stay as they were."""
    raw = [
        *read_file(FIXTURES / "data" / recipe.name / "train.jsonl"),
        *read_file(FIXTURES / "bad" / f"{recipe.name}.jsonl"),
    ]
    before = copy.deepcopy(raw)
    first = convert_all(recipe, raw)
    assert raw == before
    assert convert_all(recipe, copy.deepcopy(raw)) == first


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("split", ["train", "test"])
def test_text_recipes_have_one_form(name: str, split: str) -> None:
    for row in read_rows(name, split):
        assert set(row) == {"id", "source", "prompt", "chosen", "rejected"}
        assert row["prompt"].startswith("\n### ")
        assert row["prompt"].endswith(END)
        for answer in (row["chosen"], row["rejected"]):
            assert answer[0] == " "
            assert answer[1:2] != " "


@given(a=st.integers(-9, 50), b=st.integers(-9, 50), label=st.integers(0, 1))
def test_shp_is_symmetric_in_its_answers(a: int, b: int, label: int) -> None:
    """Naming A what was B, with the label turned, is the same pair; and where no score is 0, the origin's own rule."""
    row = {"history": "q", "human_ref_A": "x", "human_ref_B": "y", "labels": label, "score_A": a, "score_B": b}
    turned = {**row, "human_ref_A": "y", "human_ref_B": "x", "labels": 1 - label, "score_A": b, "score_B": a}
    convert = RECIPES["shp"].convert
    assert convert(row) == convert(turned)
    if a and b:
        assert (convert(row) is not None) == (max(a / b, b / a) >= 2)
    elif a == b:
        assert convert(row) is None


# --- rows for a method --------------------------------------------------------------------------------------


def test_supervised_rows_imitate_the_chosen_answer() -> None:
    (row, *_) = to_supervised(read_rows("hh"))
    assert row == {
        "id": "hh/0",
        "source": "hh",
        "prompt": human("Where do whales live?") + END,
        "completion": " In the sea.",
    }
    chat = to_supervised(read_rows("ultrafeedback"))[3]
    assert [message["role"] for message in [*chat["prompt"], *chat["completion"]]] == [
        "user",
        "assistant",
        "user",
        "assistant",
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}),
        ({"messages": [], "chosen": "x"}, {"messages": [], "chosen": "x"}),
        ({"chosen": "a b", "rejected": "a c", "margin": 1}, {"text": "a b"}),
        ({"chosen": [{"role": "user"}], "rejected": []}, {"messages": [{"role": "user"}]}),
        # The form of hh-rlhf-trl-style: the prompt as text, and whole conversations.
        ({"prompt": "q", "chosen": [{"role": "user"}], "rejected": []}, {"messages": [{"role": "user"}]}),
        ({"prompt": None, "chosen": "a", "rejected": "b", "completion": None}, {"text": "a", "completion": None}),
        ({UNUSABLE: "why"}, {UNUSABLE: "why"}),
    ],
)
def test_rows_of_every_form_become_supervised(row: dict[str, Any], expected: dict[str, Any]) -> None:
    (found,) = to_supervised([{"id": "0", **row}])
    assert found == {"id": "0", **expected}


def test_a_source_that_prefers_nothing_is_left_out_and_counted() -> None:
    rows, _ = mix("uc,hh")
    kept, notes = without_signal(rows)
    assert {row["source"] for row in kept} == {"hh"}
    assert kept == rows[7:]
    assert notes == ["uc: all 7 rows left out: chosen and rejected are equal, so nothing is preferred"]


def test_one_equal_pair_among_others_stays() -> None:
    rows = [
        {"id": "0", "source": "a", "chosen": "x", "rejected": "x"},
        {"id": "1", "source": "a", "chosen": "x", "rejected": "y"},
        {"id": "2", "source": "b", "chosen": "x", "rejected": "x"},
        {"id": "3", "source": "b", UNUSABLE: "why"},
        {"id": "4", "source": "c", "prompt": "no pair"},
    ]
    kept, notes = without_signal(rows)
    assert [row["id"] for row in kept] == ["0", "1", "4"]
    assert notes == ["b: all 2 rows left out: chosen and rejected are equal, so nothing is preferred"]


def test_nothing_left_is_refused() -> None:
    with pytest.raises(UserError, match="no preferences to learn from: in uc"):
        without_signal(read_rows("uc"))
    assert without_signal([]) == ([], [])


def test_rows_without_a_source_are_one_source() -> None:
    rows = [{"id": "0", "chosen": "x", "rejected": "x"}, {"id": "1", "chosen": "x", "rejected": "y"}]
    assert without_signal(rows) == (rows, [])
    with pytest.raises(UserError, match="in the data every chosen"):
        without_signal(rows[:1])


# --- real rows ------------------------------------------------------------------------------------------------


def test_real_transcripts_of_hh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """600 rows, in all of which both transcripts share their prompt: prompt and answers give the raw text again."""
    home = os.environ.get("CONTRL_REAL_DATA")
    if not home:
        pytest.skip("CONTRL_REAL_DATA is not set: no real rows to read")
    (tmp_path / "hh").mkdir()
    packed = (Path(home) / "hh-harmless-600.jsonl.gz").read_bytes()
    (tmp_path / "hh" / "test.jsonl.gz").write_bytes(packed)
    monkeypatch.setenv("CONTRL_DATA_DIR", str(tmp_path))
    rows, notes = mix("hh", "test")
    raw = [json.loads(line) for line in gzip.decompress(packed).decode("utf-8").splitlines()]
    assert (len(rows), notes) == (600, [])

    def renamed(text: str) -> str:
        return text.replace("\n\nHuman:", "\n### Human:").replace("\n\nAssistant:", "\n### Assistant:")

    for row, origin in zip(rows, raw, strict=True):
        for side in ("chosen", "rejected"):
            assert (row["prompt"] + row[side]).split() == renamed(origin[side]).split()
