"""A judge's good answers on disk, so that nothing is paid for or waited for twice.

One SQLite file that several processes may share; each answer is its own transaction, so a kill loses none that was
kept. It holds digests of questions, reply texts and scores: no key, no prompt. A cache that cannot be used costs time
and money but never a score: what went wrong is told in ``fault``.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

FILE = "answers.sqlite"
_AT_ONCE = 500  # questions in one query; SQLite bounds the number of its parameters


class AnswerCache:
    """Replies by question digest; used as a context, from any thread.

    Args:
        folder: where the file lies, made when needed; None keeps nothing.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.fault = ""
        self._lock = threading.Lock()
        self._file: sqlite3.Connection | None = None

    def __enter__(self) -> AnswerCache:
        if self.folder is None:
            return self
        file = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The rollback journal, not WAL: it also works where home folders lie on a network file system.
            file = sqlite3.connect(self.folder / FILE, timeout=30, check_same_thread=False)
            with file:
                file.execute(
                    "CREATE TABLE IF NOT EXISTS answers (question TEXT PRIMARY KEY, reply TEXT NOT NULL, score REAL)"
                )
            self._file = file
        except (OSError, sqlite3.Error) as error:
            if file is not None:
                file.close()
            self._give_up(error)
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None

    def replies(self, questions: Sequence[str]) -> dict[str, str]:
        """The replies that are kept for these questions."""
        found: dict[str, str] = {}
        with self._lock:
            for start in range(0, len(questions), _AT_ONCE):
                part = questions[start : start + _AT_ONCE]
                places = ",".join("?" * len(part))
                if self._file is None:
                    break
                try:
                    found.update(
                        self._file.execute(f"SELECT question, reply FROM answers WHERE question IN ({places})", part)
                    )
                except sqlite3.Error as error:
                    self._give_up(error)
        return found

    def keep(self, question: str, reply: str, score: float | None) -> None:
        """Keep one good answer. ``score`` is for readers of the file: contrl reads the reply again."""
        with self._lock:
            if self._file is None:
                return
            try:
                with self._file:
                    self._file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (question, reply, score))
            except sqlite3.Error as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.fault = self.fault or f"answers of the judge are not kept in {self.folder}: {error}"
        if self._file is not None:
            self._file.close()
            self._file = None
