"""A reward model before the policy: where a pipeline names no reward, pairs of its data set teach one.

It is a run of its own inside the policy's folder, so it is continued, kept and reported like any other.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrl.cli.flags import override
from contrl.cli.training.rewards import NAMES
from contrl.config.tree import COMMAND_LINE, Scalar
from contrl.errors import UserError

if TYPE_CHECKING:
    from contrl.cli.training.request import Request
    from contrl.config import Resolved

FOLDER = "reward_model"
_SHARED = ("model.", "tasks.", "seed=", "max_bad_rows=", "tokens_per_pass=", "evaluation.num_items=")
_SHARED_TRAINING = ("max_steps", "report_to", "bf16", "fp16", "use_cpu", "logging_steps", "gradient_checkpointing")
LEARNING_RATE, NUM_EPOCHS = 1e-5, 1


def names_a_reward(request: Request) -> bool:
    """Whether flags or overrides say what completions are rewarded by."""
    given = any(name in request.given for name in NAMES)
    return given or any(text.startswith("rewards.functions=") for text in request.overrides)


def policy_overrides(folder: str) -> list[str]:
    """What the policy's run takes over: its part of the rows, and the reward model that comes first."""
    place = os.path.abspath(f"{folder}/{FOLDER}")
    model = f'classifier(model="{place}")'
    return ["tasks.name=part", "tasks.part=policy", override("rewards.functions", Scalar(COMMAND_LINE, model, True))]


def reward_run(request: Request, folder: str, overrides: list[str]) -> Resolved:
    """The configuration of the reward model's run.

    Args:
        request: the policy's.
        folder: the policy's.
        overrides: what the policy's run has beyond its flags, such as the path of the data.
    """
    from contrl.config import load
    from contrl.experiment import find

    method: dict[str, Any] = {"name": "reward"}
    if length := request.text("max_length"):
        method["max_length"] = int(length)
    given: dict[str, Any] = {
        "method": method,
        "tasks": {"name": "part", "part": "reward_model"},
        "training": {"learning_rate": LEARNING_RATE, "num_train_epochs": NUM_EPOCHS},
    }
    training = tuple(f"training.{name}=" for name in _SHARED_TRAINING)
    shared = [text for text in [*request.overrides, *overrides] if text.startswith((*_SHARED, *training))]
    place = override("output_dir", Scalar(COMMAND_LINE, f"{folder}/{FOLDER}", True))
    return load(given, [*shared, place], resolve=find, source="the reward model")


def make_room(resolved: Resolved, *, overwrite: bool) -> None:
    """Delete another run of the policy, or refuse to, before hours go into its reward model.

    Raises:
        UserError: another run lies in the folder and must not be overwritten.
    """
    from contrl.continual.run_folder import RunFolder

    folder = Path(resolved.config.output_dir)
    held = RunFolder(folder)
    if not held.exists or held.manifest().get("digest") == resolved.digest:
        return
    if not overwrite:
        fix = "give another output_dir, or --overwrite_output_dir to delete that run"
        raise UserError(f"{folder} holds a run with another configuration", fix=fix)
    if os.environ.get("RANK", "0") == "0":
        for item in folder.iterdir():
            if item.name == FOLDER:
                continue
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            else:
                item.unlink()


def report(folder: str) -> str:
    """The reward model's accuracy on pairs that were held out, in one line."""
    from contrl.continual import results

    place = Path(folder) / FOLDER
    found = results.read(place)
    cells = [cell for cell in found.matrix[-1] if cell is not None]
    if not cells:
        return f"the reward model is {place / 'final'}; no pairs were held out to judge it by"
    number = sum(cell.n or 0 for cell in cells)
    accuracy = sum(cell.value * (cell.n or 0) for cell in cells) / max(number, 1)
    return f"the reward model is {place / 'final'}: held-out accuracy {accuracy:.2f} on {number} pairs"
