"""AIF-Gen's printed commands are planned, its own flags reach the strategies, and DeepSpeed is refused early."""

from __future__ import annotations

import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from transformers import LlamaConfig, LlamaForSequenceClassification

from contrl.cli.origins import ORIGINS
from contrl.cli.training.command import resolved_of
from contrl.cli.training.request import read
from contrl.compatibility import check_strategies, setting_of
from contrl.config import load
from contrl.errors import UserError
from contrl.experiment import find, make_strategies
from tests import runs as small
from tests.recipes.test_commands import CONTINUAL_DPO, REWARD, REWARD_ALL, REWARD_LORA
from tests.runs import ROOT

world = small.world

RECIPE = ROOT / "recipes" / "aif_gen"
SHORT = (
    "--dataset_name benchmarks/continual_data_debug.json --learning_rate 5.0e-6 --num_train_epochs 1 "
    "--gradient_accumulation_steps 8 --gradient_checkpointing --logging_steps 20 --eval_strategy steps --eval_steps 20 "
    "--save_steps 20 --output_dir out --no_remove_unused_columns --use_peft --lora_r 32 --lora_alpha 16"
)
ONLINE = f"--sft_model_path Qwen/Qwen2-0.5B-Instruct --value_model_path REWARD_0 --reward_model_path REWARD {SHORT}"
OFFLINE = f"--model_name_or_path Qwen/Qwen2-0.5B-Instruct --per_device_train_batch_size 2 --bf16 {SHORT}"
EWC, PPO_EWC, CPPO, COPR, MAS = (
    f"benchmarks/{name}"
    for name in (
        "dpo_ewc/dpo_EWC_continual.py",
        "ppo_ewc/ppo_EWC_continual.py",
        "cppo/cppo.py",
        "copr/copr.py",
        "reward_mas/reward_modeling_mas.py",
    )
)
COMMANDS = {
    "reward": REWARD,
    "reward-lora": REWARD_LORA,
    "reward-all": REWARD_ALL,
    "reward-mas": REWARD.replace("benchmarks/reward_modeling.py", MAS) + " --mas_lambda 2.0",
    "dpo": CONTINUAL_DPO.replace("--reward_model_path Qwen2-0.5B-Reward", "--reward_model_path REWARD"),
    "dpo-ewc": f"{EWC} {OFFLINE} --reward_model_path REWARD --ewc_lambda 20.0",
    "copr": f"{COPR} {OFFLINE} --memory_buffer_size 100 --buffer_ratio 0.1 --use_buffer_ratio True",
    "ppo": f"benchmarks/ppo/ppo_continual.py {ONLINE}",
    "ppo-ewc": f"{PPO_EWC} {ONLINE} --ewc_lambda 20.0",
    "cppo": f"{CPPO} {ONLINE} --reg_coef 0.2",
}
"""As its READMEs print them; reward models lie here under another name, and nothing is pushed to a hub."""


