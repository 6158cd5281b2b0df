"""Waits between requests: their size, their seed, and what a server's Retry-After means."""

from __future__ import annotations

import threading
import time
from email.utils import formatdate

import pytest

from contrl.rewards.patience import Patience, retry_after

DATE = "Fri, 31 Dec 1999 23:59:{:02d} GMT"


def test_waits_double_up_to_the_longest_and_keep_half_of_it_at_least() -> None:
    """First 1 s, longest 5 s: 1, 2, 4, 5, 5; jitter takes away at most half."""
    patience = Patience(1.0, 5.0, seed=0)
    waits = [patience.before(attempt) for attempt in (1, 2, 3, 4, 1000)]
    assert all(full / 2 <= wait <= full for wait, full in zip(waits, (1, 2, 4, 5, 5), strict=True))
    assert len({wait / full for wait, full in zip(waits, (1, 2, 4, 5, 5), strict=True)}) == 5


def test_the_jitter_is_seeded() -> None:
    waits = [[Patience(1.0, 5.0, seed).before(1) for _ in range(2)] for seed in (1, 2)]
    assert waits[0][0] == waits[0][1] != waits[1][0]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "-7"}, 0.0),
        ({"retry-after": DATE.format(45), "date": DATE.format(30)}, 15.0),
        ({"retry-after": DATE.format(30), "date": DATE.format(45)}, 0.0),
        ({"retry-after": DATE.format(30)}, 0.0),
        *(({"retry-after": text}, None) for text in ("soon", "", "nan", "inf")),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_a_date_without_the_servers_clock_is_compared_with_ours() -> None:
    """A date has whole seconds, so up to one is lost."""
    wait = retry_after({"retry-after": formatdate(time.time() + 20, usegmt=True)})
    assert wait is not None
    assert 18.5 < wait <= 20


def test_a_pause_lasts_as_long_as_it_must_and_ends_on_halt() -> None:
    patience, halt = Patience(1.0, 1.0, seed=0), threading.Event()
    begin = time.monotonic()
    assert patience.pause(0.02, halt)
    patience.postpone(0.05)
    assert patience.pause(0.0, halt)
    assert time.monotonic() - begin >= 0.07
    patience.postpone(2.0)
    begin = time.monotonic()
    assert not patience.pause(0.0, halt)  # longer than the longest wait: not waited for
    threading.Timer(0.03, halt.set).start()
    assert not Patience(1.0, 9.0, seed=0).pause(9.0, halt)
    assert time.monotonic() - begin < 1.0
