"""Prompts for the examples of this folder: the first words of reviews, and texts that invite a rude answer."""

from __future__ import annotations

from contrl.data.sources import read_rows

MOST_WORDS = 8
RUDE = 0.3


def reviews() -> list[dict]:
    """Two to eight words of each review, as many as its place in the file says."""
    return _openings("train")


def test_reviews() -> list[dict]:
    """The same of reviews that are not trained on."""
    return _openings("test")


def rude() -> list[dict]:
    """Prompts that the data set's authors rate as rude."""
    found = [row["prompt"] for row in read_rows("allenai/real-toxicity-prompts", "train")]
    return [{"prompt": prompt["text"]} for prompt in found if (prompt.get("toxicity") or 0) > RUDE]


def _openings(split: str) -> list[dict]:
    texts = [str(row["text"]).split() for row in read_rows("imdb", split)]
    return [{"prompt": " ".join(words[: 2 + i % (MOST_WORDS - 1)])} for i, words in enumerate(texts) if len(words) > 1]
