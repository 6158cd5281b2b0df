"""Steps of contrl's RLOOTrainer and GRPOTrainer beside TRL 1.16's on the same rollouts: weights, settings, float32.

Both are given the completions (drawn here, ragged, some cut), so what is compared is everything else: batch sizes,
rewards and their weights, advantages, KL, ratios over a window's steps, the loss and its gradient. RLOO's loss is 0 at
the first step of a window, so the norm of the gradient is compared as well.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parity import make_model
from side_by_side import PEER, SURROUNDINGS, has_peer, table

STEPS, SAMPLES, LENGTH = 6, 4, 8
ROWS = [{"prompt": f"{i}+{7 * i}="} for i in range(3)]
SHOWN = ("loss", "grad_norm", "reward")


@dataclass(frozen=True)
class OnlineCase:
    """One method with its settings."""

    name: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)


WHOLE = {"per_device_train_batch_size": 12, "gradient_accumulation_steps": 1}
CASES = (
    OnlineCase("GRPO, dapo", "GRPO"),
    OnlineCase(
        "GRPO, dapo, KL, two epochs", "GRPO", {"beta": 0.2, "num_iterations": 2, "epsilon_high": 0.3, "delta": 1.5}
    ),
    OnlineCase(
        "GRPO, grpo, batch scale, truncated masked",
        "GRPO",
        {"loss_type": "grpo", "scale_rewards": "batch", "mask_truncated_completions": True},
    ),
    # TRL divides bnpo's sum within each micro-batch, contrl over the step.
    OnlineCase(
        "GRPO, bnpo, scores normalised first",
        "GRPO",
        {"loss_type": "bnpo", "multi_objective_aggregation": "normalize_then_sum", "temperature": 0.7, **WHOLE},
    ),
    OnlineCase(
        "GRPO, dr_grpo, sequence level",
        "GRPO",
        {"loss_type": "dr_grpo", "scale_rewards": False, "importance_sampling_level": "sequence", "num_iterations": 2},
    ),
    OnlineCase("RLOO, KL, two epochs", "RLOO", {"beta": 0.1, "num_iterations": 2}),
    OnlineCase("RLOO, normalised, temperature", "RLOO", {"normalize_advantages": True, "temperature": 0.8}),
    OnlineCase("RLOO, clipped rewards", "RLOO", {"beta": 0.0, "reward_clip_range": (0.0, 4.0)}),
)


def drawn(window: int, row: int, sample: int, end: int) -> list[int]:
    """A completion: ragged, of the tokenizer's characters, most of them ended."""
    numbers = random.Random(1000 * window + 10 * row + sample)
    ids = [numbers.randint(3, 60) for _ in range(numbers.randint(1, LENGTH))]
    return [*ids[:-1], end] if len(ids) < LENGTH or numbers.random() < 0.5 else ids


