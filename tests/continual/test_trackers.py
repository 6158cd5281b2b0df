"""Real stages of a toy model with real trackers, whose files are read back: W&B's records, TensorBoard's events."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from contrl.continual import tracker_kinds
from contrl.continual.logs import MetricsLog
from contrl.continual.run_folder import RunFolder
from contrl.continual.tracker_kinds import WANDB_SURROUNDINGS
from contrl.continual.trackers import Trackers
from contrl.errors import UserError
from contrl.interfaces import Stage
from contrl.methods.sft import SFT
from tests.engine.toys import Setup, make_engine, policy, sft_rows

START, FIRST, SECOND, AGAIN = Stage(0, ()), Stage(1, ("sums",)), Stage(2, ("doubles",)), Stage(3, ("sums",), round=2)
STEPS = 2
CHECKPOINTS = [f"checkpoint_global_step_{step}" for step in (1, 2, 3, 4)]


class World:
    """A run folder called pilot, trained stage by stage, and the lines that were said."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.folder, self.said = RunFolder(path), list[str]()

    def trackers(self, report_to: str | list[str], run_name: str | None = None, **config: Any) -> Trackers:
        return Trackers.of(report_to, self.folder, run_name, config, self.said.append)

    def train(self, trackers: Trackers, stage: Stage) -> list[float]:
        """The losses of the stage's steps, as the runner would train, journal and score it."""
        setup = Setup(SFT(), sft_rows(4), prompts_per_step=2, num_steps=STEPS)
        engine = make_engine(policy(), self.folder.stage(stage), setup)
        for callback in (MetricsLog(self.folder, stage), trackers.stage(stage)):
            engine.add_callback(callback)
        engine.fit()
        self.folder.mark(stage.index, "trained", steps=STEPS)
        self.score(trackers, stage)
        return [record["loss"] for record in engine.state.log_history if "loss" in record]

    def score(self, trackers: Trackers, stage: Stage) -> None:
        scores: dict[str, float | None] = {"sums": 0.25 + stage.index, "doubles": 0.5 + stage.index, "unjudged": None}
        records = ({"stage": stage.index, "task": task, "metric": "logp", "value": v} for task, v in scores.items())
        self.folder.append("scores.jsonl", *records)
        trackers.scores(stage)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Nothing of the developer's own W&B: no key, no login, no settings; W&B's process lives as long as the test."""
    for name in ("API_KEY", "IDENTITY_TOKEN_FILE", "MODE", "PROJECT", "NAME", "DIR", "RUN_ID", "BASE_URL"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name, value in WANDB_SURROUNDINGS.items():
        monkeypatch.setenv(name, value)
    for name in ("HOME", "XDG_CONFIG_HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    yield World(tmp_path / "pilot")
    wandb.teardown()


# --- W&B ------------------------------------------------------------------------------------------------


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB, whole or first / middle / last pieces)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, piece = path.read_bytes(), 7, b""  # seven bytes of W&B's own come first
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        chunk = data[place + 7 : place + 7 + size]
        piece, place = chunk if kind in (1, 2) else piece + chunk, place + 7 + size
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(piece)
            yield record


def offline_files(world: World) -> list[Path]:
    """W&B's logs, oldest first, once its process has ended: ``finish`` returns a moment before they are flushed."""
    wandb.teardown()
    return sorted(world.folder.path.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)


def history(path: Path) -> list[dict[str, Any]]:
    """What was logged, record by record."""
    found = [record.history for record in wandb_records(path) if record.HasField("history")]
    return [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in entry.item} for entry in found]


def runs_in(path: Path) -> list[Any]:
    return [record.run for record in wandb_records(path) if record.HasField("run")]


