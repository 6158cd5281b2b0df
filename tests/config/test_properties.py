"""Properties over generated input: a misspelt key is one error with its name, and a resolved text is a fixed point."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from contrl.config import Resolved, difference, keys, training_arguments
from contrl.config.training import OWNED
from contrl.errors import ConfigErrors

Load = Callable[..., Resolved]
Refused = Callable[..., list[str]]

FULL = """\
output_dir: o
model: {name_or_path: tiny, use_peft: yes, lora_r: 8}
method: {name: rloo, samples_per_prompt: 4, beta: 0.1}
tasks:
- {name: a, data: hub/a, eval_split: test, reward: exact, method: {beta: 0.2}, training: {learning_rate: 1}}
strategies: [{name: replay, share: 0.5}]
base: {method: sft, training: {max_steps: 3}, prompts_per_step: 4}
rounds: 2
training: {learning_rate: 1e-4, max_steps: 40, weight_decay: 0, lr_scheduler_type: cosine}
evaluation: {num_items: 10, at_start: no}
seed: 3
"""
# Section -> the keys that stand in it in FULL. Each is spelt once in its line, followed by a colon.
WRITTEN = {
    "": ["output_dir", "model", "tasks", "strategies", "base", "rounds", "training", "evaluation", "seed"],
    "model": ["name_or_path", "use_peft", "lora_r"],
    "method": ["samples_per_prompt"],
    "tasks.0": ["data", "eval_split", "reward"],
    "strategies.0": ["share"],
    "training": ["weight_decay", "lr_scheduler_type"],
    "evaluation": ["num_items", "at_start"],
}
PLACES = [(section, key) for section, names in WRITTEN.items() for key in names]
KNOWN = {key.path.rpartition(".")[2] for key in keys()} | {*training_arguments(), *OWNED} | {"name", "share", "beta"}
LETTERS = st.sampled_from("abcdefghijklmnopqrstuvwxyz_")


@st.composite
def misspelt(draw: st.DrawFn) -> tuple[str, str, str]:
    """A section, a key of it, and the key with one letter dropped, added, changed, or two swapped."""
    section, key = draw(st.sampled_from(PLACES))
    at = draw(st.integers(0, len(key) - 1))
    wrong = draw(
        st.one_of(
            st.just(key[:at] + key[at + 1 :]),
            LETTERS.map(lambda letter: key[:at] + letter + key[at:]),
            LETTERS.map(lambda letter: key[:at] + letter + key[at + 1 :]),
            st.just(key[:at] + key[at + 1 : at + 2] + key[at] + key[at + 2 :]),
        )
    )
    return section, key, wrong


def misspell(section: str, key: str, wrong: str) -> tuple[str, int]:
    """FULL with one ``key:`` misspelt, and the line it stands on."""
    lines = FULL.splitlines()
    top = section.partition(".")[0] or key
    number = next(number for number, line in enumerate(lines) if line.startswith(f"{top}:"))
    number += section == "tasks.0"  # the one section that is not on the line of its name
    lines[number] = lines[number].replace(f"{key}:", f"{wrong}:", 1)
    return "\n".join([*lines, ""]), number + 1


@given(misspelt())
@settings(max_examples=100, deadline=None)
def test_a_misspelt_key_is_exactly_one_error(refused: Refused, typo: tuple[str, str, str]) -> None:
    section, key, wrong = typo
    if wrong in KNOWN or wrong == key:
        return
    text, line = misspell(section, key, wrong)
    path = f"{section}.{wrong}" if section else wrong
    assert refused(text) == [f"demo.yaml:{line}: {path}: unknown key"]


def test_the_nearest_key_is_usually_the_one_that_was_meant(resolved: Load) -> None:
    """Every key of FULL with each single letter dropped: at least 19 of 20 times the right name is told."""
    told, total = 0, 0
    for section, key in PLACES:
        for at in range(len(key)):
            wrong = key[:at] + key[at + 1 :]
            if wrong in KNOWN:
                continue
            total += 1
            try:
                resolved(misspell(section, key, wrong)[0])
            except ConfigErrors as error:
                told += error.errors[0].fix == f"did you mean {key}?"
    assert total > 150
    assert told >= 0.95 * total


# --- fixed points -----------------------------------------------------------------------------------------

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


MODEL = st.fixed_dictionaries(
    {"name_or_path": st.from_regex(r"[\w-]+", fullmatch=True)},
    optional={"revision": st.none() | WORDS, "lora_target_modules": st.none() | st.lists(WORDS, max_size=2)},
)
METHOD = st.fixed_dictionaries(
    {"name": st.just("rloo")},
    optional={
        "beta": st.floats(allow_nan=False),
        "samples_per_prompt": st.integers(2),
        "loss_type": st.lists(WORDS, max_size=3),
        "schedule": st.fixed_dictionaries({"kind": st.sampled_from(["flat", "linear"])}),
    },
)
TASK = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b", "no", "1e5"]), "data": st.just("hub/x")},
    optional={"eval_size": st.integers(1) | st.floats(0.01, 0.99), "learning_rate": st.floats(0, 1)},
)
TRAINING = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": st.floats(0, 1),
        "run_name": st.none() | WORDS,
        "report_to": st.sampled_from(["none", "tensorboard"]) | st.lists(WORDS, max_size=2),
        "lr_scheduler_kwargs": st.dictionaries(WORDS, st.none() | st.floats(allow_nan=False) | WORDS, max_size=2),
    },
)
CONFIGURATION = st.fixed_dictionaries(
    {
        "output_dir": WORDS.filter(lambda word: not word.startswith("~")),
        "model": MODEL,
        "method": METHOD,
        "tasks": st.just("countdown") | st.lists(TASK, min_size=1, max_size=3, unique_by=lambda task: task["name"]),
    },
    optional={
        "training": TRAINING,
        "strategies": st.lists(st.sampled_from(["naive", "replay"]), max_size=2),
        "seed": st.integers(0),
    },
)


@given(CONFIGURATION)
@settings(max_examples=60, deadline=None)
def test_a_resolved_text_loads_to_the_same_configuration(resolved: Load, given_values: dict[str, object]) -> None:
    first = resolved(given_values)
    again = resolved(first.text)
    assert again.config == first.config
    assert again.text == first.text
    assert again.digest == first.digest
    assert difference(first.text, again.config) == []
    assert again.origins.keys() == first.origins.keys()
