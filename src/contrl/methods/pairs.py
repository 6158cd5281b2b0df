"""What the methods on preference pairs share: a row as a group of two, tensors by side, and what is logged.

A pair is one group with two completions, the chosen one first; so its prompt runs once. A pair weighs the mean of its
completions' weights, because its loss cannot be taken apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from contrl.data.formats import EncodedPair
from contrl.data.recipes import without_signal
from contrl.errors import UserError
from contrl.interfaces import Batch, Completion, Group, Method, Outputs, Row

Metrics = dict[str, tuple[torch.Tensor | float, torch.Tensor | float]]


# --- hyperparameters ----------------------------------------------------------------------------------


def refuse(name: str, problems: Iterable[tuple[object, str]]) -> None:
    """Raise one UserError with every problem whose condition holds; ``name`` is the method's."""
    found = [text for holds, text in problems if holds]
    if found:
        raise UserError(f"{name}: " + "; ".join(found))


def derive(method: Method, **attributes: object) -> None:
    """Set attributes of the class Method on one frozen instance, where they follow from its fields."""
    for name, value in attributes.items():
        object.__setattr__(method, name, value)


def length_problems(max_length: int | None, max_prompt_length: int | None = None) -> list[tuple[object, str]]:
    """What is wrong with the two limits."""
    return [
        (max_length is not None and max_length < 2, f"max_length is {max_length}, use at least 2 or null"),
        (max_prompt_length is not None and max_prompt_length < 1, f"max_prompt_length is {max_prompt_length}"),
    ]


# --- rows ---------------------------------------------------------------------------------------------


def with_signal(rows: Sequence[Row], say: Callable[[str], None]) -> list[Row]:
    """The rows of sources that prefer anything; each source left out is said in one line."""
    kept, notes = without_signal(rows)
    for note in notes:
        say(note)
    return list(kept)


def cut_prompt(ids: list[int], max_prompt_length: int | None) -> list[int]:
    """The end of a prompt that is too long: what stands next to the answer matters most."""
    return ids if max_prompt_length is None else ids[-max_prompt_length:]


def cut_completion(prompt_ids: list[int], ids: list[int], trained: list[bool], max_length: int | None) -> Completion:
    """A completion that ends where prompt and completion reach ``max_length`` tokens.

    Raises:
        UserError: when the prompt leaves no trained token.
    """
    room = len(ids) if max_length is None else max(max_length - len(prompt_ids), 0)
    if not any(trained[:room]):
        raise UserError(
            f"no trained token is left of {len(prompt_ids)} prompt and {len(ids)} completion tokens at "
            f"max_length {max_length}"
        )
    return Completion(ids[:room], trained[:room], ended=room >= len(ids))


def to_group(row: Row, pair: EncodedPair, max_length: int | None, max_prompt_length: int | None = None) -> Group:
    """The encoded pair as a group; prompts are cut at their start, then completions at their end.

    Raises:
        UserError: for a prompt that fills ``max_length``, and for sides that are equal, whole or after cutting.
    """
    prompt = cut_prompt(pair.prompt_ids, max_prompt_length)
    chosen, rejected = (
        cut_completion(prompt, side.ids, side.trained, max_length) for side in (pair.chosen, pair.rejected)
    )
    if chosen.ids == rejected.ids:
        cut = "" if chosen.ended and rejected.ended else f" in their first {max_length} tokens"
        raise UserError(f"chosen and rejected are equal{cut}", why="nothing is preferred")
    return Group(str(row["id"]), str(row.get("task", "")), prompt, [chosen, rejected], row)


# --- tensors by side ----------------------------------------------------------------------------------


def sides(table: torch.Tensor) -> torch.Tensor:
    """``[N, ...]`` of completions as ``[P, 2, ...]``: index 0 of the second axis is the chosen side."""
    return table.view(table.shape[0] // 2, 2, *table.shape[1:])


def pair_weights(batch: Batch) -> torch.Tensor:
    """``[P]`` the mean of the two completions' weights."""
    return sides(batch.weights).mean(-1)


def num_tokens(batch: Batch) -> torch.Tensor:
    """``[P, 2]`` trained tokens, at least 1."""
    return sides(batch.mask).sum(-1).clamp(min=1)


def chosen_tokens(groups: Sequence[Group]) -> float:
    """Trained tokens of all chosen completions."""
    return float(sum(group.completions[0].num_trained() for group in groups))


# --- what is logged -----------------------------------------------------------------------------------


def ranking(scores: torch.Tensor) -> dict[str, torch.Tensor]:
    """Judge pairs by the scores of their sides ``[P, 2]``: ranked rightly, and by how much, both ``[P]``.

    1 is right, 0 wrong, and a tie one half.
    """
    margin = scores[:, 0] - scores[:, 1]
    return {"accuracy": (margin.sign() + 1) / 2, "margin": margin}


def own_answers(out: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
    """``[N]`` of each completion: ``loss``, the mean negative log-likelihood of its trained tokens, and the share of
    them that is the likeliest token, where the outputs say so.
    """
    tokens = batch.mask.sum(-1).clamp(min=1)
    found = {"loss": -out.logps.sum(-1) / tokens}
    return found if out.correct is None else found | {"token_accuracy": out.correct.sum(-1) / tokens}


def learned(out: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
    """Judge pairs by what the run changed: whether the chosen side gained on the rejected one since its first weights.

    Before training every pair is a tie (accuracy one half). Log-probabilities alone would mostly say which side is
    shorter; ``likelier`` tells that one too: 1 where the policy finds the chosen side more likely. ``loss`` and
    ``token_accuracy`` are those of the chosen answer.
    """
    if batch.reference_logps is None:
        raise ValueError("judging the change needs the log-probabilities that the run started with")
    likelier = ranking(sides(out.logps).sum(-1))["accuracy"]
    chosen = {name: sides(values)[:, 0] for name, values in own_answers(out, batch).items()}
    return ranking(sides(out.logps - batch.reference_logps).sum(-1)) | {"likelier": likelier} | chosen


def pair_metrics(out: Outputs, batch: Batch, logps: torch.Tensor, rewards: torch.Tensor) -> Metrics:
    """TRL's metrics of pairs. Means over pairs, but over trained tokens for logits, entropy and accuracy.

    Args:
        logps, rewards: ``[P, 2]``; rewards are the method's implicit ones.
    """
    rewards, logps, pairs = rewards.detach(), logps.detach(), float(len(rewards))
    metrics: Metrics = {
        "rewards/accuracies": ((rewards[:, 0] > rewards[:, 1]).sum(), pairs),
        "rewards/margins": ((rewards[:, 0] - rewards[:, 1]).sum(), pairs),
    }
    mask = sides(batch.mask)
    for index, side in enumerate(("chosen", "rejected")):
        metrics[f"rewards/{side}"] = (rewards[:, index].sum(), pairs)
        metrics[f"logps/{side}"] = (logps[:, index].sum(), pairs)
        if out.mean_logits is not None:
            metrics[f"logits/{side}"] = (sides(out.mean_logits)[:, index].sum(), mask[:, index].sum())
    if out.entropy is not None:
        metrics["entropy"] = (out.entropy.sum(), mask.sum())
    if out.correct is not None:
        metrics["mean_token_accuracy"] = (sides(out.correct)[:, 0].sum(), mask[:, 0].sum())
    return metrics
