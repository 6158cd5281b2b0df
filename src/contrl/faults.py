"""Named points at which a test can stop the program, in process or by a true SIGKILL.

Crash safety is a promise, so the places where a crash would hurt carry a name: ``reach("saving")`` does
nothing unless the environment (or a test) armed that point. Nothing else in contrl depends on this module.
"""

from __future__ import annotations

import os
import signal

POINTS = (
    "training",
    "sampling",
    "saving",
    "evaluation",
    "after_task",
    "looked_back",
    "importance",
    "between_stages",
    "between_steps",
    "base",
)

_armed: dict[str, int] = {}


class Killed(BaseException):
    """Raised at an armed point in process; not an Exception, so that nothing catches it by accident."""


def arm(point: str, visit: int) -> None:
    """Raise ``Killed`` at the ``visit``-th time (from 1) the point is reached; 0 disarms it."""
    if point not in POINTS:
        raise ValueError(f"no fault point {point!r}; known: {', '.join(POINTS)}")
    _armed[point] = visit


def reach(point: str) -> None:
    """Stop here if the point is armed: by ``arm``, or by ``CONTRL_FAULT=point:visit`` (a SIGKILL to itself)."""
    environment = os.environ.get("CONTRL_FAULT", "")
    if not environment and not _armed:
        return
    name, _, visit = environment.partition(":")
    if name == point:
        if int(visit or 1) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        os.environ["CONTRL_FAULT"] = f"{name}:{int(visit) - 1}"
    if _armed.get(point, 0) > 0:
        _armed[point] -= 1
        if _armed[point] == 0:
            raise Killed(point)
