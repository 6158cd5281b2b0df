"""Log-probabilities of up to 8k tokens over 49k words and their gradient: peak memory, seconds, equality.

Three ways: log-softmax of the full logits, contrl's chunked head, TRL's fused head; float32, hidden size 576. Every run
is a fresh process, because a process never forgets its peak. Memory is what the run adds to the weights, their gradient
and the hidden states. This file imports nothing heavy itself: a child starts with the peak of its parent.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import side_by_side
from side_by_side import Options, Run, cpu_ratio, median, ratio, table, timed

TOKENS, VOCABULARY, HIDDEN = (2048, 4096, 8192), 49152, 576
FULL, CONTRL, PEER = "full logits", "contrl", f"TRL {side_by_side.PEER}"
CHECKED = 1024
"""Tokens on which the values of all variants are compared: enough for several of contrl's chunks."""

Score = Callable[[Any, Any], Any]
"""(hidden states [M, H], tokens [M]) -> log-probabilities [M]."""


def full_logits(model: Any) -> Score:
    """What a model's own loss does: all logits, their log-softmax, one entry a token."""

    def score(hidden: Any, ids: Any) -> Any:
        return model.lm_head(hidden).log_softmax(-1).gather(-1, ids[:, None])[:, 0]

    return score


def contrl_head(model: Any) -> Score:
    """contrl's head as the engine calls it."""
    from contrl.engine.lm_head import LMHead

    head = LMHead(model)
    return lambda hidden, ids: head.score(hidden, ids)[0]


def peer_head(model: Any) -> Score:
    """The function inside TRL's ``add_fused_lm_head``, with the tile it uses and no output but the log-probability."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as TILE

    weight = model.lm_head.weight
    return lambda hidden, ids: ChunkedLogProbFunction.apply(
        hidden, weight, None, ids, 1.0, TILE, None, 1.0, ("log_probs",)
    )[0]


HEADS: dict[str, Callable[[Any], Score]] = {FULL: full_logits, CONTRL: contrl_head, PEER: peer_head}


def head_model() -> Any:
    """A llama that is nearly nothing but its head, with the shape of SmolLM2-135M's."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 9, "intermediate_size": 64}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **shape))


def tokens_and_states(number: int) -> tuple[Any, Any]:
    """Hidden states whose logits spread as a trained model's do, and the tokens that follow."""
    import torch

    generator = torch.Generator().manual_seed(number)
    hidden = 5 * torch.randn(number, HIDDEN, generator=generator)
    return hidden.requires_grad_(), torch.randint(VOCABULARY, (number,), generator=generator)


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(name: str, number: int, threads: int) -> dict[str, float]:
    """In a fresh process: seconds and added memory of one forward and backward."""
    import torch

    torch.set_num_threads(threads)
    model = head_model()
    score = HEADS[name](model)
    hidden, ids = tokens_and_states(number)
    score(hidden[:8], ids[:8]).sum().backward()  # makes both gradients and the libraries' own buffers
    hidden.grad = torch.ones_like(hidden)
    before = peak_bytes()
    run = timed(lambda: score(hidden, ids).sum().backward())
    return {"bytes": peak_bytes() - before, "seconds": run.seconds, "cpu_seconds": run.cpu_seconds}


def compare(names: list[str], threads: int) -> dict[str, list[float]]:
    """In a fresh process: largest difference to the full logits, of log-probabilities and (relative) of gradients."""
    import torch

    torch.set_num_threads(threads)
    model = head_model()
    hidden, ids = tokens_and_states(CHECKED)
    found = {}
    for name in names:
        logps = HEADS[name](model)(hidden, ids)
        gradients = torch.autograd.grad(logps.sum(), [hidden, model.lm_head.weight])
        found[name] = [logps.detach(), *(gradient / gradient.abs().max() for gradient in gradients)]
    return {
        name: [float((one - other).abs().max()) for one, other in zip(values, found[FULL], strict=True)]
        for name, values in found.items()
    }


def child(*arguments: object) -> Any:
    """Run this file in a process of its own; its answer is the last line it prints."""
    command = [sys.executable, str(Path(__file__)), "--child", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode != 0:
        side_by_side.stop(f"the run {arguments} ended with {done.returncode}", done.stderr[-2000:] or "out of memory?")
    return json.loads(done.stdout.splitlines()[-1])


def answer(task: str, threads: str, *rest: str) -> dict[str, Any]:
    """What a child does."""
    if task == "compare":
        return compare(list(rest), int(threads))
    return measure(rest[0], int(rest[1]), int(threads))


def row(tokens: int, name: str, runs: dict[tuple[int, str], list[Run]]) -> list[object]:
    """One row of the table."""
    own, reference = runs[tokens, name], runs[tokens, FULL]
    mib = max(run.value for run in own) / 2**20
    times = [ratio(own, reference), cpu_ratio(own, reference)]
    return [f"{name}, {tokens} tokens", tokens * VOCABULARY * 4 / 2**20, mib, median(own), *times]


def main() -> None:
    """Measure and print; the children come here too."""
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(answer(*sys.argv[2:])))
        return
    options: Options = side_by_side.read_options((__doc__ or "").splitlines()[0])
    names = [FULL, CONTRL, *([PEER] if side_by_side.has_peer() else [])]
    runs: dict[tuple[int, str], list[Run]] = {(tokens, name): [] for tokens in TOKENS for name in names}
    for number in range(options.repeats):
        for tokens, name in runs:
            found = child("measure", options.threads, name, tokens)
            runs[tokens, name].append(Run(found["bytes"], found["seconds"], found["cpu_seconds"]))
            print(f"  round {number + 1}/{options.repeats}: {name}, {tokens} tokens", file=sys.stderr)
    differences = child("compare", options.threads, *names)
    header = ["head", "all logits MiB", "added peak MiB", "median s", "ratio", "ratio (CPU s)"]
    body = table(header, [row(tokens, name, runs) for tokens, name in runs])
    for name, (logps, hidden, weight) in differences.items():
        if name != FULL:
            body += f"\n{name}: log-probabilities differ by {logps:.1e}, gradients by {max(hidden, weight):.1e} at most"
    numbers = {
        "runs": [
            {"tokens": tokens, "head": name, "bytes": run.value, "seconds": run.seconds, "cpu_seconds": run.cpu_seconds}
            for (tokens, name), made in runs.items()
            for run in made
        ],
        "differences": differences,
    }
    title = "LM head, forward and backward, vocabulary 49152, hidden 576, float32; ratio: times as fast as full logits"
    side_by_side.report(title, body, options, numbers)


if __name__ == "__main__":
    main()
