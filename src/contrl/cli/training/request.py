"""From what was written (defaults, a file, the command line; later ones win) to what is asked for.

Every mistake is collected before any is told: unknown flags, missing values, refused flags, absent required ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from contrl.cli.flags import Flag, Found, Given, override, read_argv, read_section, readable
from contrl.cli.training.declared import known
from contrl.cli.training.meaning import Meaning, meaning_of
from contrl.cli.training.online import is_online
from contrl.cli.training.table import COMMANDS, flags_of, home_of
from contrl.config import tree
from contrl.config.tree import COMMAND_LINE, Fields, Node, Scalar
from contrl.config.walk import nearest
from contrl.errors import ConfigErrors, UserError

_REQUIRED = ("model_name_or_path", "dataset_name")
READER = "dataset"
_READERS = (READER, "part")
"""Sequences that read what a path or a name stands for."""
_REWARDED = ("countdown", "tables_and_rules")
"""Sequences whose tasks bring their own reward."""
_OF_A_RUN = {"model", "method", "tasks", "training", "evaluation", "base"}
"""Keys of a file for ``contrl run``, which no flag has."""


class Asks(NamedTuple):
    """What a command must be given, and what a word without a flag is."""

    required: tuple[str, ...] = _REQUIRED
    word: str = "dataset_name"


TRAINING = Asks()


@dataclass
class Request:
    """What a training command is asked to do.

    Attributes:
        command: sft, reward, ...
        given: the value of each flag by its name.
        overrides: dotted paths and their values, in the order to apply them.
        notes: what to say about flags without effect, deprecated ones and defaults.
        environment: variables to set before anything is loaded.
    """

    command: str
    given: dict[str, Given]
    overrides: list[str]
    notes: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def text(self, name: str, default: str = "") -> str:
        """A flag's value as one word."""
        return self.given[name].text if name in self.given else default

    def is_on(self, name: str) -> bool:
        """Whether a switch is on."""
        return name in self.given and not self.given[name].is_no


def read(
    command: str,
    argv: Sequence[str],
    defaults: Sequence[str] = (),
    extra: Mapping[str, Flag] | None = None,
    *,
    needs_reward: bool = True,
    section: Fields | None = None,
    asks: Asks = TRAINING,
) -> Request:
    """The request of a command line.

    Args:
        command: sft, reward, dpo, ...
        argv: the words after the command.
        defaults: flags that hold where neither file nor command line says otherwise.
        extra: further spellings of an origin's own.
        needs_reward: whether a command that samples must name one.
        section: flags of a file that is read already, such as a pipeline's step.
        asks: what must be given.

    Raises:
        ConfigErrors: every mistake at once.
    """
    flags = {**flags_of(command), **(extra or {})}
    found = read_argv(defaults, flags)
    environment: dict[str, str] = {}
    if section is not None:
        found.update(read_section(section, flags, home_of))
    written = read_argv(argv, flags, home_of)
    if "config" in written.given:
        section, environment, errors = _read_file(Path(written.given["config"].text))
        found.update(read_section(section, flags, home_of))
        found.errors += errors
    found.update(written)
    _place_words(found, flags, asks.word)
    meaning = Meaning()
    if is_online(command):
        if "sft_model_path" in found.given:
            policy = found.given["sft_model_path"]
            found.given["model_name_or_path"] = policy._replace(flag=flags["model_name_or_path"])
        rewarded = any(text.startswith("rewards.functions") for text in found.overrides)
        data = found.given.get("dataset_name")
        needed = needs_reward and not rewarded and (data is None or data.text not in _REWARDED)
        meaning = meaning_of(command, found.given, flags, needs_reward=needed)
    absent = _missing(command, found, asks.required)
    errors = [*found.errors, *_refusals(found.given), *absent, *_mock(found), *meaning.errors]
    if errors:
        raise ConfigErrors(errors)
    request = Request(command, found.given, [], environment={**environment, **meaning.environment})
    _collect(request, meaning)
    request.overrides += found.overrides
    return request


def default_folder(request: Request) -> str:
    """``runs/dpo-gpt2-ultrafeedback``."""
    parts = [request.command, *(_short(request.text(name)) for name in _REQUIRED)]
    return "runs/" + "-".join(parts)


def _short(name: str) -> str:
    """The last part of a path or hub id, without a file's suffix; of several, all of them."""
    ends = [Path(part.strip()).name for part in name.split(",")]
    ends = [re.sub(r"\.(jsonl?|csv|tsv|txt|parquet|arrow)(\.(gz|zst))?$", "", end) for end in ends]
    return re.sub(r"[^\w.+-]+", "-", "+".join(ends))


def sequence_of(request: Request) -> str:
    """``dataset``, which reads what the name stands for, or the sequence that goes by the name itself.

    What lies on this machine under the name is meant, unless ``--mock`` says otherwise.
    """
    name = request.text("dataset_name")
    if name not in known("SEQUENCES") or name in _READERS:
        return READER
    from contrl.data.folders import local

    return name if request.is_on("mock") or local(name) is None else READER


# --- the file -------------------------------------------------------------------------------------------


