"""``contrl sft|reward|dpo|...``: flags, files, help and mistakes; what runs, runs on a tiny model.

The tables are tested for every command, the rest for those that do not sample; test_train_online.py has the others.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from contrl.cli.main import TRAINING, main
from contrl.cli.origins import FORWARDED, ORIGINS
from contrl.cli.training.declared import fields_of, known
from contrl.cli.training.online import is_online
from contrl.cli.training.request import default_folder, read
from contrl.cli.training.table import ALIASES, COMMANDS, flags_of
from contrl.config import ModelConfig, RewardsConfig, RunConfig, load
from contrl.config.training import OWNED, training_arguments
from contrl.config.walk import parameters
from contrl.continual import results
from contrl.errors import ConfigErrors
from contrl.experiment import METHODS, find
from contrl.training_fields import TRAINING_FIELDS
from tests.runs import ROOT, Runs

MINIMAL = ("--model_name_or_path", "tiny", "--dataset_name", "rows.jsonl")


# --- the tables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_fields_read_from_the_source_are_those_of_the_class(name: str) -> None:
    """Names, types and defaults, in order; nothing was imported to know them."""
    assert known("METHODS") == METHODS
    real = parameters(find("method", name))[0]
    read = fields_of(METHODS[name])
    assert list(read) == list(real)
    for field, parameter in read.items():
        assert (field, parameter.annotation) == (field, real[field].annotation)
        assert (field, parameter.default) == (field, real[field].default)


def test_most_fields_have_a_meaning() -> None:
    """A field without one shows its type instead; of each method it is the exception."""
    for name in COMMANDS:
        silent = [field for field, parameter in fields_of(METHODS[name]).items() if not parameter.help]
        assert len(silent) <= 1, (name, silent)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_leads_somewhere(command: str) -> None:
    """Its path is a field of the section it names."""
    sections: dict[str, Any] = {
        "": RunConfig,
        "model": ModelConfig,
        "method": find("method", command),
        "tasks": find("sequence", "dataset"),
        "evaluation": parameters(RunConfig)[0]["evaluation"].annotation,
        "rewards": RewardsConfig,
    }
    fields = {name: set(parameters(target)[0]) for name, target in sections.items()} | {
        "training": set(training_arguments())
    }
    for flag in flags_of(command).values():
        for path in filter(None, (flag.path, flag.implies[0] if flag.implies else "")):
            section, _, field = path.rpartition(".")
            assert field in fields[section], path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_training_argument_and_model_option_is_a_flag(command: str) -> None:
    """Those contrl decides itself too: noted, refused or led to the right place."""
    flags = flags_of(command)
    assert not (set(TRAINING_FIELDS) | set(OWNED)) - set(flags)
    spelled = {"name_or_path": "model_name_or_path", "revision": "model_revision"}
    assert not {spelled.get(name, name) for name in parameters(ModelConfig)[0]} - set(flags)
    # Of methods that sample, --max_new_tokens and --temperature are about training.
    assert not set(ALIASES) - set(flags)
    assert tuple(COMMANDS) == TRAINING


def test_the_page_lists_every_spelling_and_entry_point() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for alias, name in ALIASES.items():
        assert re.search(rf"^\| `--{alias}`.* \| `--{name}`", page, flags=re.MULTILINE), alias
    for entry in (*ORIGINS, *FORWARDED):
        folder, _, script = entry.partition("/")
        assert f"`{folder}`" in page
        assert f"`{script.partition(' ')[0]}" in page
    for command in COMMANDS.values():
        assert command.learning_rate in page


# --- what flags mean ------------------------------------------------------------------------------------


def overrides(*argv: str, command: str = "dpo") -> dict[str, str]:
    """Path -> text of what the words override, besides what every command gives."""
    return dict(text.split("=", 1) for text in read(command, [*MINIMAL, *argv]).overrides)


@pytest.mark.parametrize(
    ("argv", "path", "text"),
    [
        (["--torch_dtype", "bfloat16"], "model.dtype", "bfloat16"),
        (["--model_revision", "main"], "model.revision", "main"),
        (["--lora_r=16"], "model.lora_r", "16"),
        (["--lora_target_modules", "q_proj", "v_proj"], "model.lora_target_modules", "[q_proj, v_proj]"),
        (["--dataset_config", "default"], "tasks.config_name", "default"),
        (["--dataset_train_split=train_prefs"], "tasks.train_split", "train_prefs"),
        (["--dataset_test_split", "test_prefs"], "tasks.test_split", "test_prefs"),
        (["--dataset_index", "1"], "tasks.dataset_index", "1"),
        (["--sanity_check"], "tasks.subset_size", "50"),
        (["--dataset_names=uc,ufb"], "tasks.path", '"uc,ufb"'),
        (["--dataset_name", "uc", "ufb"], "tasks.path", '"uc,ufb"'),
        (["--max_seq_length", "512"], "method.max_length", "512"),
        (["--loss_type", "sigmoid", "bco_pair"], "method.loss_type", "[sigmoid, bco_pair]"),
        (["--loss_type", "sigmoid,bco_pair"], "method.loss_type", "sigmoid,bco_pair"),
        (["--gradient_checkpointing", "True"], "training.gradient_checkpointing", "true"),
        (["--gradient_checkpointing"], "training.gradient_checkpointing", "true"),
        (["--no_gradient_checkpointing"], "training.gradient_checkpointing", "false"),
        (["--learning_rate", "1.0e-5"], "training.learning_rate", "1.0e-5"),
        (["--warmup_ratio", "0.1"], "training.warmup_steps", "0.1"),
        (["--evaluation_strategy", "steps"], "training.eval_strategy", "steps"),
        (["--lr_scheduler_kwargs", '{"min_lr": 1e-6}'], "training.lr_scheduler_kwargs", '{"min_lr": 1e-6}'),
        (["--report_to", "wandb", "tensorboard"], "training.report_to", "[wandb, tensorboard]"),
        (["--reward_model_path", "runs/rewards"], "evaluation.reward_model", "runs/rewards"),
        (["--response_length", "53"], "evaluation.max_new_tokens", "53"),
        (["--eval_greedy_policy"], "evaluation.temperature", "0"),
        (["--eval_on_start", "False"], "evaluation.at_start", "false"),
        (["--strategies", "replay", "ewc(coef=10)"], "strategies", '[replay, "ewc(coef=10)"]'),
        (["evaluation.batch_tokens=64"], "evaluation.batch_tokens", "64"),
        (["--seed", "42"], "seed", "42"),
        ([], "output_dir", '"runs/dpo-tiny-rows"'),
    ],
)
def test_what_flags_set(argv: list[str], path: str, text: str) -> None:
    assert overrides(*argv)[path] == text


def test_default_folders() -> None:
    for model, data, folder in (
        ("Qwen/Qwen2.5-0.5B", "org/set", "runs/sft-Qwen2.5-0.5B-set"),
        ("runs/base/final", "a/b.jsonl.gz,uc", "runs/sft-final-b+uc"),
    ):
        assert default_folder(read("sft", ["--model_name_or_path", model, data])) == folder


@pytest.mark.parametrize(
    ("argv", "note"),
    [
        (["--no_remove_unused_columns"], "--remove_unused_columns has no effect"),
        (["--per_device_eval_batch_size", "4"], "--per_device_eval_batch_size has no effect"),
        (["--precompute_ref_log_probs", "True"], "computed once per stage"),
        (["--max_seq_length", "64"], "old name of max_length"),
        (["--ignore_bias_buffers"], "--ignore_bias_buffers has no effect"),
        (["--slurm_partition", "main"], "one after the other"),
    ],
)
def test_flags_without_effect_are_noted(argv: list[str], note: str) -> None:
    (said,) = read("dpo", [*MINIMAL, *argv]).notes
    assert note in said


@pytest.mark.parametrize(
    ("argv", "instead"),
    [
        (["--label_smoothing_factor", "0.1"], "--label_smoothing"),
        (["--auto_find_batch_size"], "contrl's engine decides this"),
        (["--resume_from_checkpoint", "out/checkpoint-5"], "continues its run by itself"),
        (["--load_best_model_at_end"], "every stage's weights are kept"),
        (["--data_seed", "3"], "--seed"),
        (["--accelerate_config", "zero3"], "accelerate launch -m contrl"),
        (["--dataset_text_field", "content"], 'the column "text"'),
    ],
)
def test_flags_that_would_change_results_are_refused(argv: list[str], instead: str) -> None:
    with pytest.raises(ConfigErrors, match="contrl does not do this") as caught:
        read("sft", [*MINIMAL, *argv])
    assert instead in str(caught.value)


def test_refused_flags_may_say_what_holds_anyway() -> None:
    argv = ["--label_smoothing_factor", "0.0", "--load_best_model_at_end", "False", "--resume_from_checkpoint", "True"]
    assert read("sft", [*MINIMAL, *argv, "--dataset_text_field", "text", "--no_auto_find_batch_size"]).notes == []


# --- sequences by name ------------------------------------------------------------------------------------


def sequence_asked(tmp_path: Path, command: str, *argv: str) -> tuple[str, dict[str, Any]]:
    """Name and fields of the sequence that a command line means."""
    from contrl.cli.training.command import parts_of, resolved_of

    request = read(command, ["--model_name_or_path", "tiny", "--output_dir", str(tmp_path / "run"), *argv])
    (_, overrides), *_ = parts_of(request)
    tasks = resolved_of(request, [*request.overrides, *overrides]).config.tasks
    return tasks.name, dict(tasks.fields)


def test_a_sequence_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, fields = sequence_asked(tmp_path, "dpo", "--dataset_name", "debug", "--dataset_index", "2", "--mock")
    assert (name, fields["dataset_index"]) == ("debug", 2)
    assert sequence_asked(tmp_path, "reward", "debug", "--subset_size", "9")[1]["subset_size"] == 9
    name, fields = sequence_asked(tmp_path, "dpo", "opposite_preferences", "tasks.train_size=50")
    assert (name, fields["train_size"]) == ("opposite_preferences", 50)
    assert sequence_asked(tmp_path, "grpo", "--dataset_name", "tables_and_rules")[0] == "tables_and_rules", (
        "it brings its own reward"
    )


def test_a_folder_of_that_name_comes_first_unless_mocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "debug").mkdir()
    name, fields = sequence_asked(tmp_path, "dpo", "--dataset_name", "debug")
    assert (name, fields["path"]) == ("dataset", str(tmp_path / "debug"))
    assert sequence_asked(tmp_path, "dpo", "--dataset_name", "debug", "--mock")[0] == "debug"


def test_mock_with_another_name_is_refused() -> None:
    with pytest.raises(ConfigErrors, match="AIF-Gen has no sequence called 'debgu'\n  did you mean debug"):
        read("dpo", ["--model_name_or_path", "tiny", "--dataset_name", "debgu", "--mock"])
    assert read("dpo", [*MINIMAL, "--mock", "False"]).notes == []


def test_order_and_stages_are_flags(tmp_path: Path) -> None:
    from contrl.cli.training.command import resolved_of

    def asked(*argv: str) -> tuple[Any, ...]:
        request = read("sft", [*MINIMAL, "--output_dir", str(tmp_path / "run"), *argv])
        config = resolved_of(request, request.overrides).config
        return config.order, config.order_seed, config.stages, config.rounds

    assert asked("--order", "random", "--order_seed", "3", "--rounds", "2") == ("random", 3, None, 2)
    assert asked("--order", "b", "a") == (("b", "a"), 0, None, 1)
    assert asked("--order=b,a")[0] == ("b", "a")
    assert asked("--stages", "[[a, b], [c]]") == ("given", 0, (("a", "b"), ("c",)), 1)


# --- mistakes -------------------------------------------------------------------------------------------


def mistakes(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command that must end with 2 and no traceback says."""
    assert main(list(argv)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "Traceback" not in said
    return said


def test_all_mistakes_of_the_flags_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = mistakes(capsys, "dpo", "--learnin_rate", "1", "--beta", "--reference_free", "a", "b")
    for fragment in (
        "--learnin_rate: there is no such flag\n  did you mean --learning_rate?",
        "--beta: it needs a value",
        "--reference_free true: contrl does not do this",
        "'b' belongs to no flag",
        "contrl dpo needs --model_name_or_path\n",
    ):
        assert fragment in said


def test_a_flag_of_another_command_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    said = mistakes(capsys, "sft", "--beta", "0.1", "--all_datasets")
    assert (
        "--beta: there is no such flag here\n  it belongs to contrl dpo, contrl kto, contrl cpo, contrl orpo, "
        "contrl rloo and contrl grpo" in said
    )
    assert "--all_datasets: there is no such flag here\n  it belongs to contrl reward" in said


def test_everything_that_is_missing_is_one_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    said = mistakes(capsys, "kto")
    assert "contrl kto needs --model_name_or_path and --dataset_name" in said
    assert "--output_dir may be left out" in said
    assert "contrl kto --model_name_or_path tiny --dataset_name labelled.jsonl" in said


def test_values_of_the_wrong_kind_name_their_flag(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--learning_rate", "fast", "--lora_r", "0", "--max_length", "x", "--loss_type", "hing"]
    said = mistakes(capsys, "cpo", *MINIMAL, *argv, "--strategies", "ewk(coef=1)", "replay(1)")
    for fragment in (
        "command line: --learning_rate: expected a number, found 'fast'",
        "command line: --lora_r: must be at least 1, found '0'",
        "command line: --max_length: expected a whole number or null, found 'x'",
        "--loss_type: expected one of sigmoid, hinge",
        "did you mean hinge?",
        "--strategies.0: unknown strategy 'ewk'",
        "'replay(1)' cannot be read",
    ):
        assert fragment in said


def test_debug_keeps_the_traceback() -> None:
    with pytest.raises(ConfigErrors):
        main(["sft", "--debug"])


# --- a file of flags ------------------------------------------------------------------------------------


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_gives_flags_and_the_command_line_wins(tmp_path: Path) -> None:
    text = """env:
  CONTRL_TEST_VARIABLE: 7
model_name_or_path: tiny
dataset_name: [uc, ufb]
learning_rate: 1e-5
no_such: false
"""
    file = write(tmp_path / "my.yaml", text.replace("no_such: false", "bf16: no"))
    request = read("dpo", ["--config", file, "--learning_rate", "2e-5"])
    assert request.environment == {"CONTRL_TEST_VARIABLE": "7"}
    assert {'tasks.path="uc,ufb"', "training.learning_rate=2e-5", "training.bf16=no"} <= set(request.overrides)
    assert read("dpo", ["--config", file], ["--learning_rate", "3"]).text("learning_rate") == "1e-5"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lernrate: 1\nbeta: 1\nmodl: x\n", [":1: lernrate: there is no such flag", ":3: modl: there is no such flag"]),
        ("- a\n", ["a file of flags is keys and values"]),
        ("a: [\n", ["this is not valid YAML"]),
        ("beta: 1\nbeta: 2\n", [":2: beta: this key is given twice"]),
        ("env: 3\n", [":1: env: expected a section of variables"]),
        ("model: {name_or_path: tiny}\ntraining: {bf16: no}\n", ["use: contrl run", "model and training are sections"]),
    ],
)
def test_mistakes_of_a_file_have_lines(text: str, words: list[str], tmp_path: Path, capsys: Any) -> None:
    said = mistakes(capsys, "dpo", "--config", write(tmp_path / "my.yaml", text))
    assert all(word in said for word in words)


