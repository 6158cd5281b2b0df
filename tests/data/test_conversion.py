"""Conversions and packing give what TRL 1.16.0's functions of the same names give, on rows and on data sets."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, disable_progress_bars
from hypothesis import given
from hypothesis import strategies as some

from contrl.data.conversion import (
    apply_chat_template,
    extract_prompt,
    is_conversational,
    maybe_apply_chat_template,
    maybe_convert_to_chatml,
    maybe_extract_prompt,
    maybe_unpair_preference_dataset,
    pack_dataset,
    unpair,
    unpair_preference_dataset,
)
from contrl.data.packing import best_fit
from contrl.errors import UserError
from tests.data.toys import CHATML, OPENS_THOUGHT, chat_tokenizer

with open(Path(__file__).parents[1] / "golden" / "formats-trl-1.16.0.json", encoding="utf-8") as _file:
    RECORD: dict[str, Any] = json.load(_file)

TOKENIZERS = {"characters": CHATML, "thought": OPENS_THOUGHT}
USER = {"role": "user", "content": "Sky?"}
BLUE = {"role": "assistant", "content": "Blue."}
GREEN = {"role": "assistant", "content": "Green."}
COLUMNS = RECORD["conversions"]["unpair"]["columns"]

disable_progress_bars()


# --- against TRL ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", RECORD["conversions"]["extract"])
def test_the_prompt_is_extracted_as_by_trl(case: dict[str, Any]) -> None:
    before = copy.deepcopy(case["row"])
    assert maybe_extract_prompt(case["row"]) == case["result"]
    assert case["row"] == before


@pytest.mark.parametrize("case", RECORD["conversions"]["template"])
def test_the_chat_template_is_applied_as_by_trl(case: dict[str, Any]) -> None:
    tokenizer = chat_tokenizer(TOKENIZERS[case["tokenizer"]])
    assert apply_chat_template(case["row"], tokenizer) == case["result"]
    assert maybe_apply_chat_template(case["row"], tokenizer) == case["result"]


def test_a_data_set_is_unpaired_in_trls_order() -> None:
    """Two pairs: chosen, chosen, rejected, rejected; labels T T F F; further columns twice."""
    for convert in (unpair_preference_dataset, maybe_unpair_preference_dataset):
        assert convert(Dataset.from_dict(COLUMNS)).to_dict() == RECORD["conversions"]["unpair"]["result"]


@pytest.mark.parametrize("name", RECORD["packing"])
def test_packing_is_trls(name: str) -> None:
    case = RECORD["packing"][name]
    dataset = Dataset.from_dict({"input_ids": case["input_ids"]})
    packed = pack_dataset(dataset, case["seq_length"], case["strategy"])
    assert packed.to_dict() == case["result"]
    assert pack_dataset({"input_ids": case["input_ids"]}, case["seq_length"], case["strategy"]) == case["result"]


# --- conversions --------------------------------------------------------------------------------------------


def test_what_is_conversational() -> None:
    """True exactly when the first item is a mapping with a role."""
    assert is_conversational({"prompt": [USER]})
    assert is_conversational({"messages": [USER], "source": "x"})
    assert not is_conversational({"prompt": "Sky?"})
    assert not is_conversational({"conversations": [{"from": "user", "value": "Sky?"}]})
    assert not is_conversational({"messages": [{"from": "user", "value": "Sky?"}]})
    assert not is_conversational({"messages": []})
    assert is_conversational(Dataset.from_list([{"messages": [USER]}]))
    assert not is_conversational(DatasetDict({"train": Dataset.from_list([{"text": "a"}])}))


def test_conversations_become_messages() -> None:
    row = {"conversations": [{"from": "user", "value": "Sky?"}, {"from": "assistant", "value": "Blue."}], "source": "x"}
    wanted = {"messages": [USER, BLUE], "source": "x"}
    before = copy.deepcopy(row)
    assert maybe_convert_to_chatml(row) == wanted
    assert row == before
    assert maybe_convert_to_chatml(Dataset.from_list([row])).to_list() == [wanted]
    assert maybe_convert_to_chatml(DatasetDict({"train": Dataset.from_list([row])}))["train"].to_list() == [wanted]
    for other in ({"messages": [USER, BLUE]}, {"text": "Sky?"}):
        assert maybe_convert_to_chatml(other) == other


def test_the_prompt_of_a_data_set_is_extracted() -> None:
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green.", "source": "x"}
    wanted = {"chosen": " blue.", "rejected": " green.", "source": "x", "prompt": "The sky is"}
    assert extract_prompt(Dataset.from_list([row])).to_list() == [wanted]
    assert maybe_extract_prompt(Dataset.from_list([row])).to_list() == [wanted]


def test_each_answer_keeps_something_when_one_is_the_beginning_of_the_other() -> None:
    found = extract_prompt({"chosen": "The sky", "rejected": "The sky is"})
    assert found == {"prompt": "The sk", "chosen": "y", "rejected": "y is"}


def test_a_first_difference_leaves_no_prompt_and_no_space_is_taken_from_the_end() -> None:
    """TRL looks one place before the difference, which at the start is the last character."""
    assert extract_prompt({"chosen": "blue ", "rejected": "green"}) == {
        "prompt": "",
        "chosen": "blue ",
        "rejected": "green",
    }


def test_ids_of_a_data_set_stay_unique() -> None:
    dataset = unpair_preference_dataset(Dataset.from_dict({**COLUMNS, "id": ["0", "1"]}))
    assert dataset["id"] == ["0/chosen", "1/chosen", "0/rejected", "1/rejected"]
    plain = Dataset.from_dict({"text": ["a"]})
    assert maybe_unpair_preference_dataset(plain) is plain
    with pytest.raises(UserError, match="columns text are no preference"):
        unpair_preference_dataset(plain)


def test_rows_are_unpaired_alternately() -> None:
    """Any two neighbours hold both labels, so a batch does so as well."""
    rows = [
        {"id": "7", "prompt": "a", "chosen": "b", "rejected": "c", "source": "x"},
        {"id": "8", "chosen": [USER, BLUE], "rejected": [USER, GREEN]},
        {"id": "9", "prompt": [USER], "chosen": [USER, BLUE], "rejected": [USER, GREEN]},
    ]
    made = unpair(rows)
    assert [row["label"] for row in made] == [True, False] * 3
    assert [row["id"] for row in made] == [f"{i}/{side}" for i in "789" for side in ("chosen", "rejected")]
    assert made[0] == {"id": "7/chosen", "prompt": "a", "completion": "b", "label": True, "source": "x"}
    for chosen, rejected in (made[2:4], made[4:6]):
        assert (chosen["prompt"], chosen["completion"], rejected["completion"]) == ([USER], [BLUE], [GREEN])


def test_what_cannot_be_taken_apart_stays_for_the_encoder_to_refuse() -> None:
    labelled = {"id": "1", "prompt": "a", "completion": "b", "label": True}
    broken = {"id": "2", "prompt": "a", "chosen": 3, "rejected": "c"}
    same = {"id": "3", "prompt": "a", "chosen": "b", "rejected": "b"}
    assert unpair([labelled, broken, same]) == [labelled, broken, same]


def test_a_data_set_of_conversations_becomes_text() -> None:
    rows = Dataset.from_list([{"prompt": [USER], "completion": [BLUE]}])
    text = maybe_apply_chat_template(rows, chat_tokenizer(CHATML)).to_list()
    assert text[0]["completion"] == "Blue.<|im_end|>\n"
    assert maybe_apply_chat_template({"text": "a"}, chat_tokenizer(CHATML)) == {"text": "a"}


def test_a_conversation_that_is_no_format_is_refused() -> None:
    tokenizer = chat_tokenizer(CHATML)
    with pytest.raises(UserError, match="columns chosen are no conversation"):
        apply_chat_template({"chosen": [USER]}, tokenizer)
    with pytest.raises(UserError, match="ends with a message of the role 'system'"):
        apply_chat_template({"prompt": [{"role": "system", "content": "x"}]}, tokenizer)


# --- packing ------------------------------------------------------------------------------------------------


def test_packing_keeps_other_columns_in_step() -> None:
    rows = {"input_ids": [[1, 2, 3], [4]], "labels": [[-100, 2, 3], [4]]}
    packed = pack_dataset(DatasetDict({"train": Dataset.from_dict(rows)}), 4)["train"].to_dict()
    assert packed == {"input_ids": [[1, 2, 3, 4]], "labels": [[-100, 2, 3, 4]], "seq_lengths": [[3, 1]]}


def test_what_cannot_be_packed_is_refused() -> None:
    unknown: Any = "ffd"
    with pytest.raises(UserError, match="unknown packing strategy 'ffd'"):
        pack_dataset({"input_ids": [[1]]}, 4, unknown)
    with pytest.raises(UserError, match="sequences of 0 tokens"):
        pack_dataset({"input_ids": [[1]]}, 0)
    with pytest.raises(UserError, match="columns of lists"):
        pack_dataset({"input_ids": [[1]], "text": ["a"]}, 4)
    with pytest.raises(UserError, match="lists of different lengths"):
        pack_dataset({"input_ids": [[1]], "labels": [[1, 2]]}, 4)


@given(some.lists(some.integers(1, 16), max_size=40))
def test_bins_hold_everything_once_and_never_too_much(lengths: list[int]) -> None:
    """And no two bins would fit into one: best fit leaves at most one bin that is not more than half full."""
    bins = best_fit(lengths, 16)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    filled = [sum(lengths[index] for index in members) for members in bins]
    assert all(total <= 16 for total in filled)
    assert sum(total <= 8 for total in filled) <= 1
