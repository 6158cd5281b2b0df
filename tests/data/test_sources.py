"""Reading rows: every file type, folders of splits, stable ids, held-out rows; and the line that is wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contrl.data.sources import fingerprint, hold_out, overlap, read_rows, with_ids
from contrl.errors import ENVIRONMENT, USAGE, UserError

ROWS: list[dict[str, Any]] = [{"prompt": "1+2=", "completion": "3"}, {"prompt": 'é, "x"\nnew', "completion": "—"}]
WITH_IDS = [{**row, "id": str(index)} for index, row in enumerate(ROWS)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format of the path's suffix."""
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        lines = [",".join(rows[0])]
        lines += [",".join('"' + str(v).replace('"', '""') + '"' for v in row.values()) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def refusal(source: Path | str, split: str = "train") -> str:
    with pytest.raises(UserError) as error:
        read_rows(str(source), split)
    assert error.value.exit_code == USAGE
    return str(error.value)


# --- formats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    assert read_rows(str(write(tmp_path / f"rows{suffix}", ROWS))) == WITH_IDS


def test_nested_columns_survive(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "hi"}], "numbers": [3, 4], "id": "a"}
    for suffix in (".jsonl", ".json", ".parquet"):
        assert read_rows(str(write(tmp_path / f"rows{suffix}", [row]))) == [row]


def test_a_folder_has_one_file_per_split(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.parquet", ROWS[:1])
    assert len(read_rows(str(tmp_path))) == 2
    assert len(read_rows(str(tmp_path), "test")) == 1
    assert "has no split 'validation'" in refusal(tmp_path, "validation")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_the_mark_of_spreadsheets_is_no_part_of_the_first_column(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_rows(str(path)) == WITH_IDS


# --- what is wrong is named -----------------------------------------------------------------------------------


def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2\n{"a": 3}\n', encoding="utf-8")
    assert refusal(path).startswith(f"{path}:3: not JSON")
    path.write_text('{"a": 1}\n\n[1, 2]\n', encoding="utf-8")
    assert refusal(path) == f"{path}:3: a list, not a mapping of columns"


def test_bad_json_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1},\n {"a": }]', encoding="utf-8")
    assert refusal(path).startswith(f"{path}:2: not JSON")
    path.write_text('{"a": 1}', encoding="utf-8")
    assert refusal(path) == f"{path}: holds a dict, not a list of rows"
    path.write_text("[1, 2]", encoding="utf-8")
    assert "row 0 is a int, not a mapping" in refusal(path)


@pytest.mark.parametrize(("line", "number"), [("1,2,3", 3), ("1", 3)])
def test_a_csv_line_of_another_width_is_named(tmp_path: Path, line: str, number: int) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"a,b\n1,2\n{line}\n", encoding="utf-8")
    assert refusal(path) == f"{path}:{number}: not 2 values, one for each column"


def test_a_csv_field_over_pythons_limit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n" + "x" * 140_000 + ",2\n", encoding="utf-8")
    assert refusal(path).startswith(f"{path}:3: not CSV: field larger")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_text_in_another_encoding_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes('[{"a": "é"}]\n'.encode("latin-1"))
    assert refusal(path).startswith(f"{path}: not UTF-8")


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 no more than that PAR1")
    assert refusal(path).startswith(f"{path}: not a parquet file")


def test_what_does_not_exist_is_refused_before_any_hub(tmp_path: Path) -> None:
    assert refusal(tmp_path / "missing.jsonl").startswith("there is no file")
    assert refusal("missing.jsonl").startswith("there is no file")
    assert refusal("./missing").startswith("there is no file")
    (tmp_path / "rows.txt").write_text("a", encoding="utf-8")
    assert "cannot read .txt" in refusal(tmp_path / "rows.txt")


def test_a_hub_that_cannot_be_reached_is_the_environments_fault() -> None:
    """HF_HUB_OFFLINE is set for all tests: no call leaves the machine, and the answer is quick."""
    started = time.perf_counter()
    with pytest.raises(UserError, match="could not be had from the hub") as error:
        read_rows("nobody/nothing-of-this-name")
    assert error.value.exit_code == ENVIRONMENT
    assert time.perf_counter() - started < 15


# --- ids --------------------------------------------------------------------------------------------------------


def test_ids_are_the_rows_own_or_their_position() -> None:
    rows = with_ids([{"id": "x"}, {"a": 1}, {"id": 7}, {"id": None}], "here")
    assert [row["id"] for row in rows] == ["x", "1", "7", "3"]


def test_an_id_twice_names_both_rows() -> None:
    with pytest.raises(UserError, match="here: rows 0 and 2 have the same id 'x'"):
        with_ids([{"id": "x"}, {"id": "y"}, {"id": "x"}], "here")
    with pytest.raises(UserError, match="rows 0 and 1 have the same id '1'"):
        with_ids([{"id": 1}, {}], "here")


def test_reading_does_not_change_the_rows_given() -> None:
    row = {"a": 1}
    with_ids([row], "here")
    assert row == {"a": 1}


# --- held-out rows ------------------------------------------------------------------------------------------------


@given(number=st.integers(2, 60), seed=st.integers(0, 10**6), data=st.data())
def test_held_out_rows_are_disjoint_complete_and_in_order(number: int, seed: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, number - 1))
    rows = with_ids([{"n": i} for i in range(number)], "here")
    train, held_out = hold_out(rows, size, seed)
    assert len(held_out) == size
    assert sorted([row["n"] for row in train + held_out]) == list(range(number))
    assert [row["n"] for row in train] == sorted(row["n"] for row in train)
    assert hold_out(rows, size, seed) == (train, held_out)


def test_a_share_is_rounded_and_the_seed_decides() -> None:
    rows = with_ids([{"n": i} for i in range(30)], "here")
    assert len(hold_out(rows, 0.25, 0)[1]) == 8
    assert hold_out(rows, 10, 0)[1] != hold_out(rows, 10, 1)[1]


@pytest.mark.parametrize("size", [0, 30, 31, 0.0, 0.001, -3])
def test_impossible_sizes_are_refused(size: float) -> None:
    with pytest.raises(UserError, match="cannot hold out"):
        hold_out(with_ids([{"n": i} for i in range(30)], "here"), size, 0)


def test_overlap_compares_contents_and_not_ids() -> None:
    train = with_ids([{"a": 1}, {"a": 2}], "here")
    held_out = with_ids([{"a": 2, "id": "z"}, {"a": 3}, {"a": 2, "b": None}], "here")
    assert overlap(train, held_out) == 1
    assert overlap(train, hold_out(with_ids([{"a": 9}, {"a": 8}], "here"), 1, 0)[1]) == 0


def test_the_fingerprint_follows_content_and_order_but_not_key_order() -> None:
    one = [{"a": 1, "b": [1, 2]}, {"a": 2, "b": []}]
    assert fingerprint(one) == fingerprint([{"b": [1, 2], "a": 1}, {"b": [], "a": 2}])
    others = [one[::-1], one[:1], [{"a": 1, "b": [1, 3]}, one[1]], []]
    assert len({fingerprint(rows) for rows in [one, *others]}) == 5
    assert fingerprint(one) == "c042d968dfba8963"  # manifests of old runs hold such numbers
