"""A step of the online methods beside TRL 1.16's RLOO and GRPO: generate, reward, log-probs, update, and its memory.

Every run is a process of its own, contrl and TRL in turn, on the same prompts, weights and settings. Answers end
raggedly, because a constant is added to the end token's logit on both sides. The sides draw different answers, so
lengths and tokens a second are told; with ``--given`` both train on the same answers, and their losses must be equal.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from online_report import PHASES, SAMPLER, Found, given_report, online_report
from side_by_side import SURROUNDINGS, has_peer, machine, smollm2, stop

CASES: dict[str, dict[str, Any]] = {
    "rloo": {"method": "rloo"},
    "grpo": {"method": "grpo"},
    "grpo, beta 0.04": {"method": "grpo", "beta": 0.04},
    "rloo, 2 epochs": {"method": "rloo", "epochs": 2},
    "ppo": {"method": "ppo"},
}
"""GRPO's loss is dapo; PPO's KL is in the reward, and it has no peer. ``epochs``: steps of one set of rollouts."""
SAMPLES, LIMIT = 8, 64
SHORTEST, LONGEST = 70, 130
"""Tokens of a prompt: about 100."""
END_BIAS = 5.0
"""Added to the end token's logit. On real prompts SmolLM2's mean length is then about 31 of 64, and a fifth is cut."""
SMALL_RATE = 1e-6
"""Learning rate of the runs that sample, so that neither side's lengths move."""


def main() -> None:
    """Run the cases in turn and print the tables; the children come here too."""
    options = _options()
    if options.child:
        print(json.dumps(child(json.loads(options.child))))
        return
    sides = ("contrl", "TRL") if has_peer() else ("contrl",)
    names = options.cases or [name for name in CASES if not (options.given and name == "ppo")]
    told = ("model", "prompts", "steps", "threads", "peer_rows", "tokens_per_pass")
    shared = {name: getattr(options, name) for name in told}
    numbers: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.given:
            shared["rows"] = str(Path(folder) / "rows.json")
            drawn = json.dumps(run(shared | {"task": "draw"}, "the answers"))
            Path(shared["rows"]).write_text(drawn, encoding="utf-8")
        for name in names:
            case = shared | CASES.get(name, {"method": SAMPLER}) | {"task": "given" if options.given else "online"}
            numbers[name] = _alternate(case, sides, options.repeats, name)
        if SAMPLER not in numbers and not options.given and _device(numbers) == "cuda":
            numbers[SAMPLER] = _alternate(shared | {"method": SAMPLER}, ("contrl",), options.repeats, SAMPLER)
    state = ", ".join(f"{name} {value}" for name, value in machine(options.threads).items())
    what = f"{options.model}, {options.prompts} prompts x {SAMPLES} samples x at most {LIMIT} tokens"
    print(f"\n{what}, on {_device(numbers)}\n{state}\n")
    print("\n\n".join(given_report(numbers) if options.given else online_report(numbers)))
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="*", metavar="NAME", choices=[*CASES, SAMPLER], help=", ".join(CASES))
    parser.add_argument("--given", action="store_true", help="both train on the same answers: update and losses only")
    parser.add_argument("--prompts", type=int, default=8, help=f"of a step, {SAMPLES} samples each (default 8)")
    parser.add_argument("--steps", type=int, default=4, help="rollouts of a run, the first not timed (default 4)")
    parser.add_argument("--repeats", type=int, default=2, help="rounds of alternating runs (default 2)")
    parser.add_argument("--threads", type=int, default=2, help="threads of a run (default 2)")
    parser.add_argument("--peer_rows", type=int, default=16, help="completions of one forward in TRL (default 16)")
    parser.add_argument(
        "--tokens_per_pass", type=int, default=2**11, help="of contrl (default 2048, as in a run on a CPU)"
    )
    parser.add_argument("--model", choices=("smollm2", "tiny"), default="smollm2")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps < 2 or options.repeats < 1 or options.prompts * SAMPLES % options.peer_rows:
        parser.error(f"--steps at least 2, --repeats at least 1, --peer_rows a divisor of {options.prompts * SAMPLES}")
    if options.given and SAMPLER in (options.cases or ()):
        parser.error("--given is about updates, the sampler makes none")
    return options


