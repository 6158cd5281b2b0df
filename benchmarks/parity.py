"""Loss curves of contrl and TRL 1.16 side by side: the same rows in the same order, weights, settings, float32.

Each case trains the embedded tiny model (freshly drawn, or SmolLM2 with --model smollm2) for ten steps with both and
fails where a step's loss differs by more than 1e-4. KTO is given TRL's mismatched answers (each row the answer of the
row before it in its batch), because contrl's own do not depend on the batch.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from side_by_side import PEER, SURROUNDINGS, has_peer, table

STEPS, BATCH, TOLERANCE = 10, 4, 1e-4

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One method with its settings; ``rows`` names the kind of rows."""

    name: str
    method: str
    rows: str = "pairs"
    settings: Mapping[str, Any] = field(default_factory=dict)


CASES = (
    Case("SFT, prompt and completion", "SFT", "supervised"),
    Case("SFT, text", "SFT", "text"),
    Case("SFT, messages", "SFT", "messages"),
    Case("SFT, cut at 12 tokens", "SFT", "text", {"max_length": 12}),
    Case("SFT, dft", "SFT", "supervised", {"loss_type": "dft"}),
    Case("Reward", "Reward"),
    Case("Reward, centred", "Reward", settings={"center_rewards_coefficient": 0.01}),
    Case("Reward, conversations", "Reward", "conversations"),
    Case("DPO sigmoid", "DPO"),
    Case("DPO, conversations", "DPO", "conversations"),
    Case("DPO, cut at 24 tokens", "DPO", settings={"max_length": 24}),
    Case("DPO ipo", "DPO", settings={"loss_type": ["ipo"]}),
    Case("DPO robust", "DPO", settings={"loss_type": ["robust"], "label_smoothing": 0.1}),
    Case("DPO sigmoid + 0.5 sft", "DPO", settings={"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
    Case("DPO hinge", "DPO", settings={"loss_type": ["hinge"]}),
    Case("DPO apo_zero", "DPO", settings={"loss_type": ["apo_zero"]}),
    Case("DPO aot", "DPO", settings={"loss_type": ["aot"]}),
    Case("DPO bco_pair", "DPO", settings={"loss_type": ["bco_pair"]}),
    Case("DPO, WPO weights", "DPO", settings={"use_weighting": True}),
    Case("DPO, accumulated", "DPO", settings={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    Case("KTO, TRL's mismatched answers", "KTO", "unpaired"),
    Case("CPO sigmoid", "CPO"),
    Case("CPO simpo", "CPO", settings={"loss_type": "simpo"}),
    Case("ORPO", "ORPO"),
)


def make_rows(kind: str) -> Rows:
    """Forty sums of ragged length, right ones chosen."""
    pairs = []
    for i in range(STEPS * BATCH):
        a, b = 3 * i + 1, i * i % 97
        prompt = f"{a}+{b}=" if i % 3 else f"what is {a}+{b}? "
        pairs.append({"prompt": prompt, "chosen": str(a + b), "rejected": f"{a + b + i % 5 + 1} or so"})
    if kind == "pairs":
        return pairs
    if kind == "supervised":
        return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
    if kind == "messages":
        return [{"messages": turns(row["prompt"], row["chosen"])} for row in pairs]
    if kind == "conversations":
        return [{side: turns(row["prompt"], row[side]) for side in ("chosen", "rejected")} for row in pairs]
    if kind == "text":
        return [{"text": row["prompt"] + row["chosen"]} for row in pairs]
    sides = ("chosen", "rejected")
    return [
        {"prompt": row["prompt"], "completion": row[sides[i % 2]], "label": i % 2 == 0} for i, row in enumerate(pairs)
    ]


def turns(asked: str, answer: str) -> list[dict[str, str]]:
    """A conversation of one question and its answer."""
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def settings_of(case: Case, output_dir: str) -> dict[str, Any]:
    """What both are given."""
    return {
        "output_dir": output_dir,
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "seed": 0,
        "train_sampling_strategy": "sequential",
        **case.settings,
    }


def peer_classes(method: str) -> tuple[Any, Any]:
    """TRL's trainer and configuration."""
    import trl
    from trl.experimental import cpo, orpo

    place = {"CPO": cpo, "ORPO": orpo}.get(method, trl)
    return getattr(place, f"{method}Trainer"), getattr(place, f"{method}Config")


def curve(trainer: Any) -> list[dict[str, float]]:
    """What was logged at each step."""
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


def run_peer(case: Case, model: Any, tokenizer: Any, rows: Rows) -> list[dict[str, float]]:
    """TRL's curve."""
    from datasets import Dataset

    trainer_class, config_class = peer_classes(case.method)
    with tempfile.TemporaryDirectory() as place:
        args = config_class(**settings_of(case, place), gradient_checkpointing=False)
        given = {"model": model, "args": args, "train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
        if case.method in ("DPO", "KTO"):
            given["ref_model"] = copy.deepcopy(model)  # TRL would read it anew by the model's name
        return curve(trainer_class(**given))


def run_contrl(case: Case, model: Any, tokenizer: Any, rows: Rows) -> list[dict[str, float]]:
    """contrl's curve."""
    import contrl

    trainer_class, config_class = getattr(contrl, f"{case.method}Trainer"), getattr(contrl, f"{case.method}Config")
    with tempfile.TemporaryDirectory() as place:
        args = config_class(**settings_of(case, place))
        trainer = trainer_class(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        return curve(trainer)


def neighbours(groups: Sequence[Any], seed: int) -> None:
    """TRL's mismatched answers: of the row before in the batch, the first row takes the last one's."""
    from contrl.interfaces import Completion

    by_position = sorted(groups, key=lambda group: int(group.row_id))
    for start in range(0, len(by_position), BATCH):
        block = by_position[start : start + BATCH]
        for group, other in zip(block, [block[-1], *block[:-1]], strict=True):
            group.contrast = Completion(other.completions[0].ids, other.completions[0].trained)


def make_model(name: str, classifier: bool) -> tuple[Callable[[], Any], Any]:
    """A function that gives a fresh copy of the same model, and its tokenizer."""
    from contrl.config import ModelConfig
    from contrl.models.load import load_policy

    policy = load_policy(ModelConfig(name), 0, classifier=classifier)
    return lambda: copy.deepcopy(policy.model), policy.tokenizer


def compare(case: Case, model_name: str) -> tuple[list[float], list[float], dict[str, float]]:
    """Both curves, and the largest difference of everything that both log."""
    make, tokenizer = make_model(model_name, case.method == "Reward")
    rows = make_rows(case.rows)
    ours = run_contrl(case, make(), copy.deepcopy(tokenizer), rows)
    theirs = run_peer(case, make(), copy.deepcopy(tokenizer), rows)
    shared = [name for name in theirs[0] if name in ours[0]]
    gaps = {name: max(abs(a[name] - b[name]) for a, b in zip(ours, theirs, strict=True)) for name in shared}
    return [line["loss"] for line in ours], [line["loss"] for line in theirs], gaps


def main() -> None:
    """Print both curves of every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", help="tiny, smollm2, or a folder (default tiny)")
    parser.add_argument("--record", metavar="PATH", help="also write TRL's curves to this file")
    parser.add_argument("--only", default="", help="only the cases whose name holds this text")
    options = parser.parse_args()
    os.environ.update(SURROUNDINGS, TRL_EXPERIMENTAL_SILENCE="1")
    warnings.filterwarnings("ignore")
    if not has_peer():
        raise SystemExit(4)
    from contrl.methods.kto import KTO

    KTO.pair = lambda self, groups, seed: neighbours(groups, seed)
    lines, wrong, recorded = [], [], {}
    for case in CASES:
        if options.only.lower() not in case.name.lower():
            continue
        ours, theirs, gaps = compare(case, options.model)
        recorded[case.name] = theirs
        gap = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        wrong += [case.name] if gap > TOLERANCE else []
        others = ", ".join(f"{n} {g:.1e}" for n, g in gaps.items() if g > 1e-3 and n not in ("loss", "num_tokens"))
        lines.append([case.name, f"{ours[0]:.5f}", f"{ours[-1]:.5f}", f"{theirs[-1]:.5f}", f"{gap:.1e}"])
        print(f"{case.name}\n  contrl {' '.join(f'{v:.5f}' for v in ours)}", file=sys.stderr)
        print(f"  TRL    {' '.join(f'{v:.5f}' for v in theirs)}\n  also: {others or 'equal'}", file=sys.stderr)
    print(table(["case", "step 1", f"contrl, step {STEPS}", f"TRL, step {STEPS}", "largest difference"], lines))
    if options.record:
        with open(options.record, "w", encoding="utf-8") as file:
            json.dump({"trl": PEER, "model": options.model, "losses": recorded}, file, indent=1)
    if wrong:
        raise SystemExit(f"the losses differ: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
