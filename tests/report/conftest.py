"""Run folders as the runner writes them, small but realistic: items differ in difficulty and answers carry over."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SUCCESS = {  # task -> success before training and after each stage of the four-stage demo
    "plus": [0.97, 0.98, 0.86, 0.80, 0.77],
    "plus_minus": [0.45, 0.47, 0.56, 0.28, 0.16],
    "plus_minus_mul": [0.33, 0.34, 0.36, 0.64, 0.18],
    "plus_minus_mul_div": [0.41, 0.40, 0.42, 0.38, 0.72],
}


def append(path: Path, record: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


class RunWriter:
    """Writes a run folder piece by piece; every piece can be left out to make an unfinished run."""

    def __init__(self, folder: Path, sequence: list[str], *, status: str = "finished", num_items: int = 200) -> None:
        self.folder, self.sequence, self.num_items = folder, sequence, num_items
        self.rng = random.Random(0)
        self.tasks = list(dict.fromkeys(sequence))
        self.difficulty = {task: [self.rng.random() for _ in range(num_items)] for task in self.tasks}
        (folder / "eval").mkdir(parents=True)
        stages = [
            {"stage": k, "task": task, "round": 1 + sequence[: k - 1].count(task), "folder": f"stages/{k}-{task}"}
            for k, task in enumerate(sequence, start=1)
        ]
        manifest = {
            "schema_version": 1,
            "contrl": "0.1.0",
            "command": ["contrl", "demo", "--output_dir", "runs/my demo"],
            "created": "2026-01-02T03:04:05+00:00",
            "status": status,
            "seed": 0,
            "method": "rloo",
            "strategies": ["naive"],
            "model": "tiny",
            "sequence": sequence,
            "stages": stages,
            "data": {task: {"train": 1000 + i, "eval": num_items} for i, task in enumerate(self.tasks)},
            "versions": {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0"},
            "hardware": {"cpu_count": 2, "device": "cpu"},
        }
        (folder / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
        (folder / "config.yaml").write_text("method:\n  name: rloo\n  num_generations: 8\n", encoding="utf-8")

    def score(
        self, stage: int, task: str, success: float, completion: Callable[[int, bool], str] | None = None
    ) -> None:
        """Score one task after one stage: an item is right when it is easy enough, with some noise."""
        answer = completion or (lambda item, right: f"{item}*2-{stage}" if right else f"{item}+{stage}")
        correct = [(u if self.rng.random() < 0.8 else self.rng.random()) < success for u in self.difficulty[task]]
        share, n = sum(correct) / len(correct), len(correct)
        record = {"stage": stage, "task": task, "metric": "success", "value": share, "n": n}
        append(self.folder / "scores.jsonl", record | {"se": math.sqrt(share * (1 - share) / n)})
        mean = sum(1.0 if right else 0.1 for right in correct) / n
        append(self.folder / "scores.jsonl", record | {"metric": "reward", "value": mean, "se": 0.02})
        table = pa.table(
            {
                "id": [f"{task}/{i}" for i in range(n)],
                "score": [1.0 if right else 0.1 for right in correct],
                "correct": correct,
                "completion": [answer(i, right) for i, right in enumerate(correct)],
                "prompt": [f"Make {i + 7} from {i}, 2 and {stage % 3 + 1}." for i in range(n)],
            }
        )
        pq.write_table(table, self.folder / "eval" / f"{stage}-{task}.parquet")

    def train(self, stage: int, num_steps: int = 40) -> None:
        """Training records of one stage, as the trainer logs them."""
        task = self.sequence[stage - 1]
        for step in range(2, num_steps + 1, 2):
            progress = step / num_steps
            values = {
                "reward": 0.3 + 0.4 * progress + self.rng.gauss(0, 0.03),
                "loss": self.rng.gauss(0, 0.02),
                "verifier/success": 0.25 + 0.4 * progress + self.rng.gauss(0, 0.04),
                "entropy": 0.8 - 0.3 * progress,
                "learning_rate": 1e-4,
            }
            for name, value in values.items():
                record = {"stage": stage, "step": step, "task": task, "name": name, "value": value}
                append(self.folder / "metrics.jsonl", record)

    def journal(self, stage: int, start: float = 0.0) -> None:
        """The phases of one stage: 10 s of training, 1 s of looking back, 2 s of evaluation, 0.5 s of saving."""
        ends = {"started": 0.0, "trained": 10.0, "after_task": 11.0, "evaluated": 13.0, "saved": 13.5}
        for event, seconds in ends.items():
            append(self.folder / "journal.jsonl", {"stage": stage, "event": event, "time": start + seconds})

    def rollouts(self, stage: int, step: int, task: str, **columns: str) -> None:
        """A table of sampled answers: four of one prompt that differ in reward, and four that do not."""
        rewards = [1.0, 0.1, 0.1, 0.0, 0.1, 0.1, 0.1, 0.1]
        rows = [
            {"task": task, "id": f"{task}/{i // 4}", "is_replay": False, "prompt": f"Make {step}", "completion": f"{i}",
             "num_tokens": 3 + i, "ended": i != 3, "reward": reward, "scores": json.dumps({"f": reward}),
             "advantage": reward - sum(rewards[i // 4 * 4 : i // 4 * 4 + 4]) / 4, **columns}
            for i, reward in enumerate(rewards)
        ]  # fmt: skip
        (self.folder / "samples").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), self.folder / "samples" / f"{stage}-{step}.parquet")

    def weights(self, stage: int) -> None:
        """How far two layers and the embedding moved."""
        names = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight")
        for index, name in enumerate(names):
            change = {"from_start": 0.1 * (index + 1), "from_base": 0.1 * (index + 1) * stage}
            append(self.folder / "weights.jsonl", {"stage": stage, "tensor": name, "norm": 10.0, **change})

    def drift(self, stage: int) -> None:
        """KL from the first weights on two tasks; of the second nothing could be measured in stage 1."""
        for index, task in enumerate(self.tasks[:2]):
            kl = None if (stage, index) == (1, 1) else 0.01 * stage * (index + 1)
            record = {"stage": stage, "task": task, "kl": kl, "kl_sequence": kl, "n": 32, "se": 0.002}
            append(self.folder / "drift.jsonl", record)


@pytest.fixture
def writer() -> type[RunWriter]:
    return RunWriter


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished four-stage run that learns and forgets; read only."""
    run = RunWriter(tmp_path_factory.mktemp("runs") / "demo", list(SUCCESS))
    for stage in range(5):
        if stage:
            run.train(stage)
            run.journal(stage, 20.0 * stage)
            run.rollouts(stage, 0, run.sequence[stage - 1])
            run.weights(stage)
            run.drift(stage)
        for task, success in SUCCESS.items():
            run.score(stage, task, success[stage])
    return run.folder


@pytest.fixture
def run_folder(demo: Path, tmp_path: Path) -> Path:
    """A copy of ``demo`` to change or to write into."""
    return Path(shutil.copytree(demo, tmp_path / "demo"))
