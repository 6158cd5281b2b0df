"""What ``contrl preview`` shows: rows with their trained tokens marked, lengths, cuts, and rows that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contrl.cli.main import main
from contrl.models.embedded import character_tokenizer

PAIRS = [
    {"prompt": "1+2=", "chosen": "3", "rejected": "4"},
    {"prompt": "2+2=", "chosen": "4", "rejected": "22"},
    {"prompt": "a long prompt of thirty letters", "chosen": "5", "rejected": "6"},
    {"prompt": "2+3=", "chosen": "5", "rejected": "5"},
    {"prompt": "2+3=", "chosen": 5, "rejected": "6"},
]
CHATS = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}]


@pytest.fixture
def preview(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Write rows, preview them, and give back the exit code and what was printed."""

    def run(rows: list[dict[str, Any]], *arguments: str) -> tuple[int, str, str]:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        code = main(["preview", str(file), *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_a_preference_is_shown_with_both_answers_and_the_trained_tokens_in_brackets(preview: Any) -> None:
    code, out, _ = preview(PAIRS[:2])
    assert code == 0
    assert "train: 2 rows, as dpo sees them with the tokenizer of tiny (a token for each character" in out
    assert "row 0\nprompt, 4 tokens:\n1+2=\nchosen, 2 tokens:\n⟦3<eos>⟧\nrejected, 2 tokens:\n⟦4<eos>⟧\n" in out


def test_only_what_is_trained_stands_in_brackets(preview: Any) -> None:
    _, out, _ = preview(CHATS, "--assistant_only")
    assert "as sft sees them" in out
    assert "row 0\nwhole row, 23 tokens:\nuser: hi\nassistant: ⟦ho<eos>⟧\n" in out
    assert not [line for line in out.splitlines() if line.startswith("prompt  ")]
    assert "row 0\nwhole row, 23 tokens:\nu⟦ser: hi\nassistant: ho<eos>⟧\n" in preview(CHATS)[1]


def test_lengths_cuts_and_unusable_rows_are_counted(preview: Any) -> None:
    """Prompts of 4, 4 and 31 characters, answers of 1 or 2 and the end token; at 6 the second rejected answer (4 + 3)
    is cut and the third row has no room left; the last two rows are no pairs at all."""
    code, out, _ = preview(PAIRS, "--max_length", "6", "--num_rows", "1")
    assert code == 0
    table = {
        line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("prompt  ", "comp", "tot"))
    }
    assert table["prompt"] == ["4", "4", "28", "31"]
    assert table["completion"] == ["2", "2", "3", "3"]
    assert table["total"] == ["6", "6", "33", "33"]
    assert "2 (66.7%) of the usable rows are cut at max_length 6" in out
    assert "1 (33.3%) are left with nothing to train on by the cut" in out
    assert "row 2: no trained token is left of 31 prompt and 2 completion tokens at max_length 6" in out
    assert "2 (40.0%) of all rows cannot be used" in out
    assert "row 3: chosen and rejected are identical" in out
    assert "row 4: chosen holds a int" in out
    assert "row 1\n" not in out


def test_a_cut_answer_is_marked(preview: Any) -> None:
    _, out, _ = preview(PAIRS[1:2], "--max_length", "6")
    assert "rejected, cut, 2 tokens:\n⟦22⟧\n" in out


def test_the_share_of_trained_tokens_counts_the_shared_prompt_once(preview: Any) -> None:
    """4 prompt tokens, 2 + 2 trained: one half."""
    assert "50.0% of the tokens are trained" in preview(PAIRS[:1])[1]


def test_the_method_may_be_named(preview: Any) -> None:
    _, out, _ = preview(PAIRS[:1], "--method", "kto")
    assert "2 rows, as kto sees them" in out
    assert "row 0/chosen\n" in out
    assert "completion (good), 2 tokens:" in out
    assert "completion (bad), 2 tokens:" in out


def test_prompts_alone_are_sampled_from(preview: Any) -> None:
    _, out, _ = preview([{"prompt": "1+2="}])
    assert "as rloo sees them" in out
    assert "its completions are sampled while it is trained" in out
    assert "of the tokens are trained" not in out


def test_what_steers_a_terminal_is_shown_and_not_obeyed(preview: Any) -> None:
    _, out, _ = preview([{"prompt": "\x1b[2Ja", "completion": "b"}], "--model_name_or_path", "tiny")
    assert "\x1b" not in out


def test_a_folder_with_a_tokenizer_alone_is_enough(preview: Any, tmp_path: Path) -> None:
    character_tokenizer().save_pretrained(tmp_path / "tokenizer")
    _, out, _ = preview(PAIRS[:1], "--model_name_or_path", str(tmp_path / "tokenizer"))
    assert "⟦3<eos>⟧" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "dop"], "did you mean dpo?"),
        (["--assistant_only"], "dpo has no assistant_only"),
        (["--dataset_index", "1"], "has no tasks to choose from"),
        (["--max_length", "1"], "max_length"),
    ],
)
def test_a_wrong_option_is_told(preview: Any, arguments: list[str], said: str) -> None:
    code, _, err = preview(PAIRS, *arguments)
    assert code == 2
    assert said in err


def test_an_empty_data_set_is_told(preview: Any) -> None:
    code, _, err = preview([])
    assert code == 2
    assert "no rows" in err


def test_no_data_set_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", "./missing.jsonl"]) == 2
    assert "missing.jsonl" in capsys.readouterr().err


FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_named_data_sets_say_what_they_leave_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """uc prefers nothing, so no method of pairs learns from it; the others are shown."""
    monkeypatch.setenv("CONTRL_DATA_DIR", str(FIXTURES / "data"))
    assert main(["preview", "uc,hh", "--num_rows", "0", "--max_length", "4000"]) == 0
    out = capsys.readouterr().out
    assert "uc" in next(line for line in out.splitlines() if "left out" in line)
    assert "as dpo sees them" in out
    assert "0 (0.0%) of all rows cannot be used" in out


def test_each_task_of_a_continual_file_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(FIXTURES / "aif_gen_shift.json")
    assert main(["preview", file, "--num_rows", "0"]) == 0
    both = capsys.readouterr().out
    assert both.count("as dpo sees them") == 2
    assert main(["preview", file, "--num_rows", "0", "--dataset_index", "1"]) == 0
    second = capsys.readouterr().out
    assert second.strip() in both
    assert second.count("as dpo sees them") == 1
