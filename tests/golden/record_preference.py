"""Record TRL 1.16.0's losses on pairs and on labelled answers, from its own code: DPO, KTO, reward, CPO, ORPO.

Run where TRL is installed: ``python tests/golden/record_preference.py``. Every loss is the trainer's own method on a
stand-in for the trainer whose models answer with given log-probabilities (DPO, KTO), scores (reward) or logits
(CPO, ORPO); recorded are loss, gradient and what is logged.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from trl import DPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

VERSION = "1.16.0"
Table = list[list[float]]

# Two pairs, chosen rows first; the last token of a row is padding where the mask is 0.
FIXTURE_P: dict[str, Any] = {
    "mask": [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 1, 1]],
    "policy": [[-0.5, -0.25, -0.25], [-1.0, -0.5, 0.0], [-1.5, -0.5, 0.0], [-0.5, -0.5, -0.25]],
    "reference": [[-1.2, 0.0, 0.0], [-1.4, 0.0, 0.0], [-1.8, 0.0, 0.0], [-1.5, 0.0, 0.0]],
    "log_sum_p2": [[-1.0] * 3] * 4,
    "entropy": [[1.0, 2.0, 3.0], [0.5, 1.5, 0.0], [0.25, 0.75, 0.0], [2.0, 1.0, 0.5]],
    "mean_logits": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.0], [-0.1, -0.2, 0.0], [0.7, -0.4, 0.9]],
    "top1": [[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]],
}
SINGLE: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "sigmoid, beta .5": {"beta": 0.5},
    "hinge": {"loss_type": ["hinge"]},
    "ipo": {"loss_type": ["ipo"]},
    "exo_pair": {"loss_type": ["exo_pair"], "label_smoothing": 1e-3},
    "nca_pair": {"loss_type": ["nca_pair"]},
    "robust": {"loss_type": ["robust"], "label_smoothing": 0.1},
    "bco_pair": {"loss_type": ["bco_pair"]},
    "sppo_hard": {"loss_type": ["sppo_hard"]},
    "aot": {"loss_type": ["aot"]},
    "aot, smoothing": {"loss_type": ["aot"], "label_smoothing": 0.1},
    "aot_unpaired": {"loss_type": ["aot_unpaired"]},
    "aot_unpaired, smoothing": {"loss_type": ["aot_unpaired"], "label_smoothing": 0.2},
    "apo_zero": {"loss_type": ["apo_zero"]},
    "apo_down": {"loss_type": ["apo_down"]},
    "discopop": {"loss_type": ["discopop"]},
    "discopop, tau 1": {"loss_type": ["discopop"], "discopop_tau": 1.0},
    "sft": {"loss_type": ["sft"]},
    "sigmoid_norm": {"loss_type": ["sigmoid_norm"]},
    "forward_kl": {"f_divergence_type": "forward_kl"},
    "js_divergence": {"f_divergence_type": "js_divergence"},
    "alpha_divergence": {"f_divergence_type": "alpha_divergence"},
    "alpha_divergence 1": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0},
    "alpha_divergence 1.5": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.5},
    "js ipo": {"loss_type": ["ipo"], "f_divergence_type": "js_divergence"},
    "ld_alpha": {"ld_alpha": 0.5},
    "wpo": {"use_weighting": True},
    "wpo sppo_hard": {"use_weighting": True, "loss_type": ["sppo_hard"]},
    "mix": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
}
KTO: dict[str, Any] = {
    "labels": [True, False, False, True],
    "kl_policy": [-1.0, -2.0, -1.5, -1.1],
    "kl_reference": [-1.2, -2.2, -1.9, -1.1],
}
KTO_CASES: dict[str, dict[str, Any]] = {
    "kto": {},
    "weights": {"desirable_weight": 1.5, "undesirable_weight": 0.5},
    "apo_zero_unpaired": {"loss_type": "apo_zero_unpaired"},
    "negative kl": {"kl_policy": [-2.0, -2.4, -1.9, -1.1]},
    "unbalanced": {"labels": [True, False, True, True], "beta": 0.7},
}
REWARD_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "margin": {"margin": [0.5, 0.0]},
    "centred": {"center_rewards_coefficient": 0.01},
}
SCORES = {"chosen": [1.0, 0.5], "rejected": [0.2, 0.8]}
CPO_CASES: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "smoothing": {"label_smoothing": 0.1},
    "hinge": {"loss_type": "hinge"},
    "ipo": {"loss_type": "ipo"},
    "simpo": {"loss_type": "simpo"},
    "simpo, smoothing": {"loss_type": "simpo", "label_smoothing": 0.2, "simpo_gamma": 1.0, "beta": 2.0},
    "alphapo": {"loss_type": "simpo", "alpha": 0.25, "cpo_alpha": 0.0},
    "alpha below 0": {"alpha": -0.5, "cpo_alpha": 0.3},
}


class _Alone:
    """The part of an accelerator that one process needs."""

    device = torch.device("cpu")

    def gather(self, value: torch.Tensor) -> torch.Tensor:
        return value

    gather_for_metrics = gather


def random_fixture() -> dict[str, Any]:
    """Six pairs of uneven lengths, log-ratios of both signs and no ties."""
    torch.manual_seed(0)
    lengths = torch.tensor([5, 2, 4, 1, 3, 5, 1, 4, 4, 2, 5, 3])
    mask = torch.arange(5)[None] < lengths[:, None]
    policy = -torch.rand(12, 5) * 3 * mask
    return {
        "mask": mask.int().tolist(),
        "policy": policy.tolist(),
        "reference": ((policy - torch.randn(12, 5)).clamp(max=-0.01) * mask).tolist(),
        "log_sum_p2": (-torch.rand(12, 5) * 2).tolist(),
        "entropy": (torch.rand(12, 5) * mask).tolist(),
        "mean_logits": (torch.randn(12, 5) * mask).tolist(),
        "top1": ((torch.rand(12, 5) > 0.5) & mask).int().tolist(),
    }


def _answers(fixture: dict[str, Any], logps: torch.Tensor) -> Any:
    """A model that gives the fixture's numbers whatever it is asked."""
    outputs = SimpleNamespace(
        log_probs=logps,
        log_sum_sq_probs=torch.tensor(fixture["log_sum_p2"]),
        entropy=torch.tensor(fixture["entropy"]),
        mean_logits=torch.tensor(fixture["mean_logits"]),
        is_top1=torch.tensor(fixture["top1"]).bool(),
    )

    class Model(torch.nn.Module):
        is_gradient_checkpointing = False

        def forward(self, **inputs: Any) -> Any:
            return outputs

    return Model()


