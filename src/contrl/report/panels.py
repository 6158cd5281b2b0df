"""Which recorded names belong on one axis, in which order they are read, and which values are healthy.

The order is that of the questions one asks: is it learning, at what price, does it still explore, is it stable. The
loss of an online method comes last, because near zero is normal there. What no panel knows gets one of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contrl.report.curves import Curve, Training

ONLINE = ("rloo", "grpo", "ppo")
LOSS_NOTE = (
    "A policy loss near zero is normal: it is a gradient's handle, no measure. Judge by the reward and the verifier."
)
HELD_OUT = "eval_"
MAX_PANELS = 28

Bounds = tuple[float | None, float | None]


@dataclass(frozen=True)
class Series:
    """One curve of a panel, under the name that its legend shows."""

    label: str
    curve: Curve


@dataclass(frozen=True)
class Panel:
    """Curves that are read together.

    Attributes:
        healthy: the range that is no cause for concern; None on a side without a limit.
        lines: named levels, as a length limit.
        folded: shown only on request.
    """

    id: str
    title: str
    note: str
    series: tuple[Series, ...]
    healthy: Bounds | None = None
    lines: Mapping[str, float] = field(default_factory=dict)
    folded: bool = False


@dataclass(frozen=True)
class Kind:
    """A panel to be: patterns of names (each a whole match), in the order of their series, and how many it takes."""

    id: str
    title: str
    names: tuple[str, ...]
    note: str = ""
    healthy: Bounds | None = None
    folded: bool = False
    least: int = 1


KINDS = (
    Kind(
        "reward", "Reward and verifier", ("reward", "success", r"verifier/.+"),
        "What is optimised beside what is meant, on the answers sampled for training. A reward that rises while the "
        "verifier falls is being gamed.",
    ),
    Kind(
        "margin", "Margin", (r"rewards/margins", "margin"),
        "How much more the policy prefers the chosen answer. Should rise.",
    ),
    Kind(
        "logps", "Log-probability of chosen and rejected answers", (r"logps/chosen", r"logps/rejected"),
        "Read together: a margin may grow while both fall. Then the policy forgets good answers too.",
    ),
    Kind(
        "accuracy", "Accuracy on pairs", (r"rewards/accuracies", "accuracy"),
        "Share of pairs ranked rightly; 0.5 is chance. 1.0 early on easy data is over-fitting.", (0.5, 1.0),
    ),
    Kind(
        "implicit_rewards", "Implicit rewards", (r"rewards/chosen", r"rewards/rejected"),
        "Both falling together is common; chosen below -5 means the policy forgets good answers. Healthy: above -5.",
        (-5.0, None),
    ),
    Kind(
        "supervised_loss", "Loss", ("loss",),
        "Lower is better; held out rising while training falls is over-fitting.",
    ),
    Kind(
        "token_accuracy", "Token accuracy", ("mean_token_accuracy",),
        "Share of trained tokens that are the likeliest ones.",
    ),
    Kind(
        "no_signal", "Prompts without signal", ("frac_reward_zero_std",),
        "Share of prompts whose answers all earn the same: nothing to learn from. Healthy: below 0.8.", (None, 0.8),
    ),
    Kind(
        "reward_spread", "Spread of rewards within a prompt", ("reward_std",),
        "At 0 there is nothing left to compare.",
    ),
    # Of a single function it is the reward over again.
    Kind("reward_functions", "Each reward function", (r"rewards/.+/mean",), "Raw means, before weights.", least=2),
    Kind(
        "kl", "KL to the reference", ("kl",),
        "Nats per completion. A few are healthy; steady growth with a flat reward is drift.",
    ),
    Kind("kl_per_token", "KL per token", ("kl_per_token",), "Nats per token. Healthy: up to 0.1.", (None, 0.1)),
    Kind(
        "entropy", "Entropy", ("entropy", r"policy/entropy_avg"),
        "Nats at trained tokens. A fast fall is a collapse of exploration.",
    ),
    Kind(
        "length", "Length of answers",
        (r"completions/mean_length", r"completions/min_length", r"completions/max_length"),
        "Tokens of sampled answers: mean, shortest, longest.",
    ),
    Kind(
        "cut", "Answers cut at the limit", (r"completions/clipped_ratio",),
        "Share that did not end by themselves. Healthy: below 0.05; towards 1 the model stops stopping.", (None, 0.05),
    ),
    Kind(
        "clipped", "Gradient stopped by the clip", (r"clip_ratio/region_mean", r"policy/clipfrac_avg"),
        "Share of the trained. 0 unless rollouts are reused. Healthy: below 0.2 (PPO: 0.05 to 0.3).", (None, 0.3),
    ),
    Kind("value", "Value loss", (r"loss/value_avg",), "Should fall: the value function learns to foresee the reward."),
    Kind(
        "explained", "Explained variance of the values", (r".*explained_var.*",),
        "1 is perfect, 0 a constant guess.", (0.0, 1.0),
    ),
    Kind("scores", "Scores of the reward model", ("mean_reward", "min_reward", "max_reward")),
    Kind("grad_norm", "Gradient norm", ("grad_norm",), "Before clipping. Spikes precede collapses."),
)  # fmt: skip
FOLDED = (
    Kind("learning_rate", "Learning rate", ("learning_rate",), folded=True),
    Kind("speed", "Sampled tokens per second", ("tokens_per_second",), folded=True),
    Kind("policy_loss", "Policy loss", ("loss", r"loss/policy_avg"), LOSS_NOTE, folded=True),
)
# Told elsewhere on the page (time, tokens), the same as another by construction, or of no interest of their own.
LEFT_OUT = (
    r"seconds.*|epoch|num_tokens|step|rewards/.+/(std|missing)|completions/.*terminated.*|clip_ratio/(low|high)_.+|"
    r"eval_(runtime|.*_per_second)|objective/.*"
)


def panels(training: Training, run: Mapping[str, Any], limits: Mapping[str, float]) -> list[Panel]:
    """All panels of a run, the folded ones last.

    Args:
        run: run.json; its method decides what the loss means.
        limits: named levels by panel id, such as the length limit of answers.
    """
    online = run.get("method") in ONLINE
    first = [kind for kind in KINDS if not (online and kind.id == "supervised_loss")]
    last = [kind for kind in FOLDED if online or kind.id != "policy_loss"]
    left = {curve.name: curve for curve in training.curves}
    found: dict[str, Panel] = {}
    for kind in [*first, *last]:
        series = _series(kind, left)
        if series:
            level = {"limit": limits[kind.id]} if kind.id in limits else {}
            found[kind.id] = Panel(kind.id, kind.title, kind.note, series, kind.healthy, level, kind.folded)
    rest = [
        Panel(f"curve-{index}", curve.name, "", (Series(curve.name, curve),), folded=True)
        for index, curve in enumerate(left.values(), start=1)
        if not re.fullmatch(LEFT_OUT, curve.name)
    ]
    ids = [kind.id for kind in first if kind.id in found]
    tail = [found[kind.id] for kind in last if kind.id in found]
    loss = [panel for panel in tail if panel.id == "policy_loss"]
    known = [*(found[name] for name in ids), *(panel for panel in tail if panel.id != "policy_loss")]
    return [*known, *rest[: max(0, MAX_PANELS - len(known))], *loss]


def _series(kind: Kind, left: dict[str, Curve]) -> tuple[Series, ...]:
    """The curves of a panel, each followed by its held-out twin; taken out of ``left``."""
    names = [
        name
        for pattern in kind.names
        for prefix in ("", HELD_OUT)
        for name in sorted(left)
        if re.fullmatch(prefix + pattern, name)
    ]
    if len(names) < kind.least:
        return ()
    return tuple(Series(_label(name, names), left.pop(name)) for name in dict.fromkeys(names))


def _label(name: str, names: Sequence[str]) -> str:
    """The name without the folder that all names of the panel share; "held out" in words."""
    short = name.removeprefix(HELD_OUT)
    if len(names) > 1 and len({other.removeprefix(HELD_OUT).rpartition("/")[0] for other in names}) == 1:
        short = short.rpartition("/")[2]
    return f"{short}, held out" if name.startswith(HELD_OUT) else short
