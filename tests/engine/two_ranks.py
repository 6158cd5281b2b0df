"""Run under torchrun by test_two_ranks.py: the same stages on two gloo processes; each rank writes what it saw.

python -m torch.distributed.run --nproc_per_node 2 two_ranks.py FOLDER
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from toys import FROZEN, Recorder, Settled, Setup, make_engine, pair_rows, policy, sft_rows, weights

from contrl.engine import lm_head
from contrl.interfaces import Context, Group, Strategy
from contrl.methods.dpo import DPO
from contrl.methods.grpo import GRPO
from contrl.methods.kto import KTO
from contrl.methods.ppo import PPO
from contrl.methods.rloo import RLOO
from contrl.methods.sft import SFT
from contrl.strategies.composite import Composite
from contrl.strategies.cppo import CPPO
from contrl.strategies.ewc import EWC
from contrl.strategies.kl import KL
from contrl.strategies.replay import Replay


@dataclasses.dataclass
class Rows(Strategy):
    """Writes down the rows that this rank trains in each step."""

    name = "rows"
    steps: list[list[str]] = dataclasses.field(default_factory=list)

    def count(self, ctx: Context, groups: Sequence[Group]) -> dict[str, float]:
        self.steps.append([group.row_id for group in groups])
        return {}


def scenarios() -> dict[str, Setup]:
    """19 rows in steps of 8: rank 1 gets 4, 4 and none at all in the last block of 3."""
    rloo = RLOO(samples_per_prompt=3, max_new_tokens=6)
    ppo = PPO(samples_per_prompt=2, max_new_tokens=6, num_epochs=2, whiten_rewards=True, target_kl=1.0, kl_horizon=50.0)
    grpo = GRPO(samples_per_prompt=3, max_new_tokens=6, num_epochs=2, beta=0.1, scale_rewards="batch")
    window = dataclasses.replace(rloo, num_epochs=2, num_minibatches=2)
    moving = {"learning_rate": 1e-2, "optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    replay = Replay(share=0.5)
    replay.memory = {"earlier": [str(i) for i in range(100, 110)]}
    old = sft_rows(10, 100)
    return {
        "sft": Setup(SFT(), sft_rows(19), tokens_per_pass=40, training=FROZEN),
        "sft settled": Setup(SFT(), sft_rows(19), Composite([Settled(), replay]), old, training=FROZEN),
        "rloo": Setup(rloo, sft_rows(19), tokens_per_pass=60, training=FROZEN),
        "rloo settled": Setup(
            rloo, sft_rows(19), Composite([Settled(), replay]), old, tokens_per_pass=90, training=FROZEN
        ),
        "accumulated": Setup(SFT(), sft_rows(19), training=FROZEN | {"gradient_accumulation_steps": 2}),
        "window": Setup(window, sft_rows(19), prompts_per_step=4, training=moving | {"save_strategy": "epoch"}),
        "two stages": Setup(SFT(), sft_rows(19), training=moving),
        "dpo": Setup(DPO(loss_type=("sigmoid", "aot")), pair_rows(19), tokens_per_pass=80, training=moving),
        "kto": Setup(KTO(), KTO().rows(pair_rows(10), print)[:19], tokens_per_pass=80, training=moving),
        "ppo": Setup(ppo, sft_rows(19), tokens_per_pass=60, training=moving),
        "grpo": Setup(grpo, sft_rows(19), tokens_per_pass=60, training=moving),
        "penalty": Setup(SFT(), sft_rows(19), EWC(coef=3.0, num_samples=5), training=FROZEN),
        "kl": Setup(SFT(), sft_rows(19), KL(coef=2.0), tokens_per_pass=40, training=moving),
        "cppo": Setup(rloo, sft_rows(19), CPPO(), tokens_per_pass=60, training=moving),
        "silent": Setup(rloo, sft_rows(8), training=FROZEN, reward=constant_for_even),
    }


def constant_for_even(*, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """Every prompt of an even length teaches nothing."""
    return [
        0.5 if len(p) % 2 == 0 else float(sum(c.isdigit() for c in t))
        for p, t in zip(prompts, completions, strict=True)
    ]


def run(name: str, setup: Setup, folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Train one scenario; what was logged, and gradients and weights under "step/parameter"."""
    rows = Rows()
    setup = dataclasses.replace(setup, strategy=Composite([*parts(setup.strategy), rows]))
    # A chunked head is recomputed in backward, which DDP must not mistake for a second use.
    lm_head.CHUNK_BYTES = 4 * 98 * 5
    model = policy()
    if name == "two stages":
        # The second stage wraps the same model object again, or its gradients would not be reduced.
        make_engine(model, folder / "first", setup).fit()
    engine, recorder = make_engine(model, folder / name.replace(" ", "-"), setup), Recorder()
    context = engine.work.context
    setup.strategy.before_task(context)
    for part in parts(setup.strategy):
        if isinstance(part, EWC):
            # Importance of a task whose weights were elsewhere; each rank measures its share of the samples.
            part.after_task(context)
            part.anchor = {name: tensor - 0.05 for name, tensor in part.anchor.items()}
    engine.add_callback(recorder)
    engine.fit()
    logs = [log for log in engine.state.log_history if "loss" in log]
    tensors = {f"{step}/{key}": value for step, found in enumerate(recorder.gradients) for key, value in found.items()}
    tensors |= {f"weights/{key}": value for key, value in weights(model).items()}
    return {"logs": logs, "rows": rows.steps, "layout": engine.routing.layout}, tensors


def parts(strategy: Strategy) -> list[Strategy]:
    """The strategies inside a composite, or the one there is."""
    return strategy.strategies if isinstance(strategy, Composite) else [strategy]


def main(folder: Path) -> None:
    """Run every scenario on this rank."""
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for name, setup in scenarios().items():
        told, tensors = run(name, dataclasses.replace(setup, rank=rank, world_size=size), folder)
        with open(folder / f"{name}-{rank}.json", "w", encoding="utf-8") as file:
            json.dump(told, file)
        save_file(
            {key: value.contiguous().clone() for key, value in tensors.items()}, folder / f"{name}-{rank}.safetensors"
        )
    torch.distributed.barrier()  # a rank that leaves early closes connections under the other
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
