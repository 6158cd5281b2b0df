"""Data sets of the Hugging Face hub: downloaded, or as they were downloaded once, and a quick word when neither.

The libraries below try an unreachable hub six times, over 20 seconds. So one bounded question is asked first;
without an answer they are told that there is no network, and only look into their cache.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from contrl.data.files import missing_split, with_unique_ids
from contrl.data.folders import CONTINUAL_FILES, DATA_FOLDER
from contrl.errors import EnvironmentFault, UserError
from contrl.interfaces import Row

PATIENCE = 3.0
"""Seconds the hub has for its first answer."""

_REMEMBERED = 30.0
"""Seconds for which that answer is taken to hold."""

_NAME = re.compile(r"(?!.*(--|\.\.|\.git$))[\w](?:[\w.-]*\w)?(/\w(?:[\w.-]*\w)?)?", re.ASCII)
_LONGEST_NAME = 96


class Answer(NamedTuple):
    """What the hub said of a repository: its files, that it has none of that name, or nothing (``fault``)."""

    files: tuple[str, ...] = ()
    absent: str = ""
    fault: str = ""


def is_name(source: str) -> bool:
    """Whether ``source`` could be the name of a data set on the hub."""
    return len(source) <= _LONGEST_NAME and _NAME.fullmatch(source) is not None


def read_hub(name: str, split: str, config_name: str | None = None, data_dir: str | None = None) -> list[Row]:
    """The rows of one split, with ids; of one folder of the data set where ``data_dir`` is given.

    Raises:
        EnvironmentFault: the hub cannot be reached, and the data set was not downloaded before.
        UserError: no data set, configuration or split of that name.
    """
    splits = _load(name, config_name, data_dir)
    if split not in splits:
        raise missing_split(split, tuple(splits), f"the dataset {name}")
    return with_unique_ids([dict(row) for row in splits[split]], name)


def splits_of_hub(name: str, config_name: str | None = None) -> tuple[str, ...]:
    """The names of a data set's splits. Raises as ``read_hub``."""
    return tuple(_load(name, config_name))


def continual_file(name: str) -> Path | None:
    """The file of tasks of an AIF-Gen repository, downloaded; None when there is none or the hub is silent."""
    import huggingface_hub

    answer = _ask(name)
    for file in CONTINUAL_FILES:
        if file in answer.files:
            try:
                return Path(huggingface_hub.hf_hub_download(name, file, repo_type="dataset"))
            except (OSError, ValueError):  # the hub's own errors are kinds of these two
                return None
        cached = huggingface_hub.try_to_load_from_cache(name, file, repo_type="dataset") if answer.fault else None
        if isinstance(cached, str):
            return Path(cached)
    return None


@lru_cache(maxsize=8)
def _load(name: str, config_name: str | None, data_dir: str | None = None) -> dict[str, Any]:
    """Every split of a data set, on disk until its rows are asked for. Kept, so that all are of one revision."""
    import datasets

    answer = _ask(name)
    if answer.absent:
        raise UserError(
            f"there is no file, folder or hub dataset {name!r}",
            why=answer.absent,
            fix="check the name; for a private or gated dataset, log in to the hub and accept its terms",
        )
    try:
        with _no_network() if answer.fault else nullcontext():
            return dict(datasets.load_dataset(name, config_name, data_dir=data_dir))
    except ValueError as error:  # a configuration that is missing or unknown
        raise UserError(f"the dataset {name!r} cannot be read", why=_first_line(error), fix="see config_name") from None
    except Exception as error:  # datasets raises many kinds, all of which mean "not to be had"
        raise _unreachable(name, answer.fault or _first_line(error)) from None


def _unreachable(name: str, reason: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"the dataset {name!r} is no local file and could not be had from the hub",
        why=reason,
        fix=f"give a local file or folder; or put the data in ${DATA_FOLDER}/{name}/ (train.jsonl, test.jsonl); "
        "or connect to the network and try again",
    )


# --- the network ------------------------------------------------------------------------------------------


def _ask(name: str) -> Answer:
    """What the hub says of ``name`` now, asked at most once in a while."""
    return _asked(name, int(time.monotonic() // _REMEMBERED), os.environ.get("HF_HUB_OFFLINE", ""))


@lru_cache(maxsize=64)
def _asked(name: str, moment: int, offline: str) -> Answer:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    if constants.is_offline_mode():
        return Answer(fault="the network is switched off (HF_HUB_OFFLINE)")
    answers: list[Answer] = []

    def ask() -> None:
        try:
            info = HfApi().dataset_info(name, timeout=PATIENCE)
            answers.append(Answer(tuple(file.rfilename for file in info.siblings or ())))
        except RepositoryNotFoundError as error:
            answers.append(Answer(absent=_first_line(error)))
        except Exception as error:  # the HTTP library's own kinds
            answers.append(Answer(fault=f"the hub cannot be reached: {_first_line(error)}"))

    # A thread, because looking up the hub's address has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answers[0] if answers else Answer(fault=f"the hub did not answer within {PATIENCE:.0f} s")


@contextmanager
def _no_network() -> Iterator[None]:
    """Tell the libraries that there is no network, while the context is open."""
    from datasets import config
    from huggingface_hub import constants

    before = (constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE)
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def downloaded(name: str) -> Path | None:
    """Where an earlier download of a data set lies, found by its folder's name alone."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")).expanduser()
    folder = cache / name.replace("/", "___")
    return folder if folder.is_dir() else None
