"""The same prompt across stages: which items are shown, how their flow is told, and how much of them."""

from pathlib import Path

import pytest

from contrl.continual.results import read
from contrl.report import samples
from contrl.report.samples import cut, flow_words, item_samples


def test_items_of_every_kind_are_what_they_are_called(demo):
    found = item_samples(read(demo))
    assert [flow.task for flow in found] == ["plus", "plus_minus", "plus_minus_mul", "plus_minus_mul_div"]
    for flow in found[:3]:
        assert 3 < len(flow.samples) <= samples.ITEMS_PER_TASK
        for sample in flow.samples:
            right = {answer.row: answer.correct for answer in sample.answers}
            assert list(right) == list(read(demo).rows)
            if sample.kind == "lost":
                assert (right[flow.since], right[flow.until]) == (True, False)
            if sample.kind == "gained":
                assert (right["start"], right[flow.until]) == (False, True)
            assert all(right.values()) == (sample.kind == "kept")
            assert (not any(right.values())) == (sample.kind == "never")
    kinds = [sample.kind for sample in found[0].samples]
    assert kinds[:5] == ["lost"] * 5


def test_the_flow_agrees_with_the_scores(demo):
    """lost - gained = drop in the number of right answers, of 200 items."""
    results = read(demo)
    for column, flow in enumerate(item_samples(results)[:3]):
        change = results.change(4, column)
        assert change is not None
        assert change.value is not None
        assert flow.total == 200
        assert round(-200 * change.value) == flow.lost - flow.gained


def test_answers_are_those_of_the_item(demo):
    """The writer answers item i after stage k with i*2-k when right, i+k when wrong."""
    for sample in item_samples(read(demo))[0].samples:
        item = sample.id.removeprefix("plus/")
        assert sample.prompt.startswith(f"Make {int(item) + 7} from {item},")
        for stage, answer in enumerate(sample.answers):
            assert answer.stage == stage
            assert answer.completion == (f"{item}*2-{stage}" if answer.correct else f"{item}+{stage}")
            assert (answer.cut, answer.is_same) == (None, False)


@pytest.mark.parametrize(
    ("right", "words"),
    [
        ([True, True, True], "right throughout"),
        ([False, False, False], "never right"),
        ([False, True, False], "right after stage 1, wrong after stage 3"),
        ([True, False, True], "wrong after stage 1, right after stage 3"),
        ([True, False, False], "right before training, wrong after stage 1"),
    ],
)
def test_the_flow_in_words(right, words):
    assert flow_words(right, [0, 1, 3]) == words


def test_a_run_whose_items_are_gone_or_damaged_has_no_samples(run_folder):
    for path in (run_folder / "eval").iterdir():
        path.write_bytes(b"PAR1")
    assert item_samples(read(run_folder)) == []
    for path in (run_folder / "eval").iterdir():
        path.unlink()
    assert item_samples(read(run_folder)) == []


def test_long_answers_are_cut(tmp_path: Path, writer):
    run = writer(tmp_path / "long", ["a", "b"], num_items=5)
    for stage, success in enumerate([1.0, 1.0, 0.0]):
        run.score(stage, "a", success, completion=lambda item, right: "x" * 1_000_000)
        run.score(stage, "b", success)
    flow = item_samples(read(run.folder))[0]
    answers = flow.samples[0].answers
    assert {len(answer.completion) for answer in answers} == {len(cut("x" * 1_000_000))}
    assert [answer.is_same for answer in answers] == [False, True, True]
    assert cut("x" * 1_000_000).endswith("… (999600 more)")
    assert cut("short") == "short"
    assert cut(None) == ""
