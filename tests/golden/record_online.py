"""Record TRL 1.16.0's GRPO losses and metrics, and GRPO's and RLOO's advantages, from its own code.

Run where TRL is installed: ``PYTHONPATH=src python tests/golden/record_online.py``. Losses are
``GRPOTrainer._compute_loss`` on stub log-probabilities; advantages are what one step of a real trainer makes of given
rewards, for RLOO with a reference whose weights were moved, and with the log-probabilities that it saw.
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
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from contrl.models.embedded import tiny

VERSION = "1.16.0"
FIXTURE_G: dict[str, Any] = {
    "logps": [[-0.5, -1.0, -0.2], [-0.3, -0.6, 0.0]],
    "old_logps": [[-0.7, -0.9, -0.2], [-0.3, -1.2, 0.0]],
    "reference_logps": [[-0.6, -0.9, -0.4], [-0.3, -0.8, 0.0]],
    "mask": [[1, 1, 1], [1, 1, 0]],
    "advantages": [1.0, -1.0],
    "entropies": [[1.0, 2.0, 3.0], [0.5, 1.5, 0.0]],
    "max_new_tokens": 8,
}
# A completion without trained tokens, both signs of the advantage, ratios on either side of the bounds.
RAGGED: dict[str, Any] = {
    "logps": [[-0.5, -1.0, -0.2], [-0.3, -0.6, -0.9], [-1.0, -2.0, 0.0], [-0.1, 0.0, 0.0]],
    "old_logps": [[-0.7, -0.5, -0.2], [-0.3, -1.2, -0.2], [-0.4, -1.0, 0.0], [-0.6, 0.0, 0.0]],
    "reference_logps": [[-0.6, -0.9, -0.4], [-0.3, -0.8, -1.0], [-0.2, -1.5, 0.0], [-0.1, 0.0, 0.0]],
    "mask": [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]],
    "advantages": [0.5, -1.5, 2.0, -0.25],
    "entropies": [[1.0, 2.0, 3.0], [0.5, 1.5, 0.3], [0.2, 0.4, 0.0], [0.9, 0.0, 0.0]],
    "max_new_tokens": 5,
}
FIXTURES = {"fixture_g": FIXTURE_G, "ragged": RAGGED}
# Fields of contrl's GRPO; the case's name says what it is about.
LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dapo": {"loss_type": "dapo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "sequence": {"loss_type": "grpo", "level": "sequence"},
    "sequence dapo": {"loss_type": "dapo", "level": "sequence"},
    "delta": {"loss_type": "grpo", "delta": 1.1},
    "clip_high": {"loss_type": "grpo", "clip_high": 0.28},
    "kl": {"loss_type": "dapo", "beta": 0.04},
    "kl without correction": {"loss_type": "dapo", "beta": 0.04, "unbiased_kl": False},
    "kl grpo": {"loss_type": "grpo", "beta": 0.04},
    "kl grpo without correction": {"loss_type": "grpo", "beta": 0.04, "unbiased_kl": False},
    "kl sequence": {"loss_type": "grpo", "beta": 0.04, "level": "sequence"},
}
GROUPS: dict[str, tuple[list[list[float | None]], dict[str, Any]]] = {
    "group": ([[1, 0, 0, 1], [2, 2, 2, 2], [1, None, 0, 1], [None, None, 1, None]], {"scale_rewards": "group"}),
    "none": ([[1, 0, 0, 1], [1, None, 0, 1]], {"scale_rewards": "none"}),
    "batch": ([[1, 0, 0, 1], [3, 1, 1, 1]], {"scale_rewards": "batch"}),
    "batch with missing": ([[1, 0, None, 1], [3, 1, 1, None]], {"scale_rewards": "batch"}),
}
SEVERAL: dict[str, tuple[list[list[list[float | None]]], dict[str, Any]]] = {
    name: ([[[1, 0], [0, 2], [0, 1], [1, 1]]], {"aggregate": name, "reward_weights": [1.0, 0.5]})
    for name in ("sum_then_normalize", "normalize_then_sum")
} | {
    "normalize_then_sum of two groups": (
        [[[1, 0], [0, 2], [0, 1], [1, 1]], [[2, None], [0, 1], [None, None], [0, 5]]],
        {"aggregate": "normalize_then_sum", "reward_weights": [0.7, 0.3]},
    )
}
PENALISED: dict[str, dict[str, Any]] = {
    "beta": {"beta": 0.5},
    "beta, clipped": {"beta": 0.5, "reward_clip": [-0.5, 1.5]},
    "beta, normalised": {"beta": 0.5, "normalize_advantages": True},
    "all": {"beta": 0.5, "normalize_advantages": True, "reward_clip": [-0.5, 1.5]},
}
PENALISED_REWARDS: list[list[float | None]] = [[1, 0, 0, 3], [1, None, 0, 1], [2, 2, 2, 2]]


class _Alone:
    """What the loss asks of accelerate, on one process."""

    num_processes = 1

    def reduce(self, value: torch.Tensor, reduction: str) -> torch.Tensor:
        return value

    def gather(self, value: torch.Tensor) -> torch.Tensor:
        return value


def grpo_loss(case: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """TRL's loss, its gradient in the log-probabilities, and what it logs."""
    logps = torch.tensor(case["logps"], requires_grad=True)
    mask = torch.tensor(case["mask"])
    metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}
    beta = fields.get("beta", 0.0)
    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logps, torch.tensor(case["entropies"]), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=fields.get("level", "token"),
        loss_type=fields["loss_type"],
        epsilon_low=0.2,
        epsilon_high=fields.get("clip_high", 0.2),
        beta=beta,
        args=SimpleNamespace(
            delta=fields.get("delta"),
            use_bias_correction_kl=fields.get("unbiased_kl", True),
            steps_per_generation=1,
        ),
        use_vllm=False,
        max_completion_length=case["max_new_tokens"],
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
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
        "old_per_token_logps": torch.tensor(case["old_logps"]),
        "ref_per_token_logps": torch.tensor(case["reference_logps"]),
        "advantages": torch.tensor(case["advantages"]),
        "num_items_in_batch": mask.sum(),
    }
    loss = GRPOTrainer._compute_loss(stub, None, inputs)
    loss.backward()
    assert logps.grad is not None
    logged = {name: values[0] for name, values in metrics["train"].items()}
    return {"fields": fields, "loss": loss.item(), "gradient": logps.grad.tolist(), "metrics": logged}