def _read_file(path: Path) -> tuple[Fields, dict[str, str], list[UserError]]:
    """The flags of a YAML file, the variables under ``env``, and mistakes in its form."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("this file is not UTF-8 text", where=str(path), why=str(error)) from None
    except OSError as error:
        what = "there is no such file" if not path.exists() else "this file cannot be read"
        raise UserError(what, where=str(path), why=error.strerror or "") from None
    root, findings = tree.parse(text, str(path))
    errors = [error for _, error in findings]
    if not isinstance(root, Fields):
        fix = "write for example `learning_rate: 1e-5`, one flag a line"
        raise UserError("a file of flags is keys and values", where=str(root.place), fix=fix)
    if foreign := [key for key in root.entries if key in _OF_A_RUN and isinstance(root.entries[key], Fields)]:
        why = f"{readable(foreign)} {'is a section' if len(foreign) == 1 else 'are sections'} of a whole experiment"
        raise UserError("this file is not made of flags", where=str(path), why=why, fix=f"use: contrl run {path}")
    environment = {}
    variables = root.entries.pop("env", None)
    if isinstance(variables, Fields):
        for name, node in variables.entries.items():
            if isinstance(node, Scalar):
                environment[name] = node.text
            else:
                errors.append(UserError(f"env.{name}: expected one value", where=str(node.place)))
    elif variables is not None and not (isinstance(variables, Scalar) and variables.is_null):
        errors.append(UserError("env: expected a section of variables", where=str(variables.place)))
    return root, environment, errors


# --- checks ---------------------------------------------------------------------------------------------


def _place_words(found: Found, flags: Mapping[str, Flag], name: str) -> None:
    """A word without a flag is the data set (or what ``name`` says); a second one is a mistake."""
    if found.words and name not in found.given:
        word = found.words.pop(0)
        found.given[name] = Given(flags[name], Scalar(COMMAND_LINE, word), COMMAND_LINE)
    for word in found.words:
        given = "the data set" if name == "dataset_name" else f"--{name}"
        why = f"{given} is given already, and nothing else goes without a flag"
        found.errors.append(UserError(f"{word!r} belongs to no flag", where=str(COMMAND_LINE), why=why))


def _refusals(given: Mapping[str, Given]) -> list[UserError]:
    """Flags that would change results and cannot; those refused for one reason are one mistake."""
    refused: dict[tuple[str, str], list[str]] = {}
    for name, value in given.items():
        if value.flag.refusal and value.text.lower() not in value.flag.harmless:
            refused.setdefault((value.flag.refusal, str(value.place)), []).append(f"--{name} {value.text}")
    return [
        UserError(f"{', '.join(words)}: contrl does not do this", where=where, fix=reason)
        for (reason, where), words in refused.items()
    ]


def _mock(found: Found) -> list[UserError]:
    """``--mock`` with a name that is none of AIF-Gen's own."""
    mock, data = found.given.get("mock"), found.given.get("dataset_name")
    if mock is None or mock.is_no or data is None:
        return []
    from contrl.data.named import NAMED

    if data.text in NAMED:
        return []
    meant = nearest(data.text, NAMED)
    fix = f"did you mean {meant}?" if meant else f"its sequences: {', '.join(NAMED)}"
    return [UserError(f"--mock: AIF-Gen has no sequence called {data.text!r}", where=str(mock.place), fix=fix)]


def _missing(command: str, found: Found, required: Sequence[str]) -> list[UserError]:
    absent = [f"--{name}" for name in required if name not in found.given.keys() | found.valueless]
    if not absent:
        return []
    example = f"contrl {command} --model_name_or_path tiny --dataset_name {COMMANDS[command].dataset}"
    example += " --reward_funcs length" if is_online(command) else ""
    why = "" if "output_dir" in found.given else "--output_dir may be left out: runs/COMMAND-MODEL-DATA"
    return [UserError(f"contrl {command} needs {readable(absent)}", why=why, fix=f"for example: {example}")]


# --- what the flags mean --------------------------------------------------------------------------------


def _collect(request: Request, meaning: Meaning) -> None:
    """Overrides, notes and variables of the flags."""
    paths: dict[str, Node] = {}
    for value in request.given.values():
        flag = value.flag
        if flag.only is not None and request.is_on(flag.only[0]) is not flag.only[1]:
            how = "without" if flag.only[1] else "with"
            request.notes.append(f"--{flag.name} has no effect {how} --{flag.only[0]}")
            continue
        if flag.note:
            request.notes.append(flag.note)
        if flag.implies and not value.is_no:
            path, text = flag.implies
            paths.setdefault(path, Scalar(value.place, text))
        if flag.variable:
            request.environment[flag.variable] = value.text
        if flag.path:
            paths[flag.path] = value.node
    request.notes += meaning.notes
    paths = {path: node for path, node in paths.items() if path not in meaning.dropped} | meaning.paths
    # A list of names is one text of the sequence; it has no other lists.
    if "tasks.path" in paths:
        del paths["tasks.path"]
        key = "tasks.path" if sequence_of(request) == READER else "tasks.name"
        paths[key] = Scalar(COMMAND_LINE, request.text("dataset_name"), quoted=True)
    if "output_dir" not in request.given:
        paths["output_dir"] = Scalar(COMMAND_LINE, default_folder(request), quoted=True)
    request.overrides += [override(path, node) for path, node in paths.items()]
