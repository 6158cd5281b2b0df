"""Rows of two small sequences that need no file and no network: tables and rules, and preferences that flip.

Random tables cannot be inferred from anything else, so what is still known of them was remembered; a preference that
is the opposite of the one before shows forgetting as a fall below one half. Equal settings give equal rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any

import numpy as np

from contrl.errors import ConfigErrors, UserError

Rows = list[dict[str, Any]]

SHIFT = 3
"""Places in the alphabet by which the task ``shift`` moves each letter."""

TABLES = ("table_a", "table_b")
RULES = ("reverse", "shift", "sort")
PROBES = ("copy", "upper", "last")
"""Further rules, for a base stage or a probe of what was never taught."""
TOKENS = {
    "table_a": "A",
    "table_b": "B",
    "reverse": "R",
    "shift": "S",
    "sort": "O",
    "copy": "C",
    "upper": "U",
    "last": "L",
}
"""What a prompt begins with: it says which task is asked."""

_DRAW, _TABLE, _WRONG = 1, 2, 3
"""Separate the random numbers of strings, tables and wrong answers."""


def _about(text: str, default: Any, **bounds: float) -> Any:
    return field(default=default, metadata={"help": text, **bounds})


def _names(config: Any, known: Sequence[str]) -> Iterator[UserError]:
    """What is wrong with the names of a configuration's tasks; one name may come as a word."""
    given = (config.names,) if isinstance(config.names, str) else tuple(config.names)
    object.__setattr__(config, "names", given)
    unknown = [name for name in given if name not in known]
    if unknown:
        yield UserError(f"names: there is no task {', '.join(map(str, unknown))}", fix=f"tasks: {', '.join(known)}")
    if not given or len(set(given)) < len(given):
        yield UserError("names: give at least one task, and each only once")


# --- tables and rules -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TablesAndRulesConfig:
    """Random tables and rules on strings. Invalid values are reported together, as ``ConfigErrors``."""

    names: tuple[str, ...] = _about("tasks, in the order of the sequence", (*TABLES, *RULES))
    pairs: bool = _about("rows are pairs of a right and a wrong answer, for preference methods", False)
    table_size: int = _about("keys of each table; train and eval rows are these same keys", 64, at_least=2)
    value_length: int = _about("letters of a table's value", 2, at_least=1)
    num_letters: int = _about("letters that strings and values are made of, from a on", 10, at_least=2)
    num_symbols: int = _about("letters of the string that a rule is applied to", 5, at_least=2)
    train_size: int = _about("train rows of each rule", 2000, at_least=1)
    eval_size: int = _about("eval rows of each rule, none of whose strings is in any train row", 200, at_least=1)
    seed: int = _about("equal seeds give equal rows", 0, at_least=0)

    def __post_init__(self) -> None:
        errors = [*_names(self, (*TABLES, *RULES, *PROBES))]
        if self.num_letters > len(ascii_lowercase):
            errors.append(UserError(f"num_letters is {self.num_letters}", fix=f"at most {len(ascii_lowercase)}"))
        if self.table_size > len(ascii_lowercase) ** 2:
            errors.append(UserError(f"table_size is {self.table_size}", fix=f"at most {len(ascii_lowercase) ** 2}"))
        strings, wanted = self.num_letters**self.num_symbols, self.train_size + self.eval_size
        if set(self.names) - set(TABLES) and strings < wanted:
            errors.append(
                UserError(
                    f"train_size and eval_size ask for {wanted:,} strings, but {strings:,} exist",
                    why=f"{self.num_symbols} symbols out of {self.num_letters} letters, no string twice",
                    fix="ask for fewer rows, or raise num_symbols or num_letters",
                )
            )
        if errors:
            raise ConfigErrors(errors)


def table_rows(config: TablesAndRulesConfig, name: str) -> Rows:
    """One row per key of a table: ``A kq=`` is answered by two random letters. Both tables have the same keys."""
    keys = np.random.default_rng([config.seed, _TABLE]).permutation(len(ascii_lowercase) ** 2)[: config.table_size]
    letters = [f"{ascii_lowercase[key // 26]}{ascii_lowercase[key % 26]}" for key in keys.tolist()]
    generator = np.random.default_rng([config.seed, _TABLE, 1 + TABLES.index(name)])
    drawn = generator.integers(config.num_letters, size=(config.table_size, config.value_length))
    values = ["".join(ascii_lowercase[digit] for digit in row) for row in drawn.tolist()]
    others = generator.permutation(config.table_size).tolist()
    # Another key's value, or, should that be the same, one with another first letter.
    wrong = [
        values[other] if values[other] != value else _next_letter(value[0], config.num_letters) + value[1:]
        for value, other in zip(values, others, strict=True)
    ]
    return [_row(config, name, *parts) for parts in zip(letters, values, wrong, strict=True)]


def rule_rows(config: TablesAndRulesConfig, name: str) -> tuple[Rows, Rows]:
    """Train and eval rows of a rule: ``R abcde=`` is answered by ``edcba``. All rules share the division of strings."""
    strings = _strings(config)
    generator = np.random.default_rng([config.seed, _WRONG, (*RULES, *PROBES).index(name)])
    rows = []
    for text in strings:
        right = apply_rule(name, text, config.num_letters)
        rows.append(_row(config, name, text, right, _wrong(right, config.num_letters, generator)))
    return rows[config.eval_size :], rows[: config.eval_size]


