"""Steps without training: each writes what it was given into a file, so that a chain of them can be followed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contrl.pipeline.steps import ModelOf, Step, Work, digest_of


@dataclass
class Chain:
    """Steps in ``folder`` and the names of those that were run, in order."""

    folder: Path
    ran: list[str] = field(default_factory=list)
    planned: list[str] = field(default_factory=list)

    def steps(self, given: Mapping[str, str], **broken: Callable[[], None]) -> list[Step]:
        """``{"b": "step:a +1"}``: b appends " +1" to what a wrote; a name ending in ``eval`` makes no model.

        Args:
            given: name -> text in which ``step:NAME`` stands for what that step wrote.
            broken: name -> called in the middle of that step.
        """
        made: dict[str, Step] = {}
        for name, text in given.items():
            uses = tuple(word.removeprefix("step:") for word in text.split() if word.startswith("step:"))
            made[name] = self._step(name, text, uses, made, broken.get(name, lambda: None))
        return list(made.values())

    def _step(
        self, name: str, text: str, uses: Sequence[str], made: Mapping[str, Step], broken: Callable[[], None]
    ) -> Step:
        folder = self.folder / name
        judges = name.endswith("eval")
        place = folder if judges else folder / "final"

        def run(model_of: ModelOf) -> None:
            self.ran.append(name)
            place.mkdir(parents=True, exist_ok=True)
            broken()
            words = [
                self._read(model_of(word.removeprefix("step:"))) if "step:" in word else word for word in text.split()
            ]
            (place / "config.json").write_text(" ".join(words), encoding="utf-8")
            if judges:
                metrics = json.dumps({"win_rate": 0.75, "win_rate_ci": [0.5, 1.0], "missing": 0, "judge": "someone"})
                (folder / "evaluation_metrics.json").write_text(metrics, encoding="utf-8")

        def plan(model_of: ModelOf) -> None:
            self.planned.append(f"{name} from {', '.join(model_of(use) for use in uses)}".removesuffix(" from "))

        own = hashlib.sha256(text.encode()).hexdigest()
        digest = digest_of("teach", own, {use: made[use].digest for use in uses})
        model = f"step:{uses[0]}" if uses else text.split()[0]
        work = Work(own, model, None if judges else "final", run, plan)
        return Step(name, "judge" if judges else "teach", folder, tuple(uses), digest, work)

    @staticmethod
    def _read(folder: str) -> str:
        return (Path(folder) / "config.json").read_text(encoding="utf-8")

    def wrote(self, name: str) -> str:
        """What a step has written."""
        return self._read(str(self.folder / name / ("" if name.endswith("eval") else "final")))
