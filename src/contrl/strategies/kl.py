"""KL to an earlier policy: the policy keeps saying what it said before (learning without forgetting, arXiv:1606.09282).

The whole next-token distributions are compared, token by token: on the current rows, or on prompts of earlier tasks
or of a file of the user's own, answered by the earlier policy itself at the start of the stage. Of a reward model
what is compared is the probability with which it prefers one answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from contrl.data.sources import read_rows
from contrl.errors import UserError
from contrl.interfaces import Batch, Context, Group, LossOutput, Outputs, Refusal, Setting, Strategy, Teacher
from contrl.rollout.own_answers import answered, choose_rows

_TAG = 0x6B1


@dataclass
class KL(Strategy):
    """Adds coef x mean over tokens of KL(earlier || policy); applies from the second stage on.

    Attributes:
        coef: strength.
        on: "current" rows of the step, prompts of "old" tasks, or "generic" ones of a file (then in every stage).
        to: "previous": the policy the stage began with; "base": the run's first.
        direction: "forward" KL(earlier || policy), or "reverse" KL(policy || earlier).
        share: of old or generic prompts: how many join a step, per current row.
        num_prompts: of old or generic prompts: how many are answered at the start of a stage.
        prompts: the file of generic prompts.
        max_new_tokens: of the answers; None takes the method's limit, or 64.
        temperature: of the answers.
    """

    name = "kl"

    coef: float = 0.1
    on: Literal["current", "old", "generic"] = "current"
    to: Literal["previous", "base"] = "previous"
    direction: Literal["forward", "reverse"] = "forward"
    share: float = 0.5
    num_prompts: int = 256
    prompts: str | None = None
    max_new_tokens: int | None = None
    temperature: float = 1.0
    _anchors: list[Group] = field(default_factory=list, init=False, repr=False)
    _teacher: Teacher | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.coef < 0 or self.share < 0 or self.num_prompts < 1:
            raise UserError("kl needs coef >= 0, share >= 0 and num_prompts >= 1")
        if (self.on == "generic") != (self.prompts is not None):
            raise UserError("kl: prompts names the file that on: generic takes", fix="give both or neither")

    def refuses(self, setting: Setting) -> Refusal | None:
        if "scores" in setting.method.needs and self.on == "generic":
            return Refusal("a reward model answers no prompts", "use on: current, on: old, or replay")
        return super().refuses(setting)

    def before_task(self, ctx: Context) -> None:
        """Freeze the earlier policy and let it answer what the policy is to be compared on."""
        self._teacher, self._anchors = None, []
        if self.coef == 0 or (ctx.stage.index == 1 and self.on != "generic"):
            return
        tasks = ctx.earlier_tasks()
        if self.on == "old" and not tasks:
            return
        where: Literal["groups", "anchors"] = "groups" if self.on == "current" else "anchors"
        self._teacher = Teacher(ctx.services.reference(self.to), self.direction, where)
        if self.on == "current":
            return
        key = (ctx.seed, _TAG, ctx.stage.index)
        generic = read_rows(self.prompts) if self.prompts else []
        rows = choose_rows(tasks, self.num_prompts, key, generic)
        if "scores" in ctx.method.needs:
            self._anchors = [replace(ctx.method.prepare(row, ctx.tokenizer), task=task.name) for task, row in rows]
        else:
            self._anchors = [g for g, _ in answered(ctx, rows, key, self.max_new_tokens, self.temperature)]
        for group in self._anchors:
            group.is_anchor = True

    def anchors(self, ctx: Context, num_rows: int) -> list[Group]:
        """``share * num_rows`` of the answered prompts, others each step."""
        if not self._anchors or self.share == 0:
            return []
        number = max(1, round(self.share * num_rows))
        generator = np.random.default_rng([ctx.seed, _TAG, ctx.stage.index, ctx.step])
        picks = generator.choice(len(self._anchors), size=number, replace=number > len(self._anchors))
        return [self._anchors[int(pick)] for pick in picks]

    def teachers(self, ctx: Context) -> Mapping[str, Teacher]:
        """The earlier policy, of methods that train tokens."""
        return {} if self._teacher is None or "scores" in ctx.method.needs else {self.name: self._teacher}

    def count(self, ctx: Context, groups: Sequence[Group]) -> dict[str, float]:
        """Tokens that are compared; of a reward model the pairs."""
        if self._teacher is None:
            return {}
        compared = [group for group in groups if group.is_anchor == (self._teacher.on == "anchors")]
        if "scores" in ctx.method.needs:
            return {self.name: float(len(compared))}
        return {self.name: float(sum(c.num_trained() for group in compared for c in group.completions))}

    def loss(self, ctx: Context, batch: Batch, out: Outputs) -> LossOutput | None:
        """The sum over tokens (or pairs) of the divergence, times coef."""
        if self._teacher is None or batch.groups[0].is_anchor != (self._teacher.on == "anchors"):
            return None
        if out.scores is not None:
            frozen = ctx.services.read(self._teacher.reference, batch).scores
            terms = _preference_kl(_margins(frozen), _margins(out.scores), self.direction)
            number = float(len(terms))
        else:
            terms, number = out.divergence[self.name], float(batch.mask.sum())
        total = terms.sum()
        return LossOutput({self.name: self.coef * total}, {f"{self.name}/divergence": (total.detach(), number)})


def _margins(scores: torch.Tensor) -> torch.Tensor:
    """``[P]`` chosen minus rejected."""
    return scores[0::2] - scores[1::2]


def _preference_kl(theirs: torch.Tensor, mine: torch.Tensor, direction: str) -> torch.Tensor:
    """KL between two Bernoulli distributions given by their log-odds."""
    first, second = (theirs, mine) if direction == "forward" else (mine, theirs)
    yes = first.sigmoid() * (logsigmoid(first) - logsigmoid(second))
    return yes + (-first).sigmoid() * (logsigmoid(-first) - logsigmoid(-second))
