"""The first Ctrl-C or SIGTERM: what is being done is finished and saved, and the run continues as if nothing was."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from contrl.errors import Interrupted
from contrl.launch import Options, resume
from tests import plugins
from tests.runs import REPLAY, Runs, events, remains

# The reward is called for two evaluations before training, then once or twice a step, then for two evaluations:
# calls 1, 2 | 3, 4, 5, 6 | 7, 8 | 9, 10 (current and replayed) ...
MOMENTS = {"the first evaluation": 1, "sampling": 4, "the last step": 6, "an evaluation": 7, "stage 2": 11}


def config(runs: Runs) -> dict[str, Any]:
    found = runs.config(strategies=[REPLAY])
    for task in found["tasks"]:
        task["reward"] = "tests.plugins:digits_asking_to_stop"
    return found


@pytest.fixture(scope="module")
def uninterrupted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = Runs(world, tmp_path_factory.mktemp("whole"))
    return remains(runs.start(config(runs)))


@pytest.mark.parametrize(
    ("moment", "signum"),
    [
        ("sampling", signal.SIGTERM),
        ("an evaluation", signal.SIGINT),
        pytest.param("the first evaluation", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("the last step", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("stage 2", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_ends_like_an_uninterrupted_one(
    runs: Runs, uninterrupted: dict[str, Any], monkeypatch: pytest.MonkeyPatch, moment: str, signum: int
) -> None:
    monkeypatch.setattr(plugins, "calls", 0)
    monkeypatch.setenv("ASK_AT", str(MOMENTS[moment]))
    monkeypatch.setenv("ASK_BY", str(int(signum)))
    run = runs.folder / "run"
    with pytest.raises(Interrupted) as stopped:
        runs.start(config(runs))
    assert stopped.value.exit_code == 128 + signum
    assert stopped.value.fix == f"continue with: contrl resume {run}"
    assert "finishing the step and saving; once more stops at once" in runs.said
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["status"] == "interrupted"
    if moment == "sampling":
        assert (run / "stages" / "1-sums" / "checkpoint-2").is_dir(), "the step it came in is saved"
    assert resume(run, Options(say=runs.said.append)) == run
    assert remains(run) == uninterrupted
    taken_up = {"sampling": [(1, "checkpoint-2")], "stage 2": [(2, "checkpoint-2")]}
    found = [(event["stage"], event["checkpoint"]) for event in events(run, "resumed_from")]
    assert found == taken_up.get(moment, [])
