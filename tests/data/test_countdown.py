"""Countdown data: every promise of the generator, recomputed from the rows it gives.

The evaluator here is Python's own parser on our own stored solutions; the generator's is arrays of numbers.
"""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pyarrow.parquet as parquet
import pytest

from contrl.data import countdown_instances
from contrl.data.countdown import (
    COMPACT_ALPHABET,
    OPERATORS,
    TEMPLATES,
    CountdownConfig,
    generate,
    rows,
    sequence,
    task_rows,
    write,
)
from contrl.data.countdown_instances import Space, count_sums, evaluate, forms_of, list_space
from contrl.errors import ConfigErrors, UserError
from contrl.rewards import countdown as verifier

DEMO = CountdownConfig(
    train_size=1000, test_size=500, num_operands=(3,), max_number=20, target_range=(3, 60), template="compact", seed=0
)
LARGE = CountdownConfig(train_size=3000, test_size=300)
SMALL = CountdownConfig(
    train_size=60, test_size=30, num_operands=(2, 3), max_number=9, target_range=(2, 40), seed=7, allow_fewer=True
)


def value_of(solution):
    """The value of a stored solution, asserting that every value on the way is a positive integer."""

    def value(node):
        if isinstance(node, ast.Constant):
            return node.value
        left, right = value(node.left), value(node.right)
        match node.op:
            case ast.Add():
                result = left + right
            case ast.Sub():
                result = left - right
            case ast.Mult():
                result = left * right
            case ast.Div():
                assert left % right == 0
                result = left // right
        assert result > 0
        return result

    return value(ast.parse(solution, mode="eval").body)


def identity(instance):
    return tuple(sorted(instance.numbers)), instance.target


def splits(config):
    """{(group, split): instances} of every group."""
    return {
        (group, split): instances
        for group in config.groups
        for split, instances in zip(("train", "test"), generate(config, group), strict=True)
    }


def check_instances(config, group, instances):
    low, high = config.target_range
    for instance in instances:
        assert value_of(instance.solution) == instance.target
        assert Counter(map(int, re.findall(r"\d+", instance.solution))) == Counter(instance.numbers)
        assert instance.operators == OPERATORS[group]
        assert OPERATORS[group][-1] in instance.solution
        assert set(re.findall(r"[-+*/]", instance.solution)) <= set(OPERATORS[group])
        assert low <= instance.target <= high
        assert len(instance.numbers) in config.num_operands
        assert all(1 <= number <= config.max_number for number in instance.numbers)


@pytest.mark.parametrize("config", [DEMO, LARGE, SMALL], ids=["demo", "large", "small"])
def test_every_instance_keeps_every_promise(config):
    for (group, split), instances in splits(config).items():
        expected = config.train_size if split == "train" else config.test_size
        assert len(instances) == expected or (config.allow_fewer and split == "train" and 0 < len(instances) < expected)
        check_instances(config, group, instances)
        assert len({identity(instance) for instance in instances}) == len(instances)


@pytest.mark.parametrize("config", [DEMO, LARGE, SMALL], ids=["demo", "large", "small"])
def test_no_train_instance_is_in_any_test_split(config):
    files = splits(config)
    train = {identity(item) for (_, split), items in files.items() if split == "train" for item in items}
    test = {identity(item) for (_, split), items in files.items() if split == "test" for item in items}
    assert train
    assert test
    assert not train & test


def test_groups_do_share_instances_so_disjointness_across_groups_means_something():
    """2, 2, 4 -> 4 is 4+2-2 and 4*2/2: the train files of two groups overlap, and no test file overlaps with them."""
    files = splits(DEMO)
    shared = [
        {identity(item) for item in files[a, "train"]} & {identity(item) for item in files[b, "train"]}
        for a, b in itertools.combinations(DEMO.groups, 2)
    ]
    assert max(map(len, shared)) > 50


def test_numbers_are_shown_in_every_order():
    """Shown order is a shuffle: the first of three different numbers is the smallest a third of the time."""
    train, _ = generate(DEMO, "plus_minus_mul")
    first_is_least = [item.numbers[0] == min(item.numbers) for item in train if len(set(item.numbers)) == 3]
    assert abs(np.mean(first_is_least) - 1 / 3) < 0.06


