"""Remote judges, against a real HTTP server: what can be had is had, once; what cannot is missing; no key leaks."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contrl.errors import EnvironmentFault, UserError
from contrl.rewards.functions import Rewards
from contrl.rewards.remote import NEMOTRON, NVIDIA_URL, PairwiseJudge, RemoteReward, judge_key
from tests.rewards.judge_server import Asked, JudgeServer, Say

KEY = "nvapi-" + "test" * 4
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


@pytest.fixture(autouse=True)
def _no_keys_and_a_useless_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that leads nowhere: a judge on this machine must be asked past it."""
    for name in ("NVIDIA_API_KEY", "NEMOTRON_API_KEY", "OPENAI_API_KEY", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in PROXIES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def reward(server: JudgeServer, **fields: Any) -> RemoteReward:
    return RemoteReward(**{"url": server.url, "first_wait": 0.005, "longest_wait": 2.0, "seconds": 10.0, **fields})


def scored(server: JudgeServer, completions: list[str], **fields: Any) -> list[float | None]:
    return reward(server, **fields)(prompts=["P"] * len(completions), completions=completions)


def by_text(asked: Asked) -> Say:
    """The score of the text "7" is -7: every text has its own, and wrong order shows."""
    return Say(f"reward:-{asked.text}")


def in_turn(*says: Say) -> Callable[[Asked], Say]:
    """Each text gets these answers one after the other; the last one stays."""
    return lambda asked: says[min(asked.number, len(says) - 1)]


# --- the request and the order ---------------------------------------------------------------------------


def test_the_request_is_a_chat_completion_with_prompt_and_answer() -> None:
    with JudgeServer(lambda asked: Say("reward:-14.25")) as server:
        assert scored(server, ["R"], api_key=KEY) == [-14.25]
        (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.body == {
        "model": NEMOTRON,
        "messages": [{"role": "user", "content": "P"}, {"role": "assistant", "content": "R"}],
    }


def test_messages_are_passed_on_and_a_begun_answer_is_continued() -> None:
    prompt = [{"role": "system", "content": "S"}, {"role": "user", "content": "P"}]
    begun = [*prompt, {"role": "assistant", "content": "so "}]
    with JudgeServer() as server:
        reward(server, max_concurrency=1)(
            prompts=[prompt, begun], completions=[[{"role": "assistant", "content": "R"}], "R"]
        )
        first, second = (asked.body["messages"] for asked in server.asked)
    assert first == [*prompt, {"role": "assistant", "content": "R"}]
    assert second == [*prompt, {"role": "assistant", "content": "so R"}]


def test_order_is_kept_equal_texts_are_asked_once_and_few_at_a_time() -> None:
    def late_first(asked: Asked) -> Say:
        return Say(f"reward:-{asked.text}", delay=0.03 if int(asked.text) % 2 else 0.0)

    texts = [str(n % 10) for n in range(30)]
    with JudgeServer(late_first) as server:
        judge = reward(server, max_concurrency=4)
        assert judge(prompts=["P"] * 30, completions=texts) == [-float(text) for text in texts]
        assert sorted(server.texts) == sorted(set(texts))
        assert 2 <= server.most_at_once <= 4
    assert (judge.stats.calls, judge.stats.answered, judge.stats.missing) == (10, 10, 0)


def test_it_works_inside_a_running_event_loop() -> None:
    async def inside(server: JudgeServer) -> list[float | None]:
        return scored(server, ["1", "2"])

    with JudgeServer(by_text) as server:
        assert asyncio.run(inside(server)) == [-1.0, -2.0]


def test_nothing_to_score_asks_nothing() -> None:
    with JudgeServer() as server:
        assert scored(server, []) == []
        assert server.asked == []


def test_the_client_tells_nothing_about_this_machine_and_uses_no_other_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org")
    with JudgeServer() as server:
        scored(server, ["1"])
        (asked,) = server.asked
    assert KEY not in str(asked.headers)
    assert "org" not in asked.headers.values()
    assert not {"x-stainless-os", "x-stainless-arch", "x-stainless-runtime-version"} & set(asked.headers)


# --- several scores, grades ------------------------------------------------------------------------------


def test_one_of_several_scores_is_chosen_by_name_and_the_reply_is_kept_until_it_is(tmp_path: Path) -> None:
    with JudgeServer(lambda asked: Say("helpfulness:1.5,verbosity:-0.5")) as server:
        with pytest.raises(UserError, match="helpfulness, verbosity"):
            scored(server, ["1"], cache=tmp_path)
        with pytest.raises(UserError, match="no score 'clarity'"):
            scored(server, ["1"], cache=tmp_path, attribute="clarity")
        assert scored(server, ["1"], cache=tmp_path, attribute="verbosity") == [-0.5]
        assert scored(server, ["1"], cache=tmp_path, attribute="helpfulness") == [1.5]
        assert len(server.asked) == 1


def test_a_chat_model_grades_by_a_template_at_temperature_0() -> None:
    with JudgeServer(lambda asked: Say("8/10")) as server:
        fields = {"kind": "grade", "template": "Q {prompt} A {completion} Q {prompt}"}
        assert scored(server, ["{prompt}"], **fields) == [8.0]
        scored(server, ["R"], **fields, temperature=None)
        first, second = (asked.body for asked in server.asked)
    assert first["messages"] == [{"role": "user", "content": "Q P A {prompt} Q P"}]  # model text is never a place
    assert first["temperature"] == 0
    assert "temperature" not in second


# --- what goes wrong -------------------------------------------------------------------------------------

ONCE = {
    "500": Say(status=500),
    "503": Say(status=503),
    "429": Say(status=429),
    "garbage body": Say(raw=b"\xff<html>no json"),
    "error body": Say(raw=b'{"error": "busy"}'),
    "garbled score": Say("I would say good"),
    "not finite": Say("reward:1e999"),
    "no text": Say(None),
    "half a body": Say(cut=True),
    "no answer": Say(drop=True),
    "late": Say(delay=0.8),
    "dripping": Say(drip=0.05),
    "endless": Say(raw=b" " * (1 << 21)),
}


@pytest.mark.parametrize("fault", ONCE)
def test_a_fault_that_passes_is_asked_again(fault: str) -> None:
    with JudgeServer(in_turn(ONCE[fault], Say("reward:-2"))) as server:
        # Only where it matters: on a busy machine a good answer may take long too.
        judge = reward(server, seconds=0.4 if fault in ("late", "dripping") else 10.0)
        assert judge(prompts=["P"], completions=["R"]) == [-2.0]
        assert len(server.asked) == judge.stats.calls >= 2
    assert judge.stats.retried == judge.stats.calls - 1
    assert judge.stats.missing == 0
    assert judge.stats.calls == 2 or judge.seconds < 1


@pytest.mark.parametrize(
    ("say", "reason"),
    [
        (Say(status=500), "server_error"),
        (Say(status=429), "rate_limit"),
        (Say(raw=b"nonsense"), "garbled"),
        (Say("reward:good"), "garbled"),
        (Say(cut=True), "connection"),
        (Say(drop=True), "connection"),
        (Say(delay=0.9), "timeout"),
    ],
)
def test_a_fault_that_stays_is_a_missing_score_with_its_reason(say: Say, reason: str) -> None:
    """Three requests in all: the first and two retries. The other text is not affected."""
    with JudgeServer(lambda asked: say if asked.text == "bad" else Say("reward:-1")) as server:
        judge = reward(server, max_retries=2, seconds=0.3 if reason == "timeout" else 10.0)
        assert judge(prompts=["P"] * 3, completions=["bad", "good", "bad"]) == [None, -1.0, None]
        assert Counter(server.texts)["bad"] == 3
    assert judge.stats.missing == 2
    assert judge.stats.reasons == {reason: 2}
    assert len(judge.notes) == 1
    assert reason in judge.notes[0]


def test_a_slow_answer_within_the_time_is_an_answer() -> None:
    with JudgeServer(lambda asked: Say("reward:-3", delay=0.15)) as server:
        assert scored(server, ["1"], seconds=2.0) == [-3.0]
        assert len(server.asked) == 1


def test_a_server_that_is_not_there_costs_one_try_each_after_the_first_few() -> None:
    with JudgeServer() as server:
        url = server.url
    judge = RemoteReward(url=url, max_retries=2, max_concurrency=2, first_wait=0.001)
    assert judge(prompts=["P"] * 40, completions=[str(n) for n in range(40)]) == [None] * 40
    assert judge.stats.reasons == {"connection": 40}
    assert 40 <= judge.stats.calls <= 40 + 2 * 4  # only those under way before it was known were tried three times


def test_a_refused_text_is_not_asked_again() -> None:
    with JudgeServer(lambda asked: Say(status=400, raw=b'{"error": {"message": "context too long"}}')) as server:
        judge = reward(server)
        assert judge(prompts=["P"], completions=["long"]) == [None]
        assert len(server.asked) == 1
    assert judge.stats.reasons == {"refused": 1}
    assert "context too long" in judge.notes[0]


def test_the_wait_a_server_asks_for_is_kept_by_everyone() -> None:
    """The first request is told to wait 0.2 s: nothing is asked in that time, about the other texts neither."""
    with JudgeServer() as server:
        server.answer = lambda asked: (
            Say(status=429, headers={"Retry-After": "0.2"}) if len(server.asked) == 1 else by_text(asked)
        )
        assert scored(server, ["1", "2", "3"], max_concurrency=1) == [-1.0, -2.0, -3.0]
        first, *later = [asked.at for asked in server.asked]
    assert min(later) - first >= 0.2


def test_a_server_that_asks_for_an_hour_is_not_waited_for() -> None:
    with JudgeServer(lambda asked: Say(status=429, headers={"Retry-After": "3600"})) as server:
        judge = reward(server, max_concurrency=1)
        assert judge(prompts=["P"] * 5, completions=list("12345")) == [None] * 5
        assert len(server.asked) == 1
    assert judge.stats.reasons == {"rate_limit": 5}


@pytest.mark.parametrize("status", [307, 401, 402, 403, 404, 405])
def test_a_refusal_stops_at_once_and_says_what_to_do(status: int) -> None:
    body = b'{"error": {"message": "Incorrect API key provided: ' + KEY.encode() + b'"}}'
    headers = {"Location": "/v1/elsewhere"}
    with JudgeServer(lambda asked: Say(status=status, headers=headers, raw=body)) as server:
        with pytest.raises(EnvironmentFault) as caught:
            scored(server, [str(n) for n in range(50)], api_key=KEY, max_concurrency=2)
        assert len(server.asked) <= 4
        assert server.url in caught.value.what
    assert str(status) in caught.value.what
    assert caught.value.fix
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_with_errors_at_random_all_is_had_that_can_be_had() -> None:
    """30% of all requests fail in four ways, in a way that is the same in every run of this test.

    0.3^3 of 120 texts, about 3, fail three times in a row: those are missing, and every other score is right.
    """
    faults = [Say(status=500), Say(status=429), Say("reward:?"), Say(drop=True)]

    def fault(text: str, number: int) -> Say | None:
        chance = random.Random(f"{text} {number}")
        return chance.choice(faults) if chance.random() < 0.3 else None

    texts = [str(n) for n in range(1, 121)]
    lost = {text for text in texts if all(fault(text, number) for number in range(3))}
    assert 0 < len(lost) < 10
    with JudgeServer(lambda asked: fault(asked.text, asked.number) or by_text(asked)) as server:
        judge = reward(server, max_retries=2)
        scores = judge(prompts=["P"] * 120, completions=texts)
        assert judge.stats.calls == len(server.asked) == 120 + judge.stats.retried
    assert scores == [None if text in lost else -float(text) for text in texts]
    assert judge.stats.missing == judge.stats.reasons.total() == len(lost)


# --- budget and cache ------------------------------------------------------------------------------------


def test_the_budget_counts_requests_and_the_rest_is_missing(tmp_path: Path) -> None:
    """7 requests, two of them wasted on an error: 5 scores. The next object pays only for the other 5."""
    texts = [str(n) for n in range(1, 11)]
    with JudgeServer(in_turn(Say(status=500), Say("reward:-1"))) as server:
        server.answer = lambda asked: Say(status=500) if len(server.asked) in (1, 3) else by_text(asked)
        judge = reward(server, max_calls=7, max_concurrency=1, cache=tmp_path)
        scores = judge(prompts=["P"] * 10, completions=texts)
        assert len(server.asked) == judge.stats.calls == 7
        assert scores == [*(-float(text) for text in texts[:5]), *[None] * 5]
        assert judge.stats.reasons == {"budget": 5}
        assert judge(prompts=["P"] * 10, completions=texts) == scores  # cached ones stay free when nothing is left
        assert [note for note in judge.notes if "budget" in note] == judge.notes

        again = reward(server, max_calls=5, max_concurrency=1, cache=tmp_path)
        assert again(prompts=["P"] * 10, completions=texts) == [-float(text) for text in texts]
        assert (again.stats.calls, again.stats.cached, again.stats.missing) == (5, 5, 0)


def test_a_budget_of_nothing_sends_nothing() -> None:
    with JudgeServer() as server:
        assert scored(server, ["1"], max_calls=0) == [None]
        assert server.asked == []


def test_only_good_answers_are_kept_and_only_for_the_same_question(tmp_path: Path) -> None:
    with JudgeServer(in_turn(Say("reward:?"), Say("reward:-4"))) as server:
        assert scored(server, ["1"], cache=tmp_path, max_retries=0) == [None]
        assert scored(server, ["1"], cache=tmp_path) == [-4.0]
        assert scored(server, ["1"], cache=tmp_path) == [-4.0]
        assert len(server.asked) == 2
        scored(server, ["1"], cache=tmp_path, model="other")
        reward(server, cache=tmp_path)(prompts=["other"], completions=["1"])
        assert len(server.asked) == 2 + 2


@pytest.mark.parametrize("broken", ["file", "folder"])
def test_a_broken_cache_costs_no_score(tmp_path: Path, broken: str) -> None:
    place = tmp_path / "cache"
    if broken == "file":
        place.mkdir()
        (place / "answers.sqlite").write_bytes(b"this is no database" * 100)
    else:
        place.write_text("a file where the folder should be", encoding="utf-8")
    with JudgeServer(by_text) as server:
        judge = reward(server, cache=place)
        assert judge(prompts=["P"], completions=["2"]) == [-2.0]
        assert judge(prompts=["P"], completions=["3"]) == [-3.0]
    (note,) = judge.notes
    assert "not kept" in note


CHILD = """
    import sys
    from contrl.rewards.remote import RemoteReward
    judge = RemoteReward(url=sys.argv[1], cache=sys.argv[2], max_concurrency=3)
    texts = [str(n) for n in range(1, 31)]
    print(judge(prompts=["P"] * 30, completions=texts))
    print(judge.stats.calls)
"""


def test_killed_in_the_middle_and_started_again_it_asks_nothing_twice(tmp_path: Path) -> None:
    """The server answers 10 of 30 texts, then holds all 3 requests under way until the child is killed.

    The second child asks the 20 unanswered texts: 17 for the first time, 3 once more because they got no answer.
    """
    gate = threading.Event()
    command = [sys.executable, "-c", textwrap.dedent(CHILD)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    with JudgeServer() as server:
        server.answer = lambda asked: (
            Say(drop=True, until=gate) if len(server.asked) > 10 and not gate.is_set() else by_text(asked)
        )
        command += [server.url, str(tmp_path)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as child:
            deadline = time.monotonic() + 20
            while len(server.asked) < 13 and time.monotonic() < deadline:
                time.sleep(0.01)
            child.send_signal(signal.SIGKILL)
        gate.set()
        assert len(server.asked) == 13
        held = server.texts[10:]
        second = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True)
        assert Counter(server.texts) == {str(n): 2 if str(n) in held else 1 for n in range(1, 31)}
    assert second.stdout.splitlines() == [str([-float(n) for n in range(1, 31)]), "20"]


def test_ctrl_c_does_not_wait_for_a_slow_judge(tmp_path: Path) -> None:
    """The server holds every request for longer than this test would wait."""
    gate = threading.Event()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    with JudgeServer(lambda asked: Say(drop=True, until=gate)) as server:
        command = [sys.executable, "-c", textwrap.dedent(CHILD), server.url, str(tmp_path)]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, encoding="utf-8") as child:
            deadline = time.monotonic() + 20
            while len(server.asked) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            child.send_signal(signal.SIGINT)
            _, shown = child.communicate(timeout=10)
        gate.set()
    assert shown.splitlines()[-1] == "KeyboardInterrupt"


def test_the_example_of_the_documentation_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    with JudgeServer(lambda asked: Say("A" if "<answer A>" in asked.text else "reward:-2")) as server:
        code = code.replace("http://127.0.0.1:8000/v1", server.url) + "print(scores, calls, tokens, verdicts)"
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
        command = [sys.executable, "-c", code]
        ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8", check=True)
    assert ran.stdout.splitlines() == ["1 calls (0 retries), 0 from the cache, 0 missing []", "[-2.0] 1 4 [0.5]"]


def test_the_estimate_counts_what_would_be_asked(tmp_path: Path) -> None:
    """Texts "PP" + "1234567", twice, and "PP" + "x": 9 + 3 = 12 characters, 3 tokens. Then one of them is cached."""
    prompts, completions = ["PP"] * 3, ["1234567", "x", "1234567"]
    with JudgeServer() as server:
        judge = reward(server, cache=tmp_path)
        assert judge.estimate(prompts, completions) == (2, 3)
        assert server.asked == []
        judge(prompts=["PP"], completions=["1234567"])
        assert judge.estimate(prompts, completions) == (1, 1)


# --- keys and settings -----------------------------------------------------------------------------------


def test_the_key_is_in_nothing_that_is_written_or_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    echo = b'{"error": {"message": "not with ' + KEY.encode() + b'"}}'
    says = [Say(status=500, raw=echo), Say(raw=b" " * 190 + echo), Say("x" * 190 + KEY), Say(status=400, raw=echo)]
    with JudgeServer() as server:
        server.answer = lambda asked: by_text(asked) if asked.text == "5" else says[int(asked.text)]
        judge = reward(server, api_key=KEY, cache=tmp_path, max_retries=0)
        assert judge(prompts=["P"] * 5, completions=["5", *"0123"]) == [-5.0, *[None] * 4]
        assert len(judge.notes) == 3  # server_error, garbled, refused
        copies = [copy.deepcopy(judge), pickle.loads(pickle.dumps(judge))]
        assert [each(prompts=["P"], completions=["5"]) for each in copies] == [[-5.0], [-5.0]]
        assert pickle.dumps(judge).find(KEY.encode()) < 0
        assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
    shown = [repr(judge), str(vars(judge)), *judge.notes, str(judge.stats), caplog.text]
    assert [text for text in shown if KEY[:10] in text] == []
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []


def test_keys_of_the_environment_go_where_they_belong() -> None:
    both = {"NEMOTRON_API_KEY": "n", "OPENAI_API_KEY": "o"}
    assert judge_key(both) == "n"
    assert judge_key({**both, "NVIDIA_API_KEY": "first"}) == "first"
    assert judge_key(both, "https://judge.example/v1") == "o"
    assert judge_key(both, "http://127.0.0.1:8000/v1") == "o"
    assert judge_key(both, "http://judge.example/v1") is None  # readable on the way
    assert judge_key(both, "https://nvidia.com.example/v1") == "o"
    assert judge_key({"NVIDIA_API_KEY": "n"}, "https://judge.example/v1") is None
    assert judge_key({"NVIDIA_API_KEY": " "}) is None


def test_nvidia_is_the_default_when_there_is_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentFault, match="NVIDIA_API_KEY"):
        RemoteReward()
    assert RemoteReward(api_key=KEY).url == NVIDIA_URL
    monkeypatch.setenv("NEMOTRON_API_KEY", KEY)
    assert RemoteReward().url == NVIDIA_URL
    assert RemoteReward(url="http://localhost:8000/v1/chat/completions/").url == "http://localhost:8000/v1"


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "judge:8000"},
        {"url": "http://"},
        {"url": "http://host:port/v1"},
        {"url": "https://user:hunter2@host/v1"},
        {"url": "https://host/v1?key=hunter2"},
        {"api_key": "hunter2\nhunter3"},
        {"max_concurrency": 0},
        {"max_calls": -1},
        {"seconds": 0},
        {"model": ""},
        {"kind": "feeling"},
        {"kind": "grade", "template": "only {prompt}"},
    ],
)
def test_wrong_settings_are_refused_before_anything_is_asked(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        RemoteReward(**{"url": "http://127.0.0.1:1/v1", **fields})
    assert "hunter2" not in str(caught.value)
    assert caught.value.fix or caught.value.why


@pytest.mark.parametrize(("prompt", "completion"), [(None, "R"), ([], "R"), ("P", None), (["P"], "R")])
def test_what_is_no_text_is_refused(prompt: Any, completion: Any) -> None:
    with JudgeServer() as server:
        with pytest.raises(UserError):
            reward(server)(prompts=[prompt], completions=[completion])
        assert server.asked == []


def test_half_a_surrogate_pair_can_be_sent() -> None:
    with JudgeServer() as server:
        assert scored(server, ["a\ud83d"]) == [1.0]
        assert server.texts == ["a?"]


def test_without_the_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openai" else find(name))
    with pytest.raises(EnvironmentFault, match=r"pip install 'contrl\[judge\]'"):
        RemoteReward(url="http://127.0.0.1:1/v1")


def test_the_share_of_missing_scores_is_logged() -> None:
    logged: dict[str, float] = {}
    with JudgeServer(lambda asked: Say(status=400) if asked.text == "1" else by_text(asked)) as server:
        reward(server)(prompts=["P"] * 4, completions=list("1234"), log_metric=logged.__setitem__)
    assert logged == {"judge/missing": 0.25}


def test_among_several_rewards_a_missing_score_is_not_left_out_of_the_sum() -> None:
    """Length 1 with weight 2 and the judge's -3: -1; without the judge there is no sum, and not the sum of the rest."""
    with JudgeServer(lambda asked: Say(status=400) if asked.text == "9" else by_text(asked)) as server:
        both = Rewards.of([reward(server), lambda completions: [len(text) for text in completions]], [1.0, 2.0])
        assert both(prompts=["P"] * 2, completions=["3", "9"]) == [-1.0, None]
        assert both.is_costly


# --- pairs -----------------------------------------------------------------------------------------------


def compared(server: JudgeServer, first: list[str], second: list[str], **fields: Any) -> list[float | None]:
    judge = PairwiseJudge(url=server.url, template="{prompt}|{first}|{second}", first_wait=0.005, **fields)
    return judge.compare(["P"] * len(first), first, second)


def test_pairs_are_judged_in_both_orders() -> None:
    """The judge prefers the longer one; of equal length it names what stands first, which is no preference."""

    def longer(asked: Asked) -> Say:
        _, a, b = asked.text.split("|")
        return Say("[[A]]" if len(a) >= len(b) else "Verdict: **B**")

    with JudgeServer(longer) as server:
        assert compared(server, ["long", "x", "ab", "same"], ["s", "longer", "cd", "same"]) == [1.0, 0.0, 0.5, 0.5]
        assert len(server.asked) == 6  # equal texts need no judge


def test_a_pair_with_one_answer_has_no_verdict() -> None:
    with JudgeServer(lambda asked: Say("A") if asked.text == "P|x|y" else Say("cannot say")) as server:
        assert compared(server, ["x"], ["y"], max_retries=1) == [None]


def test_pairs_are_kept_budgeted_and_estimated(tmp_path: Path) -> None:
    """A tie in one order and a win in the other is a tie. 7 characters are two tokens by fours."""
    with JudgeServer(lambda asked: Say("tie" if asked.text == "P|xx|y" else "B")) as server:
        assert compared(server, ["xx"], ["y"], cache=tmp_path) == [0.5]
        assert compared(server, ["xx"], ["y"], cache=tmp_path, max_calls=0) == [0.5]
        assert compared(server, ["x"], ["y"], cache=tmp_path, max_calls=1) == [None]
        judge = PairwiseJudge(url=server.url, template="{prompt}|{first}|{second}", cache=tmp_path)
        assert judge.estimate(["P", "P", "P"], ["xx", "abc", "z"], ["y", "d", "z"]) == (2, 4)
        assert len(server.asked) == 3
