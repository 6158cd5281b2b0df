"""Whole runs in seconds: a llama of thirty thousand weights, two tasks of a dozen rows, a reward that teaches.

Everything goes through ``contrl.launch.start`` or through the command line, as a user's run does. ``remains`` is
what a run leaves that must not depend on whether it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from contrl import faults
from contrl.cli.console import quiet_libraries
from contrl.config import load
from contrl.continual.records import read_records
from contrl.experiment import find
from contrl.launch import Options, start
from contrl.models.embedded import character_tokenizer

ROOT = Path(__file__).parents[1]

RLOO: Mapping[str, Any] = {"name": "rloo", "samples_per_prompt": 3, "max_new_tokens": 6}
REPLAY: Mapping[str, Any] = {"name": "replay", "share": 0.5, "buffer_size": 5}
AVERAGE, DIARY = "tests.plugins:Average", "tests.plugins:Diary"


def make_world(folder: Path) -> Path:
    """A model folder and two tasks' rows, written once for a session.

    Eight train rows and four held out of each task make two steps of four prompts an epoch.
    """
    tokenizer = character_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for shift, name in enumerate(("sums", "doubles")):
        rows = [
            {"prompt": f"{name[0]}{i}+{i + shift}=", "completion": str(2 * i + shift), "id": f"{name}-{i}"}
            for i in range(12)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        pairs = [
            {"prompt": row["prompt"], "chosen": row["completion"], "rejected": f"{row['completion']}!", "id": row["id"]}
            for row in rows
        ]
        text = "".join(json.dumps(row) + "\n" for row in pairs)
        (folder / f"{name}-pairs.jsonl").write_text(text, encoding="utf-8")
    return folder


@dataclass
class Runs:
    """Starts runs in ``folder`` on the model and rows of ``world``; keeps the lines they print."""

    world: Path
    folder: Path
    said: list[str] = field(default_factory=list)

    def config(self, name: str = "run", **changes: Any) -> dict[str, Any]:
        """A configuration of two tasks and four steps a stage; ``training`` is merged, the rest replaced."""
        tasks = [
            {"name": task, "data": str(self.world / f"{task}.jsonl"), "eval_size": 4, "reward": "tests.plugins:digits"}
            for task in ("sums", "doubles")
        ]
        training = {"max_steps": 4, "learning_rate": 3e-3, "lr_scheduler_type": "linear", "save_steps": 2}
        return {
            "output_dir": str(self.folder / name),
            "model": str(self.world / "model"),
            "tasks": tasks,
            "method": dict(RLOO),
            "prompts_per_step": 4,
            "evaluation": {"max_new_tokens": 6},
            **changes,
            "training": {**training, "logging_steps": 1, **changes.get("training", {})},
        }

    def start(self, config: Mapping[str, Any], **options: Any) -> Path:
        """Run it in this process; the page, which takes longer than the run, is drawn only when asked for."""
        return start(load(config, resolve=find), Options(**{"say": self.said.append, "page": False, **options}))

    def __call__(self, name: str = "run", **changes: Any) -> Path:
        """Configure and run."""
        return self.start(self.config(name, **changes))

    @property
    def text(self) -> str:
        """Everything that was said."""
        return "\n".join(self.said)


LORA: Mapping[str, Any] = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.1}
"""With dropout, so that a resumed run also needs the random state."""


def lora(world: Path) -> dict[str, Any]:
    """The model section of a LoRA run."""
    return {"name_or_path": str(world / "model"), **LORA}


# --- fixtures: conftest.py of a folder, or a test file, names them -----------------------------------------


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model and the rows."""
    quiet_libraries()
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def runs(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Runs in a folder of their own, which is the working directory; an own cache, no fault point armed."""
    monkeypatch.setenv("CONTRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(faults, "_armed", {})
    return Runs(world, tmp_path)


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no report.html, which takes longer than training them."""
    monkeypatch.setattr("contrl.report.page.build", lambda folder, **options: folder / "report.html")


# --- what a run leaves ---------------------------------------------------------------------------------


def sha(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights(folder: Path) -> dict[str, str]:
    """Name of each weights file of a model folder -> its hash; the value function's too."""
    patterns = ("*model*.safetensors", "value_head.safetensors", "value/*.safetensors")
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    return {path.relative_to(folder).as_posix(): sha(path) for path in found}


def scores(run: Path) -> dict[tuple[int, str, str], tuple[float, int, float]]:
    """(stage, task, metric) -> (value, n, se), the last record of each; only of what fills the matrix."""
    records = read_records(run / "scores.jsonl", ("stage", "task", "metric"))
    return {(r["stage"], r["task"], r["metric"]): (r["value"], r["n"], r["se"]) for r in records if "beside" not in r}


def metric(run: Path, name: str) -> dict[tuple[int, int], float]:
    """(stage, step) -> what was logged under a name."""
    records = read_records(run / "metrics.jsonl", ("stage", "step", "task", "name"))
    return {(r["stage"], r["step"]): r["value"] for r in records if r["name"] == name}


def events(run: Path, name: str) -> list[dict[str, Any]]:
    """The journal's lines about an event."""
    lines = (run / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for text in lines if (line := json.loads(text))["event"] == name]


def remains(run: Path) -> dict[str, Any]:
    """Weights and strategy state of every stage, scores, judged answers, results and training losses."""
    stages = sorted((run / "stages").iterdir())
    return {
        "weights": {stage.name: weights(stage / "final") for stage in stages},
        "strategy": {f"{p.parent.parent.name}/{p.name}": sha(p) for s in stages for p in s.glob("final/strategy.*")},
        "scores": scores(run),
        "answers": {path.name: parquet.read_table(path).to_pylist() for path in (run / "eval").glob("*.parquet")},
        "results": json.loads((run / "results.json").read_text(encoding="utf-8")),
        "losses": metric(run, "loss"),
        "model": weights(run),
        "checkpoints": sorted(f"{path.parent.name}/{path.name}" for path in run.glob("stages/*/checkpoint-*")),
    }


# --- the command line ----------------------------------------------------------------------------------


def environment(cache: Path, **more: str) -> dict[str, str]:
    """A shell's environment in which ``python -m contrl`` finds this tree and the plugins of the tests."""
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "CONTRL_CACHE": str(cache), **more}


def contrl(arguments: Sequence[str | Path], cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run ``contrl ARGUMENTS`` in a process of its own."""
    command = [sys.executable, "-m", "contrl", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment(cwd / "cache", **more), capture_output=True, text=True, check=False
    )


def write_config(path: Path, config: Mapping[str, Any]) -> Path:
    """A configuration as a file; JSON is YAML."""
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")
    return path