def test_an_experiment_of_two_tasks_and_a_second_round_is_one_wandb_run(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    """Three stages of two steps: global steps 1 and 2, 3 and 4, 5 and 6; scores at 0, 2, 4 and 6."""
    trackers = world.trackers("wandb", learning={"rate": 0.5, "hub_token": "hf_secret"})
    world.score(trackers, START)
    losses = [loss for stage in (FIRST, SECOND, AGAIN) for loss in world.train(trackers, stage)]
    trackers.close()

    (path,) = offline_files(world)
    (run,) = runs_in(path)
    assert (run.project, run.display_name) == ("huggingface", "pilot")

    records = history(path)
    steps = [record["train/global_step"] for record in records]
    assert steps == sorted(steps)
    trained = [record for record in records if "train/loss" in record]
    keys = ("train/global_step", "train/stage", "train/round", "train/task")
    place = [tuple(record[key] for key in keys) for record in trained]
    assert place == [
        (1, 1, 1, "sums"),
        (2, 1, 1, "sums"),
        (3, 2, 1, "doubles"),
        (4, 2, 1, "doubles"),
        (5, 3, 2, "sums"),
        (6, 3, 2, "sums"),
    ]
    assert [record["train/loss"] for record in trained] == pytest.approx(losses)
    assert all(set(keys) <= set(record) for record in records)

    judged = {record["train/global_step"]: record for record in records if "eval/sums/logp" in record}
    assert {step: record["eval/sums/logp"] for step, record in judged.items()} == {0: 0.25, 2: 1.25, 4: 2.25, 6: 3.25}
    assert judged[0]["train/task"] == "start"
    assert judged[6]["eval/doubles/logp"] == 3.5
    assert not any("unjudged" in key for record in records for key in record)

    contents = path.read_bytes()
    assert b'"rate":0.5' in contents.replace(b" ", b"")
    assert b"hf_secret" not in contents
    assert [line for line in world.said if "offline" in line and "WANDB_API_KEY" in line] == world.said
    assert len(world.said) == 1
    assert "wandb" not in "".join(capfd.readouterr()).lower()
    assert not Path("wandb").exists()  # in the working directory


def test_a_resumed_experiment_goes_on_in_its_wandb_run(world: World) -> None:
    """The second process continues the id, the global step and, above the first's, W&B's own record number."""
    for stage in (FIRST, SECOND):
        trackers = world.trackers(["wandb"])
        world.train(trackers, stage)
        trackers.close()
        wandb.teardown()
    before, after = offline_files(world)
    assert {run.run_id for path in (before, after) for run in runs_in(path)} == {runs_in(before)[0].run_id}
    assert [r["train/global_step"] for r in history(after) if "train/loss" in r] == [3, 4]
    assert history(after)[0]["_step"] > history(before)[-1]["_step"]


def test_what_the_user_says_about_wandb_counts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "forgetting")
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers = world.trackers("wandb", run_name="seven")
    world.train(trackers, FIRST)
    trackers.close()
    (run,) = runs_in(offline_files(world)[0])
    assert (run.project, run.display_name) == ("forgetting", "seven")
    assert "as WANDB_MODE says" in world.said[0]


def test_a_wandb_run_that_the_user_has_opened_is_used_and_left_open(world: World) -> None:
    own = wandb.init(project="mine", dir=str(world.folder.path), mode="offline")
    trackers = world.trackers("wandb")
    world.train(trackers, FIRST)
    trackers.close()
    assert wandb.run is own
    own.finish()
    (path,) = offline_files(world)
    assert [run.project for run in runs_in(path)] == ["mine"]
    assert [r["train/global_step"] for r in history(path) if "train/loss" in r] == [1, 2]


