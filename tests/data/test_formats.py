"""Which columns make an example, what becomes of it as token ids, and what the error says when nothing does.

Ids, labels and boundaries are compared with what TRL 1.16.0's own trainers make of the same rows
(tests/golden/record_formats.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contrl.data.formats import (
    IGNORED,
    EncodedPair,
    encode_preference,
    encode_row,
    encode_scored,
    encode_unpaired,
    kind_of,
    label_of,
)
from contrl.errors import UserError
from contrl.models.embedded import character_tokenizer
from tests.data.toys import (
    ASKS_THE_ROW,
    CHATML,
    CHATML_WITH_WHOLE_BLOCKS,
    OPENS_THOUGHT,
    chat_tokenizer,
    merging_tokenizer,
)

with open(Path(__file__).parents[1] / "golden" / "formats-trl-1.16.0.json", encoding="utf-8") as _file:
    RECORD: dict[str, Any] = json.load(_file)

TOKENIZERS: dict[str, Any] = {
    "characters": lambda: chat_tokenizer(CHATML),
    "blocks": lambda: chat_tokenizer(CHATML_WITH_WHOLE_BLOCKS),
    "thought": lambda: chat_tokenizer(OPENS_THOUGHT),
    "asks": lambda: chat_tokenizer(ASKS_THE_ROW),
    "merging": merging_tokenizer,
}
PAIR: dict[str, Any] = {"prompt": "1+2=", "completion": "3"}
MESSAGES: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
TEXT: dict[str, Any] = {"text": "abc"}
USER = {"role": "user", "content": "Sky?"}
BLUE = {"role": "assistant", "content": "Blue."}
GREEN = {"role": "assistant", "content": "Green."}


def decoded(row: dict[str, Any], **options: Any) -> tuple[str, str, int]:
    """Prompt, completion and number of trained tokens."""
    tokenizer = character_tokenizer()
    encoded = encode_row(row, tokenizer, **options)
    prompt, completion = (str(tokenizer.decode(ids)) for ids in (encoded.prompt_ids, encoded.completion_ids))
    return prompt, completion, sum(encoded.trained)


def sides(pair: EncodedPair) -> tuple[list[int], list[int], list[int]]:
    return pair.prompt_ids, pair.chosen.ids, pair.rejected.ids


# --- against TRL ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORD["preferences"])
def test_a_pair_has_the_ids_of_trls_dpo(name: str) -> None:
    case = RECORD["preferences"][name]
    pair = encode_preference(case["row"], TOKENIZERS[case["tokenizer"]]())
    assert sides(pair) == (case["dpo"]["prompt_ids"], case["dpo"]["chosen_ids"], case["dpo"]["rejected_ids"])
    for side in (pair.chosen, pair.rejected):
        assert side.trained == [True] * len(side.ids)


@pytest.mark.parametrize("name", RECORD["preferences"])
def test_a_scored_pair_has_the_ids_of_trls_reward_trainer(name: str) -> None:
    """Whole sequences; their shared beginning is the prompt, whatever the row calls one."""
    case = RECORD["preferences"][name]
    pair = encode_scored(case["row"], TOKENIZERS[case["tokenizer"]]())
    assert pair.prompt_ids + pair.chosen.ids == case["reward"]["chosen_ids"]
    assert pair.prompt_ids + pair.rejected.ids == case["reward"]["rejected_ids"]
    assert pair.chosen.ids[0] != pair.rejected.ids[0]


@pytest.mark.parametrize("name", RECORD["supervised"])
def test_a_supervised_row_has_the_ids_and_labels_of_trls_sft(name: str) -> None:
    case = RECORD["supervised"][name]
    encoded = encode_row(case["row"], TOKENIZERS[case["tokenizer"]](), **case["options"])
    ids = encoded.prompt_ids + encoded.completion_ids
    assert ids == case["input_ids"]
    trained = [False] * len(encoded.prompt_ids) + encoded.trained
    # The first token is never predicted, so its label says nothing.
    assert [i if flag else IGNORED for i, flag in zip(ids, trained, strict=True)][1:] == case["labels"][1:]


def test_an_unpaired_row_has_the_ids_of_trls_kto() -> None:
    case = RECORD["unpaired"]
    encoded = encode_unpaired(case["row"], chat_tokenizer(CHATML))
    assert (encoded.prompt_ids, encoded.completion_ids) == (case["prompt_ids"], case["completion_ids"])
    assert encoded.trained == [True] * len(case["completion_ids"])


def test_the_record_meets_the_hard_cases() -> None:
    """The boundary is where the merged side parts ([d] and not [d, a]); a thought opened by the prompt is gone."""
    merged = RECORD["preferences"]["merged on one side"]["dpo"]
    assert merging_tokenizer().convert_ids_to_tokens(merged["prompt_ids"]) == ["d"]
    asked = RECORD["preferences"]["options of the row"]["dpo"]
    text = str(chat_tokenizer(ASKS_THE_ROW).decode(asked["prompt_ids"] + asked["chosen_ids"]))
    assert text.startswith('<tools>[{"type": "function"')
    assert "<think>" not in text


# --- formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ("text", "text"),
        ("messages", "messages"),
        ("conversations", "messages"),
        ("prompt", "prompt"),
        ("prompt completion", "prompt-completion"),
        ("prompt completion label", "unpaired"),
        ("prompt chosen rejected messages", "preference"),
        ("chosen rejected", "implicit-preference"),
        ("input_ids labels", "tokenized"),
        ("chosen_input_ids rejected_input_ids", "tokenized"),
        ("question answer", "unknown"),
    ],
)
def test_the_kind_of_a_row(columns: str, kind: str) -> None:
    assert kind_of({"id": "0", "margin": None, **dict.fromkeys(columns.split(), "x")}) == kind


def test_prompt_and_completion() -> None:
    assert decoded({"id": "0", **PAIR}) == ("1+2=", "3<eos>", 2)


def test_messages() -> None:
    assert decoded({"id": "0", **MESSAGES}) == ("u", "ser: hi\nassistant: ho<eos>", 22)
    assert decoded({"id": "0", **MESSAGES}, assistant_only=True)[2] == 3


def test_text() -> None:
    assert decoded({"id": "0", **TEXT}) == ("a", "bc<eos>", 3)


def test_a_prompt_and_completion_go_before_messages_and_text() -> None:
    assert decoded({**PAIR, **MESSAGES, **TEXT}) == decoded(PAIR)
    assert decoded({**MESSAGES, **TEXT}) == decoded(MESSAGES)


def test_a_column_of_none_is_absent() -> None:
    """A file of mixed rows is filled up with None; "None" must never be trained as a word."""
    assert decoded({"prompt": None, "completion": None, **TEXT}) == decoded(TEXT)
    with pytest.raises(UserError, match=r"columns prompt are no supervised row \(null: completion\)"):
        decoded({"prompt": "1+2=", "completion": None})


def test_the_error_names_the_columns_found_and_the_formats_accepted() -> None:
    with pytest.raises(UserError) as error:
        decoded({"id": "0", "question": "?", "answer": "!"})
    assert str(error.value) == (
        "columns answer, id, question are no supervised row\n"
        "  give prompt and completion, or messages, or text, or input_ids"
    )
    with pytest.raises(UserError, match="columns answer are no preference") as error:
        encode_preference({"answer": "!"}, character_tokenizer())
    assert "chosen and rejected" in error.value.fix


def test_human_and_gpt_are_user_and_assistant() -> None:
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    assert decoded({"conversations": talk}) == decoded(MESSAGES)


def test_what_only_some_messages_have_is_filled_with_none_and_gone() -> None:
    """Columns of tables: a template that asks whether ``tool_calls`` is there must not find None."""
    template = "{% for m in messages %}{{ m.content }}{% if m.tool_calls is defined %}!{% endif %}{% endfor %}"
    tokenizer = chat_tokenizer(template)
    rows = ([{**USER, "tool_calls": None}, BLUE], [USER, BLUE])
    first, second = (encode_row({"messages": messages}, tokenizer) for messages in rows)
    assert first == second


def test_given_labels_win_and_a_completion_mask_can_be_switched_off() -> None:
    """Ids 1 2 3 4: the labels train 4 alone, the mask 3 and 4, neither everything but the first."""
    row = {"input_ids": [1, 2, 3, 4], "completion_mask": [0, 0, 1, 1]}
    tokenizer = character_tokenizer()
    encoded = encode_row({**row, "labels": [IGNORED, IGNORED, IGNORED, 4]}, tokenizer)
    assert (encoded.prompt_ids, encoded.completion_ids) == ([1, 2, 3], [4])
    assert encode_row(row, tokenizer).completion_ids == [3, 4]
    assert encode_row(row, tokenizer, completion_only=False).completion_ids == [2, 3, 4]
    assert encode_row({**row, "assistant_masks": [0, 0, 0, 1]}, tokenizer).completion_ids == [4]


def test_pairs_of_ids_under_both_names() -> None:
    """[1 2 3] and [1 2 4 5] share [1 2]; with a prompt of their own the answers are the answers."""
    tokenizer = character_tokenizer()
    whole = {"chosen_ids": [1, 2, 3], "rejected_ids": [1, 2, 4, 5]}
    legacy = {"chosen_input_ids": [1, 2, 3], "rejected_input_ids": [1, 2, 4, 5]}
    for row in (whole, legacy):
        assert sides(encode_preference(row, tokenizer)) == ([1, 2], [3], [4, 5])
        assert sides(encode_scored(row, tokenizer)) == ([1, 2], [3], [4, 5])
    assert sides(encode_preference({"prompt_ids": [9], **whole}, tokenizer)) == ([9], [1, 2, 3], [1, 2, 4, 5])
    apart = {"chosen_ids": [1], "rejected_ids": [2]}
    assert sides(encode_scored(apart, tokenizer)) == ([], [1], [2])
    with pytest.raises(UserError, match="share no first token"):
        encode_preference(apart, tokenizer)
    # One sequence is the beginning of the other: each keeps a token.
    assert sides(encode_scored({"chosen_ids": [1, 2], "rejected_ids": [1, 2, 3]}, tokenizer)) == ([1], [2], [2, 3])


# --- preferences --------------------------------------------------------------------------------------------


def test_answers_that_repeat_the_prompt_are_stripped() -> None:
    tokenizer = chat_tokenizer(CHATML)
    plain = {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}
    repeated = {"prompt": [USER], "chosen": [USER, BLUE], "rejected": [USER, GREEN]}
    assert encode_preference(repeated, tokenizer) == encode_preference(plain, tokenizer)
    assert encode_scored(repeated, tokenizer) == encode_scored(plain, tokenizer)


def test_a_prompt_in_text_beside_whole_conversations_is_a_mere_label() -> None:
    tokenizer = chat_tokenizer(CHATML)
    row = {"prompt": "Sky?", "chosen": [USER, BLUE], "rejected": [USER, GREEN]}
    plain = {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}
    assert encode_preference(row, tokenizer) == encode_preference(plain, tokenizer)


def test_a_generation_prompt_with_a_thought_leaves_the_rendered_conversation() -> None:
    tokenizer = chat_tokenizer(OPENS_THOUGHT)
    pair = encode_preference({"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}, tokenizer)
    for side, answer in ((pair.chosen, BLUE), (pair.rejected, GREEN)):
        rendered = tokenizer.apply_chat_template([USER, answer], tokenize=False)
        assert tokenizer.decode(pair.prompt_ids + side.ids) == rendered


def test_the_options_of_a_row_reach_the_template() -> None:
    template = "{{ mood }}{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = chat_tokenizer(template)
    options = {"chat_template_kwargs": {"mood": "glad:", "other": None}}
    row = {"prompt": [USER], "completion": [BLUE], "label": True, **options}
    for encoded in (encode_row(row, tokenizer), encode_unpaired(row, tokenizer)):
        assert tokenizer.decode(encoded.prompt_ids) == "glad:Sky?"
    assert (
        encode_row({"messages": [USER, BLUE], **options}, tokenizer).completion_ids[:4] == tokenizer("lad:").input_ids
    )
    written = {**options, "chat_template_kwargs": '{"mood": "glad:"}'}
    assert encode_row({**row, **written}, tokenizer) == encode_row(row, tokenizer)


TEXTS = {"prompt": "a", "chosen": "b", "rejected": "c"}
CHATS: dict[str, Any] = {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**TEXTS, "rejected": "b"}, "identical"),
        ({**CHATS, "rejected": [BLUE]}, "identical"),
        ({**TEXTS, "chosen": ""}, "chosen is empty"),
        ({**CHATS, "rejected": [{"role": "assistant", "content": ""}]}, "rejected is empty"),
        ({**CHATS, "chosen": [USER], "rejected": [USER, BLUE]}, "chosen is empty"),
        ({**CHATS, "rejected": []}, "rejected holds an empty list"),
        ({**CHATS, "rejected": "Green."}, "chosen and rejected must both be text or both be messages"),
        ({**TEXTS, "prompt": [USER]}, "prompt and chosen must both be text or both be messages"),
        ({**CHATS, "prompt": "Sky?"}, "prompt and chosen must both be text or both be messages"),
        ({**TEXTS, "chosen": 3}, "chosen holds a int, neither text nor a list of messages"),
        ({**TEXTS, "chosen": ["b"]}, "chosen holds a list"),
        ({**TEXTS, "chosen": None}, r"columns prompt, rejected are no preference \(null: chosen\)"),
        ({**CHATS, "chosen": [{"role": "assistant", "content": None}]}, "content of message 1 of chosen holds null"),
        ({**CHATS, "chosen": [{"role": "assistant", "content": ["b"]}]}, "content of message 1 of chosen holds a list"),
        ({**CHATS, "chosen": [{"role": "robot", "content": "b"}]}, "message 1 of chosen has the role 'robot'"),
        ({**CHATS, "chosen": [BLUE, "b"]}, "message 2 of chosen is a str, not a mapping"),
        ({**TEXTS, "chosen": "\ud800"}, "chosen holds broken UTF-8"),
        ({**TEXTS, "prompt": ""}, "the prompt is empty"),
        ({"chosen": "b", "rejected": "c"}, "the prompt is empty"),
        ({**CHATS, "tools": "[oops"}, "tools is text but not JSON"),
        ({**CHATS, "chat_template_kwargs": ["x"]}, "chat_template_kwargs holds a list, not a mapping"),
        ({**CHATS, "chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs sets tokenize"),
        ({"chosen_ids": [1], "rejected_ids": "2"}, "rejected_ids is no list of token ids"),
        ({"chosen_ids": [1, 2.5], "rejected_ids": [1]}, "chosen_ids holds what is no token id"),
        ({"chosen_ids": [1, 2], "rejected_ids": [1, 2]}, "identical"),
    ],
)
def test_a_pair_that_cannot_be_used_says_why(row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        encode_preference(row, chat_tokenizer(CHATML))


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ({"text": 5}, {}, "text holds a int"),
        ({"text": "\udcff"}, {}, "broken UTF-8"),
        ({"text": "abc"}, {"assistant_only": True}, "text has none"),
        ({"prompt": "a", "completion": "b"}, {"assistant_only": True}, "prompt is text"),
        ({"messages": [USER]}, {"completion_only": True}, "no completion to train alone"),
        ({"messages": "hi"}, {}, "messages holds a str"),
        ({"messages": []}, {}, "messages holds an empty list"),
        ({"prompt": [], "completion": [BLUE]}, {}, "prompt holds an empty list"),
        ({"input_ids": [1, 2], "labels": [1, 3]}, {}, "labels differ from input_ids"),
        ({"input_ids": [1, 2], "completion_mask": [1]}, {}, "another length"),
        ({"input_ids": [1, 2]}, {"assistant_only": True}, "no assistant_masks"),
        ({"input_ids": [1, -2]}, {}, "no token id"),
        ({"input_ids": []}, {}, "an empty one"),
    ],
)
def test_a_supervised_row_that_cannot_be_used_says_why(row: dict[str, Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        encode_row(row, chat_tokenizer(CHATML), **options)


def test_the_label_is_a_bool_or_0_or_1() -> None:
    assert [label_of({"label": label}) for label in (True, False, 1, 0, 1.0)] == [True, False, True, False, True]
    for label in ("true", 2, None, 0.5):
        with pytest.raises(UserError, match="the label is"):
            label_of({"label": label})
    with pytest.raises(UserError, match="columns completion, prompt are no unpaired preference"):
        encode_unpaired({"prompt": "a", "completion": "b"}, character_tokenizer())
