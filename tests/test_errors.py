"""The texts a user reads and the exit codes a script reads."""

from __future__ import annotations

import signal

import pytest

from contrl.errors import ConfigErrors, EnvironmentFault, GuardStop, Interrupted, UserError


def test_an_error_says_where_what_why_and_how_to_mend_it() -> None:
    error = UserError("there is no file x", where="run.yaml:3", why="data needs one", fix="name a file")
    assert str(error) == "run.yaml:3: there is no file x\n  data needs one\n  name a file"
    assert (error.what, error.where, error.why, error.fix) == (
        "there is no file x",
        "run.yaml:3",
        "data needs one",
        "name a file",
    )


def test_what_is_not_known_leaves_no_gap() -> None:
    assert str(UserError("there is no file x")) == "there is no file x"
    assert str(UserError("there is no file x", fix="name a file")) == "there is no file x\n  name a file"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("x"), 2),
        (ConfigErrors([UserError("x")]), 2),
        (EnvironmentFault("x"), 4),
        (GuardStop("x"), 5),
        (Interrupted("x", signum=signal.SIGINT), 130),
        (Interrupted("x", signum=signal.SIGTERM), 143),
    ],
)
def test_exit_codes(error: UserError, code: int) -> None:
    assert error.exit_code == code


def test_codes_do_not_leak_from_one_error_to_the_next() -> None:
    Interrupted("x", signum=signal.SIGTERM)
    assert UserError("x").exit_code == 2
    assert Interrupted.exit_code == 2


def test_configuration_errors_come_all_at_once() -> None:
    errors = [UserError("unknown key a", where="run.yaml:1", fix="did you mean b?"), UserError("c is no number")]
    together = ConfigErrors(errors)
    assert together.errors == errors
    assert str(together) == "run.yaml:1: unknown key a\n  did you mean b?\nc is no number"


def test_an_interruption_names_the_next_command() -> None:
    assert str(Interrupted("stopped on request", signum=2, fix="contrl resume RUN")) == (
        "stopped on request\n  contrl resume RUN"
    )
