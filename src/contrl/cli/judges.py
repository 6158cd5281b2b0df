"""Which judge the flags of ``contrl evaluate`` name, and the judge itself: one of four kinds, exactly one.

A key is handed to the judge that it is for and to the environment, and taken out of everything that is recorded.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from contrl.errors import UserError

if TYPE_CHECKING:
    from contrl.evaluation.judging import WhoJudges

WAYS = (
    "--nemotron_api_key KEY (NVIDIA's hosted reward model)",
    "--judge URL --judge_model NAME (any OpenAI-style server; --pairwise shows it both answers)",
    "--reward_model FOLDER (a reward model or any classifier, on this machine)",
    "--metric NAME (a verifier or a function of your own, such as countdown or my_module:my_fn)",
)
KINDS = ("reward", "grade")
_REMOTE = ("judge_model", "judge_kind", "judge_attribute", "max_judge_calls", "judge_retries", "pairwise")


def judge_flags(group: argparse._ArgumentGroup) -> None:
    """The flags that name a judge."""
    group.add_argument(
        "--nemotron_api_key", metavar="KEY", help="NVIDIA's hosted reward model; the key is written nowhere"
    )
    group.add_argument("--judge", nargs="?", const="", metavar="URL", help="an OpenAI-style server (alone: NVIDIA's)")
    group.add_argument("--judge_model", metavar="NAME", help="the model there (default: NVIDIA's reward model)")
    group.add_argument("--judge_kind", metavar="KIND", help="reward: a reward model; grade: a chat model, 0 to 10")
    group.add_argument("--judge_attribute", metavar="NAME", help="of a reward model that answers several scores")
    group.add_argument(
        "--pairwise", nargs="?", const="true", metavar="BOOL", help="ask which is better, in both orders"
    )
    group.add_argument("--max_judge_calls", metavar="N", help="requests in all; scores beyond are missing")
    group.add_argument("--judge_retries", metavar="N", help="further requests for an answer that did not come (5)")
    group.add_argument(
        "--reward_model",
        "--reward_model_path",
        "--reward_model_name_or_path",
        metavar="FOLDER",
        help="a reward model of `contrl reward`, or any classifier",
    )
    group.add_argument("--reward_label", metavar="NAME", help="which of a classifier's outputs, by name or number")
    group.add_argument("--metric", metavar="NAME", help="a verifier or a function; it may need columns of the data")
    group.add_argument("--tie_margin", metavar="X", help="scores that differ by no more are a tie (0)")


def problems(options: argparse.Namespace, key: str | None) -> list[UserError]:
    """What is wrong with the choice of a judge; everything at once. ``key`` was taken out of the options."""
    remote = options.judge is not None or key is not None
    named = [name for name in ("reward_model", "metric") if getattr(options, name) is not None]
    named = ["judge" if options.judge is not None else "nemotron_api_key", *named] if remote else named
    found = []
    if not named:
        found.append(UserError("nothing judges the answers", fix="give one of:\n  " + "\n  ".join(WAYS)))
    if len(named) > 1:
        listed = ", ".join(f"--{name}" for name in named)
        found.append(UserError(f"several judges are named: {listed}", fix="give one; answers are kept for the next"))
    lost = [name for name in _REMOTE if getattr(options, name)] if named and not remote else []
    found += [UserError(f"--{name} belongs to --judge, which is not given", fix="leave it out") for name in lost]
    if options.reward_label is not None and named and "reward_model" not in named:
        found.append(UserError("--reward_label belongs to --reward_model, which is not given", fix="leave it out"))
    return found + _remote_problems(options) if remote else found


def _remote_problems(options: argparse.Namespace) -> list[UserError]:
    found = []
    if options.judge_kind is not None and options.judge_kind not in KINDS:
        found.append(UserError(f"--judge_kind is {options.judge_kind!r}", fix=f"write {' or '.join(KINDS)}"))
    if (options.pairwise or options.judge_kind == "grade") and not options.judge_model:
        what = "--pairwise" if options.pairwise else "--judge_kind grade"
        found.append(UserError(f"{what} needs --judge_model", why="the default one scores and answers no questions"))
    if options.pairwise and (options.judge_kind is not None or options.judge_attribute is not None):
        found.append(UserError("--pairwise gives no scores", fix="leave --judge_kind and --judge_attribute out"))
    if options.pairwise and options.tie_margin:
        found.append(UserError("--tie_margin is a margin of scores", why="a judge of pairs gives none"))
    return found


def forget_key(options: argparse.Namespace) -> str | None:
    """The key, which from here on is in the environment and in no word of this process that anybody records."""
    from contrl.cli.flags import Flag, without_secrets

    key: str | None = options.nemotron_api_key
    options.nemotron_api_key = None
    sys.argv[:] = without_secrets(sys.argv, {"nemotron_api_key": Flag("nemotron_api_key", secret=True)})
    if key:
        host = urlsplit(options.judge or "").hostname or "nvidia.com"
        is_nvidia = host == "nvidia.com" or host.endswith(".nvidia.com")
        os.environ["NVIDIA_API_KEY" if is_nvidia else "OPENAI_API_KEY"] = key
    return key


def build(options: argparse.Namespace, key: str | None, kept: Path) -> WhoJudges:
    """The judge.

    Args:
        options: the checked flags, numbers and switches read.
        key: of a remote judge.
        kept: folder for the scores of local judges.

    Raises:
        UserError: an unknown metric or reward model, an address that is none.
        EnvironmentFault: no key, or the client is not installed.
    """
    from contrl.evaluation.judging import PairJudge, Scorer

    if options.reward_model is not None:
        return _of_model(options.reward_model, options.reward_label, options.tie_margin, kept)
    if options.metric is not None:
        return _of_metric(options.metric, options.tie_margin, kept)
    from contrl.data.token_cache import cache_folder
    from contrl.rewards.remote import PairwiseJudge, RemoteReward

    given: dict[str, Any] = {
        "url": options.judge or None,
        "api_key": key,
        "cache": cache_folder() / "judge",
        "max_calls": options.max_judge_calls,
    }
    if options.judge_model:
        given["model"] = options.judge_model
    if options.judge_retries is not None:
        given["max_retries"] = options.judge_retries
    if options.pairwise:
        pairs = PairwiseJudge(**given)
        return PairJudge(f"pairwise {pairs.model} at {pairs.url}", pairs)
    reward = RemoteReward(**given, kind=options.judge_kind or "reward", attribute=options.judge_attribute)
    part = f" ({reward.attribute})" if reward.attribute else ""
    return Scorer(f"{reward.kind} {reward.model}{part} at {reward.url}", reward, tie_margin=options.tie_margin)


def _of_model(name: str, label: str | None, tie_margin: float, kept: Path) -> WhoJudges:
    from contrl.cli.console import say
    from contrl.config import ModelConfig
    from contrl.evaluation.judging import InPlainText, Scorer
    from contrl.evaluation.kept import Kept
    from contrl.evaluation.lineage import weights_digest
    from contrl.experiment import Classifier
    from contrl.models.load import load_tokenizer
    from contrl.rewards.model import resolve_reward_model

    folder, _ = resolve_reward_model(name)
    _check_classifier(folder, label)
    digest = weights_digest(str(folder)) or str(folder)
    called = f"reward model {name}" + (f", {label}" if label else "")
    file = kept / f"scores-{_safe(f'{digest}-{label}' if label else digest)}.jsonl"
    reward: Any = Classifier(str(folder), label)
    if not load_tokenizer(ModelConfig(str(folder))).chat_template:
        say(f"{name} has no chat template: it reads messages as plain text")
        reward = InPlainText(reward)
    return Scorer(called, reward, f"{digest} {label}", Kept(file), tie_margin)


def _check_classifier(name: Path, label: str | None) -> None:
    """Refuse, before anything is answered, what cannot score: a language model, or several labels and no choice."""
    from transformers import AutoConfig

    from contrl.models.folders import is_adapter, is_classifier, weights_folder
    from contrl.rewards.model import label_index

    folder = weights_folder(str(name))
    if folder is None:
        return
    if not is_classifier(folder):
        raise UserError(f"{name} is no classifier", fix="--reward_model names one: train it with `contrl reward`")
    if not is_adapter(folder):
        label_index(AutoConfig.from_pretrained(str(folder)), label, str(name))


def _of_metric(name: str, tie_margin: float, kept: Path) -> WhoJudges:
    from contrl.cli.training.rewards import import_path
    from contrl.evaluation.judging import Scorer, identity_of
    from contrl.evaluation.kept import Kept
    from contrl.experiment import build_metric

    metric = build_metric(import_path(name))
    score: Any = metric.score
    if isinstance(score, type):
        try:
            score = score()
        except TypeError as error:
            raise UserError(
                f"--metric {name} needs settings: {error}", fix="name a function: my_module:my_fn"
            ) from None
    if score is None:
        raise UserError(f"--metric {name} judges no answers", fix="name a verifier or a reward function")
    file = kept / f"scores-{_safe(name)}.jsonl"
    return Scorer(f"metric {name}", score, identity_of(score, name), Kept(file), tie_margin)


def _safe(name: str) -> str:
    """A name as part of a file's name."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def told(judge: WhoJudges) -> list[str]:
    """What a remote judge has to say of itself once it has been asked: counts, and what went wrong."""
    asked: Any = getattr(judge, "judge", None) or getattr(judge, "reward", None)
    stats, notes = getattr(asked, "stats", None), getattr(asked, "notes", None)
    lines = [] if stats is None else [f"judge: {stats}"]
    return lines + [str(note) for note in notes or ()]