def reachable(numbers, operators):
    """Targets that a multiset reaches through positive integers alone, with the newest operator in use."""
    states = {(tuple(sorted(numbers)), False)}
    for _ in range(len(numbers) - 1):
        states = {successor for state in states for successor in successors(*state, operators)}
    return {left[0] for left, used in states if used}


def successors(numbers, used, operators):
    for i, j in itertools.permutations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
        results = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if a % b == 0 else 0}
        for symbol in operators:
            if results[symbol] > 0:
                yield tuple(sorted([*rest, results[symbol]])), used or symbol == operators[-1]


@pytest.mark.parametrize("operators", OPERATORS.values())
@pytest.mark.parametrize(("num_operands", "max_number"), [(2, 12), (3, 7), (4, 4)])
def test_a_listed_space_is_complete(operators, num_operands, max_number):
    """Against a search that combines two of the remaining numbers at a time."""
    pool = list_space(Space(operators, (num_operands,), max_number, (3, 30)))
    expected = {
        (numbers, target)
        for numbers in itertools.combinations_with_replacement(range(1, max_number + 1), num_operands)
        for target in reachable(numbers, operators)
        if 3 <= target <= 30
    }
    listed = [(tuple(sorted(o)), t) for o, t in zip(pool.operands.tolist(), pool.targets.tolist(), strict=True)]
    assert len(listed) == len(expected)
    assert set(listed) == expected


def test_listing_in_blocks_changes_nothing(monkeypatch):
    space = Space("+-*/", (3,), 9, (3, 60))
    whole = list_space(space)
    monkeypatch.setattr(countdown_instances, "_VALUES_AT_A_TIME", 1000)
    list_space.cache_clear()
    blocks = list_space(space)
    list_space.cache_clear()
    for name in ("operands", "targets", "forms"):
        assert np.array_equal(getattr(whole, name), getattr(blocks, name))


def test_sums_are_counted_exactly():
    """Three numbers of 1..20 with any sum: C(22, 3) = 1,540 multisets."""
    assert count_sums(Space("+", (3,), 20, (1, 60))) == 1540
    space = Space("+", (2, 3, 4), 9, (7, 19))
    brute = sum(
        7 <= sum(numbers) <= 19
        for size in (2, 3, 4)
        for numbers in itertools.combinations_with_replacement(range(1, 10), size)
    )
    assert count_sums(space) == len(list_space(space).targets) == brute


def test_forms_need_their_brackets_and_read_like_python():
    for operators, size in itertools.product(OPERATORS.values(), (2, 3, 4)):
        texts = [form.text for form in forms_of(size, operators)]
        assert len(set(texts)) == len(texts)
    operands = np.array([[360, 12, 6, 2], [7, 5, 3, 1], [900, 30, 5, 3]])
    for form in forms_of(4, "+-*/"):
        for row, value in zip(operands, evaluate(form, operands), strict=True):
            text = form.text.format(*row)
            if value:
                assert value_of(text) == value
            for brackets in re.finditer(r"\(", text):  # without one pair another tree would be read
                without = remove_pair(text, brackets.start())
                assert ast.dump(ast.parse(without)) != ast.dump(ast.parse(text))


def remove_pair(text, start):
    depth = 0
    for end in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if depth == 0:
            break
    return text[:start] + text[start + 1 : end] + text[end + 1 :]


def test_short_solutions_are_the_simplest():
    """No brackets where none are needed; ``plus`` in the order shown; 2,9,4 -> 7 is 9+2-4 or 2+9-4, not (9-4)+2."""
    for item in generate(DEMO, "plus")[0]:
        assert item.solution == "+".join(map(str, item.numbers))
    for item in generate(DEMO, "plus_minus")[0]:
        assert "(" not in item.solution
    for item in generate(DEMO, "plus_minus_mul_div")[0][:200]:
        flat = {
            value
            for order in itertools.permutations(item.numbers)
            for form in forms_of(3, "+-*/")
            if "(" not in form.text and (value := int(evaluate(form, np.array([order]))[0]))
        }
        assert ("(" in item.solution) == (item.target not in flat)


