"""Whether the hub can give a model, known within seconds; the libraries below would retry for half a minute.

One small file is asked for, without retries and under a hard limit of time, before anything is loaded. What is
in the local cache still loads without network.
"""

from __future__ import annotations

import threading

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from contrl.errors import EnvironmentFault, UserError
from contrl.models.embedded import NAMES

SECONDS = 4.0
"""The longest wait for the hub's answer, name resolution included."""

ALTERNATIVES = f"or name a local folder; or an embedded model ({', '.join(NAMES)})"


def only_cached(name: str, revision: str | None = None) -> bool:
    """Whether ``name`` must be loaded from the local cache because the hub does not answer.

    Raises:
        UserError: for a name that cannot be one on a hub.
        EnvironmentFault: for a gated, missing or unreachable model that is not cached; naming the ways out.
    """
    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    except HFValidationError:
        raise UserError(
            f"there is no model folder {name}", fix="name an existing folder, tiny, smollm2, or a hub id"
        ) from None
    problem = None if constants.HF_HUB_OFFLINE else _ask(name, revision)
    if problem is None and not constants.HF_HUB_OFFLINE:
        return False
    if cached:
        return True
    raise fault(name, problem)


def fault(name: str, problem: BaseException | None) -> EnvironmentFault:
    """What is wrong with a model on the hub, and the three ways out. ``None``: offline by choice."""
    why = "" if problem is None else (str(problem).strip().splitlines() or [""])[0]
    if isinstance(problem, GatedRepoError):
        what, way = f"the model {name!r} is gated", "ask for access on its page and log in: hf auth login"
        why = "its owners give it to those who accepted its terms"
    elif isinstance(problem, RepositoryNotFoundError):
        what, way = f"the hub has no model {name!r}, or it is private", "correct the name, or log in: hf auth login"
        why = "neither a folder of this name nor an embedded model is there"
    elif isinstance(problem, RevisionNotFoundError):
        what, way = f"the model {name!r} has no such revision on the hub", "correct the revision"
    elif isinstance(problem, EntryNotFoundError):
        what, way = f"{name!r} on the hub is no model for transformers: it has no config.json", "name another model"
    else:
        what = f"the model {name!r} is no folder and could not be had from the hub"
        way = "connect to the network" if problem is not None else "unset HF_HUB_OFFLINE and connect to the network"
        why = why or "this machine is set to work offline, and the model is not in its cache"
    return EnvironmentFault(what, why=why, fix=f"{way}; {ALTERNATIVES}")


def _ask(name: str, revision: str | None) -> BaseException | None:
    """What goes wrong when the hub is asked for the model's config; None when nothing does."""
    outcome: list[BaseException | None] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=SECONDS - 1)
            outcome.append(None)
        except Exception as error:  # whatever the transport below raises
            outcome.append(error)

    # A thread, because resolving a name has no limit of its own; it dies with the process.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return outcome[0] if outcome else TimeoutError(f"no answer within {SECONDS:.0f} s")
