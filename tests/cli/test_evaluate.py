"""``contrl evaluate`` on models of thirty thousand weights: judges of every kind, kills, repeats, mistakes, secrets."""

from __future__ import annotations

import importlib
import json
import linecache
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch
import wandb
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from contrl import faults
from contrl.cli import evaluating
from contrl.cli.main import main
from contrl.continual.tracker_kinds import WANDB_SURROUNDINGS
from contrl.errors import ENVIRONMENT, OK, USAGE
from contrl.evaluation import answers, judging, win_rate
from contrl.experiment import Classifier
from contrl.models.embedded import character_tokenizer
from contrl.rollout import sampler
from tests.continual.test_trackers import runs_in, wandb_records
from tests.rewards.judge_server import Asked, JudgeServer, Say
from tests.runs import ROOT, Runs, environment

KEY = "nvapi-secret-0123456789"
TOKENIZER = character_tokenizer()
DIGITS = "0123456789"
METRIC = "tests.cli.verifiers:digits"
NUM_PROMPTS = 24


def save_model(folder: Path, seed: int, digits: float = 0.0, *, template: bool = True) -> Path:
    """A random llama; ``digits`` lifts the logits of digits, because a bias of ones dominates the last state.

    The normalised state is about 1 in each of 16 places, so a lift of x in the digits' rows adds 16 x to their logits.
    """
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=96,
        tie_word_embeddings=False,
        mlp_bias=True,
        bos_token_id=None,
        eos_token_id=TOKENIZER.eos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        layer: Any = model.model.layers[0]
        layer.mlp.down_proj.bias.fill_(20.0 if digits else 0.0)
        model.lm_head.weight[TOKENIZER.convert_tokens_to_ids(list(DIGITS))] += digits
    model.save_pretrained(folder)
    tokenizer = character_tokenizer()
    if not template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models ``plain``, ``other`` and ``better``, and the file ``prompts.jsonl``."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "plain", 0)
    save_model(folder / "other", 1, template=False)
    save_model(folder / "better", 0, digits=0.12)
    rows: list[dict[str, Any]] = [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(NUM_PROMPTS - 2)]
    rows += [{"prompt": [{"role": "user", "content": text}], "answer": "0"} for text in ("Hello?", "Who are you?")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


class Evaluate:
    """Runs the command in a folder of its own with small settings; ``metrics`` reads what it wrote."""

    def __init__(self, models: Path, folder: Path) -> None:
        self.models, self.folder = models, folder

    def __call__(self, *words: str, model: str = "better", reference: str = "plain", out: str = "out") -> int:
        given = {
            "--model_path": self.models / model,
            "--reference_model": self.models / reference,
            "--dataset_name": self.models / "prompts.jsonl",
            "--output_dir": self.folder / out,
            "--max_new_tokens": 8,
            "--tokens_per_chunk": 120,
        }
        return main(["evaluate", *(str(word) for pair in given.items() for word in pair), *words])

    def metrics(self, out: str = "out") -> dict[str, Any]:
        return json.loads((self.folder / out / "evaluation_metrics.json").read_text(encoding="utf-8"))

    def rows(self, out: str = "out") -> list[dict[str, Any]]:
        return parquet.read_table(self.folder / out / "detailed_results.parquet").to_pylist()

    def files(self, out: str = "out") -> dict[str, bytes]:
        names = ("evaluation_metrics.json", "detailed_results.parquet")
        return {name: (self.folder / out / name).read_bytes() for name in names}


@pytest.fixture
def evaluate(models: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    for name in ("NVIDIA_API_KEY", "NEMOTRON_API_KEY", "OPENAI_API_KEY", "WANDB_PROJECT"):
        monkeypatch.setenv(name, "x")  # so that it is as before afterwards, whatever the command sets
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["contrl"])
    return Evaluate(models, runs.folder)


# --- local judges ---------------------------------------------------------------------------------------


def test_a_better_model_wins_significantly(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--metric", METRIC) == OK
    found = evaluate.metrics()
    assert found["win_rate_ties_half_ci"][0] > 0.5
    assert found["reward_improvement_ci"][0] > 0
    assert found["num_wins"] + found["num_ties"] + found["num_losses"] + found["missing"] == NUM_PROMPTS
    said = capsys.readouterr().out
    assert "is better than the reference" in said
    rows = evaluate.rows()
    assert [row["id"] for row in rows] == [str(i) for i in range(NUM_PROMPTS)]
    for row in rows:
        expected = sum(letter.isdigit() for letter in row["model_response"]) / 6 + len(row["model_response"]) / 100
        assert row["model_reward"] == expected
        assert (row["verdict"] == "win") == (row["model_reward"] > row["reference_reward"])
        assert row["model_words"] == len(row["model_response"].split())
        assert row["model_tokens"] == len(row["model_response"])
    assert found["avg_reward"] == pytest.approx(sum(row["model_reward"] for row in rows) / NUM_PROMPTS)


@pytest.mark.parametrize("copied", [False, True])
def test_a_model_against_itself_is_a_tie_everywhere(evaluate: Evaluate, copied: bool) -> None:
    reference = "plain"
    if copied:
        reference = str(shutil.copytree(evaluate.models / "plain", evaluate.folder / "copy"))
    assert evaluate("--metric", METRIC, "--temperature", "0", model="plain", reference=reference) == OK
    found = evaluate.metrics()
    names = ("win_rate", "tie_rate", "loss_rate", "win_rate_ties_half", "reward_improvement", "length_ratio_tokens")
    assert [found[name] for name in names] == [0.0, 1.0, 0.0, 0.5, 0.0, 1.0]
    assert len(list((evaluate.folder / "out" / "answers").glob("[0-9a-f]*.jsonl"))) == 1  # it answered once


def test_messages_get_the_chat_template_or_none(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[list[int]]] = {}
    generate = answers.generate

    def watching(model: Any, prompts: Any, *rest: Any, **named: Any) -> Any:
        seen.setdefault(Path(model.name_or_path).name, []).extend(ids for _, ids in prompts)
        return generate(model, prompts, *rest, **named)

    monkeypatch.setattr(answers, "generate", watching)
    assert evaluate("--metric", METRIC, model="other", reference="plain") == OK
    texts = {name: [TOKENIZER.decode(ids) for ids in prompts] for name, prompts in seen.items()}
    assert {"user: Hello?\nassistant: ", "1+1="} <= set(texts["plain"])
    assert {"Hello?", "1+1="} <= set(texts["other"])
    assert {name: len(prompts) for name, prompts in texts.items()} == {"plain": NUM_PROMPTS, "other": NUM_PROMPTS}


def test_a_prompt_near_the_end_of_the_context_gets_a_shorter_answer(evaluate: Evaluate) -> None:
    """The context has 96 tokens, the longest template prompt 32, the shortest 4: no answer has more than the rest."""
    assert evaluate("--metric", METRIC, "--max_new_tokens", "90", "--temperature", "0", model="plain") == OK
    lengths = {row["id"]: row["model_tokens"] for row in evaluate.rows()}
    assert max(lengths.values()) <= 90
    long = str(NUM_PROMPTS - 1)
    assert lengths[long] <= 96 - len("user: Who are you?\nassistant: ")


def save_judge(evaluate: Evaluate, labels: int = 1, *, template: bool = True) -> str:
    """A random classifier in the folder ``judge``."""
    config = LlamaConfig.from_pretrained(evaluate.models / "plain", num_labels=labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        LlamaForSequenceClassification(config).save_pretrained(evaluate.folder / "judge")
    tokenizer = character_tokenizer()
    if not template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(evaluate.folder / "judge")
    return str(evaluate.folder / "judge")


def test_a_reward_model_judges_and_no_answer_is_scored_twice(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    score = Classifier.__call__

    def counting(self: Any, **columns: Any) -> Any:
        asked.append(len(columns["completions"]))
        return score(self, **columns)

    monkeypatch.setattr(Classifier, "__call__", counting)
    words = ("--reward_model", save_judge(evaluate))
    assert evaluate(*words) == OK
    first, found = evaluate.files(), evaluate.metrics()
    assert found["num_scored"] == NUM_PROMPTS
    assert len({row["model_reward"] for row in evaluate.rows()}) > NUM_PROMPTS / 2
    number = sum(asked)
    assert 0 < number <= 2 * NUM_PROMPTS
    assert evaluate(*words) == OK
    assert (evaluate.files(), sum(asked)) == (first, number)


def test_a_classifier_with_labels_and_without_a_template(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = save_judge(evaluate, 2, template=False)
    assert evaluate("--reward_model", judge) == USAGE
    seen = capsys.readouterr()
    assert "several labels" in seen.err
    assert "answering" not in seen.out  # told before anything is loaded
    rewards = {}
    for label in ("LABEL_0", "1"):
        assert evaluate("--reward_model", judge, "--reward_label", label) == OK
        rewards[label] = [row["model_reward"] for row in evaluate.rows()]
    assert "plain text" in capsys.readouterr().out
    assert None not in rewards["1"]
    assert rewards["LABEL_0"] != rewards["1"]
    text = evaluate.rows()[-1]["model_response"]
    model = LlamaForSequenceClassification.from_pretrained(judge).eval()
    ids = torch.tensor([[*TOKENIZER(f"Who are you?\n\n{text}")["input_ids"], TOKENIZER.eos_token_id]])
    with torch.no_grad():
        expected = model(ids).logits[0, 1].item()
    assert rewards["1"][-1] == pytest.approx(expected, abs=1e-5)


def test_a_column_that_a_metric_needs_is_missed_before_anything_is_answered(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--metric", "countdown") == USAGE
    seen = capsys.readouterr()
    assert "ground_truth" in seen.err
    assert "answering" not in seen.out


def test_a_metric_changed_is_asked_again(evaluate: Evaluate) -> None:
    plugin = evaluate.folder / "mine.py"
    for value in (1.0, 2.0):
        plugin.write_text(f"def score(*, completions, **columns):\n    return [{value}] * len(completions)\n")
        sys.modules.pop("mine", None)
        importlib.invalidate_caches()
        linecache.clearcache()
        shutil.rmtree(evaluate.folder / "__pycache__", ignore_errors=True)
        assert evaluate("--metric", "mine.score", "--temperature", "0") == OK
        assert evaluate.metrics()["avg_reward"] == value
    sys.modules.pop("mine", None)


# --- kills ----------------------------------------------------------------------------------------------


def visits_of(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a whole evaluation reaches each fault point."""
    visits: dict[str, int] = {}
    reach = faults.reach

    def counting(point: str) -> None:
        visits[point] = visits.get(point, 0) + 1
        reach(point)

    with monkeypatch.context() as watched:
        for module in (answers, evaluating, judging, sampler, win_rate):
            watched.setattr(module, "reach", counting)
        assert evaluate("--metric", METRIC, out="whole") == OK
    return visits


def kill_and_repeat(evaluate: Evaluate, point: str, visit: int) -> dict[str, bytes]:
    """The files of an evaluation that was killed at a fault point, and repeated."""
    out = f"{point}-{visit}"
    faults.arm(point, visit)
    with pytest.raises(faults.Killed):
        evaluate("--metric", METRIC, out=out)
    assert not (evaluate.folder / out / "evaluation_metrics.json").exists()
    faults.arm(point, 0)
    assert evaluate("--metric", METRIC, out=out) == OK
    return evaluate.files(out)


def test_killed_in_the_middle_and_repeated_gives_the_same_files(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    visits = visits_of(evaluate, monkeypatch)
    assert visits["sampling"] > 3
    for point, number in visits.items():
        assert kill_and_repeat(evaluate, point, number // 2 + 1) == evaluate.files("whole")


@pytest.mark.slow
def test_killed_anywhere_and_repeated_gives_the_same_files(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    for point, number in visits_of(evaluate, monkeypatch).items():
        for visit in range(1, number + 1):
            assert kill_and_repeat(evaluate, point, visit) == evaluate.files("whole"), (point, visit)


def test_a_second_judge_finds_the_answers(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--metric", METRIC) == OK
    capsys.readouterr()
    assert evaluate("--metric", "repetition") == OK
    said = capsys.readouterr().out
    assert "generations: 0 of" in said
    assert "answering:" not in said


# --- remote judges --------------------------------------------------------------------------------------


def by_length(asked: Asked) -> Say:
    """A typical, negative score, higher for texts with more digits."""
    return Say(f"reward:{sum(letter.isdigit() for letter in asked.text) - 20}.5")


def failing(share: float, answer: Callable[[Asked], Say]) -> Callable[[Asked], Say]:
    """A share of the texts, chosen by content, is refused for good."""

    def say(asked: Asked) -> Say:
        digest = sum(asked.text.encode()) % 10
        return Say(status=400) if digest < 10 * share else answer(asked)

    return say


def test_a_judge_that_fails_for_a_third_loses_and_biases_nothing(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    with JudgeServer(by_length) as server:
        assert evaluate("--judge", server.url, "--judge_model", "m", out="whole") == OK
        calls = len(server.asked)
        assert evaluate("--judge", server.url, "--judge_model", "m", out="whole") == OK
        assert len(server.asked) == calls  # a second run makes no new call
        server.answer = failing(0.3, by_length)
        words = ("--judge", server.url, "--judge_model", "m2", "--answers_dir", "whole/answers", "--judge_retries", "0")
        capsys.readouterr()
        assert evaluate(*words, out="failing") == OK
        assert "missing (refused" in capsys.readouterr().out
        known = {row["id"]: row for row in evaluate.rows("whole")}
        lost = evaluate.metrics("failing")
        rows = evaluate.rows("failing")
        assert 0 < lost["missing"] < NUM_PROMPTS
        assert lost["num_scored"] == NUM_PROMPTS - lost["missing"]
        for row in rows:
            for side in ("model_reward", "reference_reward"):
                assert row[side] in (None, known[row["id"]][side])
            is_missing = None in (row["model_reward"], row["reference_reward"])
            assert row["verdict"] == ("missing" if is_missing else known[row["id"]]["verdict"])
        answered = [row for row in rows if row["verdict"] != "missing"]
        assert lost["win_rate"] == sum(row["verdict"] == "win" for row in answered) / len(answered)
        # When the judge is well again, only what is missing is asked for.
        server.answer, before = by_length, len(server.asked)
        assert evaluate(*words, out="failing") == OK
        assert 0 < len(server.asked) - before <= 2 * lost["missing"]
    ours, theirs = evaluate.metrics("failing"), evaluate.metrics("whole")
    numbers = [name for name, value in theirs.items() if isinstance(value, int | float | list)]
    assert {name: ours[name] for name in numbers} == {name: theirs[name] for name in numbers}


def prefers_digits(asked: Asked) -> Say:
    """A chat model that reads both answers and likes the one with more digits."""
    frame = r"<answer A>\n(.*)\n</answer A>\n<answer B>\n(.*)\n</answer B>"
    read = re.search(frame, asked.text, flags=re.DOTALL)
    assert read is not None
    first, second = (sum(letter.isdigit() for letter in answer) for answer in read.groups())
    return Say("A" if first > second else "B" if second > first else "tie")


def test_a_judge_of_pairs_is_asked_in_both_orders(evaluate: Evaluate) -> None:
    """A judge that always says A has seen nothing: ties. One that reads agrees with itself."""
    words = ("--judge_model", "chat", "--pairwise", "--answers_dir", "answers")
    with JudgeServer(lambda asked: Say("A")) as server:
        assert evaluate("--judge", server.url, *words) == OK
        found = evaluate.metrics()
        assert (found["tie_rate"], found["avg_reward"], found["avg_reward_ci"]) == (1.0, None, None)
        differ = sum(row["model_response"] != row["reference_response"] for row in evaluate.rows())
        assert len(server.asked) == 2 * differ
    with JudgeServer(prefers_digits) as server:
        assert evaluate("--judge", server.url, *words) == OK
    for row in evaluate.rows():
        ours, theirs = (sum(map(str.isdigit, row[name])) for name in ("model_response", "reference_response"))
        assert row["verdict"] == ("win" if ours > theirs else "loss" if theirs > ours else "tie")
    assert evaluate.metrics()["win_rate_ties_half_ci"][0] > 0.5


def test_the_dry_run_asks_and_makes_nothing(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    with JudgeServer(by_length) as server:
        words = ("--judge", server.url, "--judge_model", "m")
        assert evaluate(*words, "--dry_run") == OK
        said = capsys.readouterr().out
        assert f"generations: {2 * NUM_PROMPTS} of up to 8 tokens" in said
        assert f"judge calls: up to {2 * NUM_PROMPTS}, up to about" in said
        assert server.asked == []
        assert not (evaluate.folder / "out").exists()
        assert evaluate(*words) == OK
        said = capsys.readouterr().out
        number = len(server.asked)
        assert f"judge calls: {number}, about" in said
        assert evaluate(*words, "--dry_run") == OK
        said = capsys.readouterr().out
        assert "generations: 0 of" in said
        assert "judge calls: 0, about 0 tokens" in said
        assert len(server.asked) == number


def test_a_budget_makes_scores_missing(evaluate: Evaluate) -> None:
    with JudgeServer(by_length) as server:
        assert evaluate("--judge", server.url, "--judge_model", "m", "--max_judge_calls", "10") == OK
        assert len(server.asked) == 10
    assert evaluate.metrics()["missing"] >= NUM_PROMPTS - 10


def test_a_key_is_used_and_written_nowhere(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with JudgeServer(lambda asked: Say(status=401, content=f"bad key {KEY}")) as server:
        words = ["--judge", server.url, "--nemotron_api_key", KEY]
        monkeypatch.setattr(sys, "argv", ["contrl", "evaluate", *words])
        assert evaluate(*words) == ENVIRONMENT
        assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
        assert sys.argv == ["contrl", "evaluate", "--judge", server.url]
        server.answer = by_length
        assert evaluate(*words) == OK
    seen = capsys.readouterr()
    assert KEY not in seen.out + seen.err
    assert "does not accept the key" in seen.err
    for path in evaluate.folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


# --- several models, references, trackers -----------------------------------------------------------------


def test_several_models_give_a_table(
    evaluate: Evaluate, models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert evaluate("--model_path", str(models / "better"), str(models / "other"), "--metric", METRIC) == OK
    said = capsys.readouterr().out
    assert said.count("answering:") == 3
    listed = json.loads((evaluate.folder / "out" / "comparison.json").read_text(encoding="utf-8"))["models"]
    assert [one["name"] for one in listed] == ["better", "other"]
    assert listed[0]["win_rate"] == evaluate.metrics("out/better")["win_rate"] > listed[1]["win_rate"]
    assert len(evaluate.rows("out/other")) == NUM_PROMPTS


def test_the_reference_is_what_the_run_started_from(
    evaluate: Evaluate, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = evaluate.folder / "outputs" / "dpo"
    shutil.copytree(models / "better", run / "final")
    (run / "run.json").write_text(json.dumps({"model": str(models / "plain")}), encoding="utf-8")
    words = ["evaluate", "--model_path", "outputs/dpo/final", "--metric", METRIC, "--output_dir", "outputs/dpo/eval"]
    words += ["--dataset_name", str(models / "prompts.jsonl"), "--max_new_tokens", "4"]
    assert main(words) == OK
    assert f"against {models / 'plain'} (the model its run started from" in capsys.readouterr().out
    assert evaluate.metrics("outputs/dpo/eval")["reference_model"] == str(models / "plain")
    shutil.copytree(models / "other", run / "base")  # what a base stage made of it
    assert main([*words, "--dry_run"]) == OK
    assert f"against {run / 'base'}" in capsys.readouterr().out
    shutil.rmtree(run / "base")
    (run / "run.json").unlink()
    assert main([*words, "--dry_run"]) == OK
    assert "against Qwen/Qwen2.5-0.5B-Instruct (the default" in capsys.readouterr().out


def test_wandb_gets_one_run_with_the_metrics_as_summary(
    evaluate: Evaluate, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("API_KEY", "NAME", "DIR", "RUN_ID", "PROJECT"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name, value in WANDB_SURROUNDINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(evaluate.folder))
    run = evaluate.folder / "outputs" / "dpo"
    shutil.copytree(models / "better", run / "final")
    wandb.teardown()
    assert evaluate("--metric", METRIC, "--use_wandb", "--model_path", str(run / "final")) == OK
    wandb.teardown()
    (file,) = (evaluate.folder / "out").glob("wandb/offline-run-*/*.wandb")
    assert runs_in(file)[0].display_name == "eval_dpo"
    summary = {
        item.key or item.nested_key[0]: json.loads(item.value_json)
        for record in wandb_records(file)
        if record.HasField("summary")
        for item in record.summary.update
    }
    found = evaluate.metrics()
    assert {name: summary[name] for name in ("win_rate", "tie_rate", "num_scored")} == {
        name: found[name] for name in ("win_rate", "tie_rate", "num_scored")
    }
    assert summary["win_rate_ci_low"] == found["win_rate_ci"][0]


PRINTED = (
    '--model_path "outputs/dpo/final" --nemotron_api_key "your_api_key" --num_prompts 100 --output_dir '
    '"outputs/dpo/eval" --use_wandb'
)


@pytest.mark.slow
def test_the_pipelines_command_as_printed(evaluate: Evaluate, models: Path) -> None:
    """With ``--judge`` and ``--max_new_tokens`` added: no test may reach NVIDIA, nor wait for 512 tokens."""
    run = evaluate.folder / "outputs" / "dpo"
    shutil.copytree(models / "better", run / "final")
    (run / "run.json").write_text(json.dumps({"model": str(models / "plain")}), encoding="utf-8")
    script = str(ROOT / "recipes" / "rl_llm" / "evaluate.py")
    surroundings = environment(
        evaluate.folder / "cache",
        CONTRL_DATA_DIR=str(ROOT / "tests" / "fixtures" / "data"),
        WANDB_MODE="offline",
        HOME=str(evaluate.folder),
    )
    with JudgeServer(by_length) as server:
        words = [*shlex.split(PRINTED), "--judge", server.url, "--max_new_tokens", "5"]
        done = subprocess.run(
            [sys.executable, script, *words],
            cwd=evaluate.folder,
            env={name: value for name, value in surroundings.items() if name != "WANDB_PROJECT"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == OK, done.stderr
        assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer your_api_key"}
    assert "your_api_key" not in done.stdout + done.stderr
    assert evaluate.metrics("outputs/dpo/eval")["num_scored"] == evaluate.metrics("outputs/dpo/eval")["num_prompts"]
    (file,) = (run / "eval").glob("wandb/offline-run-*/*.wandb")
    (tracked,) = {(record.project, record.display_name) for record in runs_in(file)}
    assert tracked == ("cs224r_deeprl_final", "eval_dpo")
    for path in evaluate.folder.rglob("*"):
        assert not path.is_file() or b"your_api_key" not in path.read_bytes(), path


# --- mistakes -------------------------------------------------------------------------------------------


def test_all_mistakes_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--num_prompts", "0", "--temperature", "hot", "--top_p", "2", "--dtype", "f16", "--use_wandb", "perhaps"]
    assert main(["evaluate", *words]) == USAGE
    said = capsys.readouterr().err
    for text in (
        "num_prompts is '0'",
        "temperature is 'hot'",
        "top_p is '2'",
        "dtype",
        "use_wandb",
        "needs --model_path",
    ):
        assert text in said
    for way in ("--nemotron_api_key", "--judge URL", "--reward_model", "--metric"):
        assert way in said


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--metric", METRIC, "--reward_model", "r"], "several judges"),
        (["--metric", METRIC, "--judge", "http://127.0.0.1:1/v1"], "several judges"),
        (["--judge", "http://127.0.0.1:1/v1", "--pairwise"], "--pairwise needs --judge_model"),
        (["--metric", METRIC, "--pairwise"], "--pairwise belongs to --judge"),
        (["--metric", METRIC, "--max_judge_calls", "3"], "--max_judge_calls belongs to --judge"),
        (["--metric", METRIC, "--reward_label", "x"], "--reward_label belongs to --reward_model"),
        (["--metric", "countdwn"], "did you mean countdown?"),
        (["--metric", "logp"], "judges no answers"),
        (["--reward_model", "nowhere"], "there is no reward model"),
        (["--reward_model", "tiny"], "there is no reward model"),
        (["--metric", METRIC, "--dataset_name", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--metric", METRIC, "--reference_model", "./nowhere"], "there is no model ./nowhere"),
        (["--metric", METRIC, "--device", "warp"], "there is no device 'warp'"),
        (["--metric", METRIC, "--split", "testing", "--dataset_name", "ultrafeedback"], "no split 'testing'"),
    ],
)
def test_mistakes_are_words(
    evaluate: Evaluate, words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(*words) == USAGE
    assert text in capsys.readouterr().err


def test_ultrafeedback_is_the_default(
    evaluate: Evaluate, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONTRL_DATA_DIR", str(Path(__file__).parents[1] / "fixtures" / "data"))
    words = ["evaluate", "--model_path", str(models / "plain"), "--reference_model", str(models / "better")]
    words += ["--metric", METRIC, "--output_dir", "out", "--max_new_tokens", "4", "--num_prompts", "3"]
    assert main(words) == OK
    rows = evaluate.rows("out")
    assert json.loads(rows[0]["prompt"]) == [{"role": "user", "content": "How do I make tea?"}]
    assert len(rows) <= 3
