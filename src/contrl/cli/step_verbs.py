"""What each step of a pipeline does: a training command, merge or evaluate by its flags, or a whole experiment.

Each is its command's own code, called twice: first with ``step:NAME`` standing for what other steps will make, so that
every mistake of a file is told before anything runs; then, when its turn comes, with the real folders.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrl.cli.flags import override
from contrl.cli.launched import launch
from contrl.cli.training.command import forget_secrets, parts_of, resolved_of
from contrl.cli.training.request import read as read_flags
from contrl.cli.training.table import flags_of
from contrl.config import load
from contrl.config.schema import RunConfig
from contrl.config.tree import COMMAND_LINE, Fields, Items, Node, Scalar
from contrl.config.walk import nearest
from contrl.errors import ConfigErrors, UserError
from contrl.experiment import find
from contrl.pipeline.reading import EXPERIMENT, Draft, replaced_fields, replaced_text
from contrl.pipeline.steps import ModelOf, Step, origin

if TYPE_CHECKING:
    from contrl.config import Resolved

SECTIONS = tuple(field.name for field in dataclasses.fields(RunConfig))
OWN = ("output_dir", "output_name", "config", "dry_run", "overwrite_output_dir", "overwrite", "all_datasets", "debug")
"""Set by the pipeline itself, or for all of it."""
PARSED = ("merge", "evaluate")
"""Commands that read their options by themselves."""
ANSWERS = "answers"
"""In the pipeline's folder: answers of all evaluations, by model, so that a shared reference answers once."""
_MODEL_OF = {"merge": "adapter_model_name", "evaluate": "model_path"}
_FOLDER_OF = {"merge": "output_name", "evaluate": "output_dir"}
_MAKES = {"merge": ".", "evaluate": None}
_NO_MATTER = (
    *("output_name", "output_dir", "answers_dir", "report_to", "use_wandb", "wandb_project", "run_name"),
    *("detailed_logging", "device", "tokens_per_chunk"),
)
"""Options that do not change what comes out."""


def verbs_of(draft: Draft, output_dir: Path, steps: Mapping[str, Step]) -> Trained | Parsed:
    """The verbs of a step below ``output_dir``; ``steps`` are those before it."""
    folder = output_dir / draft.name
    if draft.command in PARSED:
        return Parsed(draft, folder, output_dir / ANSWERS)
    return Experiment(draft, folder) if draft.command == EXPERIMENT else Trained(draft, folder, steps)


def _stand_in(name: str) -> str:
    """What stands for a step's model while it does not exist: a word that no folder is called."""
    return f"step:{name.replace('/', ':')}"