def test_the_verifier_accepts_every_completion_in_every_template():
    for template in TEMPLATES:
        config = CountdownConfig(train_size=80, test_size=20, template=template)
        for group, train, test in sequence(config):
            for row in train + test:
                reward = verifier.countdown_reward(
                    prompts=[row["prompt"]], completions=[row["completion"]],
                    **{name: [row[name]] for name in ("ground_truth", "operator_group", "template", "data_source")},
                )  # fmt: skip
                assert reward == [1.0], row
                assert row["operator_group"] == group
                assert row["data_source"] == f"countdown/{group}"


def test_no_prompt_holds_an_answer():
    """veRL 0.1 gave the scorer prompt + response; a prompt that shows a sample answer would then be scored."""
    for template in TEMPLATES:
        item = generate(SMALL, "plus")[0][0]
        for row in rows([item], "plus", template, "train"):
            truth = row["reward_model"]["ground_truth"]
            text = "".join(message["content"] for message in row["prompt"])
            assert verifier.compute_score(row["data_source"], text, truth, row["extra_info"]) == 0.0
            assert str(item.target) in text
            assert all(str(number) in text for number in item.numbers)


def test_compact_rows_are_short_lines_of_the_alphabet():
    assert len(set(COMPACT_ALPHABET)) == len(COMPACT_ALPHABET) == 19
    seen = set()
    for _, train, test in sequence(DEMO):
        for row in train + test:
            assert re.fullmatch(r"\d+ \d+ \d+ \+-?\*?/?=\d+:", row["prompt"])
            assert len(row["prompt"]) + len(row["completion"]) <= 28
            seen |= set(row["prompt"] + row["completion"])
    assert seen == set(COMPACT_ALPHABET)


def test_ids_name_the_instance():
    """The id holds group, sorted numbers and target: another seed gives an instance the same id."""
    train, test = task_rows(DEMO, "plus_minus")
    ids = [row["id"] for row in train + test]
    assert len(set(ids)) == len(ids)
    row = train[0]
    numbers = ".".join(map(str, sorted(row["ground_truth"]["numbers"])))
    assert row["id"] == f"plus_minus:{numbers}={row['ground_truth']['target']}"


def test_both_tables_of_operators_are_equal():
    assert OPERATORS == verifier.OPERATORS


def test_files_have_the_columns_of_verl_and_one_schema(tmp_path):
    config = CountdownConfig(train_size=50, test_size=10, template="qwen-instruct")
    calls = []
    written = write(config, tmp_path, progress=lambda *call: calls.append(call))
    assert [(path.relative_to(tmp_path).as_posix(), count) for path, count in written] == [
        (f"{group}/{split}.parquet", count) for group in OPERATORS for split, count in (("train", 50), ("test", 10))
    ]
    assert calls == [(group, split, n, n) for group in OPERATORS for split, n in (("train", 50), ("test", 10))]
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {path for path, _ in written}
    assert len({parquet.read_schema(path) for path, _ in written}) == 1
    for path, _ in written:
        group, split = path.parent.name, path.stem
        instances = generate(config, group)[split == "test"]
        assert parquet.read_table(path).to_pylist() == rows(instances, group, "qwen-instruct", split)
    row = parquet.read_table(written[3][0]).to_pylist()[4]
    assert set(row) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}
    assert row["data_source"] == "countdown/plus_minus"
    assert row["extra_info"] == {"split": "test", "index": 4, "operator_group": "plus_minus"}
    assert row["reward_model"]["style"] == "rule"
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]


def test_schema_does_not_depend_on_the_template(tmp_path):
    schemas = set()
    for template in TEMPLATES:
        config = CountdownConfig(groups=("plus",), train_size=5, test_size=5, template=template)
        schemas |= {parquet.read_schema(path) for path, _ in write(config, tmp_path / template)}
    assert len(schemas) == 1


def test_pandas_reads_rows_the_verifier_takes(tmp_path):
    """numbers come back as numpy arrays."""
    write(CountdownConfig(groups=("plus_minus",), train_size=20, test_size=5, template="compact"), tmp_path)
    frame = parquet.read_table(tmp_path / "plus_minus" / "train.parquet").to_pandas()
    for source, model, extra in zip(frame.data_source, frame.reward_model, frame.extra_info, strict=True):
        truth = model["ground_truth"]
        assert isinstance(truth["numbers"], np.ndarray)
        assert verifier.compute_score(source, truth["solution"], truth, extra) == 1.0
        assert verifier.compute_score(source, truth["solution"] + "+1", truth, extra) == 0.1


