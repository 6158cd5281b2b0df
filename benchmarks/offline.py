"""A training step of each offline method beside TRL 1.16: the same weights, rows, order, precision and settings.

Every run is a process of its own (so that its peak memory is its own), contrl and TRL in turn; what is timed is a
whole optimizer step, without the first. Both loss curves are printed, because a faster step that learns something else
is worth nothing. Rows are real preference pairs (``CONTRL_REAL_DATA``), or pairs of a given shape.
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
from pathlib import Path
from typing import Any

from side_by_side import SURROUNDINGS, has_peer, machine, smollm2, stop, table

CASES = {
    "dpo": {"method": "dpo"},
    "dpo bf16": {"method": "dpo", "bf16": True},
    "dpo, 3 epochs": {"method": "dpo", "epochs": 3},
    "reward": {"method": "reward"},
    "sft, chat": {"method": "sft"},
    "kto": {"method": "kto"},
    "kto, 3 epochs": {"method": "kto", "epochs": 3},
}
SHAPES = {
    f"dpo {prompt}+{answer}": {"method": "dpo", "shape": [prompt, answer]}
    for prompt in (40, 400)
    for answer in (10, 200)
}
AIMS = {"dpo": 2.0, "reward": 1.8, "sft": 1.3, "kto": 2.0}
"""Times as fast as TRL."""


def main() -> None:
    """Run the cases in turn and print the table."""
    given = _options()
    if given.child:
        child(json.loads(given.child))
        return
    if not has_peer():
        return
    cases = {name: case for name, case in (CASES | SHAPES).items() if not given.cases or name in given.cases}
    settings = {"rows": given.rows, "steps": given.steps, "threads": given.threads}
    numbers = {name: _alternate(case | settings, given.repeats, name) for name, case in cases.items()}
    header = ("step", "contrl s", "TRL s", "ratio", "ratio (CPU s)", "aim", "memory", "losses differ")
    rows = [_row(name, case, numbers[name]) for name, case in cases.items()]
    state = ", ".join(f"{name} {value}" for name, value in machine(given.threads).items())
    print(f"\nSmolLM2-135M, {given.rows} rows a step\n{state}\n\n{table(header, rows)}\n")
    for name, found in numbers.items():
        for side, runs in found.items():
            print(f"{name}, loss, {side:6} " + "  ".join(f"{loss:.5f}" for loss in runs[0]["losses"]))
        print(f"{name}, time of contrl: " + ", ".join(f"{p} {s:.0%}" for p, s in _shares(found["contrl"]).items()))
    if given.json:
        given.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def _row(name: str, case: dict[str, Any], found: dict[str, list[dict[str, Any]]]) -> list[object]:
    ours, peer = ([_median(found[side], place) for place in (0, 1)] for side in ("contrl", "TRL"))
    memory = [max(run["peak"] for run in found[side]) for side in ("contrl", "TRL")]
    losses = [found[side][0]["losses"] for side in ("contrl", "TRL")]
    differ = max(abs(a - b) for a, b in zip(*losses, strict=True))
    aim = 0.95 if "shape" in case else AIMS[case["method"]]
    ratios = [peer[0] / ours[0], peer[1] / ours[1], aim, memory[0] / memory[1]]
    return [name, ours[0], peer[0], *ratios, f"{differ:.1e}"]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", metavar="NAME", help=f"of {', '.join(CASES | SHAPES)}")
    parser.add_argument("--rows", type=int, default=4, help="rows (pairs) of a step (default 4)")
    parser.add_argument(
        "--steps", type=int, default=5, help="optimizer steps of a run, the first not timed (default 5)"
    )
    parser.add_argument("--repeats", type=int, default=2, help="rounds of alternating runs (default 2)")
    parser.add_argument("--threads", type=int, default=2, help="threads of a run (default 2)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def _alternate(case: dict[str, Any], repeats: int, name: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {"contrl": [], "TRL": []}
    for number in range(repeats):
        for side in found:
            command = [sys.executable, __file__, "--child", json.dumps(case | {"side": side})]
            environment = os.environ | SURROUNDINGS | {"OMP_NUM_THREADS": str(case["threads"])}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                stop(f"{name}, {side} failed", done.stderr[-2000:])
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
            wall = statistics.median(step[0] for step in found[side][-1]["steps"])
            print(f"  round {number + 1}/{repeats}: {name}, {side}: {wall:.2f} s a step", file=sys.stderr)
    return found


def _median(runs: list[dict[str, Any]], place: int) -> float:
    """Seconds of a step: on the clock (0) or of all cores (1)."""
    return statistics.median(step[place] for run in runs for step in run["steps"])


def _shares(runs: list[dict[str, Any]]) -> dict[str, float]:
    whole = sum(step[0] for run in runs for step in run["steps"])
    parts = {part: sum(run["parts"].get(part, 0.0) for run in runs) / whole for part in runs[0]["parts"]}
    return parts | {"other": 1 - sum(parts.values())}


# --- one run --------------------------------------------------------------------------------------------


def child(case: dict[str, Any]) -> None:
    """Train one stage on one side; the last line of the output is the numbers as JSON."""
    model, tokenizer = smollm2(case["threads"])
    from stages import Job, contrl_offline, peer_offline

    rows = _rows(case, tokenizer)
    num_steps = case["steps"]
    with tempfile.TemporaryDirectory() as folder:
        job = Job(model, tokenizer, rows, case["rows"], num_steps, Path(folder))
        run = {"contrl": contrl_offline, "TRL": peer_offline}[case["side"]]
        trained = run(job, case["method"], bf16=case.get("bf16", False), cached=case.get("epochs", 1) > 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    steps = [(step.seconds, step.cpu_seconds) for step in trained.steps]
    print(json.dumps({"steps": steps, "losses": trained.curve("loss"), "peak": peak, "parts": trained.parts}))


def _rows(case: dict[str, Any], tokenizer: Any) -> list[dict[str, Any]]:
    """As many rows as the steps visit once, or a third of them where there are epochs."""
    number = case["rows"] * max(1, case["steps"] // case.get("epochs", 1))
    if "shape" in case:
        return _shaped(*case["shape"], number, tokenizer)
    folder = os.environ.get("CONTRL_REAL_DATA", "")
    path = Path(folder) / "hh-harmless-600.jsonl.gz"
    if not folder or not path.exists():
        stop("there are no real pairs", "set CONTRL_REAL_DATA to the folder of hh-harmless-600.jsonl.gz")
    from contrl.data.recipes import helpful_harmless

    rows = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            raw = json.loads(line)
            row = _messages(raw["chosen"]) if case["method"] == "sft" else helpful_harmless(raw)
            if row is not None and len(json.dumps(row)) < 1600:
                rows.append({**row, "id": str(len(rows))})
    if case["method"] == "kto":
        rows = [
            {"id": row["id"], "prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
            for number, row in enumerate(rows)
            for side in [("chosen", "rejected")[number % 2]]
        ]
    random.Random(0).shuffle(rows)
    return rows[:number]


def _messages(transcript: str) -> dict[str, Any]:
    """A transcript as the messages of a chat."""
    messages = []
    for turn in transcript.split("\n\nHuman:")[1:]:
        asked, *answers = turn.split("\n\nAssistant:")
        messages.append({"role": "user", "content": asked.strip()})
        messages += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    return {"messages": messages}


def _shaped(prompt: int, answer: int, number: int, tokenizer: Any) -> list[dict[str, Any]]:
    """Pairs of about the given numbers of tokens: words of one token each."""
    words = (" time", " water", " house", " people", " music", " paper", " light", " green")
    draw = random.Random(1)

    def text(count: int) -> str:
        return "".join(draw.choices(words, k=count))

    return [
        {"id": str(i), "prompt": text(prompt), "chosen": text(answer), "rejected": text(answer)} for i in range(number)
    ]


if __name__ == "__main__":
    main()