@dataclass
class Trained:
    """A step that is a run, by the flags of its command."""

    draft: Draft
    folder: Path
    steps: Mapping[str, Step]

    makes = "final"

    @cached_property
    def model(self) -> str:
        """The model it starts from, as written."""
        node = self.draft.fields.entries.get("sft_model_path", self.draft.fields.entries.get("model_name_or_path"))
        return node.text if isinstance(node, Scalar) else ""

    def digest(self) -> str:
        """Of the whole configuration; raises ConfigErrors."""
        return self.resolved(_stand_in).digest

    def run(self, model_of: ModelOf) -> None:
        """Train, or continue."""
        if self.draft.launcher:
            launch(self.draft.launcher, self.resolved(model_of))
        else:
            self._start(self.resolved(model_of), dry_run=False)

    def plan(self, model_of: ModelOf) -> None:
        """The first lines of the run."""
        self._start(self.resolved(model_of), dry_run=True)

    def resolved(self, model_of: ModelOf) -> Resolved:
        """The run's configuration."""
        own = replaced_fields(self.draft.fields, model_of)
        flags = flags_of(self.draft.command)
        sections = {key: node for key, node in own.entries.items() if _is_section(key, node, flags)}
        section = Fields(own.place, {key: node for key, node in own.entries.items() if key not in sections})
        section.entries["output_dir"] = Scalar(own.place, str(self.folder), quoted=True)
        if "run_name" not in section.entries:
            section.entries["run_name"] = Scalar(own.place, self._run_name(), quoted=True)
        request = read_flags(self.draft.command, [], section=section)
        forget_secrets(request)
        (_, overrides), *_ = parts_of(request)
        further = [text for key, node in sections.items() for text in _flat(key, node)]
        place = override("output_dir", Scalar(COMMAND_LINE, str(self.folder), quoted=True))
        return resolved_of(request, [*request.overrides, *overrides, *further, place])

    def _run_name(self) -> str:
        """``dpo_Qwen2.5-0.5B_ultrafeedback``: its method, the model that all began with, its data."""
        model = self.model
        if model.startswith("step:"):
            model = origin(model.removeprefix("step:"), self.steps)
        data = self.draft.fields.entries.get("dataset_name")
        names = data.text.split(",") if isinstance(data, Scalar) else []
        short = "+".join(Path(name.strip()).name for name in names)
        return "_".join(filter(None, (self.draft.command, Path(model).name, short)))

    def _start(self, resolved: Resolved, *, dry_run: bool) -> None:
        from contrl.cli.console import run_options
        from contrl.launch import start

        # The configuration of a step lies in its folder; five of them would bury what a person follows.
        start(resolved, replace(run_options(dry_run=dry_run), resumes=not dry_run))


class Experiment(Trained):
    """A step that is a whole configuration, as a file of ``contrl run``."""

    def __init__(self, draft: Draft, folder: Path) -> None:
        super().__init__(draft, folder, {})

    @cached_property
    def model(self) -> str:
        """The model it starts from, as written."""
        node = self.draft.fields.entries.get("model")
        node = node.entries.get("name_or_path") if isinstance(node, Fields) else node
        return node.text if isinstance(node, Scalar) else ""

    def resolved(self, model_of: ModelOf) -> Resolved:
        """The run's configuration."""
        own = replaced_fields(self.draft.fields, model_of)
        own.entries["output_dir"] = Scalar(own.place, str(self.folder), quoted=True)
        overrides = [replaced_text(text, model_of) for text in self.draft.overrides]
        return load(own, overrides, resolve=find)


@dataclass
class Parsed:
    """A step of a command that reads its options itself: merge, evaluate."""

    draft: Draft
    folder: Path
    answers: Path

    @property
    def makes(self) -> str | None:
        """The part of its folder that is a model."""
        return _MAKES[self.draft.command]

    @property
    def model(self) -> str:
        """The model it is about, as written."""
        node = self.draft.fields.entries.get(_MODEL_OF[self.draft.command])
        node = node.items[0] if isinstance(node, Items) and len(node.items) == 1 else node
        return node.text if isinstance(node, Scalar) else ""

    def digest(self) -> str:
        """Of the options; keys and tokens are not among them. Raises ConfigErrors."""
        errors = self._unknown()
        try:
            parsed = self._options(_stand_in)
            options = dict(vars(parsed))
            if self.draft.command == "evaluate":
                _module("evaluate").check(parsed, parsed.nemotron_api_key)
        except ConfigErrors as found:
            errors += found.errors
        except UserError as error:
            errors.append(error)
        if errors:
            raise ConfigErrors(errors)
        kept = {name: value for name, value in options.items() if not _is_secret(name) and name not in _NO_MATTER}
        return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()

    def run(self, model_of: ModelOf) -> None:
        """Carry it out."""
        options = self._options(model_of)
        if self.draft.command == "merge":
            options.overwrite = True  # the folder is this step's own
        _module(self.draft.command).command(options)

    def plan(self, model_of: ModelOf) -> None:
        """The options, with the names of the steps it uses."""
        from contrl.cli.console import say

        say(f"         contrl {self.draft.command} {' '.join(self._words('step:{}'.format, tell=True))}")

    def _options(self, model_of: ModelOf) -> argparse.Namespace:
        return _parser(self.draft.command).parse_args(self._words(model_of))

    def _unknown(self) -> list[UserError]:
        """Keys that the command does not have."""
        known, found = options_of(self.draft.command), list[UserError]()
        for key, node in self.draft.fields.entries.items():
            if key not in known:
                meant = nearest(key, known)
                fix = f"did you mean {meant}?" if meant else f"known here: {', '.join(sorted(set(known.values())))}"
                what = f"{key}: contrl {self.draft.command} has no such flag"
                found.append(UserError(what, where=str(node.place), fix=fix))
        return found

    def _words(self, model_of: ModelOf, *, tell: bool = False) -> list[str]:
        known, words = options_of(self.draft.command), list[str]()
        for key, node in replaced_fields(self.draft.fields, model_of).entries.items():
            if key in known:
                secret = tell and _is_secret(key)
                words += _as_words(self.draft.command, key, Scalar(node.place, "***") if secret else node)
        if self.draft.command == "evaluate" and "answers_dir" not in self.draft.fields.entries:
            words.append(f"--answers_dir={self.answers}")
        return [*words, f"--{_FOLDER_OF[self.draft.command]}={self.folder}"]