def _inputs(fixture: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Rows of one prompt token and the answer."""
    mask = torch.nn.functional.pad(torch.tensor(fixture["mask"]), (1, 0))
    ids = torch.ones_like(mask)
    return {"input_ids": ids, "attention_mask": ids, "completion_mask": mask}


def _stand_in(fixture: dict[str, Any], logps: torch.Tensor, **fields: Any) -> Any:
    return SimpleNamespace(
        model=_answers(fixture, logps),
        ref_model=_answers(fixture, torch.tensor(fixture["reference"])),
        accelerator=_Alone(),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **fields,
    )


def _result(loss: torch.Tensor, logps: torch.Tensor, logged: dict[str, Any]) -> dict[str, Any]:
    loss.backward()
    assert logps.grad is not None
    metrics = {name: value[0] if isinstance(value, list) else value for name, value in logged.items()}
    return {"loss": loss.item(), "gradient": logps.grad.tolist(), "metrics": metrics}


def dpo(fixture: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """TRL's DPO loss of a fixture."""
    logps = torch.tensor(fixture["policy"], requires_grad=True)
    types = case.get("loss_type", ["sigmoid"])
    trainer = _stand_in(
        fixture,
        logps,
        beta=case.get("beta", 0.1),
        loss_types=types,
        loss_weights=case.get("loss_weights") or [1.0] * len(types),
        label_smoothing=case.get("label_smoothing", 0.0),
        f_divergence_type=case.get("f_divergence_type", "reverse_kl"),
        f_alpha_divergence_coef=case.get("f_alpha_divergence_coef", 0.5),
        ld_alpha=case.get("ld_alpha"),
        use_weighting=case.get("use_weighting", False),
        args=SimpleNamespace(discopop_tau=case.get("discopop_tau", 0.05), gradient_checkpointing_kwargs=None),
    )
    loss = DPOTrainer._compute_loss(trainer, trainer.model, _inputs(fixture), False)
    return _result(loss, logps, trainer._metrics["train"])


def kto(fixture: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """TRL's KTO loss of a fixture's rows, given the log-probabilities of the KL pairs."""
    case = {"loss_type": "kto", **KTO, **case}
    logps = torch.tensor(fixture["policy"], requires_grad=True)
    trainer = _stand_in(
        fixture,
        logps,
        beta=case.get("beta", 0.1),
        loss_type=case["loss_type"],
        calculate_KL=case["loss_type"] == "kto",
        desirable_weight=case.get("desirable_weight", 1.0),
        undesirable_weight=case.get("undesirable_weight", 1.0),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )

    def kl_logps(model: Any, batch: Any) -> torch.Tensor:
        return torch.tensor(case["kl_policy" if model is trainer.model else "kl_reference"])

    trainer._compute_kl_logps = kl_logps
    inputs = {**_inputs(fixture), "label": torch.tensor(case["labels"])}
    loss = KTOTrainer._compute_loss(trainer, trainer.model, inputs, False)
    return {"case": case, **_result(loss, logps, trainer._metrics["train"])}


def reward(case: dict[str, Any]) -> dict[str, Any]:
    """TRL's reward-model loss of two scored pairs."""
    scores = torch.tensor(SCORES["chosen"] + SCORES["rejected"], requires_grad=True)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=_Alone(),
        args=SimpleNamespace(center_rewards_coefficient=case.get("center_rewards_coefficient")),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs: dict[str, Any] = {"attention_mask": torch.ones(4, 3)}
    if "margin" in case:
        inputs["margin"] = torch.tensor(case["margin"])
    loss = RewardTrainer.compute_loss(trainer, lambda **inputs: SimpleNamespace(logits=scores[:, None]), inputs)
    return _result(loss, scores, trainer._metrics["train"])


def logits_fixture() -> dict[str, Any]:
    """Two pairs as token ids with prompts of 2 and 3 tokens, and logits for every position."""
    torch.manual_seed(1)
    prompts = [[3, 4], [5, 6, 2]]
    answers = {"chosen": [[7, 8, 1], [9, 1]], "rejected": [[4, 1], [6, 7, 8, 1]]}
    return {"prompts": prompts, **answers, "logits": (torch.randn(4, 7, 10) * 2).tolist()}


def _rows(fixture: dict[str, Any], side: str) -> dict[str, torch.Tensor]:
    """Right-padded ids, attention and labels of one side, as TRL's collator makes them."""
    columns: dict[str, Table] = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, answer in zip(fixture["prompts"], fixture[side], strict=True):
        padding = 7 - len(prompt) - len(answer)
        columns["input_ids"].append(prompt + answer + [0] * padding)
        columns["attention_mask"].append([1] * len(prompt + answer) + [0] * padding)
        columns["labels"].append([-100] * len(prompt) + answer + [-100] * padding)
    return {f"{side}_{name}": torch.tensor(rows) for name, rows in columns.items()}


def reference_free(trainer_class: Any, fixture: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """The whole CPO or ORPO loss of a fixture's logits."""
    logits = torch.tensor(fixture["logits"], requires_grad=True)
    trainer = SimpleNamespace(
        accelerator=_Alone(),
        is_encoder_decoder=False,
        aux_loss_enabled=False,
        pad_token_id=0,
        padding_value=0,
        beta=case.get("beta", 0.1),
        loss_type=case.get("loss_type", "sigmoid"),
        label_smoothing=case.get("label_smoothing", 0.0),
        cpo_alpha=case.get("cpo_alpha", 1.0),
        simpo_gamma=case.get("simpo_gamma", 0.5),
        alpha=case.get("alpha", 0.0),
        concatenated_inputs=trainer_class.concatenated_inputs,
        get_batch_logps=trainer_class.get_batch_logps,
    )
    for name in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(trainer_class, name):
            setattr(trainer, name, getattr(trainer_class, name).__get__(trainer))
    batch = _rows(fixture, "chosen") | _rows(fixture, "rejected")
    loss, metrics = trainer_class.get_batch_loss_metrics(
        trainer, lambda ids, **inputs: SimpleNamespace(logits=logits), batch
    )
    return _result(loss, logits, metrics)


def short(value: Any) -> Any:
    """The record with numbers of nine digits, which float32 has at most."""
    if isinstance(value, dict):
        return {name: short(item) for name, item in value.items()}
    if isinstance(value, list):
        return [short(item) for item in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def main() -> None:
    """Write the record beside this script."""
    assert trl.__version__ == VERSION, trl.__version__
    uneven, logits = random_fixture(), logits_fixture()
    dpo_record = {
        name: {
            "input": fixture,
            "cases": {case: {"fields": fields, **dpo(fixture, fields)} for case, fields in SINGLE.items()},
        }
        for name, fixture in (("fixture_p", FIXTURE_P), ("uneven", uneven))
    }
    record = {
        "recorded_with": {"trl": trl.__version__, "torch": torch.__version__.partition("+")[0]},
        "dpo": dpo_record,
        "kto": {name: {"fields": fields, **kto(FIXTURE_P, fields)} for name, fields in KTO_CASES.items()},
        "reward": {
            "scores": SCORES,
            "cases": {name: {"fields": fields, **reward(fields)} for name, fields in REWARD_CASES.items()},
        },
        "logits": logits,
        "cpo": {
            name: {"fields": fields, **reference_free(CPOTrainer, logits, fields)} for name, fields in CPO_CASES.items()
        },
        "orpo": {
            name: {"fields": fields, **reference_free(ORPOTrainer, logits, fields)}
            for name, fields in {"orpo": {}, "beta .5": {"beta": 0.5}}.items()
        },
    }
    path = Path(__file__).with_name(f"preference-trl-{VERSION}.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(short(record), file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
