"""Every method with every strategy, on whole weights and on an adapter: what each pair is, and running one.

``python -m tests.grid.pairs`` runs all of them and writes docs/grid.md; test_grid.py runs a covering sample.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrl.compatibility import check_pairs
from contrl.config import load
from contrl.errors import UserError
from contrl.experiment import METHODS, STRATEGIES, build_tasks, find
from contrl.interfaces import OnlineMethod
from contrl.launch import Options, start
from tests.runs import ROOT, make_world, metric

PAGE = ROOT / "docs" / "grid.md"
ONLINE: dict[str, Any] = {"samples_per_prompt": 2, "max_new_tokens": 4}
SHORT: dict[str, Any] = {"max_new_tokens": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in STRATEGIES},
    "replay own": {"name": "replay", "answers": "own", **SHORT},
    "kl old": {"name": "kl", "on": "old", "num_prompts": 4, **SHORT},
    "ewc online": {"name": "ewc", "num_samples": 2, "online": True, "decay": 0.9},
    "ewc proximal": {"name": "ewc", "num_samples": 2, "form": "proximal"},
    "l2 start": {"name": "l2", "to": "start"},
    "averaging ema": {"name": "averaging", "alpha": 1.0, "ema": 0.5},
    "ewc": {"name": "ewc", "num_samples": 2},
    "mas": {"name": "mas", "num_samples": 2},
    "ewc delta_w": {"name": "ewc", "num_samples": 2, "space": "delta_w"},
}
"""What stands in a column of the grid -> the strategy with its fields."""


@dataclass(frozen=True)
class Pair:
    """One cell: a method, a strategy, and whether an adapter is trained."""

    method: str
    strategy: str
    adapter: bool

    def config(self, world: Path, output_dir: Path) -> dict[str, Any]:
        """Two tasks, two steps each, on the toy model of ``tests/runs.py``."""
        online = issubclass(find("method", self.method), OnlineMethod)
        suffix = "" if online or self.method == "sft" else "-pairs"
        tasks: list[dict[str, Any]] = [
            {"name": name, "data": str(world / f"{name}{suffix}.jsonl"), "eval_size": 2} for name in ("sums", "doubles")
        ]
        if online:
            tasks = [task | {"reward": "tests.plugins:digits"} for task in tasks]
        model: dict[str, Any] = {"name_or_path": str(world / "model")}
        if self.adapter:
            model |= {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"]}
        return {
            "output_dir": str(output_dir),
            "model": model,
            "tasks": tasks,
            "method": {"name": self.method, **(ONLINE if online else {})},
            "strategies": [VARIANTS[self.strategy]],
            "prompts_per_step": 4,
            "evaluation": {"max_new_tokens": 4, "at_start": False},
            "training": {"max_steps": 2, "learning_rate": 1e-3, "logging_steps": 1},
        }

    def refusal(self, world: Path) -> str:
        """Why the pair is refused before a model is loaded; "" when it is not."""
        resolved = load(self.config(world, world / "never"), resolve=find).config
        try:
            check_pairs(resolved, build_tasks(resolved))
        except UserError as error:
            name = f"{VARIANTS[self.strategy]['name']}: "
            return f"{error.why.removeprefix(name)}; instead: {error.fix.removeprefix(name)}"
        return ""

    def run(self, world: Path, output_dir: Path) -> None:
        """Train and judge both tasks; raises when anything is not finite."""
        run = start(load(self.config(world, output_dir), resolve=find), Options(say=lambda text: None, page=False))
        losses = metric(run, "loss")
        if len(losses) != 4 or not all(math.isfinite(value) for value in losses.values()):
            raise AssertionError(f"{self}: losses {losses}")
        if not (run / "results.json").exists():
            raise AssertionError(f"{self}: no results")


def every_pair() -> Iterator[Pair]:
    """All cells, row by row."""
    for method in METHODS:
        for strategy in sorted(VARIANTS):
            for adapter in (False, True):
                yield Pair(method, strategy, adapter)


def sample(allowed: list[Pair]) -> list[Pair]:
    """A covering sample: every method and every strategy at least twice, on whole weights and on adapters in turn."""
    chosen: list[Pair] = []

    def uses(name: str) -> int:
        return sum(name in (pair.method, pair.strategy) for pair in chosen)

    for strategy in sorted(VARIANTS):
        while uses(strategy) < 2:
            wanted = bool(uses(strategy) % 2)
            left = [pair for pair in allowed if pair.strategy == strategy and pair not in chosen]
            # The method used least so far, and the kind of weights whose turn it is.
            chosen.append(min(left, key=lambda pair: (uses(pair.method), pair.adapter != wanted)))
    return chosen


def main() -> None:
    """Run all pairs and write the page."""
    cells: dict[tuple[str, str], list[str]] = {}
    reasons: dict[str, list[str]] = {}
    began, number = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        os.environ["CONTRL_CACHE"] = str(place / "cache")
        world = make_world(place)
        for number, pair in enumerate(every_pair(), start=1):
            refusal = pair.refusal(world)
            if refusal:
                reasons.setdefault(refusal, []).append(f"{pair.strategy} × {pair.method}")
            else:
                pair.run(world, place / f"run-{number}")
            cells.setdefault((pair.method, pair.strategy), []).append("refused" if refusal else "runs")
            print(
                f"{number} {pair.method} {pair.strategy} {'adapter' if pair.adapter else 'whole'}: {refusal or 'runs'}",
                flush=True,
            )
    PAGE.write_text(page(cells, reasons), encoding="utf-8")
    print(f"{number} pairs in {time.perf_counter() - began:.0f} s: {PAGE}")


def page(cells: dict[tuple[str, str], list[str]], reasons: dict[str, list[str]]) -> str:
    """docs/grid.md."""
    signs = {("runs", "runs"): "✓", ("refused", "refused"): "–", ("refused", "runs"): "LoRA"}
    lines = [
        "# Which strategy goes with which method",
        "",
        "Every pair was run: two tasks, a two-layer model, whole weights and a LoRA adapter (`make grid`;",
        "`make test` runs a covering sample and checks every refusal). ✓ runs on both, LoRA on an adapter only, – is",
        "refused before a model is loaded, with the reason below and what works instead.",
        "",
        f"| strategy | {' | '.join(METHODS)} |",
        f"|---|{'---|' * len(METHODS)}",
    ]
    for strategy in sorted(VARIANTS):
        row = [signs[first, second] for first, second in (cells[method, strategy] for method in METHODS)]
        lines.append(f"| {strategy} | {' | '.join(row)} |")
    lines += ["", "## Why a pair is refused", ""]
    for reason, pairs in sorted(reasons.items()):
        names = sorted({pair.split(" × ")[0] for pair in pairs})
        methods = sorted({pair.split(" × ")[1] for pair in pairs})
        shown = "every method" if len(methods) == len(METHODS) else ", ".join(methods)
        lines.append(f"- **{', '.join(names)}** with {shown}: {reason}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
