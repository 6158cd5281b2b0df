"""``contrl ppo|rloo|grpo``: TRL's flags and counts, rewards, what is refused, and a key that is written nowhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from contrl.cli.flags import without_secrets
from contrl.cli.main import main
from contrl.cli.training import online
from contrl.cli.training.request import Request, read
from contrl.cli.training.rewards import import_path
from contrl.cli.training.table import ALIASES, COMMANDS, flags_of
from contrl.config import load
from contrl.errors import ConfigErrors
from contrl.experiment import find
from tests.runs import ROOT, Runs, environment

ONLINE = ("ppo", "rloo", "grpo")
MINIMAL = ("--model_name_or_path", "tiny", "--dataset_name", "rows.jsonl", "--reward_funcs", "length")

GRPO_CONFIG = """disable_dropout cast_lm_head_to_fp32 num_generations num_generations_eval max_completion_length
    ds3_gather_for_generation shuffle_dataset pad_to_multiple_of generation_batch_size steps_per_generation temperature
    top_p top_k min_p generation_kwargs chat_template_kwargs repetition_penalty cache_implementation use_vllm vllm_mode
    vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_server_base_url vllm_server_host
    vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length
    vllm_tensor_parallel_size beta num_iterations epsilon delta epsilon_high sapo_temperature_neg sapo_temperature_pos
    vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg importance_sampling_level reward_weights
    multi_objective_aggregation scale_rewards loss_type mask_truncated_completions sync_ref_model ref_model_mixup_alpha
    ref_model_sync_steps top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max
    entropy_coef_delta entropy_target max_tool_calling_iterations vllm_importance_sampling_correction
    vllm_importance_sampling_mode vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min
    off_policy_mask_threshold use_bias_correction_kl log_completions log_multimodal num_completions_to_print
    log_unique_prompts log_completions_hub_repo use_transformers_continuous_batching
    transformers_continuous_batching_config use_transformers_paged vllm_importance_sampling_cap model_init_kwargs
    trust_remote_code router_aux_loss_coef learning_rate"""
"""Every field of TRL 1.16's GRPOConfig beyond those of transformers."""
RLOO_CONFIG = """num_generations max_completion_length beta num_iterations epsilon epsilon_high reward_weights
    normalize_advantages reward_clip_range mask_truncated_completions temperature top_p top_k min_p"""
PPO_CONFIG = """num_ppo_epochs num_mini_batches response_length temperature kl_coef kl_estimator cliprange
    cliprange_value vf_coef gamma lam whiten_rewards missing_eos_penalty stop_token stop_token_id total_episodes
    local_rollout_forward_batch_size num_sample_generations sft_model_path value_model_path reward_model_path target_kl
    batch_size mini_batch_size ppo_epochs init_kl_coef adap_kl_ctrl"""


def request(command: str, *argv: str, **options: Any) -> Request:
    return read(command, [*MINIMAL, *argv], **options)


def overrides(command: str, *argv: str) -> dict[str, str]:
    """Path -> text of what the words override, besides what every command gives."""
    return dict(text.split("=", 1) for text in request(command, *argv).overrides)


def refused(command: str, *argv: str) -> str:
    with pytest.raises(ConfigErrors) as caught:
        request(command, *argv)
    return str(caught.value)


# --- flags ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "names"), [("grpo", GRPO_CONFIG), ("rloo", RLOO_CONFIG), ("ppo", PPO_CONFIG)])
def test_every_flag_of_trl_is_known(command: str, names: str) -> None:
    """Taken, noted or refused; none is "no such flag"."""
    assert set(names.split()) - set(flags_of(command)) == set()


def test_spellings_lead_to_fields_and_stand_on_the_page() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for command in ONLINE:
        flags = flags_of(command)
        assert online.COMMON & set(flags) <= {flag.name for flag in flags.values() if flag.common}
        for alias, name in online.spellings(command).items():
            assert flags[alias].name == name
            assert re.search(rf"^\| `--{alias}` \| `--{name}`", page, flags=re.MULTILINE), alias
    assert set(ALIASES) - set(flags_of("grpo")) == set()