def test_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml: there is no such file" in mistakes(capsys, "dpo", "--config", "nowhere.yaml")


def test_wrong_values_of_a_file_have_its_line(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    text = "model_name_or_path: tiny\ndataset_name: rows\nlearning_rate: fast\nseed: 1.5\n"
    said = mistakes(capsys, "sft", "--config", write(runs.folder / "my.yaml", text), "--lora_r", "x")
    for fragment in ("my.yaml:3: --learning_rate: expected", "my.yaml:4: --seed: expected", "command line: --lora_r:"):
        assert fragment in said


# --- help -----------------------------------------------------------------------------------------------


def shown(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The flags in a help, in order."""
    with pytest.raises(SystemExit) as end:
        main([command, flag])
    assert end.value.code == 0
    return re.findall(r"^  --(\w+)", capsys.readouterr().out, flags=re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_common_flags_and_help_all_the_rest(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    few, many = shown(command, "--help", capsys), shown(command, "--help-all", capsys)
    assert len(few) <= (55 if is_online(command) else 50)
    assert len(set(many)) == len(many)
    assert set(few) < set(many)
    assert set(training_arguments()) < set(many)
    # reward_weights is a field of grpo, and on the command line the weights of the rewards.
    assert set(fields_of(METHODS[command])) <= set(many if is_online(command) else few)
    assert few[0] == "model_name_or_path"
    assert [name for name in few if name in training_arguments()][:10] == [
        "learning_rate",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "lr_scheduler_type",
        "warmup_steps",
        "bf16",
        "gradient_checkpointing",
        "logging_steps",
    ]


# --- runs -----------------------------------------------------------------------------------------------


def rows(folder: Path, name: str, columns: dict[str, str]) -> str:
    """A file of twelve rows; each column's text has the row's number for N."""
    lines = [
        json.dumps({column: text.replace("N", str(i)) for column, text in columns.items()}) + "\n" for i in range(12)
    ]
    (folder / name).write_text("".join(lines), encoding="utf-8")
    return name


PAIR = {"prompt": "N=", "chosen": "N", "rejected": "N1"}


@pytest.mark.parametrize(
    "command",
    ["sft", "reward", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dpo", "kto", "cpo", "orpo"))],
)
def test_every_command_trains(command: str, runs: Runs) -> None:
    data = rows(runs.folder, "pairs.jsonl", PAIR)
    argv = [command, "--model_name_or_path", str(runs.world / "model"), data, "--eval_size", "4", "--max_steps", "2"]
    argv += ["--output_dir", "out", "--per_device_train_batch_size", "4"]
    assert main(argv) == 0
    assert (runs.folder / "out" / "final").is_dir()
    config = load(runs.folder / "out" / "config.yaml", resolve=find).config
    assert config.method.name == command
    assert config.training["learning_rate"] == float(COMMANDS[command].learning_rate)
    assert config.training["num_train_epochs"] == 3
    manifest = json.loads((runs.folder / "out" / "run.json").read_text(encoding="utf-8"))
    assert manifest["command"] == ["contrl", *argv]


def continual(folder: Path) -> str:
    """A file of two tasks."""
    tasks = []
    for answer in ("yes", "no"):
        pairs = [{"prompt": f"{answer}{i}=", "chosen": f"{i}{answer}", "rejected": f"{i}"} for i in range(6)]
        about = {"domain": {answer: {"name": answer, "seed_words": [], "weight": 1.0}}, "objective": "o"}
        tasks.append({"task": {**about, "preference": "p"}, "train": pairs[:4], "test": pairs[4:]})
    (folder / "tasks.json").write_text(json.dumps({"datasets": tasks}), encoding="utf-8")
    return "tasks.json"


def test_a_file_of_tasks_is_learnt_in_order_with_a_matrix(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["dpo", "--model_name_or_path", str(runs.world / "model"), continual(runs.folder), "--max_steps", "1"]
    assert main([*argv, "--output_dir", "out", "--strategies", "replay(share=0.5)"]) == 0
    found = results.read(runs.folder / "out")
    assert (len(found.rows), len(found.tasks)) == (3, 2)
    assert all(cell is not None for row in found.matrix for cell in row)
    capsys.readouterr()
    # Repeating the command finds the run finished; its paths are absolute, so it continues from anywhere.
    assert main([*argv, "--output_dir", "out", "--strategies", "replay(share=0.5)"]) == 0
    assert "this run is finished" in capsys.readouterr().out
    assert os.path.isabs(load(runs.folder / "out" / "config.yaml", resolve=find).config.tasks.fields["path"])


@pytest.mark.slow
def test_one_reward_model_for_each_task(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    """``--dataset_index 1`` at out/1; ``--all_datasets`` adds out/0 and leaves out/1 alone."""
    model = ["--model_name_or_path", str(runs.world / "model"), "--max_steps", "1", "--output_dir", "out"]
    data = continual(runs.folder)
    assert main(["reward", *model, data, "--dataset_index", "1"]) == 0
    assert [path.name for path in (runs.folder / "out").iterdir()] == ["1"]
    capsys.readouterr()
    assert main(["reward", *model, data, "--all_datasets"]) == 0
    said = capsys.readouterr().out
    assert "task 0 of 0 to 1: out/0" in said
    assert "this run is finished: out/1" in said
    assert {path.name for path in (runs.folder / "out").iterdir()} == {"0", "1"}
    plain = rows(runs.folder, "pairs.jsonl", PAIR)
    assert main(["reward", *model[:-1], "plain", plain, "--dataset_index", "0", "--eval_size", "2"]) == 0
    assert (runs.folder / "plain" / "final").is_dir()


def test_what_is_said_names_flags_and_files(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first lines of a run: where each value comes from, and what has no effect. A dry run writes nothing."""
    data = rows(runs.folder, "rows.jsonl", {"prompt": "N=", "completion": "N"})
    file = write(
        runs.folder / "my.yaml", f"dataset_name: {data}\nmax_steps: 3\neval_size: 2\nenv: {{CONTRL_SEEN: 1}}\n"
    )
    monkeypatch.setattr(os, "environ", dict(os.environ))
    argv = ["sft", "--config", file, "--model_name_or_path", str(runs.world / "model"), "--dry_run", "--do_train"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert re.search(r"^training\.max_steps += 3 +\S*my\.yaml:2$", said, flags=re.MULTILINE)
    assert re.search(r"^training\.learning_rate += 2e-05 +contrl sft$", said, flags=re.MULTILINE)
    assert "note: --do_train has no effect: a run always trains" in said
    assert os.environ["CONTRL_SEEN"] == "1"
    assert not (runs.folder / "runs").exists()
