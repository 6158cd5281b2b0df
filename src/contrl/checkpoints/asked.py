"""What is to be judged, and how: the weights that were found, the configuration to judge them by, and where it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from contrl.checkpoints.saved import Saved, SavedRun
from contrl.config import Resolved
from contrl.experiment import find


@dataclass(frozen=True)
class Asked:
    """What is judged, and how.

    Attributes:
        saved: the weights.
        resolved: the configuration to judge by: the run's own, with changes, or one made of flags.
        output: folder of the results.
        fills: whether that is the run itself, with nothing changed.
        ends_only: leave checkpoints from within a stage out.
        report_to, run_name: trackers of an evaluation in a folder of its own; a run's tracker run is its training's.
        command: the command line, for the manifest.
        overwrite: delete another evaluation in ``output`` first.
        dry_run: stop after telling what would be done.
        say: prints a line, on rank 0.
    """

    saved: SavedRun
    resolved: Resolved
    output: Path
    fills: bool
    ends_only: bool = False
    report_to: str = "none"
    run_name: str | None = None
    command: Sequence[str] = ()
    overwrite: bool = False
    dry_run: bool = False
    say: Callable[[str], None] = print

    @property
    def rows(self) -> list[Saved]:
        """The rows to judge: of each the folders that were asked for."""
        rows = [replace(row, between=()) if self.ends_only else row for row in self.saved.rows]
        return [row for row in rows if row.folders]

    @property
    def is_classifier(self) -> bool:
        """Whether the weights are a reward model's."""
        return "scores" in find("method", self.resolved.config.method.name).needs

    @property
    def is_run(self) -> bool:
        """Whether they are those of a run of ours, whose configuration and strategies are known."""
        return self.saved.kind == "run"
