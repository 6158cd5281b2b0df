"""Write tests/fixtures/aif_gen_shift.json: two tasks over one domain whose preferences contradict each other.

The first task prefers the short answer to every question, the second the long one. No question occurs twice in the
file. Equal code gives an equal file (tests/data/test_aif_gen.py compares them):

    python scripts/generate_fixtures.py
"""

from __future__ import annotations

import json
from pathlib import Path

TARGET = Path(__file__).parents[1] / "tests" / "fixtures" / "aif_gen_shift.json"

NUM_TRAIN, NUM_TEST = 24, 8

FOODS = {
    "rice": 12,
    "eggs": 8,
    "pasta": 10,
    "beans": 45,
    "corn": 7,
    "peas": 4,
    "leeks": 15,
    "beets": 40,
    "kale": 6,
    "lentils": 25,
    "carrots": 9,
    "turnips": 20,
    "potatoes": 18,
    "barley": 30,
    "oats": 5,
    "chard": 3,
}
"""Food -> minutes until it is done."""

QUESTIONS = (
    "How long do I boil {food}?",
    "When are {food} done?",
    "What is the time for {food}?",
    "How many minutes do {food} take?",
)


def row(food: str, question: str, *, prefers_long: bool) -> dict[str, str]:
    """One preference row; the answers differ in length and agree in content."""
    short = f"{FOODS[food]} minutes."
    long = f"Put the {food} into salted water, wait {FOODS[food]} minutes, then taste and drain."
    chosen, rejected = (long, short) if prefers_long else (short, long)
    return {"prompt": question.format(food=food), "chosen": chosen, "rejected": rejected}


def task(first: int, *, prefers_long: bool) -> dict:
    """A task on its own half of the questions: ``first`` is the number of its first one."""
    asked = [(food, question) for question in QUESTIONS for food in FOODS][first : first + NUM_TRAIN + NUM_TEST]
    rows = [row(food, question, prefers_long=prefers_long) for food, question in asked]
    # Every fourth, one further with every question: a food that is asked about in a test is also trained on.
    test = [known for number, known in enumerate(rows) if (number + number // len(FOODS)) % 4 == 3]
    return {
        "task": {
            "domain": {"cooking": {"name": "cooking", "seed_words": sorted(FOODS), "weight": 1.0}},
            "objective": "Ask how long something takes to cook.",
            "preference": "Explain every step." if prefers_long else "Answer with the number of minutes alone.",
        },
        "train": [known for known in rows if known not in test],
        "test": test,
    }


def content() -> str:
    """The file's text."""
    tasks = [task(0, prefers_long=False), task(NUM_TRAIN + NUM_TEST, prefers_long=True)]
    return json.dumps({"datasets": tasks}, indent=1) + "\n"


if __name__ == "__main__":
    TARGET.write_text(content(), encoding="utf-8")
