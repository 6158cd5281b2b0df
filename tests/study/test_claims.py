"""Who runs what: one winner, the dead replaced, the living elsewhere trusted while their heart beats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from contrl.study.claims import Claims, Holder

CLAIM = """
import sys; from pathlib import Path; from contrl.study.claims import Claims
print(Claims(Path(sys.argv[1])).take("a") is not None, flush=True); sys.stdin.read()
"""


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_of_many_one_gets_it(tmp_path):
    """Each thread has its own view of the folder, as another machine has."""
    with ThreadPoolExecutor(16) as threads:
        taken = list(threads.map(lambda _: Claims(tmp_path).take("a"), range(16)))
    (won,) = [claim for claim in taken if claim is not None]
    assert (won.number, Claims(tmp_path).holder("a")) == (1, Holder.here())
    assert Claims(tmp_path).take("b") is not None


def test_a_released_one_is_free_and_has_the_next_number(tmp_path):
    first = Claims(tmp_path).take("a")
    assert first is not None
    first.release()
    assert Claims(tmp_path).holder("a") is None
    second = Claims(tmp_path).take("a")
    assert second is not None
    assert second.number == 2


def test_a_process_that_is_dead_here_is_replaced_at_once(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", CLAIM, tmp_path], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    assert Claims(tmp_path).take("a") is None
    process.kill()
    process.wait()
    process.stdout.close()
    assert process.stdin is not None
    process.stdin.close()
    assert Claims(tmp_path).take("a") is not None


def test_a_reused_process_number_is_no_holder(tmp_path):
    claim = Claims(tmp_path).take("a")
    assert claim is not None
    rewrite(claim.path, process=f"{os.getpid()}:1")
    assert Claims(tmp_path).holder("a") is None


def test_elsewhere_the_heartbeat_decides(tmp_path):
    claim = Claims(tmp_path).take("a")
    assert claim is not None
    rewrite(claim.path, machine="another", process="1:1")
    assert Claims(tmp_path, stale=60).take("a") is None
    old = time.time() - 61
    os.utime(claim.path, (old, old))
    assert claim.beat()
    assert Claims(tmp_path, stale=60).take("a") is None
    os.utime(claim.path, (old, old))
    assert Claims(tmp_path, stale=60).take("a") is not None
    # The first one wakes up again and learns that the run is no longer its own.
    assert not claim.beat()


def test_a_claim_that_is_being_written_counts(tmp_path):
    claim = Claims(tmp_path).take("a")
    assert claim is not None
    claim.path.write_text("", encoding="utf-8")
    assert Claims(tmp_path).take("a") is None
