"""The errors a user can cause, and the exit code each one ends the command with.

An error that a user can cause says what is wrong, where, why, and how to mend it; the command line
prints exactly that and no traceback. Everything else is a bug and keeps its traceback (exit code 1).
"""

from __future__ import annotations

OK, BUG, USAGE, PARTLY, ENVIRONMENT, GUARD, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 5, 130, 143


class UserError(Exception):
    """A mistake of the user or of the input: usage, configuration, missing or invalid data (exit code 2).

    Args:
        what: the fact, with the value that is wrong.
        where: file, line, row or key, when there is one.
        why: the reason it is refused, when the fact alone does not say it.
        fix: what to do instead.
    """

    exit_code = USAGE

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.what, self.where, self.why, self.fix = what, where, why, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return "\n".join([head, *(f"  {line}" for line in (self.why, self.fix) if line)])


class ConfigErrors(UserError):
    """Every configuration error of one pass, together."""

    def __init__(self, errors: list[UserError]) -> None:
        self.errors = errors
        super().__init__("\n".join(str(error) for error in errors))


class Refused(UserError):
    """A method and a strategy that do not go together; a study can leave such a pair out."""


class PartlyFailed(UserError):
    """Some of several runs failed, the others are finished (exit code 3)."""

    exit_code = PARTLY


class EnvironmentFault(UserError):
    """The machine lacks something: an optional extra, a device, a reachable hub, disk (exit code 4)."""

    exit_code = ENVIRONMENT


class GuardStop(UserError):
    """A guard stopped the run to save it: NaN or an exploding loss (exit code 5)."""

    exit_code = GUARD


class Interrupted(UserError):
    """The user or the scheduler asked to stop; what was computed is saved (exit code 130 or 143)."""

    def __init__(self, what: str, *, signum: int, fix: str = "") -> None:
        self.exit_code = 128 + signum
        super().__init__(what, fix=fix)
