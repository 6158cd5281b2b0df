"""Reading rows: every file type, folders of splits, stable ids, held-out rows; and the line that is wrong."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrl.data.sources import find_splits, fingerprint, hold_out, mix, overlap, read_rows, short_name, with_ids
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
    elif path.suffix == ".arrow":
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_stream(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as the arrow stream that ``datasets`` writes."""
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    return path


def compress(path: Path) -> Path:
    """The file with gzip, under its name with .gz."""
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return packed


def refusal(source: Path | str, split: str = "train") -> str:
    with pytest.raises(UserError) as error:
        read_rows(str(source), split)
    assert error.value.exit_code == USAGE
    return str(error.value)


# --- formats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    assert read_rows(str(write(tmp_path / f"rows{suffix}", ROWS))) == WITH_IDS


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".arrow"])
def test_every_format_may_be_compressed(tmp_path: Path, suffix: str) -> None:
    assert read_rows(str(compress(write(tmp_path / f"rows{suffix}", ROWS)))) == WITH_IDS


def test_both_layouts_of_arrow_are_read(tmp_path: Path) -> None:
    assert read_rows(str(write(tmp_path / "file.arrow", ROWS))) == WITH_IDS
    assert read_rows(str(write_stream(tmp_path / "stream.arrow", ROWS))) == WITH_IDS


def test_a_json_object_holds_splits(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}), encoding="utf-8")
    assert read_rows(str(path)) == WITH_IDS
    assert read_rows(str(path), "test") == WITH_IDS[:1]
    assert find_splits(str(path)) == ("train", "test")
    assert refusal(path, "dev") == f"{path}: has no split 'dev'\n  it has train, test"


def test_a_json_object_of_columns_is_no_set_of_splits(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"prompt": ["a", "b"], "completion": ["c", "d"]}), encoding="utf-8")
    assert refusal(path).startswith(f"{path}: holds a dict, not a list of rows")