def _is_secret(name: str) -> bool:
    return name.rpartition("_")[2] in ("key", "token")


def _is_section(key: str, node: Node, flags: Mapping[str, Any]) -> bool:
    """Whether a key of a step with flags is a section of the configuration: no flag, or not given as one."""
    return key in SECTIONS and (key not in flags or isinstance(node, Fields))


def _flat(path: str, node: Node) -> list[str]:
    """A section as overrides, one for each value that is no section."""
    if isinstance(node, Fields) and node.entries:
        return [text for key, item in node.entries.items() for text in _flat(f"{path}.{key}", item)]
    return [override(path, node)]


# --- commands with parsers of their own ---------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are the user's, told in words like all others."""

    def error(self, message: str) -> Any:
        name = re.match(r"argument --([\w-]+)(?:/--[\w/-]+)?: (.*)", message)
        raise UserError(f"{name[1]}: {name[2]}" if name else message)


def _module(command: str) -> Any:
    return importlib.import_module(f"contrl.cli.{command}")


def _parser(command: str) -> _Parser:
    parser = _Parser(prog=f"contrl {command}", allow_abbrev=False)
    _module(command).arguments(parser)
    return parser


def options_of(command: str) -> dict[str, str]:
    """Every spelling of the command's options, without dashes -> its name."""
    parser = _parser(command)
    return {
        word.lstrip("-").replace("-", "_"): action.dest
        for word, action in parser._option_string_actions.items()
        if action.dest != "help" and word.startswith("--") and action.dest not in OWN
    }


def _as_words(command: str, key: str, node: Node) -> list[str]:
    """A key and its value as words of a command line."""
    actions = _parser(command)._option_string_actions
    spelled = next(word for word, action in actions.items() if action.dest == key and word.startswith("--"))
    action = actions[spelled]
    if isinstance(node, Fields):
        raise UserError(f"{key}: expected a value, found a section", where=str(node.place))
    if isinstance(node, Items):
        texts = [item.text for item in node.items if isinstance(item, Scalar)]
        return [spelled, *texts] if action.nargs in ("+", "*") else [f"{spelled}={','.join(texts)}"]
    if node.is_null:
        return []
    if action.nargs == 0:
        if node.text.lower() not in ("true", "yes", "on", "false", "no", "off"):
            raise UserError(f"{key}: expected yes or no, found {node.text!r}", where=str(node.place))
        return [spelled] if node.text.lower() in ("true", "yes", "on") else []
    alone = action.nargs == "?" and node.text.lower() in ("true", "yes", "on")
    return [spelled] if alone else [f"{spelled}={node.text}"]