def file_bytes(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.parquet")}


def test_equal_seeds_give_equal_bytes_even_in_another_process(tmp_path):
    config = CountdownConfig(train_size=400, test_size=40, seed=3)
    write(config, tmp_path / "a")
    write(config, tmp_path / "a")  # a second run replaces the files
    code = (
        "import sys; from contrl.data.countdown import CountdownConfig, write;"
        "write(CountdownConfig(train_size=400, test_size=40, seed=3), sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b")], check=True)
    assert file_bytes(tmp_path / "a") == file_bytes(tmp_path / "b")
    write(CountdownConfig(train_size=400, test_size=40, seed=4), tmp_path / "c")
    first, other = file_bytes(tmp_path / "a"), file_bytes(tmp_path / "c")
    assert all(first[name] != other[name] for name in first)


def test_a_group_does_not_depend_on_the_other_groups():
    """In large spaces: so groups can be generated one by one, with the same seed and sizes."""
    alone = CountdownConfig(groups=("plus_minus",), train_size=300, test_size=30)
    assert generate(alone, "plus_minus") == generate(CountdownConfig(train_size=300, test_size=30), "plus_minus")


def test_different_seeds_divide_differently():
    """A third of the plus instances is test; two seeds agree on a third of those by chance, not on all."""
    one, two = (
        {identity(item) for item in generate(CountdownConfig(**{**vars(DEMO), "seed": seed}), "plus")[1]}
        for seed in (0, 1)
    )
    assert 0.2 < len(one & two) / 500 < 0.45


def test_requests_may_take_the_last_instance_but_not_one_more():
    """1..9, three numbers, targets 3..27: 165 sums. 115 + 50 take them all, in every group at once."""
    exact = {"num_operands": 3, "max_number": 9, "target_range": (3, 27)}
    full = splits(CountdownConfig(train_size=115, test_size=50, **exact))
    assert len(full["plus", "train"]) == 115
    assert len(full["plus", "test"]) == 50
    config = CountdownConfig(train_size=116, test_size=50, **exact)
    with pytest.raises(UserError, match="plus: 116 train and 50 test rows were asked for, but 165 instances exist"):
        generate(config, "plus_minus_mul")  # whichever group is asked for: the others' tests would not fit


def test_impossible_requests_fail_at_once_and_together(tmp_path):
    start = time.process_time()
    with pytest.raises(ConfigErrors) as caught:
        write(CountdownConfig(num_operands=3, max_number=20), tmp_path)
    assert time.process_time() - start < 2
    assert caught.value.exit_code == 2
    assert [error.where for error in caught.value.errors] == list(OPERATORS)
    assert "100,000 train and 1,000 test rows were asked for, but 1,517 instances exist" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("finding", "request_"),
    [
        ("but 30 instances exist", {"groups": "plus", "num_operands": 3, "target_range": (10, 12)}),
        ("but 0 instances exist", {"num_operands": 6, "max_number": 5, "target_range": (1, 5)}),
        ("but 0 instances exist", {"num_operands": 3, "max_number": 1, "target_range": (9000, 10000)}),
        (
            "but 41,930 instances",
            {"groups": "plus_minus", "num_operands": 4, "max_number": 40, "target_range": (10, 12)},
        ),
        (
            "found no more than",
            {"groups": "plus_minus_mul", "num_operands": 4, "max_number": 90, "target_range": (24, 24)},
        ),
    ],
)
def test_each_way_to_find_out(finding, request_):
    """Counted sums, an empty list, a space drawn empty and then listed, and one too large to list."""
    with pytest.raises(UserError, match=finding):
        generate(CountdownConfig(**request_), CountdownConfig(**request_).groups[0])


def test_a_drawn_space_can_be_used_up_to_its_last_instances():
    """41,930 instances exist (see above); the draws dry up before 39,000 + 1,000 and the listing gives the rest."""
    config = CountdownConfig(
        groups=("plus_minus",), num_operands=4, max_number=40, target_range=(10, 12), train_size=39_000
    )
    train, test = generate(config, "plus_minus")
    assert (len(train), len(test)) == (39_000, 1000)
    assert len({identity(item) for item in train + test}) == 40_000


