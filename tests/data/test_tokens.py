"""Tokenising many rows at once changes nothing, and what is read from the cache is what was made."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from contrl.data import tokens
from contrl.data.formats import encode_preference, encode_row
from contrl.data.token_cache import TokenCache, cache_folder
from contrl.data.tokens import prepare_many, prepare_rows
from contrl.errors import UserError
from contrl.interfaces import Completion, Group, Row
from contrl.methods.sft import SFT
from tests.data.toys import CHATML, LAST_THOUGHT, chat_tokenizer, merging_tokenizer

Made = list[Group | UserError]


def prepare(row: Row, tokenizer: Any) -> Group:
    """A pair as two completions, anything else as one."""
    if "chosen" in row:
        pair = encode_preference(row, tokenizer)
        answers = [Completion(side.ids, side.trained) for side in (pair.chosen, pair.rejected)]
        return Group(str(row["id"]), "", pair.prompt_ids, answers, row)
    encoded = encode_row(row, tokenizer, assistant_only="messages" in row)
    return Group(str(row["id"]), "", encoded.prompt_ids, [Completion(encoded.completion_ids, encoded.trained)], row)


def one_by_one(rows: list[Row], tokenizer: Any, prepare: Any = prepare) -> Made:
    made: Made = []
    for row in rows:
        try:
            made.append(prepare(row, tokenizer))
        except UserError as error:
            made.append(error)
    return made


def comparable(made: Made) -> list[Any]:
    return [str(item) if isinstance(item, UserError) else item for item in made]


letters = some.text("abcd ", max_size=6)
conversations = some.lists(letters, min_size=1, max_size=4).map(
    lambda texts: [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
)
answers = letters.map(lambda text: [{"role": "assistant", "content": text}])
anything = some.one_of(
    some.fixed_dictionaries({"text": letters}),
    some.fixed_dictionaries({"prompt": letters, "completion": letters}),
    some.fixed_dictionaries({"messages": conversations}),
    some.fixed_dictionaries({"prompt": letters, "chosen": letters, "rejected": letters}),
    some.fixed_dictionaries({"chosen": letters, "rejected": letters}),
    some.fixed_dictionaries({"prompt": conversations, "chosen": answers, "rejected": answers}),
    some.fixed_dictionaries({"question": letters}),
    some.fixed_dictionaries({"text": some.one_of(some.none(), some.integers())}),
)
tokenizers = {
    "merging": merging_tokenizer(chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}"),
    "chatml": chat_tokenizer(CHATML),
    "last thought": chat_tokenizer(LAST_THOUGHT),
    "specials": merging_tokenizer(adds_special=True, bos_token="<bos>"),
}


@given(some.lists(anything, max_size=8), some.sampled_from(sorted(tokenizers)))
@settings(deadline=None, max_examples=60)
def test_many_at_once_are_as_one_by_one(given_rows: list[dict[str, Any]], name: str) -> None:
    """Whatever the formats and the tokenizer's habits, refusals included."""
    rows = [{**row, "id": str(index)} for index, row in enumerate(given_rows)]
    made = prepare_many(rows, prepare, tokenizers[name])
    assert comparable(made) == comparable(one_by_one(rows, tokenizers[name]))