@pytest.fixture(scope="module")
def recipe(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe beside the model and the reward models that its commands name."""
    folder = tmp_path_factory.mktemp("aif") / "aif_gen"
    shutil.copytree(RECIPE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests" / "fixtures" / "aif_gen_shift.json", folder / "benchmarks" / "continual_data_debug.json")
    shape = LlamaConfig.from_pretrained(world / "model")
    shape.num_labels = 1
    shutil.copytree(world / "model", folder / "model")
    for index in range(2):
        LlamaForSequenceClassification(shape).save_pretrained(folder / f"REWARD_{index}")
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (world / "model" / name).exists():
                shutil.copy(world / "model" / name, folder / f"REWARD_{index}" / name)
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTRL_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_printed_command_is_planned(
    name: str, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(COMMANDS[name].replace("Qwen/Qwen2-0.5B-Instruct", "./model"))
    words = [*words[2:], "--dry_run"] if words[0] == "uv" else [*words, "--dry_run"]
    monkeypatch.chdir(recipe)
    monkeypatch.setattr(sys, "argv", words)
    before = set(recipe.rglob("*"))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(words[0], run_name="__main__")
    told = capsys.readouterr()
    assert end.value.code == 0, told.err
    assert set(recipe.rglob("*")) == before
    assert "steps" in told.out
    if "REWARD" in COMMANDS[name]:
        assert "REWARD_0: its own, of task 0" in told.out
    if name == "copr":
        assert "--memory_buffer_size has no effect with --use_buffer_ratio" in told.out
    if name == "reward-mas":
        assert "one reward model goes through all tasks" in told.out


def fields(path: str, *words: str) -> dict[str, Any]:
    """The fields of the strategy that an entry point trains with."""
    origin = ORIGINS[f"aif_gen/{path}"]
    argv = ["--model_name_or_path", "any", "--dataset_name", "mine", "--output_dir", "here", *words]
    request = read(origin.command, argv, origin.defaults.split(), origin.extra(), needs_reward=False)
    config = resolved_of(request, request.overrides).config
    assert len(config.strategies) == 1
    return {"name": config.strategies[0].name, **config.strategies[0].fields}


@pytest.mark.parametrize(
    ("path", "words", "expected"),
    [
        (EWC, "", {"name": "ewc", "coef": 100.0, "num_samples": 120}),
        (EWC, "--ewc_lambda 20", {"name": "ewc", "coef": 20.0}),
        (
            EWC,
            "--ewc_importance_decay 0.5 --fisher_estimation_samples 200",
            {"online": True, "decay": 0.5, "num_samples": 200},
        ),
        (PPO_EWC, "", {"name": "ewc", "coef": 100.0, "num_samples": 128}),
        (CPPO, "", {"name": "cppo", "reg_coef": 0.1, "threshold": 0.5, "upper": 2.0, "lower": 0.2}),
        (CPPO, "--reg_coef 0.3", {"reg_coef": 0.3}),
        (MAS, "", {"name": "mas", "coef": 1.0, "num_samples": 500}),
        (MAS, "--mas_lambda 4", {"coef": 4.0}),
        (COPR, "", {"name": "copr", "buffer_size": 100}),
        (COPR, "--memory_buffer_size 7 --buffer_ratio 0.3", {"buffer_size": 7}),
        (COPR, "--memory_buffer_size 7 --buffer_ratio 0.3 --use_buffer_ratio True", {"buffer_size": 0.3}),
        (COPR, "--use_buffer_ratio", {"buffer_size": 0.1}),
        (COPR, "--use_buffer_ratio False --buffer_ratio 0.3", {"buffer_size": 100}),
        (
            COPR,
            "--log_lambda 0.1 --lambda_lr 0.2 --constraint_threshold 0.3 --coef_dpo 0.4",
            {"log_lambda": 0.1, "lambda_lr": 0.2, "constraint_threshold": 0.3, "fit_coef": 0.4},
        ),
    ],
)
def test_the_origins_flags_are_fields_of_strategies(path: str, words: str, expected: dict[str, Any]) -> None:
    found = fields(path, *words.split())
    assert {name: found[name] for name in expected} == expected


def test_a_buffer_is_a_number_or_a_share_in_a_file_too(tmp_path: Path) -> None:
    """Whichever stands last."""
    path = tmp_path / "copr.yaml"
    for switch, expected in (("false", 7), ("true", 0.3)):
        text = f"memory_buffer_size: 7\nuse_buffer_ratio: {switch}\nbuffer_ratio: 0.3\n"
        path.write_text(text, encoding="utf-8")
        assert fields(COPR, "--config", str(path))["buffer_size"] == expected


PRINTED = [
    line.removeprefix("uv run ")
    for line in (RECIPE / "README.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("uv run ") and "continual_eval_checkpoint.py" not in line
]


@pytest.mark.parametrize("command", PRINTED, ids=lambda command: command.split()[0].rpartition("/")[2])
def test_the_pages_commands_and_their_configurations_are_read(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPE)
    path, *argv = shlex.split(command)
    origin = ORIGINS[f"aif_gen/{path}"]
    request = read(origin.command, argv, origin.defaults.split(), origin.extra())
    config = resolved_of(request, request.overrides).config
    settings = yaml.safe_load(Path(request.text("config")).read_text(encoding="utf-8"))
    assert config.model.name_or_path == "Qwen/Qwen2-0.5B-Instruct"
    assert config.training["learning_rate"] == float(settings["learning_rate"])
    assert config.output_dir.endswith(argv[-1])


@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3", "fsdp2"])
def test_accelerate_reads_the_configurations(name: str) -> None:
    """Its own loader, and its launcher's checks."""
    path = str(RECIPE / "accelerate" / f"{name}.yaml")
    config = load_config_from_file(path)
    assert isinstance(config, ClusterConfig)
    kind = {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(name, "DEEPSPEED")
    assert config.distributed_type.value == kind
    assert (config.deepspeed_config or {}).get("zero_stage") == {"zero2": 2, "zero3": 3}.get(name)
    assert (config.fsdp_config or {}).get("fsdp_version") == (2 if name == "fsdp2" else None)
    arguments = launch_command_parser().parse_args(["--config_file", path, "train.py", "--learning_rate", "1e-5"])
    found, _, _ = _validate_launch_command(arguments)
    assert (found.num_processes, found.mixed_precision) == (4, "bf16")
    assert (found.multi_gpu, found.use_fsdp, found.use_deepspeed) == (
        kind == "MULTI_GPU",
        kind == "FSDP",
        kind == "DEEPSPEED",
    )


@pytest.mark.parametrize(
    ("name", "works"), [("ewc", False), ("mas", False), ("l2", False), ("replay", True), ("kl", True)]
)
def test_penalties_are_refused_where_accelerate_launches_deepspeed(
    name: str, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = {"name": "dataset", "path": "org/rows"}
    given = {"output_dir": "out", "model": "tiny", "method": "dpo", "strategies": name, "tasks": tasks}
    config = load(given, resolve=find).config

    def check() -> None:
        check_strategies(make_strategies(config.strategies), setting_of(config, []))

    check()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    if works:
        check()
        return
    with pytest.raises(UserError, match="DeepSpeed clips and steps inside") as refused:
        check()
    assert "use replay, kl or averaging, or train with DDP or FSDP2" in str(refused.value)


def test_the_page_names_every_entry_point() -> None:
    page = (RECIPE / "README.md").read_text(encoding="utf-8")
    scripts = [path.relative_to(RECIPE / "benchmarks").as_posix() for path in (RECIPE / "benchmarks").rglob("*.py")]
    assert [name for name in scripts if f"uv run benchmarks/{name} " not in page] == []
    for folder in ("accelerate", "configs"):
        assert [path.name for path in (RECIPE / folder).iterdir() if f"{folder}/{path.name}" not in page] == []