def test_a_server_that_cannot_be_reached_means_offline(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a key W&B would go online; nothing listens at port 9 here, so it is started offline at once."""
    key = "0123456789" * 4
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    trackers = world.trackers("wandb")
    assert len(world.train(trackers, FIRST)) == STEPS
    trackers.close()
    assert "W&B runs offline" in world.said[0]
    assert [r["train/global_step"] for r in history(offline_files(world)[0]) if "train/loss" in r] == [1, 2]
    written = [path for path in world.folder.path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in written if key.encode() in path.read_bytes()]
    assert not any(key in line for line in world.said)


def test_a_service_that_does_not_stop_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in whose teardown waits for ever, as W&B's once did: bounded, and told as what it is."""
    never = threading.Event()
    monkeypatch.setattr(tracker_kinds, "STOP_SECONDS", 0.05)
    with pytest.raises(TimeoutError, match="W&B's service does not stop"):
        tracker_kinds._teardown(SimpleNamespace(teardown=never.wait))
    never.set()
    tracker_kinds._teardown(SimpleNamespace(teardown=lambda: None))


def test_a_login_in_the_netrc_file_is_a_key(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a login W&B is not told to be offline, so it tries its server, here one that is not there."""
    key = "0123456789" * 4
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1:9 login user password {key}\n", encoding="utf-8")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    trackers = world.trackers("wandb")
    world.train(trackers, FIRST)
    trackers.close()
    assert "W&B runs offline (127.0.0.1 cannot be reached" in world.said[0]


@pytest.mark.parametrize(
    ("when", "kept"),
    [("false", []), ("end", ["final_model"]), ("checkpoint", [*CHECKPOINTS, "final_model"])],
)
def test_models_are_kept_as_artifacts_when_that_is_asked_for(
    world: World, monkeypatch: pytest.MonkeyPatch, when: str, kept: list[str]
) -> None:
    """Two stages of two steps with a checkpoint at each: global steps 1 to 4; the final model once it is there."""
    monkeypatch.setenv("WANDB_LOG_MODEL", when)
    trackers = world.trackers("wandb", run_name="dpo tiny")
    for stage in (FIRST, SECOND):
        training = {"save_strategy": "steps", "save_steps": 1}
        setup = Setup(SFT(), sft_rows(4), prompts_per_step=2, num_steps=STEPS, training=training)
        engine = make_engine(policy(), world.folder.stage(stage), setup)
        engine.add_callback(trackers.stage(stage))
        engine.fit()
        world.folder.mark(stage.index, "trained", steps=STEPS)
    world.folder.publish_model(world.folder.stage(SECOND) / "checkpoint-2")
    trackers.close()
    found = [record.artifact for record in wandb_records(offline_files(world)[0]) if record.HasField("artifact")]
    assert [alias for artifact in found for alias in artifact.aliases if alias != "latest"] == kept
    assert {(artifact.name, artifact.type) for artifact in found} == ({("model-dpo-tiny", "model")} if kept else set())
    for artifact in found:
        assert {"config.json", "model.safetensors"} <= {entry.path for entry in artifact.manifest.contents}


def test_a_run_that_was_stopped_has_no_final_model(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_LOG_MODEL", "end")
    trackers = world.trackers("wandb")
    world.train(trackers, FIRST)
    trackers.close()
    assert not [record for record in wandb_records(offline_files(world)[0]) if record.HasField("artifact")]


def test_a_table_is_shown_in_wandb(world: World) -> None:
    trackers = world.trackers("wandb")
    arguments = TrainingArguments(output_dir=str(world.folder.path), report_to="none", use_cpu=True)
    trackers.begin(arguments, TrainerState(is_world_process_zero=True), {})
    trackers.table("models", ("model", "win_rate"), [["sft", 0.5], ["dpo", None]])
    trackers.close()
    (path,) = offline_files(world)
    (place,) = path.parent.glob("files/media/table/models*.table.json")
    table = json.loads(place.read_text(encoding="utf-8"))
    assert (table["columns"], table["data"]) == (["model", "win_rate"], [["sft", 0.5], ["dpo", None]])


# --- TensorBoard ----------------------------------------------------------------------------------------


def events(world: World) -> EventAccumulator:
    """The one TensorBoard run of the folder."""
    (place,) = {path.parent for path in world.folder.path.rglob("events.out.tfevents.*")}
    assert place == world.folder.path / "runs" / "pilot"
    return EventAccumulator(str(place)).Reload()


def scalars(found: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(name)]


def test_tensorboard_gets_one_run_with_global_steps(world: World) -> None:
    trackers = world.trackers("tensorboard")
    world.score(trackers, START)
    losses = [loss for stage in (FIRST, AGAIN) for loss in world.train(trackers, stage)]
    trackers.close()
    found = events(world)
    steps, values = zip(*scalars(found, "train/loss"), strict=True)
    assert steps == (1, 2, 3, 4)
    assert values == pytest.approx(losses, rel=1e-5)
    assert scalars(found, "eval/sums/logp") == [(0, 0.25), (2, 1.25), (4, 3.25)]
    rounds = dict(scalars(found, "train/round"))
    assert [rounds[step] for step in (1, 2, 3, 4)] == [1, 1, 2, 2]
    assert {event.step for event in found.Tensors("train/task/text_summary")} == {0, 1, 2, 3, 4}
    assert world.said == []


def test_tensorboard_goes_on_where_a_resumed_run_goes_on(world: World) -> None:
    """A stage that is trained anew after a crash takes back what it had logged: each step has one loss."""
    lost = world.trackers("tensorboard")
    world.train(lost, FIRST)
    lost.close()
    (world.folder.path / "journal.jsonl").unlink()
    trackers = world.trackers("tensorboard")
    losses = world.train(trackers, FIRST)
    trackers.close()
    steps, values = zip(*scalars(events(world), "train/loss"), strict=True)
    assert steps == (1, 2)
    assert values == pytest.approx(losses, rel=1e-5)


def test_scores_that_come_after_all_training_are_logged_as_well(world: World) -> None:
    """Killed between the last stage's training and its evaluation: the second process trains nothing."""
    world.folder.mark(1, "trained", steps=7)
    trackers = world.trackers("tensorboard")
    world.score(trackers, FIRST)
    trackers.close()
    trackers.close()
    assert scalars(events(world), "eval/doubles/logp") == [(7, 1.5)]


# --- guests ---------------------------------------------------------------------------------------------


class Fragile(TrainerCallback):
    """A tracker that fails at one event and tries to stop the training at every other."""

    at = "on_log"
    seen: list[str]

    def __init__(self) -> None:
        type(self).seen = []
        if self.at == "__init__":
            raise RuntimeError("Fragile requires fragile to be installed")

    def _happen(self, event: str, control: Any) -> None:
        self.seen.append(event)
        control.should_training_stop = True
        if event == self.at:
            raise RuntimeError(f"{event} went wrong")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._happen("on_train_begin", control)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._happen("on_log", control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._happen("on_train_end", control)


@pytest.mark.parametrize("at", ["on_train_begin", "on_log", "on_train_end"])
def test_a_tracker_that_raises_is_dropped_and_the_run_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "fragile", Fragile)
    monkeypatch.setattr(Fragile, "at", at)
    trackers = world.trackers("fragile,tensorboard")
    for stage in (FIRST, SECOND):
        assert len(world.train(trackers, stage)) == STEPS
    trackers.close()
    assert world.said == [f"tracker  fragile failed and is off from here on: RuntimeError: {at} went wrong"]
    assert Fragile.seen.count(at) == 1
    assert [step for step, _ in scalars(events(world), "train/loss")] == [1, 2, 3, 4]


def test_set_up_and_end_happen_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "fragile", Fragile)
    monkeypatch.setattr(Fragile, "at", "never")
    trackers = world.trackers("fragile")
    for stage in (FIRST, SECOND):
        world.train(trackers, stage)
    trackers.close()
    assert (Fragile.seen[0], Fragile.seen[-1]) == ("on_train_begin", "on_train_end")
    assert Fragile.seen.count("on_train_begin") == Fragile.seen.count("on_train_end") == 1


def test_a_tracker_that_is_not_installed_is_named_with_its_remedy(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "fragile_ml", Fragile)
    monkeypatch.setattr(Fragile, "at", "__init__")
    trackers = world.trackers("fragile_ml")
    assert len(world.train(trackers, FIRST)) == STEPS
    trackers.close()
    (line,) = world.said
    assert "fragile_ml cannot be used" in line
    assert "pip install fragile-ml" in line


def test_an_unknown_tracker_is_a_mistake_with_the_nearest_name(world: World) -> None:
    with pytest.raises(UserError, match=r"no tracker is called 'wandbb'\n  wandb\?"):
        world.trackers(["tensorboard", "wandbb"])


@pytest.mark.parametrize("report_to", ["none", "", []])
def test_nobody_asked_means_no_file(world: World, report_to: str | list[str]) -> None:
    trackers = world.trackers(report_to)
    world.train(trackers, FIRST)
    trackers.close()
    left = {path.name for path in world.folder.path.iterdir()}
    assert left <= {"metrics.jsonl", "journal.jsonl", "scores.jsonl", "stages"}
    assert world.said == []


def test_a_rank_that_does_not_write_tracks_nothing(world: World) -> None:
    world.folder.writes = False
    trackers = world.trackers("tensorboard")
    world.train(trackers, FIRST)
    trackers.close()
    assert not list(world.folder.path.rglob("events.*"))