@pytest.mark.parametrize(
    ("command", "argv", "path", "text"),
    [
        ("grpo", ["--num_iterations", "2"], "method.num_epochs", "2"),
        ("grpo", ["--epsilon", "0.1"], "method.clip", "0.1"),
        ("grpo", ["--epsilon_high", "0.28"], "method.clip_high", "0.28"),
        ("grpo", ["--importance_sampling_level", "sequence"], "method.level", "sequence"),
        ("grpo", ["--mask_truncated_completions"], "method.mask_truncated", "true"),
        ("grpo", ["--max_completion_length", "64"], "method.max_new_tokens", "64"),
        ("grpo", ["--scale_rewards", "False"], "method.scale_rewards", "none"),
        ("grpo", ["--scale_rewards", "True"], "method.scale_rewards", "group"),
        ("grpo", ["--scale_rewards", "batch"], "method.scale_rewards", "batch"),
        ("grpo", ["--temperature", "0.9"], "method.temperature", "0.9"),
        ("grpo", ["--eval_temperature", "0.5"], "evaluation.temperature", "0.5"),
        ("grpo", ["--eval_num_samples", "4"], "evaluation.num_samples", "4"),
        ("grpo", ["--reward_errors", "missing"], "rewards.errors", "missing"),
        ("grpo", ["--reward_weights", "1"], "rewards.weights", "1"),
        ("rloo", ["--reward_clip_range", "-1", "1"], "method.reward_clip", "[-1, 1]"),
        ("rloo", ["--normalize_advantages"], "method.normalize_advantages", "true"),
        ("ppo", ["--response_length", "32"], "method.max_new_tokens", "32"),
        ("ppo", ["--num_ppo_epochs", "2"], "method.num_epochs", "2"),
        ("ppo", ["--ppo_epochs", "2"], "method.num_epochs", "2"),
        ("ppo", ["--num_mini_batches", "2"], "method.num_minibatches", "2"),
        ("ppo", ["--init_kl_coef", "0.2"], "method.kl_coef", "0.2"),
        ("ppo", ["--cliprange", "0.1"], "method.clip", "0.1"),
        ("ppo", ["--cliprange_value", "0.3"], "method.clip_value", "0.3"),
        ("ppo", ["--vf_coef", "0.5"], "method.value_coef", "0.5"),
        ("ppo", ["--lam", "0.9"], "method.gae_lambda", "0.9"),
        ("ppo", ["--adap_kl_ctrl"], "method.target_kl", "6"),
        ("ppo", ["--target_kl", "3", "--adap_kl_ctrl"], "method.target_kl", "3"),
        ("ppo", ["--target_kl", "3", "--adap_kl_ctrl", "False"], "method.target_kl", "null"),
        ("ppo", ["--value_model_path", "org/critic"], "method.value", "model"),
        ("ppo", ["--value_model_path", "org/critic"], "method.value_model", '"org/critic"'),
        ("ppo", ["--sft_model_path", "runs/sft"], "model.name_or_path", "runs/sft"),
        ("ppo", ["--max_prompt_length", "100"], "max_prompt_tokens", "100"),
        ("ppo", ["--max_length", "100"], "max_prompt_tokens", "47"),
    ],
)
def test_what_trls_flags_set(command: str, argv: list[str], path: str, text: str) -> None:
    assert overrides(command, *argv)[path] == text


def test_some_flags_are_noted_and_some_refused() -> None:
    noted = request("grpo", "--log_completions", "--num_completions_to_print", "3", "--do_train").notes
    assert len(noted) == 3
    assert (
        request("ppo", "--stop_token", "eos", "--local_rollout_forward_batch_size", "64").notes[0].startswith("--local")
    )
    assert "--stop has further strings" in refused("ppo", "--stop_token", "period")
    assert "--reference ema" in refused("grpo", "--sync_ref_model")
    assert request("grpo", "--use_vllm", "False", "--sync_ref_model", "False").notes == []


def test_vllm_is_refused_in_one_line() -> None:
    said = refused("grpo", "--use_vllm", "--vllm_mode", "server", "--vllm_server_port", "1")
    assert said.count("contrl does not do this") == 1
    assert "--use_vllm true, --vllm_mode server, --vllm_server_port 1: contrl does not do this" in said


