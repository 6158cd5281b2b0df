"""The same prompt across stages: which items are shown, and how much of them."""

from pathlib import Path

from contrl.continual.results import read
from contrl.report import samples
from contrl.report.samples import cut, forgotten_samples


def test_items_shown_were_right_and_are_wrong(demo):
    found = forgotten_samples(read(demo))
    assert [flow.task for flow in found] == ["plus", "plus_minus", "plus_minus_mul"]  # the last task was just trained
    for flow in found:
        assert len(flow.samples) == samples.ITEMS_PER_TASK
        for sample in flow.samples:
            right = {answer.row: answer.correct for answer in sample.answers}
            assert right[flow.since]
            assert not right[flow.until]


def test_the_flow_agrees_with_the_scores(demo):
    """lost - gained = drop in the number of right answers, of 200 items."""
    results = read(demo)
    for column, flow in enumerate(forgotten_samples(results)):
        change = results.change(4, column)
        assert change is not None
        assert change.value is not None
        assert flow.total == 200
        assert round(-200 * change.value) == flow.lost - flow.gained


def test_answers_are_those_of_the_item(demo):
    """The writer answers item i after stage k with i*2-k when right, i+k when wrong."""
    flow = forgotten_samples(read(demo))[0]
    for sample in flow.samples:
        item = sample.id.removeprefix("plus/")
        assert sample.prompt.startswith(f"Make {int(item) + 7} from {item},")
        assert sample.answers[0].row == "start"
        for stage, answer in enumerate(sample.answers):
            assert answer.completion == (f"{item}*2-{stage}" if answer.correct else f"{item}+{stage}")


def test_a_run_whose_items_are_gone_or_damaged_has_no_samples(run_folder):
    for path in (run_folder / "eval").iterdir():
        path.write_bytes(b"PAR1")
    assert forgotten_samples(read(run_folder)) == []
    for path in (run_folder / "eval").iterdir():
        path.unlink()
    assert forgotten_samples(read(run_folder)) == []


def test_long_answers_are_cut(tmp_path: Path, writer):
    run = writer(tmp_path / "long", ["a", "b"], num_items=5)
    for stage, success in enumerate([1.0, 1.0, 0.0]):
        run.score(stage, "a", success, completion=lambda item, right: "x" * 1_000_000)
        run.score(stage, "b", success)
    (flow,) = forgotten_samples(read(run.folder))
    assert {len(answer.completion) for answer in flow.samples[0].answers} == {len(cut("x" * 1_000_000))}
    assert cut("x" * 1_000_000).endswith("… (999600 more)")
    assert cut("short") == "short"
    assert cut(None) == ""
