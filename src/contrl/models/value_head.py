"""The value function of actor-critic methods: a head on the policy's trunk, or a model of its own.

It sits inside the policy module as ``value_head``, so that optimizer, DDP and checkpoints see one model; on disk it
lies beside the weights (``value_head.safetensors`` or ``value/``), so that what is saved stays a plain language model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from contrl.errors import UserError

NAME = "value_head"
"""The submodule's name in the policy."""
FILE, FOLDER = "value_head.safetensors", "value"
"""Where it is saved beside the weights: a head's tensors, or a model of its own."""


class ValueHead(nn.Module):
    """One number per hidden state: the expected return from there on.

    It starts at zero, so that the first advantages are the returns themselves and no seed is needed.

    Args:
        width: of the hidden states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.summary = nn.Linear(width, 1)
        nn.init.zeros_(self.summary.weight)
        nn.init.zeros_(self.summary.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values ``[M]`` of hidden states ``[M, H]``, in the head's own precision (float32)."""
        return self.summary(hidden.to(self.summary.weight.dtype))[:, 0]


class ValueModel(nn.Module):
    """A value function with a trunk of its own: a sequence classifier with one label, such as a reward model."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values ``[M]`` of the classifier's own hidden states ``[M, H]``."""
        return self.classifier.score(hidden)[:, 0].float()


Value = ValueHead | ValueModel


def value_of(model: nn.Module) -> Value | None:
    """The value function of a policy (unwrapped, with or without adapter), if it has one."""
    found = getattr(model, NAME, None)
    return found if isinstance(found, ValueHead | ValueModel) else None


def attach_head(model: Any) -> ValueHead:
    """Give a policy a new value head on its trunk; it is trained, also where only adapters are."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    config = inner.config.get_text_config()
    width = int(getattr(config, "hidden_size", None) or config.d_model)
    head = ValueHead(width).to(next(model.parameters()).device)
    setattr(model, NAME, head)
    return head


def attach_model(model: nn.Module, classifier: Any, where: str) -> ValueModel:
    """Give a policy a value model of its own.

    Raises:
        UserError: when the classifier has several labels, no head on its tokens, or another vocabulary.
    """
    labels, head = int(classifier.config.num_labels), getattr(classifier, "score", None)
    if labels != 1 or not isinstance(head, nn.Module):
        raise UserError(
            f"{type(classifier).__name__} with {labels} labels cannot be a value model",
            where=where,
            fix="give a decoder's classifier with one label, as `contrl reward` makes them",
        )
    policy: Any = model
    mine, theirs = (m.get_input_embeddings().weight.shape[0] for m in (policy, classifier))
    if theirs < mine:
        raise UserError(
            f"the value model knows {theirs} tokens, the policy {mine}",
            where=where,
            why="it reads the same token ids",
            fix="give one with the policy's tokenizer",
        )
    value = ValueModel(classifier.requires_grad_(True).float()).to(next(model.parameters()).device)
    setattr(model, NAME, value)
    return value


@contextlib.contextmanager
def without_value(model: nn.Module) -> Iterator[None]:
    """The policy alone while open: to save it, or to copy it."""
    value = model._modules.pop(NAME, None)
    try:
        yield
    finally:
        if value is not None:
            model._modules[NAME] = value


def save_value(model: nn.Module, folder: Path) -> None:
    """Write the value function, if the policy has one, beside its weights."""
    value = value_of(model)
    if isinstance(value, ValueModel):
        value.classifier.save_pretrained(folder / FOLDER)
    elif value is not None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in value.state_dict().items()}
        save_file(tensors, folder / FILE)


def load_value(model: nn.Module, folder: Path) -> bool:
    """Put a saved value function into the policy's own; False when the folder has none.

    Raises:
        UserError: when it does not fit.
    """
    value = value_of(model)
    if value is None:
        return False
    target, files = (value, [folder / FILE]) if isinstance(value, ValueHead) else (value.classifier, _weights(folder))
    if not files or not files[0].exists():
        return False
    tensors = {name: tensor for path in files for name, tensor in load_file(path).items()}
    try:
        missing, unexpected = target.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise UserError(f"the value function in {folder} does not fit the policy", why=str(error)) from error
    lacking = set(missing) - set(getattr(target, "all_tied_weights_keys", None) or {})
    if lacking or unexpected:
        raise UserError(f"the value function in {folder} is not this one", why=f"{[*lacking, *unexpected][:3]}")
    return True


def _weights(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).glob("model*.safetensors"))


def ensure_value(model: nn.Module, kind: str, read: Callable[[], Any], where: str = "", *, keep: bool = True) -> None:
    """Give the policy the value function a method wants, unless it has one of that kind to carry on with.

    Args:
        model: the policy, unwrapped.
        kind: "head" (on the policy's trunk) or "model" (its own).
        read: gives the classifier that a value model starts as.
        where: names that classifier in errors.
        keep: carry on with what there is; False starts anew, as at the start of a task.
    """
    value = value_of(model)
    if keep and isinstance(value, ValueHead if kind == "head" else ValueModel):
        return
    if kind == "head":
        attach_head(model)
    else:
        attach_model(model, read(), where)
