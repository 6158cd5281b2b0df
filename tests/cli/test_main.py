"""Help that is light and has examples, mistakes that become words and an exit code, pipes that close early."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from contrl import __version__
from contrl.cli.main import COMMANDS, GROUPS, main
from contrl.errors import EnvironmentFault, GuardStop, Interrupted, UserError
from tests.runs import ROOT, Runs, contrl, environment, write_config

HEAVY = ("torch", "transformers", "accelerate", "peft", "datasets", "numpy", "pyarrow", "rich")


# --- help ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], [], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    script = f"""if True:
        import sys
        from contrl.cli.main import main
        try:
            main({arguments!r})
        except SystemExit as end:
            assert end.code == 0
        print("LOADED", *[name for name in {HEAVY!r} if name in sys.modules])
    """
    outcome = subprocess.run(
        [sys.executable, "-c", script], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert outcome.stdout.rstrip().endswith("LOADED")


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [(["--help"], 0.3), (["run", "--help"], 0.5), (["demo", "--help"], 0.5), (["dpo", "--help-all"], 0.5)],
)
def test_help_is_quick(arguments: list[str], limit: float, tmp_path: Path) -> None:
    """Processor time beyond that of an empty Python, the best of three: other programs on the machine do not count."""

    def cost(command: list[str]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=environment(tmp_path), capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    empty = min(cost([sys.executable, "-c", "pass"]) for _ in range(3))
    helped = min(cost([sys.executable, "-m", "contrl", *arguments]) for _ in range(3))
    assert helped - empty < limit


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_every_help_has_examples(name: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"] if name else ["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    examples = text.partition("\nexamples:\n")[2]
    assert re.search(rf"^  contrl {name or 'demo'}", examples, flags=re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 120


def test_nested_commands_have_examples_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "countdown", "--help"])
    assert "examples:\n  contrl data countdown" in capsys.readouterr().out


def test_no_command_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    """At most 14 commands, in groups; ``--help-all`` has every one."""
    assert main([]) == 0
    text = capsys.readouterr().out
    shown = [name for names in GROUPS.values() for name in names]
    assert re.findall(r"^    (\w\S*) ", text, flags=re.MULTILINE) == shown
    assert re.findall(r"^(\w+):$", text, flags=re.MULTILINE) == [*GROUPS, "examples"]
    assert len(shown) <= 14
    assert main(["--help-all"]) == 0
    everything = capsys.readouterr().out
    assert all(f"\n    {name} " in everything for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"contrl {__version__}\n")


# --- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runn", "my.yaml"], "invalid choice: 'runn'"),
        (["run", "my.yaml", "--dryrun"], "did you mean --dry_run?"),
        (["demo", "--stratgies", "replay"], "did you mean --strategies?"),
        (["demo", "--method", "dpoo"], "invalid choice: 'dpoo'"),
        (["run"], "the following arguments are required: FILE.yaml"),
        (["data"], "the following arguments are required: KIND"),
        (["report", "a", "--open"], "unrecognized arguments: --open"),
    ],
)
def test_wrong_usage_is_exit_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that must end with 2 and without a traceback says."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    assert captured.err.startswith("error: ")
    return captured.err


def test_missing_things_are_named(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no file my.yaml" in mistake(capsys, "run", "my.yaml")
    assert "contrl demo --print_config > my.yaml" in mistake(capsys, "run", "my.yaml")
    for command in ("resume", "report"):
        assert "runs/none is not a run folder" in mistake(capsys, command, "runs/none")


def test_mistakes_of_a_configuration_are_told_together(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    """With file and line, and the nearest valid names."""
    text = """output_dir: runs/mine
model: tiny
method: {name: rlo}
tasks:
  - name: a
    data: missing.jsonl
    rewards: exact_match
training:
  learning_rate: fast
