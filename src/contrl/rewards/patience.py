"""When to ask again: growing waits with jitter, and the wait a server asked for, kept by all threads of a judge.

A server that says "later" means everyone who asks with that key, so the wait is shared; one that says "in an hour" is
not waited for.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by the header Retry-After (a number, or an HTTP date); None without a usable one.

    A date is compared with the server's own clock (its header Date) where it tells it.
    """
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        then, now = _moment(value), _moment(headers.get("date"))
        if then is None:
            return None
        seconds = then - (time.time() if now is None else now)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _moment(date: str | None) -> float | None:
    try:
        moment: datetime = parsedate_to_datetime(date or "")
        return moment.timestamp()
    except (ValueError, OverflowError):
        return None


class Patience:
    """The waits of one judge.

    Args:
        first: seconds before the second attempt, doubled for each further one.
        longest: no single wait is longer.
        seed: of the jitter.
    """

    def __init__(self, first: float, longest: float, seed: int) -> None:
        self.first, self.longest = first, longest
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._open_at = 0.0

    def before(self, attempt: int) -> float:
        """Seconds to wait before attempt 1, 2, ... after the first: between half of the full wait and all of it."""
        with self._lock:
            return min(self.longest, self.first * 2 ** min(attempt - 1, 30)) * self._random.uniform(0.5, 1.0)

    def postpone(self, seconds: float) -> None:
        """Nobody asks within the next ``seconds``."""
        with self._lock:
            self._open_at = max(self._open_at, time.monotonic() + seconds)

    def pause(self, seconds: float, halt: threading.Event) -> bool:
        """Wait at least ``seconds``, and as long as the server asked for; False when that is too long, or on halt."""
        until = time.monotonic() + seconds
        while True:
            with self._lock:
                asked = self._open_at - time.monotonic()
            if asked > self.longest:
                return False
            left = max(asked, until - time.monotonic())
            if left <= 0:
                return not halt.is_set()
            if halt.wait(left):
                return False