def test_all_mistakes_at_once() -> None:
    with pytest.raises(ConfigErrors) as caught:
        read("grpo", ["--num_generatons", "3", "--kl_coef", "1", "--judge_model", "m", "--max_length", "512"])
    said = str(caught.value)
    for fragment in (
        "--num_generatons: there is no such flag\n  did you mean --num_generations?",
        "--kl_coef: there is no such flag here\n  it belongs to contrl ppo",
        "contrl grpo needs --model_name_or_path and --dataset_name",
        "contrl grpo needs a reward",
        "--judge_model: it belongs to --judge, which is not given",
        "--max_length 512: nothing is left for the prompt",
    ):
        assert fragment in said


def test_help_comes_without_torch() -> None:
    """In under half a second of the processor's time, which does not depend on what else the machine does."""
    code = (
        "import sys, time; from contrl.cli.main import main\ntry: main(['grpo', '--help'])\nexcept SystemExit: pass\n"
    )
    code += "assert not {'torch', 'transformers'} & set(sys.modules)\nprint(time.process_time(), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(Path()), check=True, capture_output=True, text=True
    )
    assert "--num_generations" in done.stdout
    assert float(done.stderr) < 0.5


# --- counts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "argv", "ranks", "numbers"),
    [
        # The defaults of TRL: 8 completions on a device.
        ("grpo", "", 1, (1, None, None)),
        ("rloo", "", 1, (4, None, None)),
        ("ppo", "", 1, (8, None, None)),
        ("grpo", "", 2, (2, None, None)),
        # 4 x 2 completions on each of 3 devices, 4 of each prompt.
        (
            "grpo",
            "--per_device_train_batch_size 4 --gradient_accumulation_steps 2 --num_generations 4",
            3,
            (6, None, None),
        ),
        # A rollout serves 6 passes, which are 3 steps of 2.
        (
            "grpo",
            "--per_device_train_batch_size 4 --gradient_accumulation_steps 2 --num_generations 4 "
            "--steps_per_generation 6",
            1,
            (2, 3, None),
        ),
        ("grpo", "--generation_batch_size 32", 2, (2, 2, None)),
        ("grpo", "--prompts_per_step 6 --gradient_accumulation_steps 2", 1, (6, None, None)),
        # Old PPO: rollouts of 128 in steps of 4 x 8; 1000 episodes are 8 rollouts x 4 minibatches x 4 epochs.
        (
            "ppo",
            "--batch_size 128 --mini_batch_size 4 --gradient_accumulation_steps 8 --total_episodes 1000",
            1,
            (32, 4, 8 * 4 * 4),
        ),
        ("ppo", "--batch_size 16 --num_mini_batches 2", 1, (8, 2, None)),
        ("ppo", "--total_episodes 64 --num_ppo_epochs 1 --num_mini_batches 2", 2, (16, 2, 2 * 2)),
    ],
)
def test_completions_become_prompts(
    command: str, argv: str, ranks: int, numbers: tuple[int, int | None, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """(prompts_per_step, num_minibatches, max_steps); the counts that were converted set nothing themselves."""
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    found = overrides(command, *argv.split())
    paths = ("prompts_per_step", "method.num_minibatches", "training.max_steps")
    assert tuple(int(found[path]) if path in found else None for path in paths) == numbers
    assert "training.per_device_train_batch_size" not in found
    assert ("training.gradient_accumulation_steps" in found) == ("--prompts_per_step" in argv)


@pytest.mark.parametrize(
    ("command", "argv", "words"),
    [
        ("grpo", "--per_device_train_batch_size 6 --num_generations 4", "use 4 or 8, or --num_generations 3 or 6"),
        ("grpo", "--per_device_train_batch_size 3", "use 8, or --num_generations 3"),
        # With 2 accumulation steps every second number of completions makes whole groups of 4.
        (
            "grpo",
            "--per_device_train_batch_size 3 --gradient_accumulation_steps 2 --num_generations 4",
            "use 2 or 4, or --num_generations 3 or 6",
        ),
        ("grpo", "--steps_per_generation 3 --gradient_accumulation_steps 2", "--steps_per_generation 3"),
        ("grpo", "--steps_per_generation 3 --gradient_accumulation_steps 2", "use 2 or 4"),
        ("grpo", "--generation_batch_size 20", "use 16 or 24"),
        ("grpo", "--generation_batch_size 16 --steps_per_generation 2", "is given twice"),
        ("grpo", "--steps_per_generation 2 --num_minibatches 2", "also by --num_minibatches"),
        ("grpo", "--prompts_per_step 2 --per_device_train_batch_size 8", "the size of a step is given twice"),
        ("ppo", "--batch_size 10 --mini_batch_size 4", "use 8 or 12"),
        ("ppo", "--batch_size 9 --num_mini_batches 2", "use 8 or 10"),
        ("ppo", "--batch_size 8 --per_device_train_batch_size 8", "the size of a pass is given twice"),
        ("ppo", "--total_episodes 100 --max_steps 3", "the length of the run is given twice"),
    ],
)
def test_what_does_not_come_out_even_names_the_nearest_numbers(command: str, argv: str, words: str) -> None:
    assert words in refused(command, *argv.split())


def test_a_word_that_is_no_number_is_told_by_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["grpo", *MINIMAL, "--per_device_train_batch_size", "many", "--num_generations", "few"]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert "--per_device_train_batch_size: expected a whole number, found 'many'" in said
    assert "--samples_per_prompt: expected a whole number, found 'few'" in said


# --- rewards --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("countdown", "countdown"),
        ("my_module.my_fn", "my_module:my_fn"),
        ("a.b.my_fn", "a.b:my_fn"),
        ("a.b:my_fn", "a.b:my_fn"),
        ("a.Near(target=1.5)", "a:Near(target=1.5)"),
        ("length(target=1.5)", "length(target=1.5)"),
        ("a.b:Near(x=1.5)", "a.b:Near(x=1.5)"),
    ],
)
def test_dotted_paths_are_import_paths(word: str, meant: str) -> None:
    assert import_path(word) == meant


