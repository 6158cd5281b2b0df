"""Which tokens are prompt, which are trained: text boundaries under merging, and chat templates of every habit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from contrl.data.chat import (
    Encoded,
    check_end_trained,
    common_prefix,
    encode_messages,
    encode_pair,
    encode_prompt,
    encode_text,
    is_conversational,
    render,
    require_end_trained,
)
from contrl.data.formats import encode_row
from contrl.errors import UserError
from contrl.interfaces import Completion, Group
from tests.data.toys import (
    AGAIN,
    ANSWER,
    CHATML,
    CHATML_WITH_BLOCKS,
    LAST_THOUGHT,
    OPENS_THOUGHT,
    USER,
    YES,
    chat_tokenizer,
    merging_tokenizer,
)


def text(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids))


def trained_text(encoded: Encoded, tokenizer: Any) -> str:
    return text(tokenizer, [i for i, flag in zip(encoded.completion_ids, encoded.trained, strict=True) if flag])


def spans(encoded: Encoded) -> list[bool]:
    """The mask with repeats folded: [False, True] is "starts untrained, ends trained"."""
    flags = [False, *encoded.trained]
    return [flags[0], *(b for a, b in itertools.pairwise(flags) if a != b)]


# --- text -------------------------------------------------------------------------------------------------


def test_a_text_pair_splits_at_the_prompt_and_ends_once() -> None:
    tokenizer = chat_tokenizer(None)
    encoded = encode_pair("1+2=", "3", tokenizer)
    assert text(tokenizer, encoded.prompt_ids) == "1+2="
    assert text(tokenizer, encoded.completion_ids) == "3<eos>"
    assert encoded.trained == [True, True]


def test_an_end_token_in_the_data_is_not_doubled() -> None:
    tokenizer = chat_tokenizer(None)
    assert text(tokenizer, encode_pair("1+2=", "3<eos>", tokenizer).completion_ids) == "3<eos>"
    assert text(tokenizer, encode_text("abc<eos>", tokenizer).completion_ids) == "bc<eos>"


def test_special_tokens_of_the_tokenizer_itself_are_not_doubled() -> None:
    """A tokenizer that writes <bos> ... <eos> by itself: the prompt loses its <eos>, the pair has one of each."""
    tokenizer = merging_tokenizer(adds_special=True, bos_token="<bos>")
    encoded = encode_pair("dd", "c", tokenizer)
    assert (text(tokenizer, encoded.prompt_ids), text(tokenizer, encoded.completion_ids)) == ("<bos>dd", "c<eos>")


def test_a_tokenizer_without_an_end_token_adds_none() -> None:
    tokenizer = merging_tokenizer(eos_token=None)
    assert text(tokenizer, encode_pair("d", "c", tokenizer).completion_ids) == "c"
    assert text(tokenizer, encode_text("dc", tokenizer).completion_ids) == "c"


def test_the_boundary_moves_back_to_where_the_tokens_agree() -> None:
    """ "da" is [d, a] and "dabc" is [d, abc]: the common prefix is [d], and the merged token is trained."""
    tokenizer = merging_tokenizer()
    encoded = encode_pair("da", "bcd", tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoded.prompt_ids) == ["d"]
    assert tokenizer.convert_ids_to_tokens(encoded.completion_ids) == ["abc", "d", "<eos>"]


def test_a_prompt_that_vanishes_in_a_merge_is_refused() -> None:
    with pytest.raises(UserError, match="merges the whole prompt"):
        encode_pair("a", "b", merging_tokenizer())


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(UserError, match="the prompt is empty"):
        encode_pair("", "b", merging_tokenizer())


def test_an_empty_completion_teaches_to_stop() -> None:
    tokenizer = chat_tokenizer(None)
    assert text(tokenizer, encode_pair("1+2=", "", tokenizer).completion_ids) == "<eos>"


def test_text_starts_at_its_first_token() -> None:
    tokenizer = chat_tokenizer(None)
    encoded = encode_text("abc", tokenizer)
    assert (text(tokenizer, encoded.prompt_ids), text(tokenizer, encoded.completion_ids)) == ("a", "bc<eos>")
    assert encoded.trained == [True] * 3


# --- prompts ------------------------------------------------------------------------------------------------


def test_a_text_prompt_is_taken_as_it_is() -> None:
    tokenizer = chat_tokenizer(CHATML)
    assert text(tokenizer, encode_prompt("1+2=", tokenizer)) == "1+2="


def test_messages_get_the_generation_prompt() -> None:
    tokenizer = chat_tokenizer(CHATML)
    wanted = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert text(tokenizer, encode_prompt([USER], tokenizer)) == wanted


def test_a_prompt_that_ends_with_the_assistant_is_continued() -> None:
    tokenizer = chat_tokenizer(CHATML)
    wanted = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4"
    assert text(tokenizer, encode_prompt([USER, ANSWER], tokenizer)) == wanted


def test_what_is_a_conversation() -> None:
    assert is_conversational([USER])
    assert not is_conversational("text")
    assert not is_conversational(["text"])
    assert not is_conversational([])


def test_a_tokenizer_without_a_template_refuses_messages() -> None:
    with pytest.raises(UserError, match="no chat template"):
        encode_prompt([USER], chat_tokenizer(None))


def test_a_refusal_of_the_template_is_passed_on() -> None:
    tokenizer = chat_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match="refused the conversation: roles must alternate"):
        render([USER], tokenizer)


def test_text_and_messages_do_not_mix() -> None:
    with pytest.raises(UserError, match="both be text or both be messages"):
        encode_pair([USER], "4", chat_tokenizer(CHATML))


# --- conversations as prompt and completion -------------------------------------------------------------------


@pytest.mark.parametrize("template", [CHATML, CHATML_WITH_BLOCKS, OPENS_THOUGHT, LAST_THOUGHT])
@pytest.mark.parametrize("answer", ["4", "5 or so"])
def test_prompt_and_answer_together_are_the_rendered_conversation(template: str, answer: str) -> None:
    """Also when the generation prompt opens a thought: nothing is trained that the template would not write."""
    tokenizer = chat_tokenizer(template)
    completion = {"role": "assistant", "content": answer}
    encoded = encode_pair([USER], [completion], tokenizer)
    assert encoded.prompt_ids + encoded.completion_ids == render([USER, completion], tokenizer)
    assert text(tokenizer, encoded.prompt_ids) == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert trained_text(encoded, tokenizer).endswith(f"{answer}<|im_end|>\n")


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    """A later answer takes the first one's thought away: the tokens part inside the prompt, which would be trained."""
    tokenizer = chat_tokenizer(LAST_THOUGHT)
    with pytest.raises(UserError, match="rewrites earlier turns"):
        encode_pair([USER, ANSWER], [AGAIN, YES], tokenizer)