def apply_rule(name: str, text: str, num_letters: int) -> str:
    """What the rule ``name`` makes of a string of the first ``num_letters`` letters."""
    rules: dict[str, Callable[[str], str]] = {
        "reverse": lambda t: t[::-1],
        "shift": lambda t: "".join(ascii_lowercase[(ord(c) - ord("a") + SHIFT) % num_letters] for c in t),
        "sort": lambda t: "".join(sorted(t)),
        "copy": lambda t: t,
        "upper": lambda t: t.upper(),
        "last": lambda t: t[-1],
    }
    return rules[name](text)


def _strings(config: TablesAndRulesConfig) -> list[str]:
    """Different strings, as many as train and eval rows together."""
    wanted = config.train_size + config.eval_size
    generator = np.random.default_rng([config.seed, _DRAW])
    # A sample without repetition of the numbers whose digits are the letters.
    numbers = generator.choice(config.num_letters**config.num_symbols, size=wanted, replace=False)
    found = []
    for number in numbers.tolist():
        letters = []
        for _ in range(config.num_symbols):
            number, digit = divmod(number, config.num_letters)
            letters.append(ascii_lowercase[digit])
        found.append("".join(letters))
    return found


def _wrong(right: str, num_letters: int, generator: np.random.Generator) -> str:
    """A wrong answer of the same length: the same letters in another order, or, of equal ones, one letter changed."""
    if len(set(right)) > 1:
        while True:
            shuffled = "".join(right[place] for place in generator.permutation(len(right)).tolist())
            if shuffled != right:
                return shuffled
    place = int(generator.integers(len(right)))
    return right[:place] + _next_letter(right[place], num_letters) + right[place + 1 :]


def _next_letter(letter: str, num_letters: int) -> str:
    following = ascii_lowercase[(ascii_lowercase.index(letter.lower()) + 1) % num_letters]
    return following.upper() if letter.isupper() else following


def _row(config: TablesAndRulesConfig, name: str, asked: str, right: str, wrong: str) -> dict[str, Any]:
    answers = {"chosen": right, "rejected": wrong} if config.pairs else {"completion": right}
    return {"id": f"{name}:{asked}", "prompt": f"{TOKENS[name]} {asked}=", **answers}


# --- opposite preferences ---------------------------------------------------------------------------------

OPPOSITES = {"longer": "shorter", "shorter": "longer", "yes_first": "no_first", "no_first": "yes_first"}
"""Each task and the one that prefers the other side of the same pairs."""
INSTRUCTIONS = {"longer": "long", "shorter": "short", "yes_first": "yes", "no_first": "no"}

_COLOURS = (
    *("red", "blue", "green", "black", "white", "brown", "grey", "pink"),
    *("gold", "tan", "dark", "pale", "bright", "dull", "warm", "cold"),
)
_ANIMALS = (
    *("fox", "cat", "dog", "owl", "hen", "cow", "pig", "ant"),
    *("bee", "bat", "rat", "elk", "emu", "eel", "ram", "ape"),
)
_PLACES = ("home", "school", "work", "lunch", "sea", "rest", "play", "church")
NUM_QUESTIONS = len(_COLOURS) * len(_ANIMALS) * len(_PLACES)


@dataclass(frozen=True)
class OppositePreferencesConfig:
    """Pairs whose preferred side flips. Invalid values are reported together, as ``ConfigErrors``."""

    names: tuple[str, ...] = _about("tasks, in the order of the sequence", tuple(OPPOSITES))
    told: bool = _about(
        "the prompt begins by saying what is preferred; without it the tasks contradict each other", True
    )
    train_size: int = _about("train pairs of each task", 1000, at_least=1)
    eval_size: int = _about("eval pairs of each task, whose questions are in no train pair", 200, at_least=1)
    seed: int = _about("equal seeds give equal rows", 0, at_least=0)

    def __post_init__(self) -> None:
        errors = [*_names(self, tuple(OPPOSITES))]
        if self.train_size + self.eval_size > NUM_QUESTIONS:
            what = f"train_size and eval_size ask for {self.train_size + self.eval_size:,} questions"
            errors.append(UserError(what, why=f"{NUM_QUESTIONS:,} exist", fix="ask for fewer rows"))
        if errors:
            raise ConfigErrors(errors)


def preference_rows(config: OppositePreferencesConfig, name: str) -> tuple[Rows, Rows]:
    """Train and eval pairs of one task. The questions, and for opposites the answers, are the same in every task."""
    generator = np.random.default_rng([config.seed, _DRAW])
    questions = generator.permutation(NUM_QUESTIONS)[: config.train_size + config.eval_size].tolist()
    says_yes = generator.random(len(questions)) < 0.5
    rows = []
    for number, yes in zip(questions, says_yes.tolist(), strict=True):
        rest, colour = divmod(number, len(_COLOURS))
        place, animal = divmod(rest, len(_ANIMALS))
        named, where = f"{_COLOURS[colour]} {_ANIMALS[animal]}", _PLACES[place]
        sides = _sides(named, where, yes=yes)
        opening = f"{INSTRUCTIONS[name]}: " if config.told else ""
        prompt = f"{opening}{named} at {where}?"
        chosen, rejected = sides[name], sides[OPPOSITES[name]]
        rows.append({"id": f"{name}:{number}", "prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows[config.eval_size :], rows[: config.eval_size]


def _sides(animal: str, place: str, *, yes: bool) -> dict[str, str]:
    """The answer that each task prefers. Whether yes or no is right says nothing about which answer is longer."""
    word = "yes" if yes else "no"
    return {
        "longer": f"{word}, the {animal} is{'' if yes else ' not'} at {place}",
        "shorter": word,
        "yes_first": "yes or no",
        "no_first": "no or yes",
    }