def remainder(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """A reward without any meaning."""
    return [float(sum(ids) % 5) for ids in completion_ids]


def length(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """A reward for many tokens."""
    return [float(len(ids)) for ids in completion_ids]


def settings_of(case: OnlineCase, output_dir: str) -> dict[str, Any]:
    """What both are given."""
    return {
        "output_dir": output_dir,
        "max_steps": STEPS,
        "num_generations": SAMPLES,
        "max_completion_length": LENGTH,
        "per_device_train_batch_size": SAMPLES,
        "gradient_accumulation_steps": len(ROWS),
        "reward_weights": [1.0, 0.5],
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "seed": 0,
        "shuffle_dataset": False,
        **case.settings,
    }


class Given:
    """A sampler that answers with the completions drawn above, and the policy's own log-probabilities of them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.windows = tokenizer, -1
        self.known = [list(tokenizer(row["prompt"])["input_ids"]) for row in ROWS]

    def update(self, model: Any, version: int) -> None:
        """Called before each window."""
        self.model, self.windows = model, self.windows + 1

    def sample(self, prompts: Sequence[list[int]], sampling: Any, eos_ids: Sequence[int], seed: int) -> list[list[Any]]:
        """The completions of this window."""
        from contrl.rollout.external import Sampled

        end, answers = self.tokenizer.eos_token_id, []
        for prompt in prompts:
            row = self.known.index(list(prompt))
            ids = [drawn(self.windows, row, sample, end) for sample in range(sampling.samples_per_prompt)]
            logps = [self._logps(prompt, one, sampling.temperature) for one in ids]
            answers.append(
                [
                    Sampled(one, logp, "eos" if one[-1] == end else "length", 0)
                    for one, logp in zip(ids, logps, strict=True)
                ]
            )
        return answers

    def _logps(self, prompt: Sequence[int], ids: Sequence[int], temperature: float) -> list[float]:
        import torch

        with torch.no_grad():
            logits = self.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1] / temperature
        return logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)].tolist()


def run_contrl(case: OnlineCase, model: Any, tokenizer: Any) -> list[dict[str, float]]:
    """What contrl logged at each step."""
    import contrl

    with tempfile.TemporaryDirectory() as place:
        args = getattr(contrl, f"{case.method}Config")(**settings_of(case, place))
        trainer = getattr(contrl, f"{case.method}Trainer")(
            model, [remainder, length], args, ROWS, processing_class=tokenizer, sampler=Given(tokenizer)
        )
        return lines(trainer)


def run_peer(case: OnlineCase, model: Any, tokenizer: Any) -> list[dict[str, float]]:
    """What TRL logged at each step, its generation replaced."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    known = [list(tokenizer(row["prompt"])["input_ids"]) for row in ROWS]

    class GivenCompletions(getattr(trl, f"{case.method}Trainer")):
        windows = -1

        def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **further: Any) -> Any:
            self.windows += 1
            rows = [known.index(list(prompt)) for prompt in prompt_ids]
            places = [(row, rows[:place].count(row)) for place, row in enumerate(rows)]
            found = [drawn(self.windows, row, sample, tokenizer.eos_token_id) for row, sample in places]
            return (found, None) if case.method == "GRPO" else found

    with tempfile.TemporaryDirectory() as place:
        # TRL reads the reference anew, by the model's name.
        model.save_pretrained(f"{place}/model")
        model = AutoModelForCausalLM.from_pretrained(f"{place}/model")
        args = getattr(trl, f"{case.method}Config")(**settings_of(case, place), gradient_checkpointing=False)
        trainer = GivenCompletions(
            model, [remainder, length], args, Dataset.from_list(ROWS), processing_class=tokenizer
        )
        return lines(trainer)


def lines(trainer: Any) -> list[dict[str, float]]:
    """What was logged at each step, of what is compared."""
    trainer.train()
    history = [line for line in trainer.state.log_history if "loss" in line]
    return [{name: float(line[name]) for name in SHOWN if name in line} for line in history]


def differences(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The largest relative difference of each number (of numbers below 1 the absolute one)."""
    found = dict.fromkeys(SHOWN, 0.0)
    for mine, other in zip(ours, theirs, strict=True):
        for name in other:
            found[name] = max(found[name], abs(mine[name] - other[name]) / max(1.0, abs(other[name])))
    return found


def main() -> None:
    """Print what differs in every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", metavar="PATH", help="also write TRL's steps to this file")
    options = parser.parse_args()
    os.environ.update(SURROUNDINGS, TRL_EXPERIMENTAL_SILENCE="1")
    warnings.filterwarnings("ignore")
    if not has_peer():
        raise SystemExit(4)
    shown, wrong, recorded = [], [], {}
    for case in CASES:
        make, tokenizer = make_model("tiny", classifier=False)
        ours = run_contrl(case, make(), copy.deepcopy(tokenizer))
        theirs = recorded[case.name] = run_peer(case, make(), copy.deepcopy(tokenizer))
        gaps = differences(ours, theirs)
        wrong += [case.name] if max(gaps.values()) > 1e-4 else []
        shown.append([case.name, *(f"{gaps[name]:.1e}" for name in SHOWN)])
    print(table(["case", *SHOWN], shown))
    if options.record:
        with open(options.record, "w", encoding="utf-8") as file:
            json.dump({"trl": PEER, "steps": recorded}, file, indent=1)
    if wrong:
        raise SystemExit(f"the steps differ: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