# --- assistant-only masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [CHATML, CHATML_WITH_BLOCKS])
def test_one_assistant_turn_starts_untrained_and_ends_trained(template: str) -> None:
    """The stop token is trained: a model that never learns it never stops."""
    tokenizer = chat_tokenizer(template)
    encoded = encode_messages([USER, ANSWER], tokenizer, assistant_only=True)
    assert spans(encoded) == [False, True]
    assert trained_text(encoded, tokenizer) == "4<|im_end|>\n"


@pytest.mark.parametrize("template", [CHATML, CHATML_WITH_BLOCKS])
def test_two_assistant_turns_make_three_transitions(template: str) -> None:
    tokenizer = chat_tokenizer(template)
    encoded = encode_messages([USER, ANSWER, AGAIN, YES], tokenizer, assistant_only=True)
    assert spans(encoded) == [False, True, False, True]
    assert trained_text(encoded, tokenizer) == "4<|im_end|>\nyes<|im_end|>\n"
    assert encoded.prompt_ids + encoded.completion_ids == render([USER, ANSWER, AGAIN, YES], tokenizer)


def test_the_blocks_change_no_token() -> None:
    """The masks come from comparing prefixes, so a template without blocks gives the same as one with them."""
    with_blocks, without = (
        encode_messages([USER, ANSWER, AGAIN, YES], chat_tokenizer(template), assistant_only=True)
        for template in (CHATML_WITH_BLOCKS, CHATML)
    )
    assert with_blocks == without


def test_a_last_user_turn_stays_untrained() -> None:
    tokenizer = chat_tokenizer(CHATML)
    encoded = encode_messages([USER, ANSWER, AGAIN], tokenizer, assistant_only=True)
    assert spans(encoded) == [False, True, False]
    assert trained_text(encoded, tokenizer) == "4<|im_end|>\n"


def test_without_assistant_only_every_token_is_trained() -> None:
    tokenizer = chat_tokenizer(CHATML)
    encoded = encode_messages([USER, ANSWER], tokenizer, assistant_only=False)
    assert encoded.trained == [True] * len(encoded.completion_ids)
    assert text(tokenizer, encoded.prompt_ids) == "<|im_start|>"


def test_a_template_that_keeps_its_turns_is_prefix_preserving() -> None:
    """ChatML: each conversation so far is the beginning of the longer one. LAST_THOUGHT: not, and so refused."""
    turns = [USER, ANSWER, AGAIN, YES]
    plain, thinking = chat_tokenizer(CHATML), chat_tokenizer(LAST_THOUGHT)
    whole = render(turns, plain)
    assert all(render(turns[:n], plain) == whole[: len(render(turns[:n], plain))] for n in (1, 2, 3))
    whole = render(turns, thinking)
    assert render(turns[:2], thinking) != whole[: len(render(turns[:2], thinking))]
    with pytest.raises(UserError, match="rewrites earlier turns"):
        encode_messages(turns, thinking, assistant_only=True)


