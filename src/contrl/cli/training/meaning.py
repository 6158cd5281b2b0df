"""What the flags of an online command come to, where one flag is not simply one key of the configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from contrl.cli.flags import Flag, Given
from contrl.cli.training import rewards
from contrl.cli.training.declared import fields_of, known
from contrl.cli.training.online import METHOD_DEFAULTS
from contrl.cli.training.samples import Counts, convert
from contrl.config.scalars import parse_int
from contrl.config.tree import COMMAND_LINE, Node, Scalar
from contrl.errors import UserError

_COUNTED = ("samples_per_prompt", "num_minibatches", "num_epochs", "max_new_tokens")


@dataclass
class Meaning:
    """Values for the configuration, the paths that they replace, and what is said or wrong.

    Attributes:
        paths: dotted path -> value; they win over what the flags set by themselves.
        dropped: paths that are not set.
    """

    paths: dict[str, Node] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    errors: list[UserError] = field(default_factory=list)


def meaning_of(
    command: str, given: Mapping[str, Given], flags: Mapping[str, Flag], *, needs_reward: bool = True
) -> Meaning:
    """The meaning of an online command's flags.

    Args:
        command: ppo, rloo or grpo.
        given: the flags by name.
        flags: every flag there is.
        needs_reward: whether it is a mistake to name none.
    """
    found = Meaning(environment=rewards.environment(given), errors=rewards.problems(given))
    calls = rewards.functions(given)
    if calls:
        found.paths["rewards.functions"] = rewards.node(calls)
    elif needs_reward:
        why, fix = (
            "completions are learnt from by their rewards",
            "--reward_funcs, --reward_model_name_or_path or --judge",
        )
        found.errors.append(UserError(f"contrl {command} needs a reward", why=why, fix=f"give {fix}"))
    _convert(command, given, found)
    _scales(command, given, found)
    _lengths(command, given, found)
    _adaptive(given, found)
    if "value_model" in given:
        found.paths["method.value_model"] = Scalar(
            given["value_model"].place, rewards.absolute(given["value_model"].text), quoted=True
        )
    return found


def _convert(command: str, given: Mapping[str, Given], found: Meaning) -> None:
    defaults = {name: _default(command, name) for name in _COUNTED} | {"per_device_train_batch_size": 8}
    counts = Counts(given, defaults, int(os.environ.get("WORLD_SIZE", "1")))
    convert(counts)
    found.paths |= counts.paths
    found.dropped |= counts.dropped if "prompts_per_step" in counts.paths else set()
    found.notes += counts.notes
    found.errors += counts.errors


def _default(command: str, name: str) -> int:
    written = METHOD_DEFAULTS[command].get(name)
    return int(written) if written else int(fields_of(known("METHODS")[command])[name].default)


def _scales(command: str, given: Mapping[str, Given], found: Meaning) -> None:
    """TRL's older yes and no of ``scale_rewards``, and the weights that one way of summing takes itself."""
    if "scale_rewards" in given:
        word = {"true": "group", "false": "none"}.get(given["scale_rewards"].text.lower())
        if word:
            found.paths["method.scale_rewards"] = Scalar(given["scale_rewards"].place, word)
    if "reward_weights" in given and "aggregate" in given and given["aggregate"].text == "normalize_then_sum":
        found.paths["method.reward_weights"] = given["reward_weights"].node


def _lengths(command: str, given: Mapping[str, Given], found: Meaning) -> None:
    """``max_length`` bounds prompt plus completion."""
    if "max_length" not in given:
        return
    whole = parse_int(given["max_length"].text)
    text = given["max_new_tokens"].text if "max_new_tokens" in given else str(_default(command, "max_new_tokens"))
    new = parse_int(text)
    place = given["max_length"].place
    if whole is None or new is None:
        if whole is None:
            found.errors.append(UserError("--max_length: expected a whole number", where=str(place)))
        return
    if whole <= new:
        what = f"--max_length {whole}: nothing is left for the prompt"
        why = f"it bounds prompt plus completion, and a completion may have {new} tokens"
        found.errors.append(UserError(what, where=str(place), why=why, fix="give more, or a smaller --max_new_tokens"))
        return
    limit = parse_int(given["max_prompt_tokens"].text) if "max_prompt_tokens" in given else None
    room = whole - new if limit is None else min(limit, whole - new)
    found.paths["max_prompt_tokens"] = Scalar(COMMAND_LINE, str(room))
    found.notes.append(f"--max_length {whole} bounds prompt plus completion: prompts have at most {room} tokens")


def _adaptive(given: Mapping[str, Given], found: Meaning) -> None:
    """Old TRL's switch for the adaptive coefficient; its target was 6 nats."""
    if "adap_kl_ctrl" not in given:
        return
    place = given["adap_kl_ctrl"].place
    if given["adap_kl_ctrl"].is_no:
        found.paths["method.target_kl"] = Scalar(place, "null")
    elif "target_kl" not in given:
        found.paths["method.target_kl"] = Scalar(place, "6")
