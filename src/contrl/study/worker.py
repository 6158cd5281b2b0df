"""One run in a process of its own: claim it, say once in a while that it lives, run it, tell how it ended.

Isolation is the point: a run that is killed, or that breaks its process, takes nothing else with it. The process
leaves the terminal's group, so that Ctrl-C reaches only the pool, which then asks each run once to save and stop;
and it watches the pool, so that no run goes on without one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from contrl.config import Resolved
from contrl.continual.records import write_atomic
from contrl.continual.study_manifest import FAILED, LOGS
from contrl.errors import BUG, OK, Interrupted, UserError
from contrl.study.claims import BEAT, STALE, Claim, Claims

TAKEN = 75
"""Exit code: another process has the run."""
MODEL_FILES = ("*.safetensors", "*.bin", "tokenizer*", "adapter_config.json", "optimizer.pt")


@dataclass(frozen=True)
class Job:
    """One run as a process is told of it.

    Attributes:
        environment: of the pool: the process that is forked from may have been started under another one.
        command: for the run's manifest.
        prepare: called before the run.
        stale: seconds after which a silent holder elsewhere counts as gone.
    """

    run_id: str
    resolved: Resolved
    study: Path
    keep_weights: bool
    environment: Mapping[str, str]
    command: tuple[str, ...]
    prepare: Callable[[], object]
    stale: float = STALE


def main(job: Job) -> None:
    """The process; exits with what became of the run."""
    os.setpgid(0, 0)
    os.environ.update(job.environment)
    claim = Claims(job.study, stale=job.stale).take(job.run_id)
    if claim is None:
        sys.exit(TAKEN)
    _to_log(job)
    threading.Thread(target=_watch, args=(claim,), daemon=True).start()
    code = _run(job)
    claim.release()
    sys.exit(code)


def write_failure(study: Path, run_id: str, what: str, exit_code: int) -> None:
    """Note why a run failed; the next start of the study tries it again."""
    told = {"what": what, "exit_code": exit_code, "time": round(time.time(), 3), "host": platform.node()}
    (study / FAILED).mkdir(parents=True, exist_ok=True)
    write_atomic(study / FAILED / f"{run_id}.json", json.dumps(told, ensure_ascii=False).encode())


def _run(job: Job) -> int:
    """Run, or continue; the exit code."""
    import torch

    from contrl.launch import Options, start

    torch.set_num_threads(1)
    job.prepare()
    (job.study / FAILED / f"{job.run_id}.json").unlink(missing_ok=True)
    try:
        folder = start(job.resolved, Options(command=job.command, page=False, resumes=True, say=_say))
        if not job.keep_weights:
            drop_weights(folder)
        _say(f"took     {time.process_time():.0f} s of processor time")
    except Interrupted as stopped:
        print(stopped, flush=True)
        return stopped.exit_code
    except UserError as error:
        print(error, flush=True)
        write_failure(job.study, job.run_id, str(error), error.exit_code)
        return error.exit_code
    except Exception as error:  # whatever breaks this run must not stop the others
        traceback.print_exc()
        sys.stderr.flush()
        write_failure(job.study, job.run_id, f"{type(error).__name__}: {error}", BUG)
        return BUG
    return OK


def drop_weights(folder: Path) -> None:
    """Delete the models of a finished run; its records, scores and results stay."""
    for name in ("base", "stages", "final"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for pattern in MODEL_FILES:
        for path in folder.glob(pattern):
            path.unlink()


def _to_log(job: Job) -> None:
    """What the run prints goes to its file, whoever prints it."""
    (job.study / LOGS).mkdir(parents=True, exist_ok=True)
    log = os.open(job.study / LOGS / f"{job.run_id}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)


def _say(text: str) -> None:
    print(text, flush=True)


def _watch(claim: Claim) -> None:
    """Heartbeats; ends the run when its claim is lost, and asks it to stop when the pool is gone."""
    pool, asked, last = multiprocessing.parent_process(), False, time.monotonic()
    while True:
        time.sleep(0.5)
        if not asked and pool is not None and not pool.is_alive():
            asked = True
            os.kill(os.getpid(), signal.SIGTERM)
        if time.monotonic() - last >= BEAT:
            last = time.monotonic()
            if not claim.beat():
                # Another process writes to this run's folder now.
                print("this run was taken over by another process", flush=True)
                os._exit(TAKEN)