"""
    (runs.folder / "my.yaml").write_text(text, encoding="utf-8")
    said = mistake(capsys, "run", "my.yaml", "sed=1")
    for fragment in (
        "my.yaml:3: method: unknown method 'rlo'",
        "did you mean rloo?",
        "my.yaml:6: tasks.0.data: there is no file or folder 'missing.jsonl'",
        "my.yaml:7: tasks.0.rewards: unknown key",
        "did you mean reward?",
        "my.yaml:9: training.learning_rate",
        "command line: sed: unknown key",
        "did you mean seed?",
    ):
        assert fragment in said


def test_other_mistakes_before_anything_is_loaded(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write_config(runs.folder / "my.yaml", runs.config()))
    assert "'seed' is not an override" in mistake(capsys, "run", file, "seed")
    assert "use 8" in mistake(capsys, "run", file, "prompts_per_step=5", "training.gradient_accumulation_steps=8")
    assert "rloo needs a reward" in mistake(capsys, "run", file, "tasks.sums.reward=null")
    assert "there is no module 'not_there'" in mistake(capsys, "run", file, "tasks.0.reward=not_there:score")
    (runs.folder / "broken.yaml").write_text("a: [", encoding="utf-8")
    assert "broken.yaml:" in mistake(capsys, "run", "broken.yaml")
    (runs.folder / "runs").mkdir()
    assert "this file cannot be read" in mistake(capsys, "run", "runs")
    assert "rows were asked for, but" in mistake(
        capsys,
        "data",
        "countdown",
        "--output_dir",
        "d",
        "--groups",
        "plus",
        "--max_number",
        "3",
        "--target_range",
        "1",
        "9",
    )
    assert not (runs.folder / "run").exists()
    assert not (runs.folder / "d").exists()


def test_what_the_machine_lacks_is_exit_4(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write_config(runs.folder / "my.yaml", runs.config()))
    assert main(["run", file, "model=nobody/nothing"]) == 4
    said = capsys.readouterr().err
    assert "the model 'nobody/nothing' is no folder and could not be had from the hub" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("what", fix="how"), 2, "error: what\n  how\n"),
        (EnvironmentFault("what"), 4, "error: what\n"),
        (GuardStop("what"), 5, "error: what\n"),
        (Interrupted("stopped", signum=2, fix="continue"), 130, "stopped\n  continue\n"),
        (Interrupted("stopped", signum=15), 143, "stopped\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_every_error_has_its_exit_code(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import contrl.cli.report as command

    def fail(options: object) -> int:
        raise error

    monkeypatch.setattr(command, "command", fail)
    assert main(["report", "run"]) == code
    assert capsys.readouterr().err == said


def test_one_process_of_a_machine_tells_the_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, expected in (("0", True), ("1", False)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert main(["report", "nowhere"]) == 2
        assert bool(capsys.readouterr().err) == expected


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(UserError, match="not a run folder"):
        main(["report", "nowhere", "--debug"])


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    import contrl.cli.report as command

    monkeypatch.setattr(command, "command", lambda options: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(["report", "run"])


# --- overrides and pipes ------------------------------------------------------------------------------


def test_overrides_may_follow_flags(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write_config(runs.folder / "my.yaml", runs.config()))
    assert main(["run", file, "seed=1", "--dry_run", "rounds=3", "--save_total_limit", "2", "seed=4"]) == 0
    told = dict(re.findall(r"^(\S+) += (\S+)", capsys.readouterr().out, flags=re.MULTILINE))
    assert (told["seed"], told["rounds"], told["training.save_total_limit"]) == ("4", "3", "2")


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--print_config"], ["demo", "--dry_run"]])
def test_a_closed_pipe_is_no_traceback(arguments: list[str], tmp_path: Path) -> None:
    """As in `contrl ... | head -1`, but the reader is gone before the first line."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        outcome = subprocess.run(
            [sys.executable, "-m", "contrl", *arguments],
            stdout=pipe,
            stderr=subprocess.PIPE,
            env=environment(tmp_path),
            text=True,
            check=False,
        )
    assert outcome.stderr == ""
    # argparse does not mind a closed pipe, everything else ends with 1.
    assert outcome.returncode == 1 or arguments == ["--help"]


def test_the_module_runs_like_the_command(tmp_path: Path) -> None:
    """``python -m contrl``, which torchrun and accelerate launch use."""
    outcome = contrl(["--version"], tmp_path)
    assert (outcome.returncode, outcome.stdout) == (0, f"contrl {__version__}\n")
    assert (ROOT / "src" / "contrl" / "__main__.py").exists()


def test_a_dry_run_of_the_command_writes_nothing(runs: Runs) -> None:
    file = write_config(runs.folder / "my.yaml", runs.config())
    outcome = contrl(["run", file, "--dry_run"], runs.folder)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == ""
    assert [path.name for path in runs.folder.iterdir()] == ["my.yaml"]
    assert json.loads(file.read_text(encoding="utf-8")) == runs.config()
