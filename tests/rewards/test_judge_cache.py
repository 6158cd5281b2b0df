"""The judge's answers on disk: shared, kept at once, and never in the way."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from contrl.rewards.judge_cache import FILE, AnswerCache


def test_what_is_kept_is_found_by_the_next_one_and_by_others_at_the_same_time(tmp_path: Path) -> None:
    with AnswerCache(tmp_path / "deep" / "er") as one, AnswerCache(tmp_path / "deep" / "er") as other:
        one.keep("a", "reward:1", 1.0)
        assert other.replies(["a", "b"]) == {"a": "reward:1"}
        other.keep("b", "reward:2", None)
        assert one.replies(["b", "a"]) == {"a": "reward:1", "b": "reward:2"}


def test_many_questions_are_looked_up_at_once(tmp_path: Path) -> None:
    keys = [str(number) for number in range(1201)]
    with AnswerCache(tmp_path) as cache:
        for key in keys[::100]:
            cache.keep(key, f"reward:{key}", float(key))
        assert cache.replies(keys) == {key: f"reward:{key}" for key in keys[::100]}


def test_threads_and_connections_write_side_by_side(tmp_path: Path) -> None:
    def write(start: int) -> None:
        with AnswerCache(tmp_path) as cache:
            for number in range(start, start + 20):
                cache.keep(str(number), "reward:0", 0.0)
            assert not cache.fault

    threads = [threading.Thread(target=write, args=(20 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with AnswerCache(tmp_path) as cache:
        assert len(cache.replies([str(number) for number in range(80)])) == 80


def test_no_folder_keeps_nothing() -> None:
    with AnswerCache(None) as cache:
        cache.keep("a", "reward:1", 1.0)
        assert cache.replies(["a"]) == {}
        assert not cache.fault


def test_a_file_that_breaks_while_in_use_is_told_and_left(tmp_path: Path) -> None:
    with AnswerCache(tmp_path) as cache:
        with sqlite3.connect(tmp_path / FILE) as other:
            other.execute("DROP TABLE answers")
        other.close()
        cache.keep("a", "reward:1", 1.0)
        assert str(tmp_path) in cache.fault
        assert cache.replies(["a"]) == {}


def test_a_reader_finds_question_reply_and_score(tmp_path: Path) -> None:
    with AnswerCache(tmp_path) as cache:
        cache.keep("a", "helpfulness:1,verbosity:2", None)
        cache.keep("a", "reward:1.5", 1.5)
    file = sqlite3.connect(tmp_path / FILE)
    assert file.execute("SELECT * FROM answers").fetchall() == [("a", "reward:1.5", 1.5)]
    file.close()
