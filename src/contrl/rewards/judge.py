"""Asking a judge many things: at most so many at once, so often, so many in all; and counting what could not be had.

An answer is looked up on disk before it is asked for and kept as soon as it is here, in the thread that got it. What
cannot be had is None, never a number, and every None has a reason in ``stats``.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

from contrl.errors import UserError
from contrl.rewards.endpoint import Answer, Endpoint, require_openai
from contrl.rewards.judge_address import NEMOTRON, Secret, judge_key, judge_url
from contrl.rewards.judge_cache import AnswerCache
from contrl.rewards.patience import Patience
from contrl.rewards.replies import GarbledReply, Message

Read = Callable[[str], float]
"""Makes a score of a reply; raises GarbledReply when there is none in it."""
Conversation = list[Message]


@dataclass
class JudgeStats:
    """What a judge was asked so far.

    Attributes:
        calls: HTTP requests sent, repeated ones included.
        retried: those of them that repeated an earlier one.
        answered: questions answered by the server.
        cached: questions answered from the disk.
        missing: scores that could not be had, and ``reasons``, how many for which reason.
    """

    calls: int = 0
    retried: int = 0
    answered: int = 0
    cached: int = 0
    missing: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        why = f" ({', '.join(f'{reason} {n}' for reason, n in self.reasons.most_common())})" if self.reasons else ""
        return f"{self.calls} calls ({self.retried} retries), {self.cached} from the cache, {self.missing} missing{why}"


@dataclass(kw_only=True, eq=False)
class Judge:
    """A model behind an OpenAI-style chat endpoint, and how patiently and how often it is asked.

    Args:
        url: base address, mostly ending in ``/v1``; None is NVIDIA's hosted endpoint when there is a key for it.
        model: the name the server knows the model by.
        api_key: its key; None takes the environment's (``judge_key``). It is not kept as a field.
        cache: folder where good answers are kept; None keeps none.
        name: what the scores are called in logs.
        max_concurrency: requests at a time.
        seconds: longest time of one request.
        max_retries: further requests for a question after the first.
        max_calls: requests in all, of this object; None is no limit. What is on disk is free.
        first_wait: seconds before the first retry; each further one waits twice as long, with jitter.
        longest_wait: seconds; the longest single wait, also when the server asks for more (then it is given up).
        seed: of the jitter.

    Attributes:
        stats: what was asked so far.
        notes: what the user should be told, each once; whoever shows them may empty the list.
    """

    url: str | None = None
    model: str = NEMOTRON
    api_key: InitVar[str | None] = None
    cache: str | Path | None = None
    name: str = "judge"
    max_concurrency: int = 8
    seconds: float = 30.0
    max_retries: int = 5
    max_calls: int | None = None
    first_wait: float = 0.5
    longest_wait: float = 60.0
    seed: int = 0

    def __post_init__(self, api_key: str | None) -> None:
        self._check()
        self._secret = Secret(api_key)
        self._base = self.url = judge_url(self.url, self._secret.value or judge_key(os.environ))
        require_openai()
        self.stats = JudgeStats()
        self.notes: list[str] = []
        self._noted: set[str] = set()
        self._patience = Patience(self.first_wait, self.longest_wait, self.seed)
        self._given_up = 0  # questions in a row
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the key (the environment's is read again) and without locks."""
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_patience")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._patience = Patience(self.first_wait, self.longest_wait, self.seed)
        self._lock = threading.Lock()

    def _check(self) -> None:
        least = {"max_concurrency": 1, "max_retries": 0, "max_calls": 0, "first_wait": 0, "longest_wait": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UserError(f"{name} of a judge is {value}", fix=f"the least is {low}")
        if not self.seconds > 0:
            raise UserError(f"seconds of a judge is {self.seconds}", why="no request is answered in that time")
        if not self.model:
            raise UserError("the judge has no model", fix="name one, as the server knows it: --judge_model NAME")

    # --- asking ------------------------------------------------------------------------------------------

    def _ask_all(
        self, conversations: Sequence[Conversation], read: Read, kind: str, **options: Any
    ) -> list[float | None]:
        """A score for each conversation, in order; equal ones are asked once.

        Raises:
            EnvironmentFault: the server refuses the key, the address or the model.
            UserError: ``read`` needs a choice that only the user can make.
        """
        keys = [self._digest(conversation, kind, options) for conversation in conversations]
        scores: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        with AnswerCache(self.cache) as cache:
            for key, reply in cache.replies(list(dict.fromkeys(keys))).items():
                try:
                    scores[key] = read(reply)
                except GarbledReply:  # kept by a version that read more into it: asked again
                    continue
            with self._lock:
                self.stats.cached += len(scores)
            due = {key: talk for key, talk in zip(keys, conversations, strict=True) if key not in scores}
            if due:
                secret = Secret(self._secret.value or judge_key(os.environ, self._base))
                with Endpoint(self._base, self.model, secret, self.seconds) as endpoint:
                    asking = _Asking(self, endpoint, cache, read, options)
                    for question, (score, reason) in self._spread(due, asking).items():
                        scores[question] = score
                        reasons[question] = reason
            if cache.fault:
                self._note("cache", cache.fault)
        lost = Counter(reasons[key] for key in keys if scores[key] is None)
        with self._lock:
            self.stats.missing += lost.total()
            self.stats.reasons.update(lost)
        return [scores[key] for key in keys]

    def _spread(self, due: dict[str, Conversation], asking: _Asking) -> dict[str, tuple[float | None, str]]:
        """Ask from several threads. The first fault stops all of them and is raised."""
        left = list(reversed(due.items()))
        given: dict[str, tuple[float | None, str]] = {}
        faults: list[BaseException] = []

        def work() -> None:
            while not asking.halt.is_set():
                try:
                    key, conversation = left.pop()
                except IndexError:  # another thread took the last one
                    return
                try:
                    given[key] = asking.one(key, conversation)
                except BaseException as fault:
                    faults.append(fault)
                    asking.halt.set()

        # Daemons, unlike a pool's threads: Ctrl-C must not wait for replies that are under way.
        names = range(min(self.max_concurrency, len(due)))
        threads = [threading.Thread(target=work, name=f"judge-{name}", daemon=True) for name in names]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            asking.halt.set()
        if faults:
            raise faults[0]
        return given

    def _digest(self, conversation: Conversation, kind: str, options: dict[str, Any]) -> str:
        """What a question is kept under: everything the answer depends on, and nothing secret."""
        whole = json.dumps([self._base, self.model, kind, options, conversation], sort_keys=True, default=repr)
        return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()

    def _cost(self, conversations: Sequence[Conversation], kind: str, **options: Any) -> tuple[int, int]:
        """Requests needed without any failure, and their tokens at four characters each; cached ones are free."""
        due = {self._digest(conversation, kind, options): conversation for conversation in conversations}
        with AnswerCache(self.cache) as cache:
            for key in cache.replies(list(due)):
                del due[key]
        letters = sum(len(str(message["content"])) for talk in due.values() for message in talk)
        return len(due), -(-letters // 4)

    # --- what the threads share ------------------------------------------------------------------------------

    def _take_call(self, again: bool) -> bool:
        """Take one request from the budget; False when it is spent."""
        with self._lock:
            if self.max_calls is not None and self.stats.calls >= self.max_calls:
                return False
            self.stats.calls += 1
            self.stats.retried += again
            return True

    def _note(self, subject: str, text: str) -> None:
        """Say something once for each subject."""
        with self._lock:
            if subject not in self._noted:
                self._noted.add(subject)
                self.notes.append(text)

    def _attempts(self) -> int:
        """Requests for one question: one only while the judge answers nobody, so that a dead one costs no hours."""
        with self._lock:
            return 1 if self._given_up >= self.max_concurrency else self.max_retries + 1

    def _count(self, answered: bool, alive: bool) -> None:
        with self._lock:
            self.stats.answered += answered
            self._given_up = 0 if alive else self._given_up + 1


@dataclass
class _Asking:
    """One round of questions to one judge."""

    judge: Judge
    endpoint: Endpoint
    cache: AnswerCache
    read: Read
    options: dict[str, Any]
    halt: threading.Event = field(default_factory=threading.Event)

    def one(self, key: str, conversation: Conversation) -> tuple[float | None, str]:
        """The score of one question, or None and the reason."""
        judge, answer, wait_for = self.judge, Answer(), 0.0
        for attempt in range(judge._attempts()):
            if not judge._patience.pause(wait_for, self.halt):
                answer = (
                    answer if answer.reason else Answer(reason="rate_limit", detail=f"{judge.url} asks for a pause")
                )
                break
            if not judge._take_call(again=attempt > 0):
                text = f"the judge's budget is spent ({judge.max_calls} calls): further scores are missing"
                judge._note("budget", text)
                return None, "budget"
            answer = self.endpoint.ask(conversation, **self.options)
            if answer.fault is not None:
                self.halt.set()
                raise answer.fault
            if answer.text is not None:
                try:
                    return self._score(key, answer.text), ""
                except GarbledReply:
                    answer = Answer(
                        reason="garbled", detail=f"{judge.url} answers no score: {self.endpoint.said(answer.text)}"
                    )
            if answer.wait is not None:
                judge._patience.postpone(answer.wait)
            if not answer.again:
                break
            wait_for = judge._patience.before(attempt + 1)
        judge._count(answered=False, alive=answer.reason in ("refused", "garbled"))
        judge._note(answer.reason, f"scores are missing ({answer.reason}): {answer.detail}")
        return None, answer.reason

    def _score(self, key: str, text: str) -> float:
        score = None
        try:
            score = self.read(text)
        except UserError:  # the reply is good, the question how to read it is the user's: keep it all the same
            self.halt.set()
            self.cache.keep(key, text, None)
            raise
        self.cache.keep(key, text, score)
        self.judge._count(answered=True, alive=True)
        return score