def test_one_answer_under_a_thinking_template_trains_its_thought() -> None:
    tokenizer = chat_tokenizer(LAST_THOUGHT)
    encoded = encode_messages([USER, ANSWER], tokenizer, assistant_only=True)
    assert trained_text(encoded, tokenizer) == "<think>hm</think>4<|im_end|>\n"


def test_masks_survive_merges_across_turns() -> None:
    """A template without special tokens and a merging tokenizer: "d" + "ab" + "c" becomes [d, abc].

    The answer "ab" alone is one token, in the whole it is inside "abc": no token is wholly the answer's.
    """
    tokenizer = merging_tokenizer(chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    question, answer = {"role": "user", "content": "d"}, {"role": "assistant", "content": "ab"}
    kept = encode_messages([question, answer], tokenizer, assistant_only=True)
    assert tokenizer.convert_ids_to_tokens([*kept.prompt_ids, *kept.completion_ids]) == ["d", "ab"]
    assert kept.trained == [True]
    merged = encode_messages(
        [question, answer, {"role": "user", "content": "c"}, answer], tokenizer, assistant_only=True
    )
    assert tokenizer.convert_ids_to_tokens(merged.completion_ids) == ["abc", "ab"]
    assert merged.trained == [False, True]


def test_the_merging_tokenizer_merges() -> None:
    """The fixture does what the tests above rely on."""
    tokenizer = merging_tokenizer()
    assert isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.PreTokenizer | None)
    assert tokenizer.tokenize("dabc") == ["d", "abc"]
    assert tokenizer.tokenize("da") == ["d", "a"]


# --- the never-stops bug --------------------------------------------------------------------------------------


def group(row: dict[str, Any], tokenizer: Any, *, cut: int | None = None) -> Group:
    """A supervised row as a group, cut after so many completion tokens."""
    encoded = encode_row({"id": "r", **row}, tokenizer, assistant_only="messages" in row)
    ids, trained = encoded.completion_ids[:cut], encoded.trained[:cut]
    return Group("r", "", encoded.prompt_ids, [Completion(ids, trained, ended=cut is None)], row)


def test_answers_that_end_with_their_end_token_raise_no_doubt() -> None:
    tokenizer = chat_tokenizer(CHATML)
    rows = [{"messages": [USER, ANSWER, AGAIN, YES]}, {"prompt": "1+2=", "completion": "3"}, {"text": "abc"}]
    groups = [group(row, tokenizer) for row in rows]
    assert check_end_trained(groups, tokenizer) == ""
    require_end_trained(groups, tokenizer)
    # A cut answer has no end to train; an online method's group has no answer yet.
    assert check_end_trained([group(rows[0], tokenizer, cut=5), Group("p", "", [1], [])], tokenizer) == ""


def test_a_last_turn_that_is_not_trained_is_told() -> None:
    tokenizer = chat_tokenizer(CHATML)
    groups = [group({"messages": turns}, tokenizer) for turns in ([USER, ANSWER], [USER, ANSWER, AGAIN])]
    warning = check_end_trained(groups, tokenizer)
    assert warning.startswith("1 of 2 answers do not end with a trained end token")
    require_end_trained(groups, tokenizer)


def test_an_end_token_outside_the_mask_is_told() -> None:
    """The bug itself: the answer is trained, its end-of-turn token is not."""
    tokenizer = chat_tokenizer(CHATML)
    ids = tokenizer("4<|im_end|>\n").input_ids
    masked = Group("m", "", [1], [Completion(ids, [True, False, False])], {"messages": [USER, ANSWER]})
    assert check_end_trained([masked], tokenizer)
    with pytest.raises(UserError, match="none of 1 answers ends with a trained end token"):
        require_end_trained([masked], tokenizer)


def test_a_template_without_an_end_token_is_refused() -> None:
    tokenizer = chat_tokenizer("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}")
    groups = [group({"messages": [USER, ANSWER]}, tokenizer)]
    with pytest.raises(UserError, match="never learn to stop"):
        require_end_trained(groups, tokenizer)
    # Plain text is not refused: some data sets are continued text without end.
    require_end_trained([Group("t", "", [1], [Completion([2, 3])], {"text": "ab"})], tokenizer)


def test_a_pad_token_that_is_the_end_token_masks_nothing() -> None:
    tokenizer = chat_tokenizer(CHATML)
    tokenizer.pad_token = "<|im_end|>"
    assert check_end_trained([group({"messages": [USER, ANSWER]}, tokenizer)], tokenizer) == ""


def test_common_prefixes() -> None:
    assert [common_prefix(a, b) for a, b in (("abc", "abd"), ([1], [1, 2]), ("", "a"), ([2], [1]))] == [2, 1, 0, 0]
