"""The steps of a pipeline's file: which keys each may have, and all of them checked before anything runs.

Mistakes are told as the step's command tells them, with the line of the file that they are about.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from contrl.cli.main import COMMANDS, TRAINING
from contrl.cli.step_verbs import OWN, PARSED, SECTIONS, options_of, verbs_of
from contrl.cli.training.table import flags_of
from contrl.config.tree import COMMAND_LINE, Fields, Finding, Node, Place
from contrl.errors import ConfigErrors, UserError
from contrl.pipeline.reading import EXPERIMENT, Draft, Outline
from contrl.pipeline.steps import Step, Work, digest_of


class Steps:
    """The vocabulary of a pipeline's file."""

    @property
    def names(self) -> Sequence[str]:
        """Commands that a step may be."""
        return (EXPERIMENT, *TRAINING, *(name for name in PARSED if name in COMMANDS))

    def spelled(self, command: str, key: str) -> str:
        """The command's own name of a key; "" when it has no such key, or the pipeline sets it."""
        if key in OWN:
            return ""
        if command == EXPERIMENT:
            return key if key in SECTIONS else ""
        if command in TRAINING:
            flag = flags_of(command).get(key.replace("-", "_"))
            return flag.name if flag is not None else key if key in SECTIONS else ""
        return options_of(command).get(key.replace("-", "_"), "")

    def makes_model(self, command: str) -> bool:
        """Whether other steps can use what it makes."""
        return command != "evaluate"


def check(outline: Outline) -> list[Step]:
    """The steps of a file, every setting checked.

    Raises:
        ConfigErrors: every mistake of the file at once, in the order of the lines.
    """
    errors: list[Finding] = list(outline.errors)
    steps: dict[str, Step] = {}
    for draft in outline.drafts:
        errors += _own_keys(draft)
        try:
            verbs = verbs_of(draft, outline.output_dir, steps)
            work = Work(verbs.digest(), verbs.model, verbs.makes, verbs.run, verbs.plan)
        except ConfigErrors as found:
            errors += [_placed(error, draft) for error in found.errors]
            continue
        except UserError as error:
            errors.append(_placed(error, draft))
            continue
        used = {name: steps[name].digest for name in draft.uses if name in steps}
        digest = digest_of(draft.command, work.digest, used)
        steps[draft.name] = Step(draft.name, draft.command, verbs.folder, draft.uses, digest, work)
    if errors:
        told = sorted(errors, key=lambda finding: (finding[0] == COMMAND_LINE, finding[0].line or 0))
        raise ConfigErrors(list({str(error): error for _, error in told}.values()))
    return list(steps.values())


def _own_keys(draft: Draft) -> list[Finding]:
    """Keys that no step can have, taken out of it."""
    found: list[Finding] = []
    for key in [key for key in draft.fields.entries if key in OWN]:
        place = draft.fields.entries.pop(key).place
        fix = "the folder of a step is the pipeline's output_dir and its name" if key.startswith("output") else ""
        found.append((place, UserError(f"steps.{draft.name}.{key}: a step has no such key", where=str(place), fix=fix)))
    return found


def _placed(error: UserError, draft: Draft) -> Finding:
    """A command's error with the line of the key that it is about, as far as it says so."""
    if match := re.fullmatch(r"(.*):(\d+)", error.where):
        place = Place(match[1], int(match[2]))
    else:
        named = re.match(r"-*([\w.]+)", error.what)
        place = _place_of((named[1] if named else "").split("."), draft.fields)
    what = error.what if error.what.startswith("steps.") else f"steps.{draft.name}: {error.what}"
    return place, UserError(what, where=str(place), why=error.why, fix=error.fix)


def _place_of(names: Sequence[str], node: Node) -> Place:
    for name in names:
        if not isinstance(node, Fields) or name not in node.entries:
            break
        node = node.entries[name]
    return node.place
