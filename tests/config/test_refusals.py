"""What a configuration is refused for: each kind of mistake with its line, and all of them in one pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from contrl.config import Resolved
from contrl.errors import USAGE, ConfigErrors

Load = Callable[..., Resolved]
Refused = Callable[..., list[str]]

HEAD = "output_dir: o\nmodel: tiny\nmethod: rloo\ntasks:\n"
TASK = "  - name: a\n    data: hub/a\n"
"""HEAD + TASK is valid and 6 lines long, so what a case adds begins on line 7."""
SHARE = "must be a number of rows, or a share between 0 and 1"
ONE_OF_TWO = "rows are held out of data only when there is no eval_data"
TWO_SAMPLES = "samples_per_prompt must be at least 2, found 1"


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        # names
        ("sead: 3\n", ["demo.yaml:7: sead: unknown key"]),
        ("evaluation:\n  max_exampels: 3\n", ["demo.yaml:8: evaluation.max_exampels: unknown key"]),
        ("training:\n  max_stps: 3\n", ["demo.yaml:8: training.max_stps: unknown key"]),
        ("    rewrd: exact\n", ["demo.yaml:7: tasks.0.rewrd: unknown key"]),
        ("strategies: [{name: replay, shar: 1}]\n", ["demo.yaml:7: strategies.0.shar: unknown key"]),
        ("strategies:\n- nmae: replay\n  share: 1\n", ["demo.yaml:8: strategies.0.nmae: unknown key"]),
        ("strategies: [odd]\n", ["demo.yaml:7: strategies.0: 'odd' is no strategy: its parameters cannot be read"]),
        ("strategies: [replai]\n", ["demo.yaml:7: strategies.0: unknown strategy 'replai'"]),
        ("    reward: exct\n", ["demo.yaml:7: tasks.0.reward.0: unknown reward 'exct'"]),
        ("    reward: {}\n", ["demo.yaml:7: tasks.0.reward.0.name: missing"]),
        ("    reward_weights: [1]\n", ["demo.yaml:7: tasks.0.reward_weights: 1 weight for 0 rewards"]),
        ("rewards: exact\n", ["demo.yaml:7: rewards: expected a section"]),
        ("rewards: {errors: skip}\n", ["demo.yaml:7: rewards.errors: expected one of raise, missing, found 'skip'"]),
        ("    metric: exct\n", ["demo.yaml:7: tasks.0.metric: unknown metric 'exct'"]),
        ("base:\n  method: stf\n", ["demo.yaml:8: base.method: unknown method 'stf'"]),
        # types and bounds
        ("rounds: two\n", ["demo.yaml:7: rounds: expected a whole number, found 'two'"]),
        ("rounds: 1.5\n", ["demo.yaml:7: rounds: expected a whole number, found '1.5'"]),
        ("rounds: 0\n", ["demo.yaml:7: rounds: must be at least 1, found '0'"]),
        ("rounds:\n", ["demo.yaml:7: rounds: expected a whole number, found nothing"]),
        ("rounds: [1]\n", ["demo.yaml:7: rounds: expected a whole number, found a list"]),
        ("seed: {a: 1}\n", ["demo.yaml:7: seed: expected a whole number, found a section"]),
        ("training: fast\n", ["demo.yaml:7: training: expected a section of training arguments"]),
        ("training:\n  bf16: maybe\n", ["demo.yaml:8: training.bf16: expected yes or no, found 'maybe'"]),
        ("training:\n  optim: adam\n", ["demo.yaml:8: training.optim: expected one of 41 words, found 'adam'"]),
        ("    learning_rate: fast\n", ["demo.yaml:7: tasks.0.training.learning_rate: expected a number, found 'fast'"]),
        ("    method: {beta: x}\n", ["demo.yaml:7: tasks.0.method.beta: expected a number, found 'x'"]),
        ("    eval_size: 1.5\n", [f"demo.yaml:7: tasks.0.eval_size: {SHARE}, found 1.5"]),
        ("    eval_size: 0\n", [f"demo.yaml:7: tasks.0.eval_size: {SHARE}, found 0"]),
        # required
        ("strategies: [strict]\n", ["demo.yaml:7: strategies.0.coef: missing"]),
        ("base:\n  seed: 1\n", ["demo.yaml:7: base.method: missing"]),
        ("  - data: hub/b\n", ["demo.yaml:7: tasks.1.name: missing"]),
        ("strategies: [{share: 1}]\n", ["demo.yaml:7: strategies.0.name: missing"]),
        # twice
        ("output_dir: p\n", ["demo.yaml:7: output_dir: this key is given twice"]),
        ("  - name: a\n    data: hub/b\n", ["demo.yaml:7: tasks.1.name: two tasks are called 'a'"]),
        ("    max_steps: 1\n    training: {max_steps: 2}\n", ["demo.yaml:7: tasks.0.max_steps: given twice"]),
        ("    eval_data: hub/b\n    eval_size: 5\n", [f"demo.yaml:8: tasks.0.eval_size: {ONE_OF_TWO}"]),
        # files
        ("  - name: b\n    data: gone.jsonl\n", ["demo.yaml:8: tasks.1.data: there is no file or folder 'gone.jsonl'"]),
        ("    eval_data: ./gone\n", ["demo.yaml:7: tasks.0.eval_data: there is no file or folder './gone'"]),
        ("    eval_data: a/b/c\n", ["demo.yaml:7: tasks.0.eval_data: there is no file or folder 'a/b/c'"]),
        # owned by contrl
        ("training:\n  seed: 3\n", ["demo.yaml:8: training.seed: this is not set here"]),
        ("training:\n  eval_on_start: yes\n", ["demo.yaml:8: training.eval_on_start: this is not set here"]),
        ("    output_dir: x\n", ["demo.yaml:7: tasks.0.training.output_dir: this is not set here"]),
        # plugins' own rules
        ("    method: {samples_per_prompt: 1}\n", [f"demo.yaml:7: tasks.0.method: {TWO_SAMPLES}"]),
        ("    method: sft\n", ["demo.yaml:7: tasks.0.method: a task cannot have a method of its own"]),
        ("    method: {name: sft}\n", ["demo.yaml:7: tasks.0.method: a task cannot have a method of its own"]),
        # names of tasks
        ("  - name: a/b\n    data: hub/b\n", ["demo.yaml:7: tasks.1.name: 'a/b' cannot name a task"]),
        ("  - name: 12\n    data: hub/b\n", ["demo.yaml:7: tasks.1.name: '12' cannot name a task"]),
        ("  - hub/b\n", ["demo.yaml:7: tasks.1: expected a task, a section with at least name and data"]),
    ],
)  # fmt: skip
def test_one_mistake_is_one_error_at_its_line(refused: Refused, added: str, expected: list[str]) -> None:
    assert refused(HEAD + TASK + added) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# empty\n\n", ["output_dir", "model", "method", "tasks"]),
        ("output_dir: o\nmodel:\nmethod: sft\ntasks: countdown\n", ["model.name_or_path"]),
    ],
)
def test_what_is_missing(refused: Refused, text: str, expected: list[str]) -> None:
    found = [line.partition(": ") for line in refused(text)]
    assert [what for _, _, what in found] == [f"{path}: missing" for path in expected]
    assert {where for where, _, _ in found} == ({"demo.yaml"} if len(found) > 1 else {"demo.yaml:2"})


@pytest.mark.parametrize(
    ("replacement", "expected"),
    [
        ("tasks: []\n", "demo.yaml:4: tasks: expected at least one task"),
        ("tasks:\n", "demo.yaml:4: tasks: expected at least one task"),
        ("tasks: {a: {data: hub/a}}\n", "demo.yaml:4: tasks.name: missing"),
        ("tasks: cuntdown\n", "demo.yaml:4: tasks: unknown sequence 'cuntdown'"),
        ("tasks: {name: countdown, max_numbr: 3}\n", "demo.yaml:4: tasks.max_numbr: unknown key"),
    ],
)
def test_tasks(refused: Refused, replacement: str, expected: str) -> None:
    assert refused(HEAD.replace("tasks:\n", replacement)) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("output_dir: o\nmodel: [tiny\nmethod: sft\n", "demo.yaml:3: this is not valid YAML"),
        ("- a\n- b\n", "demo.yaml:1: a configuration is keys and values, not a list"),
        ("just words\n\n", "demo.yaml:1: a configuration is keys and values, not a single value"),
    ],
)
def test_a_text_that_is_no_configuration(refused: Refused, text: str, expected: str) -> None:
    assert refused(text) == [expected]


def test_a_python_value_that_no_file_could_hold(refused: Refused) -> None:
    assert refused({"model": {"name_or_path": len}}) == [
        "configuration: model.name_or_path: a builtin_function_or_method cannot stand in a configuration"
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "command line: 'seed' is not an override"),
        ("sead=3", "command line: sead: unknown key"),
        ("training.max_stps=3", "command line: training.max_stps: unknown key"),
        ("training.max_steps=many", "command line: training.max_steps: expected a whole number, found 'many'"),
        ("tasks.2.learning_rate=1", "command line: tasks.2: no item has the number 2"),
        ("tasks.times.learning_rate=1", "command line: tasks.times: no item is called times"),
        ("seed.x=1", "command line: seed: expected a whole number, found a section"),
        ("output_dir.x=1", "command line: output_dir is the single value 'runs/mine', so it has no 'x'"),
        ("model=[a", "command line: 'model=[a': the value is not valid YAML"),
        ("tasks.0.data=./gone", "command line: tasks.0.data: there is no file or folder './gone'"),
        ("method=stf", "command line: method: unknown method 'stf'"),
        ("method.samples_per_prompt=1", "command line: method: samples_per_prompt must be at least 2, found 1"),
        ("output_dir=", "command line: output_dir: expected text, found nothing"),
        ("output_dir=''", "command line: output_dir: expected a folder, found nothing"),
    ],
)
def test_a_wrong_override(refused: Refused, override: str, expected: str) -> None:
    assert refused(overrides=[override]) == [expected]


def test_an_item_of_a_named_sequence_cannot_be_overridden(resolved: Load) -> None:
    with pytest.raises(ConfigErrors) as caught:
        resolved("output_dir: o\nmodel: tiny\nmethod: sft\ntasks: countdown\n", ["tasks.1.learning_rate=1e-5"])
    (error,) = caught.value.errors
    assert (error.where, error.what) == ("command line", "tasks.1: tasks is not a list here")
    assert error.fix == "list the tasks one by one to give one of them settings of its own"


def test_every_mistake_of_every_kind_in_one_pass_in_the_order_of_the_lines(refused: Refused) -> None:
    text = (
        "output_dir: o\n"
        "modle: tiny\n"
        "method: {name: rloo, samples_per_promt: 4, beta: x}\n"
        "tasks:\n"
        "  - {name: a, data: gone.csv, learning_rate: fast}\n"
        "  - {name: b, data: hub/b, method: {beta: y}}\n"
        "training: {seed: 1, max_stps: 2, bf16: maybe}\n"
        "rounds: 0\n"
        "rounds: 2\n"
        "strategies: [replai, {name: strict}]\n"
    )
    assert refused(text, ["seed=x", "foo"]) == [
        "demo.yaml:2: modle: unknown key",
        "demo.yaml:3: method.beta: expected a number, found 'x'",
        "demo.yaml:3: method.samples_per_promt: unknown key",
        "demo.yaml:5: tasks.0.data: there is no file or folder 'gone.csv'",
        "demo.yaml:5: tasks.0.training.learning_rate: expected a number, found 'fast'",
        "demo.yaml:6: tasks.1.method.beta: expected a number, found 'y'",
        "demo.yaml:7: training.seed: this is not set here",
        "demo.yaml:7: training.max_stps: unknown key",
        "demo.yaml:7: training.bf16: expected yes or no, found 'maybe'",
        "demo.yaml:8: rounds: must be at least 1, found '0'",
        "demo.yaml:9: rounds: this key is given twice",
        "demo.yaml:10: strategies.0: unknown strategy 'replai'",
        "demo.yaml:10: strategies.1.coef: missing",
        "command line: 'foo' is not an override",
        "command line: seed: expected a whole number, found 'x'",
    ]


# --- what to do about it --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("added", "fix"),
    [
        ("sead: 3\n", "did you mean seed?"),
        ("training:\n  learning-rate: 3\n", "did you mean learning_rate?"),
        ("training:\n  optim: adamw_torc\n", "did you mean adamw_torch?"),
        ("    learning_rat: 3\n", "did you mean learning_rate?"),
        ("learning_rate: 3\n", "write it as training.learning_rate"),
        ("lora_r: 3\n", "write it as model.lora_r"),
        ("samples_per_prompt: 3\n", "write it as method.samples_per_prompt"),
        ("training:\n  beta: 3\n", "write it as method.beta"),
        ("    beta: 3\n", "write it as tasks.0.method.beta"),
        ("    method: {learning_rate: 1}\n", "write it as tasks.0.training.learning_rate"),
        ("base:\n  method: sft\n  learning_rate: 3\n", "write it as base.training.learning_rate"),
        ("training:\n  warmup_ratio: 0.1\n", "write warmup_steps, which below 1 is a share of all steps"),
        ("training:\n  seed: 1\n", "write seed at the top level"),
        ("training:\n  hub_token: x\n", "set HF_TOKEN in the environment"),
    ],
)
def test_the_error_says_what_to_do(resolved: Load, added: str, fix: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        resolved(HEAD + TASK + added)
    (error,) = caught.value.errors
    assert fix in error.fix


def test_a_short_list_of_keys_is_told(resolved: Load) -> None:
    with pytest.raises(ConfigErrors) as caught:
        resolved(HEAD + TASK + "evaluation: {examples: 3}\n")
    assert str(caught.value) == (
        "demo.yaml:7: evaluation.examples: unknown key\n"
        "  known here: tasks, num_items, max_new_tokens, batch_tokens, reward_model, temperature, num_samples, "
        "at_start, drift_prompts\n"
        "  did you mean num_samples?"
    )


def test_the_words_of_resolve_are_kept(resolved: Load) -> None:
    with pytest.raises(ConfigErrors) as caught:
        resolved(HEAD + TASK + "strategies: [replai]\n")
    assert caught.value.errors[0].fix == "known: naive, replay, strict, odd"


def test_a_missing_file_says_where_it_was_looked_for(resolved: Load) -> None:
    with pytest.raises(ConfigErrors) as caught:
        resolved(HEAD + "  - {name: a, data: gone.jsonl}\n")
    assert caught.value.errors[0].why.endswith("/gone.jsonl")


def test_a_wrong_configuration_ends_the_command_with_the_code_for_usage(resolved: Load) -> None:
    with pytest.raises(ConfigErrors) as caught:
        resolved("\n")
    assert caught.value.exit_code == USAGE
