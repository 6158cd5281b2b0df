"""The words of the first screen say what the numbers say, and only call a change what is outside noise."""

from pathlib import Path

import pytest

from contrl.continual.results import Cell, Results, read
from contrl.report.verdict import facts, sentence, tiles


def run(plus: list[float | None], minus: list[float | None], se: float = 0.01, status: str = "finished") -> Results:
    def cell(value: float | None) -> Cell | None:
        return None if value is None else Cell(value, se, 100)

    return Results(
        folder=Path("runs/x"),
        run={"status": status, "model": "tiny", "strategies": [{"name": "replay"}, "ewc"]},
        metric="success",
        tasks=("plus", "minus"),
        rows=("start", "1-plus", "2-minus"),
        trained=((), (0,), (1,)),
        matrix=tuple((cell(a), cell(b)) for a, b in zip(plus, minus, strict=True)),
        items={},
    )


FORGETS = run([0.2, 0.9, 0.4], [0.1, 0.1, 0.8])


def test_a_run_that_forgets():
    words = sentence(FORGETS)
    assert words.startswith("At the end the model scores 0.60 on average over 2 tasks.")
    assert "The largest loss is on plus: 0.90 after 1-plus, 0.40 now, a change of -0.50 [-0.53, -0.47]" in words
    average, forgetting, fwt, gain = tiles(FORGETS)
    assert (average.value, average.tone) == ("0.60", "neutral")
    assert "before training it was 0.15" in average.words
    assert (forgetting.value, forgetting.interval, forgetting.tone) == ("0.50", "[0.47, 0.53]", "bad")
    assert (fwt.value, fwt.tone, fwt.n) == ("0.00", "neutral", "100")
    assert "neither helped nor hurt" in fwt.words
    assert (gain.value, gain.tone) == ("0.70", "good")
    assert "gained" in gain.words


def test_a_run_that_keeps_what_it_learnt():
    kept = run([0.2, 0.9, 0.9], [0.1, 0.1, 0.8])
    assert "No task that was trained earlier has lost more than noise explains." in sentence(kept)
    _, forgetting, *_ = tiles(kept)
    assert forgetting.tone == "neutral"
    assert "within noise" in forgetting.words


def test_the_same_loss_is_noise_when_the_error_is_large():
    assert "No task" in sentence(run([0.2, 0.9, 0.4], [0.1, 0.1, 0.8], se=0.5))


def test_a_run_that_improves_what_it_learnt_before():
    better = run([0.2, 0.5, 0.9], [0.1, 0.3, 0.2])
    _, forgetting, fwt, gain = tiles(better)
    assert (forgetting.tone, fwt.tone) == ("good", "good")
    assert "higher now" in forgetting.words
    assert (fwt.value, "helped" in fwt.words) == ("0.20", True)
    assert gain.value == "0.10"


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (run([None] * 3, [None] * 3, status="running"), "There are not enough scores yet"),
        (run([0.2, 0.9, None], [0.1, 0.1, 0.8]), "There are not enough scores yet"),
        (run([0.2, 0.9, None], [0.1, 0.1, None], status="running"), "After 1-plus the model scores 0.50"),
    ],
)
def test_unfinished_and_incomplete_runs(results, words):
    assert sentence(results).startswith(words)
    assert tiles(results)[1].value == "–"
    assert all(tile.tone == "neutral" for tile in tiles(results)[1:3])


def test_facts_name_the_run(demo):
    assert facts(FORGETS) == ["x", "tiny", "replay+ewc"]
    assert facts(read(demo)) == ["demo", "tiny", "rloo", "naive", "seed 0"]
