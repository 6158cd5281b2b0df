"""Record TRL 1.16.0's RLOO loss and advantages, from its own code.

Run where TRL is installed: ``PYTHONPATH=src python tests/golden/record_rloo.py``. The losses are
``RLOOTrainer._compute_loss`` on stub log-probabilities; the advantages are what one step of a real ``RLOOTrainer``
logs for given rewards.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from datasets import Dataset
from trl import RLOOConfig, RLOOTrainer

from contrl.models.embedded import tiny

VERSION = "1.16.0"
FIXTURE_G: dict[str, Any] = {
    "logps": [[-0.5, -1.0, -0.2], [-0.3, -0.6, 0.0]],
    "old_logps": [[-0.7, -0.9, -0.2], [-0.3, -1.2, 0.0]],
    "mask": [[1, 1, 1], [1, 1, 0]],
    "advantages": [1.0, -1.0],
    "entropies": [[1.0, 2.0, 3.0], [0.5, 1.5, 0.0]],
    "clip": 0.2,
}
# Ratios e^.1, e^.6 (both signs of the advantage), e^-.7 (both signs), and exactly 1.
CLIPPING: dict[str, Any] = {
    "logps": [
        [-0.5, -1.0, -0.2],
        [-0.3, -0.6, 0.0],
        [-0.3, -0.6, 0.0],
        [-1.0, -1.0, 0.0],
        [-1.0, -1.0, 0.0],
        [-2, 0, 0],
    ],
    "old_logps": [
        [-0.7, -0.9, -0.2],
        [-0.3, -1.2, 0.0],
        [-0.3, -1.2, 0.0],
        [-0.3, -1.0, 0.0],
        [-1, -0.3, 0],
        [-2, 0, 0],
    ],
    "mask": [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0]],
    "advantages": [-0.5, 1.0, -1.0, -2.0, 0.75, 1.5],
    "entropies": [[1.0, 2.0, 3.0], [0.5, 1.5, 0.0], [1.0, 1.0, 0.0], [0.2, 0.4, 0.0], [0.1, 0.3, 0.0], [2.0, 0.0, 0.0]],
    "clip": 0.2,
}
REWARDS: list[list[float | None]] = [
    [1, 0, 0, 1],
    [1, None, 0, 1],
    [None, None, 1, None],
    [2, 2, 2, 2],
    [0.1, 1, 0, 0.1],
]


class _Alone:
    """What the loss asks of accelerate, on one process."""

    def reduce(self, value: torch.Tensor, reduction: str) -> torch.Tensor:
        return value

    def gather(self, value: torch.Tensor) -> torch.Tensor:
        return value


def trainer_loss(case: dict[str, Any]) -> dict[str, Any]:
    """TRL's loss, its gradient in the log-probabilities, and what it logs."""
    logps = torch.tensor(case["logps"], requires_grad=True)
    mask = torch.tensor(case["mask"])
    metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}
    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logps, torch.tensor(case["entropies"]), None),
        aux_loss_enabled=False,
        epsilon_low=case["clip"],
        epsilon_high=case["clip"],
        model=SimpleNamespace(training=True),
        accelerator=_Alone(),
        _metrics=metrics,
    )
    ones = torch.ones(len(mask), 1, dtype=torch.long)
    inputs = {
        "prompt_ids": ones,
        "prompt_mask": ones,
        "completion_ids": torch.ones_like(mask),
        "completion_mask": mask,
        "old_logps": (torch.tensor(case["old_logps"]) * mask).sum(1),
        "advantages": torch.tensor(case["advantages"]),
    }
    loss = RLOOTrainer._compute_loss(stub, None, inputs)
    loss.backward()
    assert logps.grad is not None
    logged = {name: values[0] for name, values in metrics["train"].items()}
    return {"input": case, "loss": loss.item(), "gradient": logps.grad.tolist(), "metrics": logged}


def trainer_advantages(rewards: list[list[float | None]], folder: str) -> list[list[float]]:
    """The advantages of one step of TRL's trainer whose reward function returns these numbers."""
    model, tokenizer = tiny(0)
    given = [reward for group in rewards for reward in group]
    config = RLOOConfig(
        output_dir=folder,
        per_device_train_batch_size=len(given),
        num_generations=len(rewards[0]),
        max_completion_length=2,
        beta=0.0,
        max_steps=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        shuffle_dataset=False,
    )
    trainer = RLOOTrainer(
        model=model,
        reward_funcs=lambda prompts, **columns: given,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [f"{i}?" for i in range(len(rewards))]}),
        processing_class=tokenizer,
    )
    trainer.train()
    logged = list(trainer._logs["advantages"])
    return [logged[start : start + len(rewards[0])] for start in range(0, len(logged), len(rewards[0]))]


def main() -> None:
    """Write the record beside this script."""
    assert trl.__version__ == VERSION, trl.__version__
    with tempfile.TemporaryDirectory() as folder:
        advantages = trainer_advantages(REWARDS, folder)
    record = {
        "recorded_with": {"trl": trl.__version__, "torch": torch.__version__.partition("+")[0]},
        "losses": {"fixture_g": trainer_loss(FIXTURE_G), "clipping": trainer_loss(CLIPPING)},
        "advantages": {"rewards": REWARDS, "advantages": advantages},
    }
    path = Path(__file__).with_name(f"rloo-trl-{VERSION}.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
