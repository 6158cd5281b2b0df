"""The few numbers a person follows while a method trains: which of the logged ones, and under what names.

A method names them, the most telling first (``Method.watched``); what a run does not log is passed over, so that a
method without a KL shows the next number in its place. Terminal, plain line and ``contrl watch`` show the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

MOST = 3
"""Numbers shown at once."""
SHARES = ("frac_reward_zero_std", "mean_token_accuracy", "accuracy", "rewards/accuracies")
LABELS = {
    "mean_token_accuracy": "token accuracy",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "frac_reward_zero_std": "no signal",
    "policy/entropy_avg": "entropy",
    "kl_per_token": "kl/token",
    "eval_loss": "eval loss",
}
"""Logged name -> how it is called here; ``no signal`` is the share of groups whose rewards are all equal."""


def chosen(logged: Iterable[str], watched: Sequence[str], most: int = MOST) -> list[str]:
    """The names to show, of those that were logged."""
    names, found = list(dict.fromkeys(logged)), []
    for wanted in watched:
        matching = [name for name in names if name == wanted or (wanted.endswith("/") and name.startswith(wanted))]
        found += [name for name in matching[:1] if name not in found]
    return found[:most]


def label(name: str) -> str:
    """What a logged number is called."""
    return "verifier" if name.startswith("verifier/") else LABELS.get(name, name)


def value(name: str, number: float) -> str:
    """A logged number as it is read: shares in percent, three digits of everything else."""
    return f"{number:.0%}" if name in SHARES else f"{number:.3g}"


def told(numbers: Mapping[str, float], watched: Sequence[str], most: int = MOST) -> list[str]:
    """``["reward 0.61", "verifier 0.58", "kl 0.02"]`` out of the last logged numbers."""
    return [f"{label(name)} {value(name, numbers[name])}" for name in chosen(numbers, watched, most)]


def clock(seconds: float) -> str:
    """``0:42``, ``12:05``, ``3:00:12``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def rate(tokens: float, seconds: float) -> str:
    """``850 tokens/s``, ``12.3k tokens/s``; empty where nothing was counted."""
    if tokens <= 0 or seconds <= 0:
        return ""
    speed = tokens / seconds
    return f"{speed:.0f} tokens/s" if speed < 1000 else f"{speed / 1000:.1f}k tokens/s"
