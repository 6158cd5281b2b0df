"""The run folder: append-only records and a journal, written by rank 0, read by everyone.

The journal says which phase of which stage is finished, and a phase is journalled only after what it produced
is on disk; so a crash between two lines repeats a phase or skips none. Readers keep the last record of a kind
and ignore a torn last line.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from contrl.continual.records import read_manifest, read_records, write_atomic
from contrl.engine.checkpoint import discard_staging
from contrl.evaluation.scores import TaskScore
from contrl.interfaces import Stage

TEMPORARY = ".*.tmp"
"""Names of files that ``write_atomic`` has not renamed yet."""


class RunFolder:
    """Paths and records of one run. On ranks other than 0 every write does nothing.

    A flat folder is transformers': of one stage, whose checkpoints lie in the folder itself, and saved by the caller.
    """

    def __init__(self, path: Path, *, writes: bool = True, is_flat: bool = False) -> None:
        self.path, self.writes, self.is_flat = path, writes, is_flat

    # --- paths ------------------------------------------------------------------------------------

    def stage(self, stage: Stage) -> Path:
        """``stages/<k>-<task>``."""
        return self.path if self.is_flat else self.path / "stages" / stage.folder

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "run.json").exists()

    # --- manifest and journal ------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        """What run.json holds."""
        return read_manifest(self.path)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace run.json, whole or not at all."""
        if self.writes:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path / "run.json", json.dumps(manifest, indent=1).encode())

    def amend_manifest(self, **facts: Any) -> None:
        """Change entries of run.json."""
        if self.writes:
            self.write_manifest(self.manifest() | facts)

    def append(self, name: str, *records: dict[str, Any]) -> None:
        """Append records to a .jsonl file and flush them to disk."""
        if not self.writes:
            return
        with open(self.path / name, "ab+") as file:
            _mend_tail(file)
            for record in records:
                file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def mark(self, stage: int, event: str, **facts: Any) -> None:
        """A line in the journal."""
        self.append("journal.jsonl", {"stage": stage, "event": event, "time": round(time.time(), 3), **facts})

    def noted(self, stage: int, event: str) -> dict[str, Any] | None:
        """The last line of the journal about an event of a stage."""
        lines = read_records(self.path / "journal.jsonl", ("stage", "event"))
        return next((line for line in lines if line["stage"] == stage and line["event"] == event), None)

    def done(self, stage: int, event: str) -> bool:
        """Whether a phase of a stage was finished."""
        return self.noted(stage, event) is not None

    # --- scores -----------------------------------------------------------------------------------

    def scored(self, stage: int) -> dict[str, float | None]:
        """The tasks that were judged after this stage, with their scores: those of the metric they are judged by."""
        records = read_records(self.path / "scores.jsonl", ("stage", "task", "metric"))
        return {r["task"]: r["value"] for r in records if r["stage"] == stage and "beside" not in r}

    def write_score(self, stage: int, score: TaskScore) -> None:
        """The per-item file first, then the records that say it is there: score and what is beside it."""
        if not self.writes:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        (self.path / "eval").mkdir(exist_ok=True)
        names = ("id", "prompt", "completion", "score", "correct")
        types = (pa.string(), pa.string(), pa.string(), pa.float64(), pa.bool_())
        columns = [pa.array([getattr(item, n) for item in score.items], t) for n, t in zip(names, types, strict=True)]
        further = dict.fromkeys(name for item in score.items for name in item.extras)
        columns += [pa.array([item.extras.get(name) for item in score.items], pa.float64()) for name in further]
        table = io.BytesIO()
        pq.write_table(pa.table(columns, names=[*names, *further]), table)
        write_atomic(self.path / "eval" / f"{stage}-{score.task}.parquet", table.getvalue())
        place = {"stage": stage, "task": score.task}
        record = place | {"metric": score.metric, "value": score.value, "n": score.n, "se": score.se}
        beside = [place | entry | {"beside": score.metric} for entry in score.beside()]
        self.append("scores.jsonl", record, *beside)
        means = score.extras | {f"{score.metric}/{source}": value for source, value in score.by_source.items()}
        place |= {"step": 0}
        self.append("metrics.jsonl", *(place | {"name": f"eval/{name}", "value": v} for name, v in means.items()))

    # --- models -----------------------------------------------------------------------------------

    def publish_model(self, source: Path, names: Sequence[str] = ("final", ".")) -> None:
        """Hard-link the files of a stage's model into ``final/`` and the run folder itself."""
        if not self.writes:
            return
        for name in names:
            target = self.path / name
            target.mkdir(exist_ok=True)
            # The configuration last: a folder that has one is taken for a model.
            for file in sorted(source.iterdir(), key=lambda path: path.name.endswith("config.json")):
                if not file.is_file() or file.name.startswith(("strategy", "optimizer")):
                    continue
                link = target / file.name
                link.unlink(missing_ok=True)
                try:
                    os.link(file, link)
                except OSError:  # a file system without hard links
                    shutil.copy2(file, link)

    def tidy(self) -> None:
        """Remove what a crash left half written: staging folders, temporary files, torn last lines of logs."""
        if not self.writes:
            return
        for folder in (self.path, self.path / "eval", *(self.path / "stages").glob("*")):
            discard_staging(folder)
            for path in folder.glob(TEMPORARY):
                path.unlink(missing_ok=True)
        for path in self.path.glob("*.jsonl"):
            with open(path, "ab+") as file:
                _mend_tail(file)


def _mend_tail(file: BinaryIO) -> None:
    """Make the next record start on a line of its own.

    A last line without its newline was torn by a crash and is cut off; but if it is a whole record, readers have
    counted it, so it only gets its newline.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    try:
        whole = isinstance(json.loads(content[start:].decode("utf-8")), dict)
    except ValueError:
        whole = False
    if whole:
        file.write(b"\n")
    else:
        file.truncate(start)
