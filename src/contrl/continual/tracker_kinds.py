"""What one tracker needs besides transformers' callback: where its run lives, how it goes on, how it ends.

The callbacks of TensorBoard and W&B start a run of their own for each process; here both are given one that belongs
to the run folder. W&B is only ever started in a way that cannot ask for a key.
"""

from __future__ import annotations

import contextlib
import json
import netrc
import os
import re
import secrets
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from contrl.continual.records import write_atomic
from contrl.continual.run_folder import RunFolder

REACH_SECONDS, STOP_SECONDS = 5.0, 20.0
"""How long a server may take to answer, and W&B's service to stop."""

WANDB_SURROUNDINGS = {
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_INIT_TIMEOUT": "30",
    "WANDB_FINISH_TIMEOUT": "120",
}
"""What W&B is told where the user has not: print nothing, capture nothing, report no errors home, give up in time."""

STATE_FILE = "trackers.json"
"""In the run folder: the id of its W&B run, so that a resumed experiment goes on there."""


@dataclass(frozen=True)
class Experiment:
    """What a tracker run is called and told, and where its files go."""

    folder: RunFolder
    name: str
    config: Mapping[str, Any]
    say: Callable[[str], None]


class Tracker:
    """One of transformers' integrations, set up once and ended once."""

    def __init__(self, name: str, callback: Any, experiment: Experiment) -> None:
        self.name, self.callback, self.experiment = name, callback, experiment

    def open(self, arguments: TrainingArguments, step: int) -> None:
        """Before the callback's own set-up, at this global step."""

    def saved(self, checkpoint: Path, step: int) -> None:
        """A checkpoint is complete, at this global step."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table, where the tracker has such a thing."""

    def close(self) -> None:
        """After the callback's own end."""


class TensorBoard(Tracker):
    """Writes to ``runs/<name>`` of the run folder; a resumed run goes on there and takes back unsaved steps."""

    def open(self, arguments: TrainingArguments, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = Path(self.callback.logging_dir or self.experiment.folder.path / "runs" / self.experiment.name)
        self.callback.logging_dir = str(place)
        resumes = place.is_dir() and any(place.iterdir())
        self.callback.tb_writer = SummaryWriter(log_dir=str(place), purge_step=step + 1 if resumes else None)
        self.callback.tb_writer.add_text("config", json.dumps(self.experiment.config, indent=1, default=str), step)

    def close(self) -> None:
        if self.callback.tb_writer is not None:
            self.callback.tb_writer.close()


class Wandb(Tracker):
    """Opens the W&B run that the callback then finds; a run that the user has opened is used and left open.

    What the variable WANDB_LOG_MODEL asks for is kept as artifacts from the folders that are written anyway, where the
    callback would write the model once more: ``end`` the final model, ``checkpoint`` every checkpoint, too.
    """

    run: Any = None

    def __init__(self, name: str, callback: Any, experiment: Experiment) -> None:
        super().__init__(name, callback, experiment)
        self.keeps = os.environ.get("WANDB_LOG_MODEL", "false").lower()
        callback._log_model = type(callback._log_model)("false")

    def open(self, arguments: TrainingArguments, step: int) -> None:
        import wandb

        if wandb.run is None:
            why_offline = _why_offline(wandb)
            try:
                self._start(wandb, arguments, "offline" if why_offline else None)
            except Exception as error:
                if why_offline:
                    raise
                why_offline = shown(error)
                _teardown(wandb)  # its service still holds the id of the run that did not start
                self._start(wandb, arguments, "offline")
            if why_offline:
                again = f"wandb sync {Path(self.run.dir).parent}"
                self.experiment.say(f"tracker  W&B runs offline ({why_offline}); upload later with: {again}")
        wandb.config.update({"contrl": self.experiment.config}, allow_val_change=True)

    def _start(self, wandb: Any, arguments: TrainingArguments, mode: str | None) -> None:
        folder = self.experiment.folder.path
        known = _read_state(folder).get("wandb")
        run_id = os.environ.get("WANDB_RUN_ID") or known or secrets.token_hex(4)
        if run_id != known:
            write_atomic(folder / STATE_FILE, json.dumps(_read_state(folder) | {"wandb": run_id}).encode())
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or arguments.project or "huggingface",
            name=self.experiment.name,
            id=run_id,
            dir=os.environ.get("WANDB_DIR") or str(folder),
            resume=os.environ.get("WANDB_RESUME") or "allow",
            mode=mode,
        )
        if known and self.run.offline:
            # Offline nobody knows how far W&B's own record number got, and two parts of a run must not share numbers;
            # so this part starts above: every record so far left at least one line in these files.
            self.run.log({}, step=sum(_num_lines(folder / name) for name in ("metrics.jsonl", "scores.jsonl")) + 1)

    def saved(self, checkpoint: Path, step: int) -> None:
        if self.keeps == "checkpoint":
            self._keep(checkpoint, f"checkpoint_global_step_{step}")

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb

        if wandb.run is not None:
            wandb.run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def close(self) -> None:

        final = self.experiment.folder.path / "final"  # there once the last stage has ended
        whole = any((final / name).is_file() for name in ("config.json", "adapter_config.json"))
        if whole and self.keeps in ("end", "checkpoint"):
            self._keep(final, "final_model")
        if self.run is not None:
            run, self.run = self.run, None
            run.finish()

    def _keep(self, folder: Path, alias: str) -> None:
        """A model folder as an artifact of the run."""
        import wandb

        artifact = wandb.Artifact(re.sub(r"[^\w.-]+", "-", f"model-{self.experiment.name}"), type="model")
        artifact.add_dir(str(folder))
        if wandb.run is not None:
            wandb.run.log_artifact(artifact, aliases=[alias])