def functions(*argv: str) -> Any:
    text = dict(t.split("=", 1) for t in read("grpo", [*MINIMAL[:4], *argv]).overrides)["rewards.functions"]
    return json.loads(text)


def test_rewards_in_their_order() -> None:
    """TRL's: the model, then the functions; the judge comes last."""
    argv = ["--reward_funcs", "countdown,length(target=5)", "my.fn", "--judge", "http://localhost:1/v1"]
    argv += ["--judge_model", "m", "--max_judge_calls", "9", "--reward_model_path", "org/rm", "--reward_label", "1"]
    assert functions(*argv) == [
        'classifier(model="org/rm", label="1")',
        "countdown",
        "length(target=5)",
        "my:fn",
        'judge(url="http://localhost:1/v1", model="m", max_calls="9")',
    ]
    assert functions("--reward_funcs", "think_format_reward") == ["think_format"]
    assert functions("--judge") == ["judge"]
    assert functions("--nemotron_api_key", "k") == ["judge"]


def test_a_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only the models of the tasks exist."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "each_0"):
        Path(name).mkdir()
    assert functions("--reward_model_path", "one") == [f'classifier(model="{tmp_path}/one")']
    assert functions("--reward_model_path", "each") == [f'classifier(model="{tmp_path}/each")']


