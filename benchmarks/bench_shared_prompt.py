"""Forward and backward of SmolLM2-135M over groups that share a prompt: shared and plain layout, and beside TRL.

The plain layout repeats the prompt for every completion, as TRL does. Then one RLOO update on given completions and a
few SFT steps (which have no prompt to share) run in contrl's engine and in TRL's trainers, their curves side by side.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import side_by_side
from side_by_side import Options, Run, alternate, cpu_ratio, median, ratio, spread, table

if TYPE_CHECKING:
    from stages import Job, Trained

    from contrl.interfaces import Batch, Group

TEXT = Path(__file__).resolve().parents[1] / "LICENSE"
"""Prose for prompts and completions; which one does not matter here, only that it is text."""

SHAPES = {
    "DPO-like: 2 prompts x 2": [(250, [100, 90]), (235, [110, 85])],
    "RLOO-like: 1 prompt x 8": [(150, [20, 26, 33, 39, 45, 51, 58, 64])],
}
"""Name -> (prompt tokens, tokens of each completion) of every group."""

REWARDS = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
RLOO_STEPS, SFT_STEPS = 3, 4
NORM, LOSS = "gradient norm", "loss"


def text_ids(tokenizer: Any) -> list[int]:
    """The tokens of the text."""
    return list(tokenizer(TEXT.read_text(encoding="utf-8"))["input_ids"])


# --- layouts ------------------------------------------------------------------------------------------


def make_batch(shape: Sequence[tuple[int, list[int]]], ids: list[int]) -> Batch:
    """Groups of the shape, cut from the text at places that a seed draws."""
    import torch

    from contrl.engine.batching import to_batch
    from contrl.interfaces import Completion, Group

    draw = random.Random(0)

    def piece(length: int) -> list[int]:
        start = draw.randrange(len(ids) - length)
        return ids[start : start + length]

    groups: list[Group] = [
        Group(str(number), "text", piece(prompt), [Completion(piece(length)) for length in lengths])
        for number, (prompt, lengths) in enumerate(shape)
    ]
    return to_batch(groups, torch.device("cpu"))


def padded_tokens(batch: Batch) -> tuple[int, int]:
    """Positions that the shared and the plain layout run, padding included (no last token is run)."""
    prompts = [len(group.prompt_ids) for group in batch.groups]
    rows = [len(group.prompt_ids) + len(c.ids) for group in batch.groups for c in group.completions]
    num, width = batch.ids.shape
    return len(prompts) * max(prompts) + num * (width - 1), len(rows) * (max(rows) - 1)


def pass_over(model: Any, batch: Batch, layout: Any) -> tuple[Any, list[Any]]:
    """Log-probabilities ``[N, T]`` and the gradient of their weighted sum, by every parameter."""
    import torch

    from contrl.engine.forward import Routing, score_batch
    from contrl.engine.lm_head import LMHead

    logps = score_batch(model, LMHead(model), batch, Routing(layout))["logps"]
    sign = torch.tensor([1.0, -1.0]).repeat(len(logps))[: len(logps), None]
    return logps.detach(), list(torch.autograd.grad((logps * sign).sum(), list(model.parameters())))


def differences(model: Any, batch: Batch) -> tuple[float, float]:
    """Largest difference of the two layouts in log-probabilities, and in gradients relative to the largest entry."""
    (shared, ours), (plain, theirs) = (pass_over(model, batch, layout) for layout in ("shared", "plain"))
    largest = max(float(gradient.abs().max()) for gradient in theirs)
    gradient = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) / largest
    return float((shared - plain).abs().max()), gradient


def measure_layouts(model: Any, ids: list[int], repeats: int) -> tuple[list[list[object]], dict[str, Any]]:
    """The rows of the first table, and raw numbers."""
    model.train()  # its dropout is 0; caches behave differently in train mode
    rows, numbers = [], {}
    for name, shape in SHAPES.items():
        batch = make_batch(shape, ids)
        logps, gradient = differences(model, batch)
        variants: dict[str, Callable[[int], Any]] = {
            layout: lambda number, batch=batch, layout=layout: pass_over(model, batch, layout) and None
            for layout in ("shared", "plain")
        }
        runs = alternate(variants, repeats)
        shared, plain = padded_tokens(batch)
        timing = [ratio(runs["shared"], runs["plain"]), cpu_ratio(runs["shared"], runs["plain"])]
        medians = [median(runs["shared"]), median(runs["plain"])]
        rows.append([name, *medians, *timing, plain / shared, f"{logps:.1e}", f"{gradient:.1e}"])
        numbers[name] = {"tokens": [shared, plain], "differences": [logps, gradient]} | _seconds(runs)
    return rows, numbers


def _seconds(runs: side_by_side.Runs) -> dict[str, list[tuple[float, float]]]:
    return {name: [(run.seconds, run.cpu_seconds) for run in made] for name, made in runs.items()}


# --- beside TRL ---------------------------------------------------------------------------------------


def rloo_job(model: Any, tokenizer: Any, ids: list[int], folder: Path) -> Job:
    """One prompt with eight given completions and rewards, the same at every step."""
    from stages import Job

    (group,) = make_batch(SHAPES["RLOO-like: 1 prompt x 8"], ids).groups
    row = {
        "id": "0",
        "prompt": tokenizer.decode(group.prompt_ids),
        "completions": [c.ids for c in group.completions],
        "rewards": REWARDS,
    }
    return Job(model, tokenizer, [row], 1, RLOO_STEPS, folder)


def sft_job(model: Any, tokenizer: Any, ids: list[int], folder: Path) -> Job:
    """Ragged prompts and completions of 30 to 90 tokens, four rows a step."""
    from stages import Job

    draw = random.Random(1)
    rows = []
    for number in range(8):
        start, prompt, completion = draw.randrange(len(ids) - 200), draw.randint(30, 90), draw.randint(30, 90)
        whole = tokenizer.decode(ids[start : start + prompt + completion])
        before = tokenizer.decode(ids[start : start + prompt])
        rows.append({"id": str(number), "prompt": before, "completion": whole[len(before) :]})
    return Job(model, tokenizer, rows, 4, SFT_STEPS, folder)


def beside_peer(job: Job, ours: Callable, theirs: Callable, repeats: int) -> tuple[dict[str, list[Run]], list[Trained]]:
    """Stages in alternation; the timed steps of each side, and what the last stages logged."""
    steps: dict[str, list[Run]] = {"contrl": [], "TRL": []}
    last: dict[str, Trained] = {}
    for number in range(repeats):
        for name, train in (("contrl", ours), ("TRL", theirs)):
            last[name] = train(job)
            steps[name] += last[name].steps
            seconds = median(last[name].steps)
            print(f"  round {number + 1}/{repeats}: {name} {seconds:.1f} s a step", file=sys.stderr)
    return steps, [last["contrl"], last["TRL"]]


def measure_peer(model: Any, tokenizer: Any, ids: list[int], repeats: int) -> tuple[list[list[object]], str, Any]:
    """The rows of the second table, the curves as text, and raw numbers."""
    import stages

    rows, curves, numbers = [], "", {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plans = {
            "RLOO update, 1 prompt x 8": (rloo_job, stages.contrl_rloo, stages.peer_rloo, NORM, "grad_norm"),
            "SFT step, 4 rows": (sft_job, stages.contrl_sft, stages.peer_sft, LOSS, "loss"),
        }
        for name, (make, ours, theirs, shown, key) in plans.items():
            steps, trained = beside_peer(make(model, tokenizer, ids, folder), ours, theirs, repeats)
            both = [one.curve(key) for one in trained]
            apart = max(abs(a - b) / abs(b) for a, b in zip(*both, strict=True))
            for side, curve in zip(("contrl", "TRL   "), both, strict=True):
                curves += f"{name}, {shown}, {side}  {'  '.join(f'{value:.5f}' for value in curve)}\n"
            medians = [median(steps["contrl"]), median(steps["TRL"])]
            times = [ratio(steps["contrl"], steps["TRL"]), cpu_ratio(steps["contrl"], steps["TRL"])]
            rows.append([name, *medians, *times, spread(steps["contrl"]), spread(steps["TRL"]), f"{apart:.1e}"])
            numbers[name] = {"curves": both} | _seconds(steps)
    return rows, curves, numbers


def main() -> None:
    """Measure and print."""
    options: Options = side_by_side.read_options((__doc__ or "").splitlines()[0])
    model, tokenizer = side_by_side.smollm2(options.threads)
    ids = text_ids(tokenizer)
    rows, numbers = measure_layouts(model, ids, options.repeats)
    header = ["groups", "shared s", "plain s", "ratio", "ratio (CPU s)", "tokens", "logps differ", "gradients differ"]
    body = table(header, rows)
    if side_by_side.has_peer():
        rows, curves, against = measure_peer(model, tokenizer, ids, options.repeats)
        header = ["beside TRL", "contrl s", "TRL s", "ratio", "ratio (CPU s)", "contrl", "TRL", "curves differ"]
        body += f"\n\n{table(header, rows)}\n\n{curves}"
        numbers |= against
    title = "Shared prompt, SmolLM2-135M, float32; ratio: times as fast as the plain layout, as TRL"
    side_by_side.report(title, body, options, numbers)


if __name__ == "__main__":
    main()
