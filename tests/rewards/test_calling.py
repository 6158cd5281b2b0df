"""How rewards are asked: arguments, async, time limits, and every way in which an answer can be wrong."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from contrl.errors import EnvironmentFault, GuardStop, Interrupted, UserError
from contrl.rewards.calling import Answer, Question, ScoreSettings, ask
from contrl.rewards.functions import RewardFunction, as_rewards

MISSING = ScoreSettings("missing")


def question(count: int = 3, **columns: list) -> Question:
    rows = [str(10 * row) for row in range(count)]
    given = {"prompts": ["p"] * count, "completions": [f"c{row}" for row in range(count)], **columns}
    return Question(given, rows, "task sums", state="the state", fix="go on with --reward_errors missing")


def one(call: Callable[..., Any], settings: ScoreSettings = MISSING, **columns: list) -> Answer:
    return ask(as_rewards(call), question(**columns), settings)[0]


def failing_at(*bad: str, error: type[BaseException] = ZeroDivisionError) -> Callable[..., list[float]]:
    """Scores 1 to completions, and raises for a batch that holds one of ``bad``."""

    def reward(*, completions: list, **columns: Any) -> list[float]:
        for completion in completions:
            if completion in bad:
                raise error(f"bad {completion}")
        return [1.0] * len(completions)

    return reward


# --- what it is called with ---------------------------------------------------------------------------------


def test_all_arguments_arrive_by_keyword() -> None:
    seen: dict[str, Any] = {}

    def reward(**arguments: Any) -> list[None]:
        seen.update(arguments)
        return [None] * 3

    one(reward, completion_ids=[[1], [2], [3]], level=[1, 2, 3])
    assert seen.keys() == {
        *("prompts", "completions", "completion_ids", "level"),
        *("trainer_state", "log_extra", "log_metric"),
    }
    assert (seen["level"], seen["completion_ids"], seen["trainer_state"]) == ([1, 2, 3], [[1], [2], [3]], "the state")


def test_a_function_without_further_columns_gets_what_it_names() -> None:
    def reward(completions: list, level: list) -> list[float]:
        return [float(value) for value in level]

    assert one(reward, level=[1, 2, 3], other=[0, 0, 0]).scores == [1.0, 2.0, 3.0]


def test_a_column_that_is_not_there_is_named() -> None:
    def reward(*, completions: list, solution: list, **columns: Any) -> list[float]:
        raise AssertionError

    with pytest.raises(
        UserError, match="task sums: the reward reward needs solution\n  the columns of the data are level"
    ):
        one(reward, level=[1, 2, 3])


def test_a_function_without_a_signature_is_called_with_everything() -> None:
    with pytest.raises(UserError, match=r"the reward dict returned \{'prompts'"):
        one(dict)


def test_what_is_logged_is_kept() -> None:
    def reward(*, completions: list, log_extra: Any, log_metric: Any, **columns: Any) -> list[float]:
        log_extra("upper", (text.upper() for text in completions))
        log_metric("share", 1)
        log_metric("share", 0.5)
        log_metric("none", float("nan"))
        return [0.0] * len(completions)

    got = one(reward)
    assert got.extras == {"upper": ["C0", "C1", "C2"]}
    assert got.metrics == [("share", 1.0), ("share", 0.5)]


def test_a_column_of_another_length_is_refused() -> None:
    def reward(*, log_extra: Any, **columns: Any) -> list[float]:
        log_extra("part", [1])
        return [0.0] * 3

    with pytest.raises(UserError, match=r"log_extra\('part'\) 1 values for 3 completions"):
        one(reward)


# --- async --------------------------------------------------------------------------------------------------


class Meeting:
    """Async rewards that answer only when all of them are being asked at once."""

    def __init__(self, parties: int) -> None:
        self.parties, self.here = parties, 0
        self.loops: set[int] = set()

    async def __call__(self, *, completions: list, **columns: Any) -> list[float]:
        self.here += 1
        self.loops.add(id(asyncio.get_running_loop()))
        while self.here < self.parties:
            await asyncio.sleep(0.001)
        return [float(len(text)) for text in completions]


def test_async_functions_run_together_on_one_loop() -> None:
    """Three that wait for each other: one after the other they would never end."""
    meeting = Meeting(3)
    functions = [RewardFunction(name, meeting) for name in "abc"]
    answers = ask(functions, question(), ScoreSettings(seconds=20))
    assert [answer.scores for answer in answers] == [[2.0, 2.0, 2.0]] * 3
    one(meeting)
    assert len(meeting.loops) == 1


def test_sync_and_async_mix_and_keep_their_order() -> None:
    async def slow(**columns: Any) -> list[float]:
        await asyncio.sleep(0.01)
        return [1.0, 2.0, 3.0]

    functions = [RewardFunction("slow", slow), RewardFunction("quick", lambda **columns: [4, 5, 6])]
    assert [answer.scores for answer in ask(functions, question(), MISSING)] == [[1, 2, 3], [4, 5, 6]]


def test_async_works_inside_a_running_loop() -> None:
    async def reward(**columns: Any) -> list[float]:
        await asyncio.sleep(0)
        return [1.0] * 3

    async def notebook() -> list[float | None]:
        return one(reward).scores

    assert asyncio.run(notebook()) == [1.0] * 3


def test_a_plain_function_may_hand_on_a_coroutine() -> None:
    async def inner(completions: list) -> list[float]:
        return [1.0] * len(completions)

    assert one(lambda **columns: inner(columns["completions"])).scores == [1.0] * 3
    assert one(lambda **columns: inner(columns["completions"]), ScoreSettings(seconds=20)).scores == [1.0] * 3


# --- a function that raises ---------------------------------------------------------------------------------


def in_async(call: Callable[..., list[float]]) -> Callable[..., Any]:
    async def reward(*, completions: list, **columns: Any) -> list[float]:
        return call(completions=completions)

    return reward


@pytest.mark.parametrize("kind", [lambda call: call, in_async], ids=["sync", "async"])
@pytest.mark.parametrize("seconds", [None, 20.0])
def test_the_row_that_raises_is_named_or_missing(kind: Callable[..., Any], seconds: float | None) -> None:
    reward = kind(failing_at("c1"))
    with pytest.raises(UserError) as raised:
        one(reward, ScoreSettings("raise", seconds))
    error = raised.value
    assert error.exit_code == 2
    assert str(error).startswith(
        "task sums, row 10: the reward reward raised ZeroDivisionError: bad c1\n  in reward, line"
    )
    assert error.fix == "go on with --reward_errors missing"
    assert isinstance(error.__cause__, ZeroDivisionError)
    got = one(reward, ScoreSettings("missing", seconds))
    assert got.scores == [1.0, None, 1.0]
    assert got.errors == ["", "ZeroDivisionError: bad c1", ""]


def test_a_row_that_raises_keeps_what_the_others_logged() -> None:
    def reward(*, completions: list, log_extra: Any, log_metric: Any, **columns: Any) -> list[float]:
        log_extra("seen", completions)
        log_metric("calls", 1.0)
        if "c1" in completions:
            raise ValueError
        return [1.0] * len(completions)

    got = one(reward)
    assert got.extras == {"seen": ["c0", None, "c2"]}
    assert got.metrics == [("calls", 1.0), ("calls", 1.0)]
    assert got.errors == ["", "ValueError", ""]


def test_a_batch_that_raises_though_no_row_does() -> None:
    """As for want of memory: with "missing" every completion has its score."""

    def reward(*, completions: list, **columns: Any) -> list[float]:
        if len(completions) > 1:
            raise MemoryError("too much")
        return [5.0]

    assert one(reward).scores == [5.0] * 3
    with pytest.raises(
        UserError, match="task sums: the reward reward raised MemoryError: too much\n  each of its rows"
    ):
        one(reward, ScoreSettings())


def test_an_error_of_the_set_up_is_no_rows_fault() -> None:
    """A UserError at every row says itself what to do; at one row, the row is named; "missing" covers only that."""
    everywhere = failing_at("c0", "c1", "c2", error=UserError)
    for settings in (ScoreSettings(), MISSING):
        with pytest.raises(UserError, match=r"^bad c0$"):
            one(everywhere, settings)
    with pytest.raises(UserError, match=r"^task sums, row 20: the reward reward: bad c2$"):
        one(failing_at("c2", error=UserError), ScoreSettings())
    assert one(failing_at("c2", error=UserError)).errors == ["", "", "UserError: bad c2"]


@pytest.mark.parametrize("error", [EnvironmentFault, GuardStop])
def test_what_ends_a_run_is_not_taken_for_a_missing_score(error: type[UserError]) -> None:
    with pytest.raises(error):
        one(failing_at("c1", error=error))


@pytest.mark.parametrize("kind", [lambda call: call, in_async], ids=["sync", "async"])
@pytest.mark.parametrize("seconds", [None, 20.0])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_and_exits_pass_through(error: Any, seconds: float | None, kind: Callable[..., Any]) -> None:
    with pytest.raises(error, match="bad c1"):
        one(kind(failing_at("c1", error=error)), ScoreSettings("missing", seconds))
    assert one(in_async(failing_at())).scores == [1.0] * 3  # and the loop still runs


def test_an_interruption_passes_through() -> None:
    def reward(**columns: Any) -> list[float]:
        raise Interrupted("stopped", signum=15)

    with pytest.raises(Interrupted):
        one(reward)


def test_a_generator_may_raise_on_its_way() -> None:
    def reward(*, completions: list, **columns: Any) -> Any:
        yield from (1 / (completion != "c2") for completion in completions)

    assert one(reward).errors == ["", "", "ZeroDivisionError: division by zero"]
    assert one(reward).scores == [1.0, 1.0, None]


# --- an answer that is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [ScoreSettings(), MISSING])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0, 2.0], "task sums: the reward <lambda> returned 2 scores for 3 completions"),
        ([], "returned 0 scores for 3 completions"),
        (None, "returned None"),
        (1.0, "returned 1.0"),
        ("abc", "returned 'abc'"),
        (b"abc", "returned b'abc'"),
        ({"a": 1, "b": 2, "c": 3}, "returned {"),
        ([1, "good", 2], "task sums, row 10: the reward <lambda> returned 'good'"),
        ([1, 2, "3"], "task sums, row 20: the reward <lambda> returned '3'"),
        ([[1], [2], [3]], r"task sums, row 0: the reward <lambda> returned \[1\]"),
        ([1, 10**400, 3], r"task sums, row 10: the reward <lambda> returned 1000"),
        ([1, 2j, 3], r"task sums, row 10: the reward <lambda> returned 2j"),
    ],
)
def test_a_wrong_answer_is_refused_whatever_the_settings(answer: Any, message: str, settings: ScoreSettings) -> None:
    with pytest.raises(UserError, match=message):
        one(lambda **columns: answer, settings)


def test_nan_is_missing_and_infinity_is_a_fault() -> None:
    nan, infinity = float("nan"), float("-inf")
    got = one(lambda **columns: [nan, None, 1], ScoreSettings())
    assert (got.scores, got.errors) == ([None, None, 1.0], ["the score is nan", "", ""])
    with pytest.raises(UserError, match="task sums, row 10: the reward <lambda> returned an infinite score"):
        one(lambda **columns: [1, infinity, 1], ScoreSettings())
    got = one(lambda **columns: [1, infinity, 1])
    assert (got.scores, got.errors) == ([1.0, None, 1.0], ["", "the score is -inf", ""])


# --- a function that blocks ---------------------------------------------------------------------------------


def blocking(until: threading.Event) -> Callable[..., Any]:
    def reward(**columns: Any) -> list[float]:
        until.wait(20)
        return [1.0] * 3

    return reward


def waiting(until: threading.Event) -> Callable[..., Any]:
    async def reward(**columns: Any) -> list[float]:
        while not until.is_set():
            await asyncio.sleep(0.01)
        return [1.0] * 3

    return reward


def blocking_the_loop(until: threading.Event) -> Callable[..., Any]:
    async def reward(**columns: Any) -> list[float]:
        until.wait(20)
        return [1.0] * 3

    return reward


@pytest.mark.parametrize("make", [blocking, waiting, blocking_the_loop])
def test_a_function_that_blocks_is_given_up(make: Callable[..., Any]) -> None:
    until, start = threading.Event(), time.monotonic()
    try:
        with pytest.raises(UserError) as raised:
            one(make(until), ScoreSettings("raise", 0.05))
        assert str(raised.value).startswith(
            "task sums: the reward reward gave no answer within 0.05 s\n  it was asked about 3 c"
        )
        got = one(make(until), ScoreSettings("missing", 0.05))
        assert (got.scores, got.errors) == ([None] * 3, ["no answer within 0.05 s"] * 3)
        # Async functions go on working, where the loop is held as well.
        assert one(in_async(failing_at()), ScoreSettings("raise", 10)).scores == [1.0] * 3
        assert time.monotonic() - start < 10
    finally:
        until.set()


def test_within_the_limit_nothing_changes() -> None:
    assert one(failing_at(), ScoreSettings(seconds=20)).scores == [1.0] * 3


def test_a_functions_own_timeout_is_an_exception_like_any_other() -> None:
    got = one(failing_at("c0", error=TimeoutError), ScoreSettings("missing", 20))
    assert got.errors == ["TimeoutError: bad c0", "", ""]


@pytest.mark.parametrize(("errors", "seconds"), [("ignore", None), ("raise", 0), ("raise", -1.0)])
def test_settings_that_mean_nothing_are_refused(errors: Any, seconds: Any) -> None:
    with pytest.raises(UserError):
        ScoreSettings(errors, seconds)