def run(case: dict[str, Any], what: str) -> Any:
    """Run this file in a process of its own; its answer is the last line it prints."""
    command = [sys.executable, __file__, "--child", json.dumps(case)]
    environment = os.environ | SURROUNDINGS | {"OMP_NUM_THREADS": str(case["threads"])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        stop(f"{what} failed ({done.returncode})", done.stderr[-2000:] or "out of memory?")
    return json.loads(done.stdout.splitlines()[-1])


def _alternate(case: dict[str, Any], sides: Sequence[str], repeats: int, name: str) -> Found:
    if case["method"] in ("ppo", SAMPLER):
        sides = ("contrl",)
    found: Found = {side: [] for side in sides}
    for number in range(repeats):
        for side in sides:
            found[side].append(run(case | {"side": side}, f"{name}, {side}"))
            steps = " ".join(f"{step[0]:.1f}" for step in found[side][-1].get("steps", []))
            print(f"  round {number + 1}/{repeats}: {name}, {side}: seconds of the steps {steps}", file=sys.stderr)
    return found


def _device(numbers: dict[str, Found]) -> str:
    return next(iter(numbers.values()))["contrl"][0]["device"]


# --- one run --------------------------------------------------------------------------------------------


def child(case: dict[str, Any]) -> Any:
    """What a process does: draw answers to train on, train one stage on one side, or time the samplers."""
    model, tokenizer = _model(case)
    raise_end(model, int(tokenizer.eos_token_id), END_BIAS)
    if case.get("task") == "draw":
        return _drawn(model, tokenizer, case["prompts"])
    if case["method"] == SAMPLER:
        return _samplers(model, tokenizer, case)
    return _trained(case, model, tokenizer)


def _model(case: dict[str, Any]) -> tuple[Any, Any]:
    if case["model"] == "smollm2":
        return smollm2(case["threads"])
    import torch

    from contrl.models import embedded

    torch.set_num_threads(case["threads"])
    return embedded.tiny(0)


def raise_end(model: Any, end: int, bias: float) -> None:
    """Add ``bias`` to the logit of the token ``end``: an untrained bias of the projection; its weight stays shared."""
    import torch

    head = model.get_output_embeddings()
    raised = torch.nn.Linear(head.in_features, head.out_features, bias=True, device="meta")
    raised.weight = head.weight
    raised.bias = torch.nn.Parameter(torch.zeros(head.out_features, dtype=head.weight.dtype), requires_grad=False)
    raised.bias[end] = bias
    model.set_output_embeddings(raised)


def vowels(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
    """The reward of both sides: the share of vowels. It says nothing about length."""
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]


def prompts_of(tokenizer: Any, number: int) -> list[dict[str, Any]]:
    """Rows with prompts of about 100 tokens, real ones where ``CONTRL_REAL_DATA`` has them; else written ones."""
    from contrl.data.chat import encode_prompt

    folder = os.environ.get("CONTRL_REAL_DATA", "")
    path = Path(folder) / "hh-harmless-600.jsonl.gz"
    if folder and path.exists():
        from contrl.data.recipes import helpful_harmless

        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [row for row in map(helpful_harmless, map(json.loads, file)) if row is not None]
        texts = [row["prompt"] for row in rows]
        texts = [text for text in texts if SHORTEST <= len(encode_prompt(text, tokenizer)) <= LONGEST]
        random.Random(0).shuffle(texts)
    else:
        from bench_rollout import MIXED

        print("CONTRL_REAL_DATA is not set: written prompts, shorter and few", file=sys.stderr)
        texts = [turns[0] for turns in MIXED]
    return [{"id": str(i), "prompt": texts[i % len(texts)]} for i in range(number)]


def _device_settings() -> tuple[str, dict[str, Any]]:
    import torch

    if torch.cuda.is_available():
        return "cuda", {"use_cpu": False, "bf16": True}
    return "cpu", {}


def _trained(case: dict[str, Any], model: Any, tokenizer: Any) -> dict[str, Any]:
    from stages import Job, Peer, contrl_given, contrl_online, peer_given, peer_online

    from contrl.experiment import find

    epochs, beta, is_given = case.get("epochs", 1), case.get("beta", 0.0), case["task"] == "given"
    if is_given:
        rows = json.loads(Path(case["rows"]).read_text(encoding="utf-8"))
    else:
        rows = prompts_of(tokenizer, case["prompts"] * case["steps"])
    device, training = _device_settings()
    training |= {} if is_given else {"learning_rate": SMALL_RATE}
    sizes = {"samples_per_prompt": SAMPLES, "max_new_tokens": LIMIT, "num_epochs": epochs}
    settings = {"max_completion_length": LIMIT, "temperature": 1.0, "top_k": 0, "num_iterations": epochs, "beta": beta}
    peer = Peer(case["method"], SAMPLES, case["peer_rows"], settings)
    with tempfile.TemporaryDirectory() as folder:
        num_steps, tokens = case["steps"] * epochs, case["tokens_per_pass"]
        job = Job(model, tokenizer, rows, case["prompts"], num_steps, Path(folder), training, vowels, tokens)
        if case["side"] == "contrl":
            method = find("method", case["method"])(**sizes, **({"beta": beta} if beta else {}))
            done = contrl_given(job, method, untimed=0, copied=False) if is_given else contrl_online(job, method)
        else:
            done = peer_given(job, peer, untimed=0, copied=False) if is_given else peer_online(job, peer)
    lengths = done.curve("completions/mean_length")
    if is_given:
        lengths = [statistics.mean(len(ids) for row in rows for ids in row["completions"])] * case["steps"]
    absent = {"given": 0.0} if is_given else dict.fromkeys(PHASES[:3], 0.0)
    return {
        "steps": [(step.seconds, step.cpu_seconds) for step in done.steps],
        "phases": [absent | phase for phase in done.phases],
        "lengths": lengths,
        "loss": done.curve("loss"),
        "grad_norm": done.curve("grad_norm"),
        "epochs": epochs,
        "rows": case["prompts"] * SAMPLES,
        "peak": _peak(device),
        "device": device,
    }


def _peak(device: str) -> float:
    """Largest memory of this process so far in GiB: resident, or of tensors on the accelerator."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2 ** (30 if sys.platform == "darwin" else 20)


def _sample(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], seed: int) -> list[list[list[int]]]:
    from contrl.data.chat import encode_prompt
    from contrl.rollout.sampler import Noise, Sampling, generate

    named = [(row["id"], encode_prompt(row["prompt"], tokenizer)) for row in rows]
    sampled = generate(model, named, Sampling(LIMIT, SAMPLES), Noise((seed,)), [int(tokenizer.eos_token_id)])
    return [[completion.ids for completion in completions] for completions in sampled]


def _drawn(model: Any, tokenizer: Any, number: int) -> list[dict[str, Any]]:
    """One step's rows with answers of the model and their rewards."""
    rows = prompts_of(tokenizer, number)
    for row, completions in zip(rows, _sample(model, tokenizer, rows, 0), strict=True):
        texts = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in completions]
        row |= {"completions": completions, "rewards": vowels(None, texts)}
    return rows


