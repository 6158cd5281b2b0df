"""Which items changed sides between two rows: right before and wrong after, wrong before and right after.

A mean can stand still while half of the items change; flips show it. They need one bit per item, so a task judged by a
log-probability or a reward model, which calls nothing right, has none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from contrl.continual.matrix import Matrix
from contrl.continual.resampling import resampled_means


@dataclass(frozen=True)
class Flips:
    """Shares of a task's items, which add up to 1.

    Attributes:
        lost: right in row ``since``, wrong in row ``until``; ``gained`` the reverse.
        kept, never: right in both, wrong in both.
        n: items whose bit is known in both rows.
    """

    column: int
    since: int
    until: int
    lost: float
    gained: float
    kept: float
    never: float
    n: int
    bits: np.ndarray = field(repr=False, compare=False)

    def draws(self, name: str) -> np.ndarray | None:
        """``[RESAMPLES]`` shares of ``lost`` or ``gained`` items, the items drawn again; None of fewer than two."""
        before, after = self.bits[:, 0], self.bits[:, 1]
        flipped = before & ~after if name == "lost" else after & ~before
        return None if self.n < 2 else resampled_means(flipped[:, None].astype(float), [self.column])[:, 0]


def flips_of(matrix: Matrix, column: int, since: int, until: int) -> Flips | None:
    """The flips of a task between two rows; None where no item has its bit in both."""
    before, after = matrix.correct.get((since, column), {}), matrix.correct.get((until, column), {})
    keys = sorted(before.keys() & after.keys())
    if not keys:
        return None
    bits = np.array([[before[key], after[key]] for key in keys], dtype=bool)
    first, second = bits[:, 0], bits[:, 1]
    lost, gained, kept, never = (
        float(np.mean(each)) for each in (first & ~second, second & ~first, first & second, ~first & ~second)
    )
    return Flips(column, since, until, lost, gained, kept, never, len(keys), bits)
