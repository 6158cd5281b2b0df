"""What RLOO, GRPO and PPO learn from one budget: Countdown ``plus_minus`` from the demo's partly trained base.

The same prompts, samples, steps and sampler for every method, three seeds; what is told is the share of
answers to 500 held-out problems that are right, four sampled for each as in training, before and after, and the time of
a run. Not a test: a table for ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from side_by_side import machine, table

METHODS: dict[str, dict[str, Any]] = {
    "rloo": {},
    "grpo": {"scale_rewards": "group", "loss_type": "dapo"},
    "ppo": {"num_epochs": 1, "kl_coef": 0.0, "gae_lambda": 1.0, "value_coef": 0.5, "clip_value": None},
}
"""Each method's own settings; the sampling is shared."""

SAMPLING = {"samples_per_prompt": 8, "max_new_tokens": 16}
TRAINING = {"lr_scheduler_type": "linear"}
LEARNING_RATES = {"rloo": 5e-4, "grpo": 3e-4, "ppo": 3e-4}
"""Advantages of RLOO are not scaled to a spread of 1, so its steps are smaller at the same rate."""
JUDGING = {"temperature": 1.0, "num_samples": 4}
GROUP = "plus_minus"


def main() -> None:
    """Train the base once, then every method from every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--steps", type=int, default=240, help="optimizer steps of a run (default 240)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = partial_base(Path(folder))
        found = {
            method: [learn(method, seed, base, given.steps, Path(folder)) for seed in range(given.seeds)]
            for method in given.methods
        }
    rows = []
    for method, runs in found.items():
        gains = [run["after"] - run["before"] for run in runs]
        shown = "  ".join(f"{run['before']:.2f} -> {run['after']:.2f}" for run in runs)
        rows.append([method, shown, f"{min(gains):+.2f}", f"{statistics.mean(gains):+.2f}", runs[0]["seconds"]])
    print(table(("method", "right, seed by seed", "smallest gain", "mean gain", "seconds"), rows))
    print(", ".join(f"{name} {value}" for name, value in machine(2).items()))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def demo() -> dict[str, Any]:
    """The demo's configuration."""
    return yaml.safe_load(resources.files("contrl.configs").joinpath("demo.yaml").read_text(encoding="utf-8"))


def partial_base(folder: Path) -> Path:
    """The weights of the demo's base stage, trained or found in the cache."""
    import contrl

    config = {**demo(), "output_dir": str(folder / "base"), "evaluation": {"max_examples": 2}}
    contrl.run({**config, "training": {**config["training"], "max_steps": 1}}, say=lambda text: None)
    return folder / "base" / "base"


def learn(method: str, seed: int, base: Path, steps: int, folder: Path) -> dict[str, Any]:
    """One run: the share solved before and after it."""
    import contrl

    config = {**demo(), "model": str(base), "seed": seed, "output_dir": str(folder / f"{method}-{seed}")}
    config.pop("base")
    config["tasks"] = {**config["tasks"], "groups": [GROUP]}
    config["method"] = {"name": method, **SAMPLING, **METHODS[method]}
    rate = {"learning_rate": LEARNING_RATES[method], "max_steps": steps}
    config["training"] = {**config["training"], **TRAINING, **rate}
    config["evaluation"] = JUDGING
    start = time.perf_counter()
    results = contrl.run(config, say=lambda text: None)
    before, after = (row[0].value for row in results.matrix)
    print(f"{method}, seed {seed}: {before:.3f} -> {after:.3f}", flush=True)
    return {"before": before, "after": after, "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    main()
