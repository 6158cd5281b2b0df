"""Chains of steps that only write a file: what is run, skipped, continued, refused and deleted, and in which order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contrl import faults
from contrl.errors import Interrupted, UserError
from contrl.pipeline.carry_out import carry_out, plan
from contrl.pipeline.state import State
from contrl.pipeline.steps import Step
from tests.pipeline.chains import Chain

GIVEN = {"a": "base", "b": "step:a +1", "b/eval": "step:b", "c": "other"}


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.setattr(faults, "_armed", {})
    return Chain(tmp_path / "out")


def run(chain: Chain, steps: list[Step], **options: Any) -> list[str]:
    """The lines that were said; ``chain.ran`` holds the steps of this start only."""
    chain.ran.clear()
    said: list[str] = []
    carry_out(steps, chain.folder, said.append, again="contrl run p.yaml", **options)
    return said


def test_each_step_gets_what_the_one_before_made(chain: Chain) -> None:
    said = run(chain, chain.steps(GIVEN))
    assert chain.ran == ["a", "b", "b/eval", "c"]
    assert [chain.wrote(name) for name in GIVEN] == ["base", "base +1", "base +1", "other"]
    assert said == [
        "step 1/4 a: teach, run",
        "step 2/4 b: teach, using a, run",
        "step 3/4 b/eval: judge, using b, run",
        "step 4/4 c: teach, run",
    ]
    kept = json.loads((chain.folder / "pipeline.json").read_text(encoding="utf-8"))["steps"]
    assert [(step["name"], step["model"], step["finished"]) for step in kept] == [
        ("a", "base", True),
        ("b", "base via a", True),
        ("b/eval", "base via b", True),
        ("c", "other", True),
    ]
    assert kept[2]["numbers"] == {"win_rate": 0.75, "missing": 0}


def test_what_is_finished_is_not_run_again(chain: Chain) -> None:
    run(chain, chain.steps(GIVEN))
    said = run(chain, chain.steps(GIVEN))
    assert chain.ran == []
    assert said[1] == "step 2/4 b: teach, using a, finished"


def test_a_changed_step_makes_the_ones_after_it_run_anew_once_that_is_allowed(chain: Chain) -> None:
    run(chain, chain.steps(GIVEN))
    changed = chain.steps({**GIVEN, "a": "base2"})
    with pytest.raises(UserError) as refused:
        run(chain, changed)
    assert chain.ran == []
    assert refused.value.what == "3 of the steps must run anew, and their folders are not empty"
    assert [line.partition(" (")[0].strip() for line in refused.value.why.splitlines()] == [
        "a: its settings changed",
        "b: a changed",
        "b/eval: it lies in the folder of b",
    ]
    assert "--overwrite_output_dir" in refused.value.fix
    (chain.folder / "b" / "old").write_text("left by the step as it was", encoding="utf-8")
    run(chain, changed, overwrite=True)
    assert chain.ran == ["a", "b", "b/eval"]
    assert chain.wrote("b/eval") == "base2 +1"
    assert not (chain.folder / "b" / "old").exists()
    assert run(chain, changed)[0] == "step 1/4 a: teach, finished"


def test_a_change_at_the_end_leaves_what_is_before(chain: Chain) -> None:
    run(chain, chain.steps(GIVEN))
    run(chain, chain.steps({**GIVEN, "b/eval": "step:b again"}), overwrite=True)
    assert chain.ran == ["b/eval"]


def test_new_steps_are_run_beside_finished_ones(chain: Chain) -> None:
    run(chain, chain.steps({"a": "base"}))
    run(chain, chain.steps(GIVEN))
    assert chain.ran == ["b", "b/eval", "c"]
    run(chain, chain.steps({"a": "base"}))
    run(chain, chain.steps(GIVEN))
    assert chain.ran == []


def test_a_failing_step_ends_the_pipeline_and_says_how_to_go_on(chain: Chain) -> None:
    def fail() -> None:
        raise UserError("the rows are missing", fix="bring them")

    with pytest.raises(UserError) as failed:
        run(chain, chain.steps(GIVEN, b=fail))
    assert chain.ran == ["a", "b"]
    assert str(failed.value) == (
        "the rows are missing\n  bring them\n  this is step b; "
        "what is finished is kept; continue with the same command: contrl run p.yaml"
    )
    said = run(chain, chain.steps(GIVEN))
    assert chain.ran == ["b", "b/eval", "c"]
    assert said[1] == "step 2/4 b: teach, using a, continued: it was begun"


def test_a_request_to_stop_names_the_command_of_the_pipeline(chain: Chain) -> None:
    def stop() -> None:
        raise Interrupted("stopped on request", signum=2, fix="continue with: contrl resume x")

    with pytest.raises(Interrupted) as stopped:
        run(chain, chain.steps(GIVEN, b=stop))
    assert stopped.value.exit_code == 130
    assert "contrl resume" not in str(stopped.value)
    assert "contrl run p.yaml" in str(stopped.value)


@pytest.mark.parametrize("visit", range(1, 5))
def test_killed_between_any_two_steps_the_next_start_goes_on(chain: Chain, visit: int) -> None:
    faults.arm("between_steps", visit)
    with pytest.raises(faults.Killed):
        run(chain, chain.steps(GIVEN))
    first = list(chain.ran)
    run(chain, chain.steps(GIVEN))
    assert [*first, *chain.ran] == list(GIVEN)
    assert chain.wrote("b/eval") == "base +1"


def test_killed_in_the_middle_of_a_change_the_change_goes_on(chain: Chain) -> None:
    """The old folder is gone and the new record written: no permission is asked for twice."""
    run(chain, chain.steps(GIVEN))
    changed = {**GIVEN, "b": "step:a +2"}

    def die() -> None:
        raise faults.Killed("here")

    with pytest.raises(faults.Killed):
        run(chain, chain.steps(changed, b=die), overwrite=True)
    run(chain, chain.steps(changed))
    assert chain.ran == ["b", "b/eval"]
    assert chain.wrote("b") == "base +2"


def test_a_folder_that_nobody_knows_is_not_written_to(chain: Chain) -> None:
    stranger = chain.folder / "a" / "thesis.txt"
    stranger.parent.mkdir(parents=True)
    stranger.write_text("do not touch", encoding="utf-8")
    with pytest.raises(UserError, match="its folder holds something else"):
        run(chain, chain.steps(GIVEN))
    assert stranger.exists()
    assert not (chain.folder / "pipeline.json").exists()


def test_a_finished_model_that_was_deleted_is_made_again(chain: Chain) -> None:
    run(chain, chain.steps(GIVEN))
    (chain.folder / "c" / "final" / "config.json").unlink()
    (chain.folder / "c" / "final").rmdir()
    (chain.folder / "c").rmdir()
    assert run(chain, chain.steps(GIVEN))[3] == "step 4/4 c: teach, run: its folder is gone"
    assert chain.ran == ["c"]


def test_an_evaluation_shares_its_folder_with_the_judged_answers_of_the_run(chain: Chain) -> None:
    """A run keeps eval/1-task.parquet; an evaluation called RUN/eval neither minds it nor deletes it."""

    def as_a_run() -> None:
        (chain.folder / "b" / "run.json").write_text("{}", encoding="utf-8")
        (chain.folder / "b" / "eval").mkdir()
        (chain.folder / "b" / "eval" / "1-sums.parquet").write_text("answers", encoding="utf-8")
        (chain.folder / "b" / "eval" / "start-0.safetensors").write_text("scores", encoding="utf-8")

    run(chain, chain.steps(GIVEN, b=as_a_run))
    assert chain.ran == ["a", "b", "b/eval", "c"]
    run(chain, chain.steps({**GIVEN, "b/eval": "step:b twice"}), overwrite=True)
    assert chain.ran == ["b/eval"]
    assert (chain.folder / "b" / "eval" / "1-sums.parquet").exists()
    assert chain.wrote("b/eval") == "base +1 twice"


def test_a_step_in_the_folder_of_one_that_runs_anew_runs_anew_with_it(chain: Chain) -> None:
    """It uses nothing of the step around it, but its folder goes with that one's."""
    given = {"a": "base", "a/eval": "else"}
    run(chain, chain.steps(given))
    with pytest.raises(UserError, match="a/eval: it lies in the folder of a"):
        run(chain, chain.steps({**given, "a": "base2"}))
    run(chain, chain.steps({**given, "a": "base2"}), overwrite=True)
    assert chain.ran == ["a", "a/eval"]