class Counting:
    """A tokenizer that counts what it is asked for."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.calls = self.renderings = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, *values: Any, **options: Any) -> Any:
        self.calls += 1
        return self.tokenizer(*values, **options)

    def apply_chat_template(self, *values: Any, **options: Any) -> Any:
        self.renderings += 1
        return self.tokenizer.apply_chat_template(*values, **options)


def test_the_tokenizer_is_called_once_for_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 rows of text are 2 x 50 texts: one call at 50 a chunk, three at 20. Chat rows render each part once."""
    texts: list[Row] = [{"id": str(i), "prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(50)]
    counting: Any = Counting(chat_tokenizer(CHATML))
    prepare_many(texts, prepare, counting)
    assert counting.calls == 1
    monkeypatch.setattr(tokens, "CHUNK", 20)
    prepare_many(texts, prepare, counting)
    assert counting.calls == 1 + 3
    chats: list[Row] = [
        {
            "id": "c",
            "prompt": [{"role": "user", "content": "hi"}],
            "completion": [{"role": "assistant", "content": "a"}],
        }
    ]
    prepare_many(chats, prepare, counting)
    # The parts between special tokens, and the check on whole texts.
    assert counting.calls == 1 + 3 + 2
    assert counting.renderings == 2


def test_a_prepare_that_wants_more_of_a_tokenizer_gets_the_real_one() -> None:
    """Attention masks, several texts at once, offsets, encode, decode: slower, never different."""

    def demanding(row: Row, tokenizer: Any) -> Group:
        both = tokenizer([row["text"], "b"], add_special_tokens=False)["input_ids"]
        mask = tokenizer(row["text"], return_attention_mask=True)["attention_mask"]
        found = tokenizer(row["text"])
        ids = [*found["input_ids"], *found["attention_mask"], *tokenizer.encode("a"), len(tokenizer)]
        return Group(tokenizer.decode(ids[:1]), "", ids, [Completion(both[1]), Completion(mask)], row)

    rows: list[Row] = [{"id": "0", "text": "abc"}]
    tokenizer = chat_tokenizer(CHATML)
    assert prepare_many(rows, demanding, tokenizer) == one_by_one(rows, tokenizer, demanding)


def test_a_bug_in_prepare_keeps_its_traceback() -> None:
    def broken(row: Row, tokenizer: Any) -> Group:
        raise ZeroDivisionError(row["id"])

    with pytest.raises(ZeroDivisionError):
        prepare_many([{"id": "0"}], broken, chat_tokenizer(CHATML))


def test_one_text_that_the_tokenizer_refuses_does_not_spoil_the_others() -> None:
    class Picky(Counting):
        def __call__(self, value: Any, **options: Any) -> Any:
            if "x" in (value if isinstance(value, list) else [value]):
                raise UserError("no x")
            return super().__call__(value, **options)

    tokenizer: Any = Picky(chat_tokenizer(CHATML))
    rows: list[Row] = [{"id": str(i), "text": text} for i, text in enumerate(("ab", "x", "cd"))]
    made = prepare_many(rows, prepare, tokenizer)
    assert [isinstance(item, UserError) for item in made] == [False, True, False]
    assert comparable(made) == comparable(one_by_one(rows, tokenizer))


# --- the cache ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that takes any number of rows."""
    monkeypatch.setenv("CONTRL_CACHE", str(tmp_path))
    monkeypatch.setattr(tokens, "CACHED_FROM", 1)
    assert cache_folder() == tmp_path
    return tmp_path / "tokens"


ROWS: list[Row] = [
    {"id": "0", "prompt": "1+2=", "completion": "3"},
    {"id": "1", "question": "?"},
    {
        "id": "2",
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "ho"},
            {"role": "user", "content": "so"},
        ],
    },
    {"id": "3", "text": "a long text that is cut"},
]
METHOD = SFT(max_length=30)


def test_what_is_read_is_what_was_made(folder: Path) -> None:
    tokenizer: Any = chat_tokenizer(CHATML)
    rows = [*ROWS[:2], {**ROWS[2], "id": "m"}]
    made = prepare_rows(rows, METHOD, tokenizer)
    (file,) = folder.iterdir()
    assert file.suffix == ".parquet"
    cache = TokenCache.of(rows, METHOD, tokenizer)
    assert cache is not None
    read = cache.read(rows)
    assert read is not None
    assert comparable(read) == comparable(made) == comparable(one_by_one(rows, tokenizer, METHOD.prepare))
    assert comparable(prepare_rows(rows, METHOD, tokenizer)) == comparable(made)


def test_a_second_time_the_tokenizer_is_not_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = chat_tokenizer(CHATML)
    made = prepare_rows(ROWS, METHOD, tokenizer)

    def refuse(*values: Any) -> Made:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(tokens, "prepare_many", refuse)
    assert comparable(prepare_rows(ROWS, METHOD, tokenizer)) == comparable(made)
    with pytest.raises(AssertionError, match="tokenised again"):
        prepare_rows(ROWS[::-1], METHOD, tokenizer)