def test_a_file_of_flags_gives_rewards_too(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(
        "model_name_or_path: tiny\ndataset_name: rows\nreward_funcs: [countdown, my.fn]\nreward_weights: [1, 2]\n"
        "nemotron_api_key: secret\njudge: no\n",
        encoding="utf-8",
    )
    found = read("rloo", ["--config", str(file)])
    assert 'rewards.functions=["countdown", "my:fn", "judge"]' in found.overrides
    assert found.environment == {"NVIDIA_API_KEY": "secret"}


@pytest.mark.parametrize("command", ONLINE)
def test_the_defaults_are_trls(command: str) -> None:
    from contrl.cli.training.command import resolved_of

    found = resolved_of(request(command), request(command).overrides).config
    expected = {"grpo": (8, 512, 1.0, 0.0, 1e-6), "rloo": (2, 512, 1.0, 0.05, 1e-6), "ppo": (1, 53, 0.7, 0.05, 3e-6)}
    fields = found.method.fields
    assert (
        fields["samples_per_prompt"],
        fields["max_new_tokens"],
        fields["temperature"],
        fields["kl_coef" if command == "ppo" else "beta"],
        found.training["learning_rate"],
    ) == expected[command]
    assert COMMANDS[command].learning_rate in (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert found.rewards.functions[0].name == "length"


def test_normalised_sums_take_their_weights_themselves() -> None:
    argv = ["--reward_weights", "1", "2", "--multi_objective_aggregation", "normalize_then_sum"]
    found = overrides("grpo", *argv)
    assert found["method.reward_weights"] == found["rewards.weights"] == "[1, 2]"
    assert "method.reward_weights" not in overrides("grpo", *argv[:3])


# --- the key --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv", [["--nemotron_api_key", "KEY"], ["--nemotron_api_key=KEY"], ["--nemotron-api-key", "KEY"]]
)
def test_the_key_is_taken_out_of_words(argv: list[str]) -> None:
    assert without_secrets(["grpo", "--seed", "1", *argv, "--bf16"], flags_of("grpo")) == [
        "grpo",
        "--seed",
        "1",
        "--bf16",
    ]


def test_the_key_serves_the_server_it_was_given_for() -> None:
    local = request("grpo", "--judge", "http://127.0.0.1:8000/v1", "--nemotron_api_key", "k").environment
    hosted = request("grpo", "--judge", "--nemotron_api_key", "k").environment
    assert (local, hosted) == ({"OPENAI_API_KEY": "k"}, {"NVIDIA_API_KEY": "k"})


# --- runs -----------------------------------------------------------------------------------------------


def rows(folder: Path, name: str, *columns: str) -> str:
    """A file of twelve rows whose columns hold the row's number."""
    lines = [json.dumps({column: f"{i}{'=' * (column == 'prompt')}" for column in columns}) + "\n" for i in range(12)]
    (folder / name).write_text("".join(lines).replace('"rejected": "', '"rejected": "no'), encoding="utf-8")
    return name


MY_REWARDS = "def digits(completions, **columns):\n    return [sum(c.isdigit() for c in t) / 6 for t in completions]\n"


@pytest.mark.parametrize("command", ["grpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rloo", "ppo"))])
def test_every_command_trains_and_the_key_is_nowhere(
    command: str, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pairs give their prompts; two rewards with weights, each with a curve of its own."""
    (runs.folder / "my_rewards.py").write_text(MY_REWARDS, encoding="utf-8")
    data, key = rows(runs.folder, "pairs.jsonl", "prompt", "chosen", "rejected"), "a-very-secret-key"
    argv = [command, "--model_name_or_path", str(runs.world / "model"), data, "--eval_size", "4", "--max_steps", "2"]
    argv += ["--reward_funcs", "my_rewards.digits", "length(target=3)", "--reward_weights", "1", "0.5", "--output_dir"]
    argv += ["out", "--num_generations", "2", "--per_device_train_batch_size", "8", "--max_completion_length", "6"]
    monkeypatch.setattr(sys, "argv", ["contrl", *argv])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert main(argv) == 0
    config = load(runs.folder / "out" / "config.yaml", resolve=find).config
    assert (config.method.name, config.prompts_per_step) == (command, 4)
    assert [plugin.name for plugin in config.rewards.functions] == ["my_rewards:digits", "length"]
    log = (runs.folder / "out" / "metrics.jsonl").read_text(encoding="utf-8")
    assert "rewards/digits/mean" in log
    assert "rewards/length/mean" in log
    said = capsys.readouterr().out
    assert "4 prompts x 2 samples = 8 completions a step" in said
    # A key asks for a judge, which is another reward; the process forgets the word at once. A dry run asks nobody.
    secret = [*argv, "--nemotron_api_key", key, "--reward_weights", "1", "1", "0"]
    monkeypatch.setattr(sys, "argv", ["contrl", *secret])
    assert main([*secret, "--dry_run"]) == 0
    assert sys.argv == ["contrl", *without_secrets(secret, flags_of(command))]
    assert os.environ["NVIDIA_API_KEY"] == key
    assert key not in capsys.readouterr().out
    files = [path for path in runs.folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if key.encode() in path.read_bytes()]


class Judge(BaseHTTPRequestHandler):
    """Answers every conversation with a score, and remembers with which key it was asked."""

    keys: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        Judge.keys.append(str(self.headers["Authorization"]))
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": "reward:-1.25"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Say nothing."""


def test_a_judge_is_asked_with_the_key_and_no_file_holds_it(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six prompts are judged before and after one step, and its own answers; every file written is searched."""
    pytest.importorskip("openai")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(os, "environ", dict(os.environ))
    key, data = "a-very-secret-key", rows(runs.folder, "rows.jsonl", "prompt")
    argv = ["rloo", "--model_name_or_path", str(runs.world / "model"), data, "--eval_size", "6", "--max_steps", "1"]
    argv += ["--max_completion_length", "4", "--judge", f"http://127.0.0.1:{server.server_port}/v1", "--judge_model"]
    argv += ["m", "--nemotron_api_key", key, "--max_judge_calls", "50", "--output_dir", "out", "--save_steps", "1"]
    monkeypatch.setattr(sys, "argv", ["contrl", *argv])
    try:
        assert main(argv) == 0
    finally:
        server.shutdown()
        server.server_close()
    assert set(Judge.keys) == {f"Bearer {key}"}
    assert key not in sys.argv
    files = [path for path in runs.folder.rglob("*") if path.is_file()]
    assert {"run.json", "config.yaml", "README.md"} <= {path.name for path in files}
    assert [path for path in files if key.encode() in path.read_bytes()] == []
    manifest = json.loads((runs.folder / "out" / "run.json").read_text(encoding="utf-8"))
    assert manifest["command"][-4:] == ["--output_dir", "out", "--save_steps", "1"]


def test_a_classifier_of_several_labels_rewards(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder is named in the first lines; without a label the labels are told before anything is trained."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    shape = LlamaConfig.from_pretrained(runs.world / "model")
    shape.num_labels, shape.id2label = 2, {0: "NEGATIVE", 1: "POSITIVE"}
    LlamaForSequenceClassification(shape).save_pretrained(runs.folder / "judge")
    AutoTokenizer.from_pretrained(runs.world / "model").save_pretrained(runs.folder / "judge")
    data = rows(runs.folder, "rows.jsonl", "prompt")
    argv = ["rloo", "--model_name_or_path", str(runs.world / "model"), data, "--eval_size", "2", "--max_steps", "1"]
    argv += ["--max_completion_length", "4", "--reward_model_name_or_path", "judge", "--output_dir"]
    assert main([*argv, "out", "--reward_label", "POSITIVE"]) == 0
    said = capsys.readouterr().out
    assert f"is rewarded by {runs.folder / 'judge'}" in said
    assert "eval_score" in (runs.folder / "out" / "scores.jsonl").read_text(encoding="utf-8")
    assert main([*argv, "two"]) == 2
    assert "it has 0: NEGATIVE, 1: POSITIVE" in capsys.readouterr().err


@pytest.mark.slow
def test_each_task_has_its_own_reward_model(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = []
    for name in ("yes", "no"):
        pairs = [{"prompt": f"{name}{i}=", "chosen": f"{i}{name}", "rejected": f"{i}"} for i in range(6)]
        about: dict[str, Any] = {"domain": {name: {"name": name, "seed_words": [], "weight": 1.0}}, "objective": "o"}
        tasks.append({"task": {**about, "preference": "p"}, "train": pairs[:4], "test": pairs[4:]})
    Path("tasks.json").write_text(json.dumps({"datasets": tasks}), encoding="utf-8")
    model = ["--model_name_or_path", str(runs.world / "model"), "--max_steps", "1"]
    assert main(["reward", *model, "tasks.json", "--all_datasets", "--output_dir", "rewards"]) == 0
    capsys.readouterr()
    argv = [
        "ppo",
        *model,
        "tasks.json",
        "--reward_model_path",
        "rewards",
        "--output_dir",
        "out",
        "--response_length",
        "4",
    ]
    assert main(argv) == 0
    said = capsys.readouterr().out
    for index in (0, 1):
        assert f"rewards/{index}: its own, of task {index}" in said