def one_step(kind: str, scores: list[list[list[float | None]]], more: dict[str, Any], folder: str) -> Any:
    """A real trainer with one step to make, whose reward functions return ``scores[group][sample][function]``."""
    model, tokenizer = tiny(0)
    model.save_pretrained(start := f"{folder}/start")  # RLOO loads its reference from where the policy came from.
    rows = [row for group in scores for row in group]
    functions = [
        lambda prompts, column=column, **columns: [row[column] for row in rows] for column in range(len(rows[0]))
    ]
    trainer_class, config_class = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[kind]
    config = config_class(
        output_dir=folder,
        per_device_train_batch_size=len(rows),
        num_generations=len(scores[0]),
        max_completion_length=4,
        max_steps=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        shuffle_dataset=False,
        logging_steps=1,
        **more,
    )
    return trainer_class(
        model=start,
        reward_funcs=functions,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [f"{i}?" for i in range(len(scores))]}),
        processing_class=tokenizer,
    )


def grpo_advantages(scores: list[list[list[float | None]]], fields: dict[str, Any], folder: str) -> dict[str, Any]:
    """The advantages of one step, and what the reward was logged as."""
    more = {
        "scale_rewards": fields.get("scale_rewards", "group"),
        "multi_objective_aggregation": fields.get("aggregate", "sum_then_normalize"),
        "reward_weights": fields.get("reward_weights"),
        "beta": 0.0,
    }
    trainer = one_step("grpo", scores, more, folder)
    trainer.train()
    reward = next(line["reward"] for line in trainer.state.log_history if "reward" in line)
    return {"scores": scores, "fields": fields, "advantages": list(trainer._logs["advantages"]), "reward": reward}


def rloo_advantages(fields: dict[str, Any], folder: str) -> dict[str, Any]:
    """The advantages of one step with a reference that differs from the policy, and the log-probabilities of both."""
    more = {
        "beta": fields["beta"],
        "normalize_advantages": fields.get("normalize_advantages", False),
        "reward_clip_range": tuple(fields["reward_clip"]) if "reward_clip" in fields else None,
    }
    trainer = one_step("rloo", [[[reward] for reward in group] for group in PENALISED_REWARDS], more, folder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.ref_model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    seen: list[torch.Tensor] = []
    original = trainer._get_per_token_logps_and_entropies

    def watched(*arguments: Any, **keywords: Any) -> Any:
        answer = original(*arguments, **keywords)
        seen.append(answer[0].detach().clone())
        return answer

    generated: list[dict[str, Any]] = []
    make = trainer._generate_and_score_completions

    def remembered(inputs: Any) -> Any:
        generated.append(make(inputs))
        return generated[-1]

    trainer._get_per_token_logps_and_entropies = watched
    trainer._generate_and_score_completions = remembered
    trainer.train()
    mask = generated[0]["completion_mask"]
    kl = next(line["kl"] for line in trainer.state.log_history if "kl" in line)
    return {
        "rewards": PENALISED_REWARDS,
        "fields": fields,
        "mask": mask.tolist(),
        "logps": (seen[0] * mask).tolist(),
        "reference_logps": (seen[1] * mask).tolist(),
        "advantages": list(trainer._logs["advantages"]),
        "kl": kl,
    }


def main() -> None:
    """Write the record beside this script."""
    assert trl.__version__ == VERSION, trl.__version__
    several = {name: (scores, fields) for name, (scores, fields) in SEVERAL.items()}
    single = {name: ([[[r] for r in g] for g in groups], fields) for name, (groups, fields) in GROUPS.items()}
    with tempfile.TemporaryDirectory() as folder:
        advantages = {name: grpo_advantages(*case, folder) for name, case in (single | several).items()}
        penalised = {name: rloo_advantages(fields, folder) for name, fields in PENALISED.items()}
    record = {
        "recorded_with": {"trl": trl.__version__, "torch": torch.__version__.partition("+")[0]},
        "fixtures": FIXTURES,
        "losses": {
            fixture: {name: grpo_loss(case, fields) for name, fields in LOSSES.items()}
            for fixture, case in FIXTURES.items()
        },
        "advantages": advantages,
        "penalised": penalised,
    }
    path = Path(__file__).with_name(f"online-trl-{VERSION}.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