def _samplers(model: Any, tokenizer: Any, case: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second of contrl's decode loop and of ``generate`` with all rows in one call, in turn."""
    import torch

    device, training = _device_settings()
    model.eval().to(device, torch.bfloat16 if training.get("bf16") else torch.float32)
    rows, end = prompts_of(tokenizer, case["prompts"]), int(tokenizer.eos_token_id)
    tokenizer.padding_side = "left"
    padded = tokenizer([row["prompt"] for row in rows], padding=True, return_tensors="pt").to(device)
    padded.pop("token_type_ids", None)
    drawing = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": SAMPLES}
    drawing |= {"max_new_tokens": LIMIT, "eos_token_id": end, "pad_token_id": int(tokenizer.pad_token_id)}

    def plain(seed: int) -> list[int]:
        torch.manual_seed(seed)
        answers = model.generate(**padded, **drawing)[:, padded["input_ids"].shape[1] :].tolist()
        return [ids.index(end) + 1 if end in ids else len(ids) for ids in answers]

    def own(seed: int) -> list[int]:
        return [len(ids) for completions in _sample(model, tokenizer, rows, seed) for ids in completions]

    found: dict[str, Any] = {"device": device}
    for seed in range(case["steps"]):
        for name, call in (("contrl", own), ("generate", plain)):
            start = time.perf_counter()
            lengths = call(seed)
            if seed:  # the first call of a process is slow
                found.setdefault(name, []).append(sum(lengths) / (time.perf_counter() - start))
                found.setdefault(f"{name} lengths", []).extend(lengths)
    return found


if __name__ == "__main__":
    main()
