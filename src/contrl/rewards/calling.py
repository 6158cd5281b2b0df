"""Asking reward functions: what they are called with, how long they may take, and what they may answer.

A fault in a reward is found here, not in the loss: a batch that raises is asked again one completion at a time, so
that the row can be named or left out. The contract is TRL's; a function that takes fewer arguments gets fewer.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from contrl.errors import EnvironmentFault, GuardStop, Interrupted, UserError
from contrl.rewards.background import TooLong, in_thread, is_async, on_loop, wait

ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""What a reward is called with besides the columns of the data."""

_PASSING = (EnvironmentFault, GuardStop, Interrupted)  # they end a run whatever is asked of faulty rewards


@dataclass(frozen=True)
class ScoreSettings:
    """What to do about a reward that fails.

    Attributes:
        errors: "raise" stops with an error that names the row; "missing" leaves the completion without that score.
        seconds: how long a function may take for a batch; None = as long as it likes.
    """

    errors: Literal["raise", "missing"] = "raise"
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.errors not in ("raise", "missing"):
            raise UserError(f"reward errors is {self.errors!r}", fix='it is "raise" or "missing"')
        if self.seconds is not None and not self.seconds > 0:
            raise UserError(f"the time limit of a reward is {self.seconds} s", fix="give seconds above 0, or none")


@dataclass(frozen=True)
class Question:
    """A batch of completions to be scored.

    Attributes:
        columns: lists of equal length, ``prompts``, ``completions`` and those of the data.
        row_ids: the source row of each completion.
        where, fix: named in errors: where it happened, and how to go on after a function failed.
        state: ``trainer_state``.
    """

    columns: Mapping[str, list[Any]]
    row_ids: Sequence[str]
    where: str
    state: Any = None
    fix: str = "mend the function"

    def row(self, index: int) -> str:
        """Names the row of a completion in errors."""
        return f"{self.where}, row {self.row_ids[index]}" if self.where else f"row {self.row_ids[index]}"

    def only(self, index: int) -> Question:
        """The question about one of its completions."""
        return replace(
            self,
            columns={name: [values[index]] for name, values in self.columns.items()},
            row_ids=[self.row_ids[index]],
        )


@dataclass
class Answer:
    """What one function said.

    Attributes:
        scores: one for each completion; None = not applicable, or it could not be had.
        errors: for each completion why its score could not be had; "" = it could.
        extras: columns from ``log_extra``, one entry for each completion.
        metrics: what ``log_metric`` was told, in order.
    """

    scores: list[float | None]
    errors: list[str]
    extras: dict[str, list[Any]] = field(default_factory=dict)
    metrics: list[tuple[str, float]] = field(default_factory=list)

    def log_extra(self, column: str, values: Iterable[Any]) -> None:
        """Keep a column for the table of samples, one value for each completion."""
        self.extras[str(column)] = list(values)

    def log_metric(self, name: str, value: float) -> None:
        """Keep a number to be averaged and logged; what is not finite has no mean and is dropped."""
        if math.isfinite(number := float(value)):
            self.metrics.append((str(name), number))


class Function(Protocol):
    """A reward function with its name."""

    @property
    def name(self) -> str: ...
    @property
    def call(self) -> Callable[..., Any]: ...


def ask(functions: Sequence[Function], question: Question, settings: ScoreSettings) -> list[Answer]:
    """Ask every function the same question; the async ones run together, while the others run one after the other.

    Raises:
        UserError: naming function, task and row, for what ``settings.errors`` does not cover: another number of
            scores, scores that are no numbers, a column that is not there; and for exceptions, infinite scores
            and no answer in time unless they may be missing.
    """
    with _begun((function, question) for function in functions) as calls:
        return [_answer(call, settings) for call in calls]


@contextlib.contextmanager
def _begun(asked: Iterable[tuple[Function, Question]]) -> Iterator[list[_Call]]:
    """The calls, of which the async ones run from now on, and end with the block whatever happens."""
    calls: list[_Call] = []
    try:
        calls.extend(_Call(function, question) for function, question in asked)
        yield calls
    finally:
        for call in calls:
            call.cancel()


class _Call:
    """One call of one function; an async function is already running when this is made."""

    def __init__(self, function: Function, question: Question) -> None:
        self.function, self.question = function, question
        size = len(question.row_ids)
        self.answer = Answer([None] * size, [""] * size)
        self._arguments = _accepted(function, question, self.answer)
        self._future: Future | None = on_loop(function.call(**self._arguments)) if is_async(function.call) else None

    def result(self, seconds: float | None) -> Any:
        """What the function returned. Raises what it raised, or TooLong."""
        call = self.function.call
        if self._future is None and seconds is not None:
            self._future = in_thread(call, self._arguments)
        returned = call(**self._arguments) if self._future is None else wait(self._future, seconds)
        if inspect.isawaitable(returned):  # a plain function that hands on a coroutine
            self._future = on_loop(returned)
            returned = wait(self._future, seconds)
        return list(returned) if isinstance(returned, Iterator) else returned  # a generator may raise on its way

    def cancel(self) -> None:
        if self._future is not None:
            self._future.cancel()


def _accepted(function: Function, question: Question, answer: Answer) -> dict[str, Any]:
    """The arguments, less those that a function without ``**columns`` does not name."""
    offered: dict[str, Any] = {
        **question.columns,
        "trainer_state": question.state,
        "log_extra": answer.log_extra,
        "log_metric": answer.log_metric,
    }
    try:
        parameters = inspect.signature(function.call).parameters.values()
    except (TypeError, ValueError):  # built in, without a signature
        return offered
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if absent := [name for name in needed if name not in offered]:
        raise UserError(
            f"the reward {function.name} needs {absent[0]}",
            where=question.where,
            why=f"the columns of the data are {', '.join(sorted(set(offered) - set(ARGUMENTS))) or 'none'}",
            fix=f"add the column, or give the function's parameter {absent[0]} a default",
        )
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return offered
    named = {parameter.name for parameter in parameters}
    return {name: value for name, value in offered.items() if name in named}


