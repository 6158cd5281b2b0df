"""What was paid for once and is kept: an append-only file of entries by key, whole portions or nothing.

A portion (the answers or scores of one batch) is one line, so a kill leaves all of it or none: what is computed again
is then computed in the same company as without the kill, and comes out the same to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contrl.errors import EnvironmentFault, UserError


def key_of(*parts: Any) -> str:
    """A key for what has this content: any JSON values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Kept:
    """Entries of one file, read when opened; ``add`` writes a portion and flushes it to disk.

    Raises:
        UserError: a line in the middle is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, Any] = {}
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        for number, line in enumerate(lines[:-1], start=1):  # what follows the last line end was torn by a kill
            self._entries |= self._portion(line, number)

    def _portion(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            portion = json.loads(line.decode("utf-8"))
            if not isinstance(portion, dict):
                raise ValueError("it is no object")
        except ValueError as error:
            raise UserError(
                "a line of what was kept is damaged",
                where=f"{self.path}:{number}",
                why=str(error),
                fix="remove that line: what it held is made again",
            ) from error
        return portion

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __getitem__(self, key: str) -> Any:
        return self._entries[key]

    def add(self, portion: Mapping[str, Any]) -> None:
        """Keep these entries, all of them or none; a line that a kill has torn is cut off first."""
        line = json.dumps(dict(portion), allow_nan=False).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab+") as file:
                file.seek(0)
                content = file.read()
                if not content.endswith(b"\n"):
                    file.truncate(content.rfind(b"\n") + 1)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EnvironmentFault(
                f"cannot write to {self.path}: {error.strerror}",
                why="what is computed from here on would be lost",
                fix="make room or choose another folder, and run the same command again",
            ) from error
        self._entries |= portion
