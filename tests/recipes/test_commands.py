"""Every training command that the origins print, from its recipe folder: only model names are replaced, by ``tiny``.

Data sets keep their printed names: the folders and files of those names are made from tests/fixtures, the named ones
are read from there. ``--max_steps 2`` is added, and the rows to judge by are few; nothing else is changed.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from contrl.cli.main import main
from contrl.cli.origins import FORWARDED, ORIGINS
from contrl.cli.training.request import read
from contrl.config import ModelConfig, load
from contrl.experiment import build_tasks, find
from contrl.models.load import load_policy
from tests.runs import ROOT

FIXTURES = ROOT / "tests" / "fixtures"
SHORT = "--max_steps 2 --eval_num_items 2"

REWARD = (
    "uv run benchmarks/reward_modeling.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct "
    "--dataset_name benchmarks/continual_data_debug.json --dataset_index 0 --output_dir Qwen2-0.5B-Reward "
    "--per_device_train_batch_size 8 --num_train_epochs 1 --gradient_checkpointing True --learning_rate 1.0e-5 "
    "--logging_steps 25 --eval_strategy steps --eval_steps 50 --max_length 2048"
)
REWARD_LORA = (
    "uv run benchmarks/reward_modeling.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct "
    "--dataset_name benchmarks/continual_data_debug.json --output_dir Qwen2-0.5B-Reward-LoRA "
    "--per_device_train_batch_size 8 --num_train_epochs 1 --gradient_checkpointing True --learning_rate 1.0e-4 "
    "--logging_steps 25 --eval_strategy steps --eval_steps 50 --max_length 2048 --use_peft --lora_r 32 --lora_alpha 16"
)
REWARD_ALL = REWARD.replace("--dataset_index 0", "--all_datasets")
"""Not printed by the origin, but what it does for all tasks; the first of them is trained already."""
CONTINUAL_DPO = (
    "uv run benchmarks/dpo/dpo_continual.py --dataset_name benchmarks/continual_data_debug.json "
    "--model_name_or_path Qwen/Qwen2-0.5B-Instruct --reward_model_path Qwen2-0.5B-Reward --learning_rate 5.0e-6 "
    "--num_train_epochs 1 --per_device_train_batch_size 2 --gradient_accumulation_steps 8 --gradient_checkpointing "
    "--logging_steps 1000 --eval_strategy steps --eval_steps 1000 --save_steps 1000 --bf16 "
    "--output_dir Qwen2-0.5B-DPO-test --no_remove_unused_columns --use_peft --lora_r 32 --lora_alpha 16"
)
EVALUATE = (
    "uv run benchmarks/continual_eval_checkpoint.py --dataset_name benchmarks/continual_data_debug.json "
    "--model_name_or_path Qwen/Qwen2-0.5B-Instruct --checkpoint_dir Qwen2-0.5B-DPO-test --learning_rate 0 "
    "--num_train_epochs 1 --per_device_train_batch_size 2 --gradient_accumulation_steps 8 --gradient_checkpointing "
    "--logging_steps 1000 --eval_strategy steps --eval_steps 1000 --bf16 --output_dir Qwen2-0.5B-DPO-test-eval "
    "--no_remove_unused_columns --use_peft --lora_r 32 --lora_alpha 16"
)
"""Its README names a data set ``benchmarks/continual_dpo_trainer``, which is a slip."""
TRL_DPO = (
    "python examples/scripts/dpo.py --dataset_name=trl-internal-testing/hh-rlhf-trl-style --model_name_or_path=gpt2 "
    "--per_device_train_batch_size 4 --learning_rate 1e-3 --gradient_accumulation_steps 1 --logging_steps 10 "
    '--eval_steps 500 --output_dir="dpo_anthropic_hh" --optim rmsprop --warmup_steps 150 --report_to wandb --bf16 '
    "--logging_first_step --no_remove_unused_columns --use_peft --lora_r=16 --lora_alpha=16"
)
LLAMA2 = "python dpo_llama2.py --model_name_or_path ahxt/llama2_xs_460M_experimental"
CLI_SFT = "trl sft --model_name_or_path facebook/opt-125m --dataset_name imdb --output_dir opt-sft-imdb"
CLI_DPO = (
    "trl dpo --model_name_or_path facebook/opt-125m --dataset_name trl-internal-testing/hh-rlhf-trl-style "
    "--output_dir opt-sft-hh-rlhf"
)
SMALL = (
    'accelerate launch sft_training.py --model_name_or_path="gpt2-medium" '
    '--output_dir="saved/gpt2_medium_uc_sft" --dataset_names="uc"',
    'accelerate launch dpo_training.py --model_name_or_path="saved/gpt2_medium_uc_sft" '
    '--output_dir="saved/gpt2_medium_ufb_dpo" --dataset_names="ufb"',
    'python merge_peft_adapter.py --base_model_name="gpt2-medium" --adapter_model_name="saved/gpt2_medium_ufb_dpo" '
    '--output_name="saved/gpt2_medium_uc_ufb_merged"',
)
SMALL_REWARD = (
    'accelerate launch reward_modeling.py --model_name_or_path="saved/gpt2_large_uc_ufb_hh_shp_sft" '
    '--output_dir="saved/gpt2_large_uc_ufb_hh_shp_reward" --dataset_names="uc,ufb,hh,shp"'
)
SMALL_PPO = (
    'accelerate launch ppo_training.py --model_name_or_path="saved/gpt2_large_uc_ufb_hh_shp_sft" '
    '--reward_model_name_or_path="saved/gpt2_large_uc_ufb_hh_shp_reward" '
    '--output_dir="saved/gpt2_large_uc_ufb_hh_shp_ppo" --dataset_names="uc,ufb,hh,shp"'
)
CONTINUAL_PPO = (
    "uv run benchmarks/ppo/ppo_continual.py --dataset_name benchmarks/continual_data_debug.json "
    "--sft_model_path Qwen/Qwen2-0.5B-Instruct --reward_model_path Qwen2-0.5B-Reward --learning_rate 1.0e-6 "
    "--num_train_epochs 1 --per_device_train_batch_size 8 --response_length 24 --kl_coef 0.37 --cliprange 0.1 "
    "--logging_steps 1000 --save_steps 1000 --bf16 False --output_dir Qwen2-0.5B-PPO-test --use_peft --lora_r 32"
)
"""The origin prints no command for its PPO; these are its flags, with the settings of its own jobs."""
PIPELINE = (
    'python train.py --method sft --model_name "Qwen/Qwen2.5-0.5B" --dataset_name "smoltalk" --batch_size 8 '
    '--learning_rate 1e-5 --num_epochs 3 --max_length 512 --output_dir "outputs/sft" --use_wandb',
    'python train.py --method dpo --sft_model_path "outputs/sft/final" --dataset_name "ultrafeedback" --batch_size 8 '
    '--learning_rate 1e-5 --num_epochs 3 --max_length 512 --output_dir "outputs/dpo" --use_wandb',
    'python train.py --method rloo --model_name "Qwen/Qwen2.5-0.5B" --dataset_name "ultrafeedback" --batch_size 8 '
    '--learning_rate 1e-5 --num_epochs 3 --max_length 512 --output_dir "outputs/rloo" --use_wandb',
)
CASES = {
    "aif-gen": ("aif_gen", (REWARD, REWARD_LORA, REWARD_ALL, CONTINUAL_DPO, EVALUATE, CONTINUAL_PPO)),
    "trl-dpo.py": ("trl", (TRL_DPO,)),
    "trl-dpo_llama2.py": ("trl", (LLAMA2,)),
    "trl-cli": ("trl", (CLI_SFT, CLI_DPO)),
    "small-rlhf": ("small_rlhf", (*SMALL, SMALL_REWARD, SMALL_PPO)),
    "rl_llm": ("rl_llm", PIPELINE),
}
QUICK = ("trl-dpo_llama2.py", "trl-cli")
NAMES = re.compile(
    r"Qwen/Qwen2-0\.5B-Instruct|Qwen/Qwen2\.5-0\.5B|ahxt/llama2_xs_460M_experimental|facebook/opt-125m|"
    r"(?<==)gpt2(?= )|(?<==\")gpt2-medium(?=\")|saved/gpt2_large_uc_ufb_hh_shp_sft"
)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of recipes/ with the data sets of the printed commands."""
    folder = tmp_path / "recipes"
    shutil.copytree(ROOT / "recipes", folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(FIXTURES / "aif_gen_shift.json", folder / "aif_gen" / "benchmarks" / "continual_data_debug.json")
    for name, rows in {
        "trl-internal-testing/hh-rlhf-trl-style": "preference_messages",
        "imdb": "text",
    }.items():
        place = folder / "trl" / name
        place.mkdir(parents=True)
        lines = (FIXTURES / "formats" / f"{rows}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (place / "train.jsonl").write_text("".join(lines[:-2]), encoding="utf-8")
        (place / "test.jsonl").write_text("".join(lines[-2:]), encoding="utf-8")
    monkeypatch.setenv("CONTRL_DATA_DIR", str(FIXTURES / "data"))
    monkeypatch.setenv("CONTRL_CACHE", str(tmp_path / "cache"))
    return folder


def run(command: str, monkeypatch: pytest.MonkeyPatch, more: str = SHORT, model: str = "tiny") -> None:
    """The command as printed, in this process; it must end with 0."""
    words = shlex.split(NAMES.sub(model, command))
    while words[0] in ("uv", "run", "python", "accelerate", "launch"):
        words.pop(0)
    words += shlex.split(more if "merge" not in words[0] else "")
    if words[0] == "trl":
        assert main(words[1:]) == 0
        return
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(words[0], run_name="__main__")
    assert end.value.code == 0


def results(folder: str) -> dict[str, object]:
    """What a run wrote."""
    found: dict[str, object] = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    "case", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_the_printed_commands_run(case: str, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, commands = CASES[case]
    monkeypatch.chdir(recipe / folder)
    for command in commands:
        run(command, monkeypatch)
        match = re.search(r'--output_(?:dir|name)[= ]"?([\w./-]+)', command)
        output = match[1] if match else "results"
        if "reward_modeling.py" in command and folder == "aif_gen":
            output += "/0"
        if "merge" in command:
            assert (Path(output) / "config.json").exists()
        elif command == EVALUATE:
            # The weights are the checkpoints', not the base under an adapter that is made anew.
            assert results(output)["matrix"] == results("Qwen2-0.5B-DPO-test")["matrix"]
        else:
            assert results(output)["matrix"]
            assert (Path(output) / "final").is_dir()


@pytest.mark.slow
def test_a_pipeline_without_a_reward_trains_one_first(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On questions that are no prompts of the policy; its facts are printed; a given reward spares it."""
    monkeypatch.chdir(recipe / "rl_llm")
    run(PIPELINE[2], monkeypatch)
    said = capsys.readouterr().out
    for fact in (
        "--batch_size 8 counts prompts",
        "each prompt gets k = 4 samples",
        "--max_length 512 bounds prompt plus completion: prompts have at most 384 tokens",
        "8 prompts x 4 samples = 32 completions a step",
    ):
        assert fact in said
    assert re.search(
        r"the reward model is outputs/rloo/reward_model/final: held-out accuracy \d\.\d\d on 2 pairs", said
    )
    assert (Path("outputs/rloo/reward_model/final") / "config.json").exists()
    prompts = [
        load(Path(folder) / "config.yaml", resolve=find).config
        for folder in ("outputs/rloo", "outputs/rloo/reward_model")
    ]
    policy, pairs = (build_tasks(config)[0].train for config in prompts)
    assert policy
    assert pairs
    assert not {str(row["prompt"]) for row in policy} & {str(row["prompt"]) for row in pairs}
    # Repeated: both are finished. Other settings are refused before a reward model is trained, or take its place.
    run(PIPELINE[2], monkeypatch)
    assert capsys.readouterr().out.count("this run is finished") == 2
    monkeypatch.setattr(sys, "argv", ["train.py", *shlex.split(NAMES.sub("tiny", PIPELINE[2]))[2:], "--seed", "5"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path("train.py", run_name="__main__")
    assert end.value.code == 2
    assert "holds a run with another configuration" in capsys.readouterr().err
    run(PIPELINE[2].replace("outputs/rloo", "given"), monkeypatch, f"{SHORT} --reward_funcs length --max_new_tokens 8")
    assert not Path("given/reward_model").exists()


def logits(folder: str) -> torch.Tensor:
    """Of a few tokens, by the weights a folder holds."""
    policy = load_policy(ModelConfig(folder), 0)
    policy.model.eval()
    with torch.no_grad():
        result: torch.Tensor = policy.model(torch.arange(5, 17)[None]).logits
    return result


@pytest.mark.slow
def test_the_merged_model_holds_both_stages(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SFT and DPO train one adapter: merged it is both, and neither the base nor the first stage alone."""
    monkeypatch.chdir(recipe / "small_rlhf")
    # The weights of ``tiny`` follow from each run's seed; this base stays the same.
    base = load_policy(ModelConfig("tiny"), 0)
    base.model.save_pretrained("base")
    base.tokenizer.save_pretrained("base")
    for command in SMALL:
        run(command, monkeypatch, f"{SHORT} --learning_rate 1e-2", model="./base")
    merged = logits("saved/gpt2_medium_uc_ufb_merged")
    torch.testing.assert_close(merged, logits("saved/gpt2_medium_ufb_dpo"), atol=1e-4, rtol=0)
    assert (merged - logits("base")).abs().max() > 1e-2
    assert (merged - logits("saved/gpt2_medium_uc_sft")).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("aif_gen/benchmarks/continual_eval_checkpoint.py", [], "contrl evaluate-checkpoints needs --checkpoint_dir"),
        ("rl_llm/train.py", ["--method", "rloo", "--max_length", "64"], "nothing is left for the prompt"),
        ("small_rlhf/ppo_training.py", [], "contrl ppo needs a reward"),
        ("rl_llm/train.py", ["--method", "ppo"], "use one of sft, dpo, rloo, eval"),
        ("rl_llm/train.py", ["--method", "sft", "--batch_sze", "8"], "did you mean --batch_size?"),
        ("trl/dpo_llama2.py", [], "contrl dpo needs --model_name_or_path"),
    ],
)
def test_what_cannot_run_is_told_in_words(
    script: str,
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "recipes" / script), run_name="__main__")
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def test_every_entry_point_is_one_file_of_ten_lines() -> None:
    files = {path.relative_to(ROOT / "recipes").as_posix(): path for path in (ROOT / "recipes").rglob("*.py")}
    del files["trl/prompts.py"]  # rows for the configurations beside it
    assert set(files) == {name.partition(" ")[0] for name in (*ORIGINS, *FORWARDED)}
    for name, path in files.items():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 10
        assert f'main("{name}")' in text


@pytest.mark.parametrize("name", [name for name, origin in ORIGINS.items() if origin.command != "merge"])
def test_the_origins_defaults_are_flags_without_mistake(name: str) -> None:
    """And what a user writes wins over them."""
    origin = ORIGINS[name]
    argv = ["--model_name_or_path", "tiny", "--dataset_name", "mine", "--output_dir", "here", "--learning_rate", "7"]
    request = read(origin.command, argv, origin.defaults.split(), origin.extra(), needs_reward=False)
    assert (request.text("learning_rate"), request.text("output_dir")) == ("7", "here")
    assert {"output_dir=here", "training.learning_rate=7"} <= set(request.overrides)