KINDS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb}


def make(name: str, experiment: Experiment) -> Tracker | None:
    """The tracker of that name; when it cannot be used here, one line says so."""
    try:
        callback = INTEGRATION_TO_CALLBACK[name]()
    except Exception as error:
        hint = f"pip install {name.replace('_', '-')}"
        experiment.say(f"tracker  {name} cannot be used, the run goes on without it ({hint}): {shown(error)}")
        return None
    return KINDS.get(name, Tracker)(name, callback, experiment)


def prepare_wandb() -> None:
    """Before wandb is loaded; what the user has set stays."""
    for variable, value in WANDB_SURROUNDINGS.items():
        os.environ.setdefault(variable, value)


def _why_offline(wandb: Any) -> str:
    """Why W&B has to run offline, "" when it need not. Without a key it would ask for one."""
    settings = wandb.setup().settings
    if settings.mode in ("offline", "dryrun"):
        return "as WANDB_MODE says"
    if settings.mode == "disabled":
        return ""
    url = str(settings.base_url)
    if settings.api_key or settings.identity_token_file or _has_login(url):
        return _unreachable(url)
    return "no API key: WANDB_API_KEY or `wandb login`"


def _unreachable(url: str) -> str:
    """Why the server cannot be reached, "" when it can or only a proxy knows.

    Asked before a run is started online: W&B's service goes on trying, and then does not always let itself be stopped.
    """
    if any(os.environ.get(name) or os.environ.get(name.lower()) for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")):
        return ""
    server = urlsplit(url)
    port = server.port or (80 if server.scheme == "http" else 443)
    try:
        socket.create_connection((server.hostname or "", port), timeout=REACH_SECONDS).close()
    except OSError as error:
        return f"{server.hostname} cannot be reached: {shown(error)}"
    return ""


def _teardown(wandb: Any) -> None:
    """Stop W&B's service, or give up on it.

    Raises:
        TimeoutError: it does not stop; this tracker is then dropped.
    """
    stopping = threading.Thread(target=wandb.teardown, daemon=True)
    stopping.start()
    stopping.join(STOP_SECONDS)
    if stopping.is_alive():
        raise TimeoutError("W&B's service does not stop")


def _has_login(url: str) -> bool:
    """Whether ``wandb login`` has left a key for this server, in the netrc file where W&B itself looks for one."""
    home = [path for name in (".netrc", "_netrc") if (path := Path.home() / name).exists()]
    named = os.environ.get("NETRC")
    for path in [Path(named).expanduser()] if named else home[:1]:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            found = netrc.netrc(path).authenticators(urlsplit(url).netloc)
            return bool(found and found[2])
    return False


def without_secrets(value: Any) -> Any:
    """A copy of a configuration in which keys and tokens are not readable."""
    if isinstance(value, Mapping):
        return {key: "***" if item and _is_secret(str(key)) else without_secrets(item) for key, item in value.items()}
    return [without_secrets(item) for item in value] if isinstance(value, list | tuple) else value


def _is_secret(key: str) -> bool:
    return key.lower().rpartition("_")[2] in ("token", "key", "secret", "password")


def shown(error: Exception) -> str:
    """An exception as a short line without the key that it may repeat."""
    text = next((line for line in str(error).splitlines() if line.strip()), "").strip()[:200]
    key = os.environ.get("WANDB_API_KEY")
    text = text.replace(key, "***") if key else text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0