def test_line_separators_inside_a_string_end_no_row(tmp_path: Path) -> None:
    """U+2028 and U+0085 end a line for str.splitlines, but not in JSON."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "x\u2028y\u0085z"}\r\n{"a": "w"}\r\n', encoding="utf-8")
    assert [row["a"] for row in read_rows(str(path))] == ["x\u2028y\u0085z", "w"]


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


# --- folders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "data", "data/default", "default"])
def test_numbered_shards_are_one_split_in_their_order(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "train-00001-of-00002-0a1b.parquet", [{"n": 2}, {"n": 3}])
    write(folder / "train-00000-of-00002-0c1d.parquet", [{"n": 0}, {"n": 1}])
    write(folder / "test-00000-of-00001.parquet", [{"n": 9}])
    (tmp_path / "README.md").write_text("a card", encoding="utf-8")
    config = "default" if "default" in place else None
    rows = read_rows(str(tmp_path), "train", config)
    assert [(row["id"], row["n"]) for row in rows] == [("0", 0), ("1", 1), ("2", 2), ("3", 3)]
    assert sorted(find_splits(str(tmp_path), config)) == ["test", "train"]
    if config:
        assert "has several configurations\n  found default" in refusal(tmp_path)


def test_ten_shards_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(11):
        write(tmp_path / f"train-{number}.jsonl", [{"n": number}])
    assert [row["n"] for row in read_rows(str(tmp_path))] == list(range(11))


def test_ids_that_occur_in_two_shards_do_not_clash(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"train-0000{number}-of-00002.jsonl", [{"id": "a", "n": number}, {"id": "b", "n": number}])
    first = read_rows(str(tmp_path))
    assert [row["id"] for row in first] == ["0:a", "1:b", "2:a", "3:b"]
    assert read_rows(str(tmp_path)) == first


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00003.parquet", ROWS)
    write(tmp_path / "train-00002-of-00003.parquet", ROWS)
    assert "2 of 3 shards are there" in refusal(tmp_path)


def test_a_folder_for_each_split(tmp_path: Path) -> None:
    for split, rows in (("train", ROWS), ("test", ROWS[:1])):
        (tmp_path / split).mkdir()
        write(tmp_path / split / "0000.parquet", rows)
    assert read_rows(str(tmp_path)) == WITH_IDS
    assert read_rows(str(tmp_path), "test") == WITH_IDS[:1]


def test_the_same_split_in_two_formats_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "train.parquet", ROWS)
    compress(write(tmp_path / "test.jsonl", ROWS[:1]))
    assert read_rows(str(tmp_path)) == WITH_IDS
    assert read_rows(str(tmp_path), "test") == WITH_IDS[:1]


def test_what_datasets_saved_is_read(tmp_path: Path) -> None:
    """A DatasetDict with two shards of one split, and a single Dataset, which goes by any split's name."""
    import datasets

    datasets.disable_progress_bars()
    rows = [{"n": n, "messages": [{"role": "user", "content": str(n)}]} for n in range(3)]
    one = datasets.Dataset.from_list(rows)
    both = datasets.DatasetDict({"train": one, "test": one.select([2])})
    both.save_to_disk(str(tmp_path / "both"), num_shards={"train": 2, "test": 1})
    one.save_to_disk(str(tmp_path / "one"))
    expected = [{**row, "id": str(index)} for index, row in enumerate(rows)]
    assert read_rows(str(tmp_path / "both")) == expected
    assert read_rows(str(tmp_path / "both"), "test") == [{**rows[2], "id": "0"}]
    assert find_splits(str(tmp_path / "both")) == ("train", "test")
    assert read_rows(str(tmp_path / "one"), "whatever") == expected
    assert find_splits(str(tmp_path / "one")) == ()
    assert "has no split 'dev'\n  it has train, test" in refusal(tmp_path / "both", "dev")
    (tmp_path / "both" / "train" / "state.json").unlink()
    assert "not whole" in refusal(tmp_path / "both")


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
    assert refusal(path).startswith(f"{path}: holds a dict, not a list of rows")
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
    path.write_bytes('\n\n[{"a": "é"}]\n'.encode("latin-1"))
    assert refusal(path).startswith(f"{path}:3: not UTF-8")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_broken_table_is_refused(tmp_path: Path, suffix: str) -> None:
    kind = {".parquet": "a parquet", ".arrow": "an arrow"}[suffix]
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"PAR1 no more than that PAR1")
    assert refusal(path).startswith(f"{path}: not {kind} file")
    whole = write(path, ROWS * 50).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert refusal(path).startswith(f"{path}: not {kind} file")
    path.write_bytes(b"")
    assert refusal(path).startswith(f"{path}: not {kind} file")


def test_a_broken_gzip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(b'{"a": 1}')
    assert refusal(path).startswith(f"{path}: not a gzip file")
    whole = gzip.compress(b'{"a": 1}' * 99)
    path.write_bytes(whole[:-12])
    assert refusal(path).startswith(f"{path}: the gzip file ends too early")
    path.write_bytes(whole[:12] + b"\xff" * 9 + whole[21:])
    assert refusal(path).startswith(f"{path}: not a gzip file")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".arrow", ".jsonl.gz", ".arrow.gz"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_damaged_file_gives_rows_or_words(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    """A few bytes changed anywhere, or the end cut off: never anything but rows or a UserError."""
    path = write(tmp_path_factory.mktemp("damaged") / f"rows{suffix.removesuffix('.gz')}", ROWS * 3)
    path = compress(path) if suffix.endswith(".gz") else path
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    rows, where = [], str(path)
    try:
        rows = read_rows(str(path))
    except UserError as error:
        where = error.where
    assert where.startswith(str(path))
    assert len({row["id"] for row in rows}) == len(rows)


def test_hostile_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' + "[" * 200_000, encoding="utf-8")
    assert refusal(path).startswith(f"{path}:2: JSON that cannot be read")
    path.write_text('{"a": 1}\n{"a": ' + "1" * 5000 + "}", encoding="utf-8")
    assert refusal(path).startswith(f"{path}:2: JSON that cannot be read")


def test_lines_of_json_in_a_json_file_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"a": 1}\n{"a": 2}\n', encoding="utf-8")
    assert refusal(path) == f"{path}:2: not JSON: Extra data\n  a file with one object a line is called .jsonl"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet"])