def test_seconds_add_up_over_starts(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two failing starts of 2 s and the one that succeeds: 6 s."""
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr("contrl.pipeline.carry_out.time.monotonic", lambda: next(clock))

    def fail() -> None:
        raise UserError("no")

    for _ in range(2):
        with pytest.raises(UserError):
            run(chain, chain.steps({"a": "base"}, a=fail))
    run(chain, chain.steps({"a": "base"}))
    assert State(chain.folder).records["a"].seconds == 6.0


def test_a_plan_tells_every_step_and_writes_nothing(chain: Chain) -> None:
    steps, said = chain.steps({**GIVEN, "d": "step:a step:c"}), list[str]()
    plan(steps, chain.folder, said.append)
    assert not chain.folder.exists()
    assert [line.partition(":")[0] for line in said if line.startswith("step")] == [
        f"step {i}/5 {name}" for i, name in enumerate([*GIVEN, "d"], start=1)
    ]
    # What comes before does not exist: planned with the model that all begins with; d waits for the model of c.
    assert chain.planned == ["a", "b from base", "b/eval from base", "c"]
    assert "         checked; steps, memory and disk are told once a and c has made its model" in said
    run(chain, steps)
    run(chain, chain.steps(GIVEN))
    said.clear()
    chain.planned.clear()
    plan(chain.steps({**GIVEN, "c": "changed"}), chain.folder, said.append)
    assert chain.planned == ["c"]
    assert "step 4/4 c: teach, run anew: its settings changed" in said


def test_a_damaged_record_is_told(chain: Chain) -> None:
    chain.folder.mkdir()
    for text in ("{", "[]", '{"schema_version": 2, "steps": []}', '{"schema_version": 1, "steps": [{"name": "a"}]}'):
        (chain.folder / "pipeline.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"pipeline\.json: this file cannot be read"):
            State(chain.folder)