def test_everything_the_ids_follow_from_is_in_the_key() -> None:
    """Other rows, order, fields, method, template, tokens or end token: another file each."""
    tokenizer = chat_tokenizer(CHATML)
    more, ended = chat_tokenizer(CHATML), chat_tokenizer(CHATML)
    more.add_tokens(["ab"])
    ended.eos_token = "<|im_end|>"
    variants = [
        (ROWS, METHOD, tokenizer),
        (ROWS[:-1], METHOD, tokenizer),
        (ROWS[::-1], METHOD, tokenizer),
        ([{**ROWS[0], "completion": "4"}, *ROWS[1:]], METHOD, tokenizer),
        (ROWS, SFT(max_length=31), tokenizer),
        (ROWS, dataclasses.replace(METHOD, assistant_only=True), tokenizer),
        (ROWS, METHOD, chat_tokenizer(LAST_THOUGHT)),
        (ROWS, METHOD, more),
        (ROWS, METHOD, ended),
    ]
    caches = [TokenCache.of(*variant) for variant in variants]
    assert len({cache.path for cache in caches if cache is not None}) == len(variants)


def test_calling_the_tokenizer_does_not_change_the_key() -> None:
    tokenizer = chat_tokenizer(CHATML)
    before = TokenCache.of(ROWS, METHOD, tokenizer)
    tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    after = TokenCache.of(ROWS, METHOD, tokenizer)
    assert before is not None
    assert after is not None
    assert before.path == after.path


def test_what_may_change_under_the_same_name_is_not_cached(folder: Path) -> None:
    """A user's own method, and a template that writes the date."""

    class Mine(SFT):
        pass

    tokenizer = chat_tokenizer(CHATML)
    assert TokenCache.of(ROWS, Mine(), tokenizer) is None
    assert TokenCache.of(ROWS, METHOD, chat_tokenizer("{{ strftime_now('%d') }}" + CHATML)) is None
    prepare_rows(ROWS, Mine(), tokenizer)
    assert not folder.exists()


def test_what_the_columns_cannot_hold_is_not_kept(tmp_path: Path) -> None:
    group = Group("0", "", [1], [Completion([2], sampler_logps=[-0.5])], ROWS[0])
    TokenCache(tmp_path / "x.parquet").write([group], ROWS[:1])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["torn", "text", "foreign", "short"])
def test_a_broken_or_foreign_file_is_written_anew(folder: Path, damage: str) -> None:
    tokenizer = chat_tokenizer(CHATML)
    made = prepare_rows(ROWS, METHOD, tokenizer)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    if damage == "torn":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "text":
        file.write_text("no parquet", encoding="utf-8")
    elif damage == "foreign":
        pyarrow.parquet.write_table(pyarrow.table({"a": [1, 2]}), file)
    else:
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(file).slice(1), file)
    assert comparable(prepare_rows(ROWS, METHOD, tokenizer)) == comparable(made)
    cache = TokenCache.of(ROWS, METHOD, tokenizer)
    assert cache is not None
    assert cache.read(ROWS) is not None


def test_writers_at_the_same_time_leave_one_whole_file(folder: Path) -> None:
    tokenizer = chat_tokenizer(CHATML)
    made = one_by_one(ROWS, tokenizer, METHOD.prepare)
    cache = TokenCache.of(ROWS, METHOD, tokenizer)
    assert cache is not None
    threads = [threading.Thread(target=cache.write, args=(made, ROWS)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read = cache.read(ROWS)
    assert read is not None
    assert comparable(read) == comparable(made)
    assert [path.name for path in folder.iterdir()] == [cache.path.name]


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("CONTRL_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tokens, "CACHED_FROM", 1)
    tokenizer = chat_tokenizer(CHATML)
    assert comparable(prepare_rows(ROWS, METHOD, tokenizer)) == comparable(one_by_one(ROWS, tokenizer, METHOD.prepare))


def test_few_rows_are_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTRL_CACHE", str(tmp_path))
    prepare_rows(ROWS, METHOD, chat_tokenizer(CHATML))
    assert not list(tmp_path.iterdir())