def test_no_rows_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".parquet":
        write(path, [])
    else:
        path.write_text("[]" if path.suffix == ".json" else "", encoding="utf-8")
    assert refusal(path) == f"{path}: there are no rows"


def test_what_is_no_data_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    assert "is no data set: no data file" in refusal(tmp_path / "empty")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    assert "the folder of a model" in refusal(tmp_path / "model")
    program = tmp_path / "trainer.py"
    program.write_text("print(1)", encoding="utf-8")
    assert "a Python program is no data set" in refusal(program)
    # AIF-Gen's README names its trainer's module as the data set of its evaluation.
    monkeypatch.chdir(tmp_path)
    assert refusal("trainer").startswith("trainer is no data set, but trainer.py a program")
    assert refusal("missing.py").startswith("there is no file or folder missing.py")


def test_what_does_not_exist_is_refused_before_any_hub(tmp_path: Path) -> None:
    assert refusal(tmp_path / "missing.jsonl").startswith("there is no file")
    assert refusal("missing.jsonl").startswith("there is no file")
    assert refusal("missing.jsonl.gz").startswith("there is no file")
    assert refusal("./missing").startswith("there is no file")
    assert refusal("two words").startswith("there is no file")
    assert "is empty" in refusal(" ")
    (tmp_path / "rows.txt").write_text("a", encoding="utf-8")
    assert "cannot read .txt" in refusal(tmp_path / "rows.txt")


def test_a_hub_that_cannot_be_reached_is_the_environments_fault() -> None:
    """HF_HUB_OFFLINE is set for all tests: no call leaves the machine, and the answer is quick."""
    started = time.perf_counter()
    with pytest.raises(UserError, match="could not be had from the hub") as error:
        read_rows("nobody/nothing-of-this-name")
    assert error.value.exit_code == ENVIRONMENT
    for way_out in ("local file or folder", "$CONTRL_DATA_DIR/nobody/nothing-of-this-name/", "connect"):
        assert way_out in error.value.fix
    assert time.perf_counter() - started < 5


def test_a_copy_in_the_folder_of_data_sets_stands_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some" / "name").mkdir(parents=True)
    write(tmp_path / "some" / "name" / "train.jsonl", ROWS)
    monkeypatch.setenv("CONTRL_DATA_DIR", str(tmp_path))
    assert read_rows("some/name") == WITH_IDS
    assert find_splits("some/name") == ("train",)


# --- several sources ----------------------------------------------------------------------------------------


def test_files_are_mixed_in_the_order_of_their_names(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.jsonl", ROWS), compress(write(tmp_path / "two.json", ROWS[:1]))
    rows, notes = mix(f"{two}, {one}")
    assert [(row["id"], row["source"]) for row in rows] == [("two/0", "two"), ("one/0", "one"), ("one/1", "one")]
    assert notes == []
    assert read_rows(f"{two},{one}") == rows
    assert short_name(f"{two},{one}") == "two+one"


def test_a_file_without_splits_gives_no_test_rows(tmp_path: Path) -> None:
    """Else its rows would be trained on and judged by."""
    write(tmp_path / "one.jsonl", ROWS)
    (tmp_path / "two").mkdir()
    write(tmp_path / "two" / "train.jsonl", ROWS)
    write(tmp_path / "two" / "test.jsonl", ROWS[:1])
    both = f"{tmp_path}/one.jsonl,{tmp_path}/two"
    rows, notes = mix(both, "test")
    assert [row["id"] for row in rows] == ["two/0"]
    assert notes == ["one: has no splits, so none of its rows are test rows"]
    assert sorted(find_splits(both)) == ["test", "train"]


@pytest.mark.parametrize(
    ("names", "said"),
    [("uc,,hh", "a name is missing"), ("uc,hh,uc", "uc occurs twice"), ("a/x.jsonl,b/x.jsonl", "are called 'x'")],
)
def test_lists_of_names_that_make_no_sense_are_refused(names: str, said: str) -> None:
    assert said in refusal(names)


def test_a_path_with_a_comma_is_a_path(tmp_path: Path) -> None:
    path = write(tmp_path / "a,b.jsonl", ROWS)
    assert read_rows(str(path)) == WITH_IDS
    assert short_name(str(path)) == "a,b"


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