def test_allow_fewer_gives_what_there_is():
    """1,540 sums with 500 for test leave 1,040; the other groups give more, up to the ceiling."""
    config = CountdownConfig(**{**vars(DEMO), "train_size": 3000, "allow_fewer": True})
    sizes = {group: [len(items) for items in generate(config, group)] for group in config.groups}
    assert sizes["plus"] == [1040, 500]
    assert all(1000 <= train <= 3000 and test == 500 for train, test in sizes.values())
    assert sizes["plus_minus_mul"][0] > 2000
    with pytest.raises(UserError, match="1 train and 1,540 test rows were asked for, but 1,540 instances exist"):
        generate(CountdownConfig(**{**vars(config), "test_size": 1540}), "plus")


def test_a_configuration_names_everything_that_is_wrong_with_it():
    with pytest.raises(ConfigErrors) as caught:
        CountdownConfig(
            groups=["plus", "plus_minos"], train_size=0, test_size=True, num_operands=[3, 3], max_number=10**6,
            target_range=[50, 5], template="short", seed=-1,
        )  # fmt: skip
    text = str(caught.value)
    assert len(caught.value.errors) == 8
    findings = (
        "train_size is 0",
        "test_size is True",
        "num_operands is (3, 3)",
        "max_number is 1000000",
        "target_range is (50, 5)",
        "template is 'short'",
        "seed is -1",
        "did you mean plus_minus?",
    )
    assert all(finding in text for finding in findings)


def test_lists_and_single_values_are_taken_as_tuples():
    config = CountdownConfig(groups=["plus"], num_operands=3, target_range=[5, 9])
    assert (config.groups, config.num_operands, config.target_range) == (("plus",), (3,), (5, 9))


def test_a_group_outside_the_configuration_is_refused():
    with pytest.raises(UserError, match="'plus' is not in this configuration"):
        generate(CountdownConfig(groups=("plus_minus",)), "plus")


def test_a_folder_that_cannot_be_written_is_a_users_error(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write"):
        write(SMALL, tmp_path / "file")


def test_the_demo_data_take_well_under_two_seconds():
    list_space.cache_clear()
    start = time.process_time()
    assert len(sequence(DEMO)) == 4
    assert time.process_time() - start < 1


def test_importing_loads_neither_torch_nor_pyarrow():
    code = "import sys, contrl.data.countdown; sys.exit(bool({'torch', 'transformers', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_the_default_404_000_rows_within_a_minute(tmp_path):
    start = time.process_time()
    written = write(CountdownConfig(), tmp_path)
    assert time.process_time() - start < 60
    assert [count for _, count in written] == [100_000, 1000] * 4
    sides: dict[str, set] = {"train": set(), "test": set()}
    for path, count in written:
        columns = parquet.read_table(path, columns=["data_source", "reward_model"]).to_pylist()
        seen = set()
        for row in columns:
            truth = row["reward_model"]["ground_truth"]
            compact = {**truth, "template": "compact"}
            assert verifier.compute_score(row["data_source"], truth["solution"], compact) == 1.0
            assert truth["operators"][-1] in truth["solution"]
            seen.add((tuple(sorted(truth["numbers"])), truth["target"]))
        assert len(seen) == count
        sides[path.stem] |= seen
    assert not sides["train"] & sides["test"]


@pytest.mark.parametrize("max_number", [20, 999], ids=["listed", "drawn"])
def test_without_parentheses_every_stored_solution_needs_none(max_number):
    """A small space is listed whole, a large one is drawn form by form; both leave out what needs brackets."""
    config = CountdownConfig(
        train_size=300, test_size=50, max_number=max_number, template="compact", parentheses=False, seed=3
    )
    for group in config.groups:
        for split in generate(config, group):
            assert not any("(" in item.solution for item in split)
            scores = [verifier.compute_score(f"countdown/{group}", i.solution, ground_truth_of(i)) for i in split]
            assert scores == [1.0] * len(split)


def ground_truth_of(item):
    return {"target": item.target, "numbers": list(item.numbers), "operators": item.operators, "template": "compact"}
