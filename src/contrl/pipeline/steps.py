"""A step of a pipeline, ready to be carried out, and the digest that tells whether it was carried out already.

The digest covers the step's own settings and the digests of the steps it uses, not where the folders lie: so a change
early in a pipeline changes every step that depends on it, and moving the folder changes none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ModelOf = Callable[[str], str]
"""The name of a step -> the folder (or name) of the model it makes."""


@dataclass(frozen=True)
class Work:
    """What a command makes of a step.

    Attributes:
        digest: of its settings, with ``step:NAME`` for what other steps make.
        model: the model it starts from: a name, a folder or ``step:NAME``; "" when it has none.
        makes: the part of its folder that holds the model it makes ("final", "."), None when it makes none.
        run: carries it out, given where the models of other steps lie; finished or continued as far as it goes.
        plan: tells in lines what ``run`` would do; nothing is written.
    """

    digest: str
    model: str
    makes: str | None
    run: Callable[[ModelOf], None]
    plan: Callable[[ModelOf], None]


@dataclass(frozen=True)
class Step:
    """A named step.

    Attributes:
        name, command: as in the file.
        folder: where everything of it goes.
        uses: names of the steps whose models it uses.
        digest: of all it depends on.
        work: its command's part.
    """

    name: str
    command: str
    folder: Path
    uses: tuple[str, ...]
    digest: str
    work: Work

    @property
    def output(self) -> Path | None:
        """The folder of the model it makes."""
        return None if self.work.makes is None else self.folder / self.work.makes


def digest_of(command: str, own: str, used: Mapping[str, str]) -> str:
    """The digest of a step: its command, its own settings' digest, and those of the steps it uses."""
    text = json.dumps([command, own, dict(sorted(used.items()))], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def origin(name: str, steps: Mapping[str, Step]) -> str:
    """The model that a step's model began as, through the steps between: a name or folder from outside."""
    while name in steps and steps[name].work.model:
        model = steps[name].work.model
        if not model.startswith("step:"):
            return model
        name = model.removeprefix("step:")
    return name