def _answer(call: _Call, settings: ScoreSettings) -> Answer:
    name, question, size = call.function.name, call.question, len(call.question.row_ids)
    try:
        returned = call.result(settings.seconds)
    except TooLong:
        late = f"no answer within {settings.seconds:g} s"
        if settings.errors == "missing":
            return Answer([None] * size, [late] * size)
        raise UserError(
            f"the reward {name} gave {late}",
            where=question.where,
            why=f"it was asked about {size} completions",
            fix=question.fix,
        ) from None
    except _PASSING:
        raise
    except Exception as error:
        return _one_by_one(call, settings, error)
    return _checked(call, returned, settings)


def _one_by_one(call: _Call, settings: ScoreSettings, error: Exception) -> Answer:
    """Ask about each completion alone, after ``error`` came back for all of them."""
    function, question = call.function, call.question
    size = len(question.row_ids)
    whole, failures = call.answer, {0: error} if size == 1 else {}
    whole.extras, whole.metrics = {}, []
    with _begun((function, question.only(index)) for index in range(size if size > 1 else 0)) as calls:
        for index, single in enumerate(calls):
            failure = _into(whole, index, single, settings)
            if failure is not None:
                failures[index] = failure
                if settings.errors == "raise" and not isinstance(failure, UserError):
                    break
    strict, several = settings.errors == "raise", len(set(question.row_ids)) > 1
    if len(failures) == size and (strict or several) and all(isinstance(e, UserError) for e in failures.values()):
        raise error  # a mistake in the set-up and no row's fault: it says itself what to do
    if strict:
        first = min(failures, default=None)
        cause = error if first is None else failures[first]
        raise _named(function.name, question, first, cause) from cause
    for index, failure in failures.items():
        whole.errors[index] = _told(failure)
    return whole


def _into(whole: Answer, index: int, single: _Call, settings: ScoreSettings) -> Exception | None:
    """Put what is said of one completion into ``whole``; gives back what the function raised, if it did."""
    try:
        returned = single.result(settings.seconds)
    except _PASSING:
        raise
    except TooLong:
        return TimeoutError(f"no answer within {settings.seconds:g} s")
    except Exception as error:
        return error
    part = _checked(single, returned, settings)
    whole.scores[index], whole.errors[index] = part.scores[0], part.errors[0]
    for column, values in part.extras.items():
        whole.extras.setdefault(column, [None] * len(whole.scores))[index] = values[0]
    whole.metrics.extend(part.metrics)
    return None


def _named(name: str, question: Question, index: int | None, error: Exception) -> UserError:
    if index is None:
        why = "each of its rows alone gives no error, so the rows of a batch affect each other, or it was bad luck"
        return UserError(f"the reward {name} raised {_told(error)}", where=question.where, why=why, fix=question.fix)
    where = question.row(index)
    if isinstance(error, UserError):
        return UserError(f"the reward {name}: {error.what}", where=where, why=error.why, fix=error.fix)
    frames = traceback.extract_tb(error.__traceback__)
    at = f"in {frames[-1].name}, line {frames[-1].lineno} of {frames[-1].filename}" if frames else ""
    return UserError(f"the reward {name} raised {_told(error)}", where=where, why=at, fix=question.fix)


def _told(error: Exception) -> str:
    text = error.what if isinstance(error, UserError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _checked(call: _Call, returned: Any, settings: ScoreSettings) -> Answer:
    """What the function returned as scores; raises UserError when it is not one number or None per completion."""
    answer, question, name = call.answer, call.question, call.function.name
    size, where = len(question.row_ids), question.where
    returned = returned.tolist() if hasattr(returned, "tolist") else returned  # a tensor or an array
    if not isinstance(returned, Iterable) or isinstance(returned, str | bytes | Mapping):
        what = f"the reward {name} returned {returned!r}"[:200]
        raise UserError(what, where=where, fix="return a list, one entry for each completion")
    scores = list(returned)
    if len(scores) != size:
        what = f"the reward {name} returned {len(scores)} scores for {size} completions"
        raise UserError(what, where=where, fix="return exactly one entry for each completion")
    for column, values in answer.extras.items():
        if len(values) != size:
            what = f"the reward {name} gave log_extra({column!r}) {len(values)} values for {size} completions"
            raise UserError(what, where=where, fix="give exactly one value for each completion")
    for index, score in enumerate(scores):
        row = question.row(index)
        try:
            number = None if score is None else _number(score)
        except (TypeError, ValueError, OverflowError):
            what = f"the reward {name} returned {score!r}"[:200]
            raise UserError(what, where=row, fix="return one number or None for each completion") from None
        if number is not None and math.isinf(number) and settings.errors == "raise":
            what, why = f"the reward {name} returned an infinite score", "no mean can be taken of it"
            raise UserError(what, where=row, why=why, fix=question.fix)
        if number is not None and not math.isfinite(number):
            number, answer.errors[index] = None, f"the score is {number}"
        elif number is None and getattr(call.function.call, "is_costly", False):
            answer.errors[index] = "no score was given"  # a model or a judge applies to every completion
        answer.scores[index] = number
    return answer


def _number(score: Any) -> float:
    if isinstance(score, str | bytes):  # "3" would pass as 3
        raise TypeError
    return float(score)
