"""What an online command is rewarded by: reward model, functions and judge as one list in the configuration.

The order is TRL's: the model first, then the functions; the judge comes last. The judge's key goes into the
environment, where the judge looks for it, and nowhere else.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from contrl.cli.flags import Given
from contrl.config.calls import split_words
from contrl.config.scalars import FALSE, NULL, TRUE
from contrl.config.tree import COMMAND_LINE, Items, Node, Scalar
from contrl.errors import UserError

_DOTTED = re.compile(r"([A-Za-z_][\w.]*)\.([A-Za-z_]\w*)(\(.*)?", re.DOTALL)
_OF_MODEL, _OF_JUDGE = ("reward_label",), ("judge_model", "judge_kind", "max_judge_calls")
_OF_TRL = {
    "think_format_reward": "think_format",
    "get_soft_overlong_punishment": "overlong(max_length=1280, cache=256)",
}
"""Names of TRL's own command line that mean exactly the same."""
NAMES = ("reward_funcs", "reward_model_name_or_path", "judge", "nemotron_api_key")
"""Flags of which one is needed."""


def functions(given: Mapping[str, Given]) -> list[str]:
    """The rewards as they are written in a configuration: ``classifier(model="...")``, ``length(target=50)`` ..."""
    calls = []
    if model := _text(given, "reward_model_name_or_path"):
        label = _text(given, "reward_label")
        calls.append(_call("classifier", model=absolute(model), label=label or None))
    calls += [_OF_TRL.get(word) or import_path(word) for word in _words(given.get("reward_funcs"))]
    if ("judge" in given and not given["judge"].is_no) or "nemotron_api_key" in given:
        calls.append(
            _call(
                "judge",
                url=_judge_url(given),
                model=_text(given, "judge_model"),
                kind=_text(given, "judge_kind"),
                max_calls=_text(given, "max_judge_calls"),
            )
        )
    return calls


def node(calls: list[str]) -> Node:
    """The list as the value of an override."""
    return Items(COMMAND_LINE, [Scalar(COMMAND_LINE, call, quoted=True) for call in calls])


def environment(given: Mapping[str, Given]) -> dict[str, str]:
    """The key under the name by which the judge at this address looks for it."""
    if "nemotron_api_key" not in given:
        return {}
    host = urlsplit(_judge_url(given) or "").hostname or "nvidia.com"
    name = "NVIDIA_API_KEY" if host == "nvidia.com" or host.endswith(".nvidia.com") else "OPENAI_API_KEY"
    return {name: given["nemotron_api_key"].text}


def problems(given: Mapping[str, Given]) -> list[UserError]:
    """Flags about a reward that is not there."""
    found = []
    pairs = (
        (_OF_MODEL, NAMES[1:2], "--reward_model_name_or_path"),
        (_OF_JUDGE, NAMES[2:], "--judge"),
    )
    for flags, needed, missing in pairs:
        for name in flags:
            if name in given and not set(needed) & set(given):
                what = f"--{name}: it belongs to {missing}, which is not given"
                found.append(UserError(what, where=str(given[name].place), fix=_in_function(name)))
    return found


def _in_function(name: str) -> str:
    own = {"reward_label": "classifier(label=...)", "max_judge_calls": "judge(max_calls=...)"}
    return f"of a reward in --reward_funcs it is {own[name]}" if name in own else ""


def import_path(word: str) -> str:
    """``my_module.my_fn`` as ``my_module:my_fn``; names and words that have their colon stay."""
    match = _DOTTED.fullmatch(word)
    head = word.partition("(")[0]
    return word if match is None or ":" in head else f"{match[1]}:{match[2]}{match[3] or ''}"


def absolute(name: str) -> str:
    """A folder made absolute, so that the run can be continued from anywhere; a name on the hub stays."""
    exists = any(Path(f"{name}{end}").exists() for end in ("", "_0"))
    return os.path.abspath(os.path.expanduser(name)) if exists else name


def _judge_url(given: Mapping[str, Given]) -> str:
    text = _text(given, "judge")
    return "" if text.lower() in (*TRUE, *FALSE, *NULL) else text


def _call(name: str, **fields: str | None) -> str:
    """``name(field="text")``, without the fields that are empty; text in quotes, whatever it holds."""
    written = [f"{field}={json.dumps(text, ensure_ascii=False)}" for field, text in fields.items() if text]
    return f"{name}({', '.join(written)})" if written else name


def _words(given: Given | None) -> list[str]:
    if given is None:
        return []
    items = given.node.items if isinstance(given.node, Items) else [given.node]
    return [word for item in items if isinstance(item, Scalar) for word in split_words(item.text)]


def _text(given: Mapping[str, Given], name: str) -> str:
    return given[name].text if name in given else ""
