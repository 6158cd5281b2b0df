"""Read a model or a tokenizer from where its name says: a folder of ours or not, an embedded model, the hub.

An adapter is put on its base, and a base that is itself an adapter is merged first, so nothing ever nests. A
classifier's head that is not there is drawn from the seed; any other missing weight is an error, never random.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from contrl.config import ModelConfig
from contrl.errors import UserError
from contrl.models import embedded
from contrl.models.adapters import load_adapter, merged, num_labels
from contrl.models.classifier import check_one_label, draw_head, head_names, on_trunk
from contrl.models.folders import base_of, is_adapter, is_classifier, is_hub_id, weights_folder
from contrl.models.hub import fault, only_cached


@dataclass(frozen=True)
class Reading:
    """How a model is read: the user's options, the seed of what is drawn, and what kind of model is wanted.

    ``num_labels`` is of a new head; ``any_labels`` admits saved heads with several; without ``new_head`` a classifier
    that has none is an error.
    """

    config: ModelConfig
    seed: int = 0
    device: torch.device | str = "cpu"
    classifier: bool = False
    quantisation: Any = None
    num_labels: int = 1
    any_labels: bool = False
    new_head: bool = True

    def options(self) -> dict[str, Any]:
        """Arguments of ``from_pretrained``."""
        config = self.config
        options: dict[str, Any] = {
            "trust_remote_code": config.trust_remote_code,
            "dtype": "float32" if config.dtype == "auto" else config.dtype,
        }
        if config.attn_implementation:
            options["attn_implementation"] = config.attn_implementation
        if self.quantisation is not None:
            options |= {"quantization_config": self.quantisation, "device_map": {"": self.device}}
        return options


def read_model(name: str, how: Reading) -> Any:
    """The model that ``name`` means, an adapter on its base included.

    Raises:
        UserError, EnvironmentFault: when the name means nothing, what lies there cannot be read, or the hub fails.
    """
    folder = weights_folder(name)
    if folder is not None:
        return adapted(folder, how) if is_adapter(folder) else _from_folder(folder, how)
    return _embedded(name, how) if name in embedded.NAMES else _from_hub(name, how)


def read_tokenizer(name: str, config: ModelConfig) -> Any:
    """The tokenizer that goes with a model, without its weights. Raises as ``read_model`` does."""
    folder = weights_folder(name)
    if folder is not None:
        if is_adapter(folder) and not (folder / "tokenizer_config.json").exists():
            return read_tokenizer(base_of(folder), config)
        try:
            return AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=config.trust_remote_code
            )
        except (OSError, ValueError, TypeError) as error:
            raise _unreadable(folder, error) from error
    if name in embedded.NAMES:
        return embedded.character_tokenizer() if name == "tiny" else embedded.smollm2_tokenizer()
    local = _local_only(name, config)
    try:
        return AutoTokenizer.from_pretrained(
            name, revision=config.revision, trust_remote_code=config.trust_remote_code, local_files_only=local
        )
    except (OSError, ValueError) as error:
        raise fault(name, error) from error


def adapted(folder: Path, how: Reading, base: str | None = None) -> Any:
    """The adapter in ``folder`` on its base, or on another one; trainable."""
    base = base_of(folder) if base is None else base
    labels = num_labels(folder) if how.any_labels and is_classifier(folder) else 1
    # The adapter of a classifier brings its head.
    model = read_model(base, replace(how, num_labels=labels, new_head=how.new_head or is_classifier(folder)))
    if hasattr(model, "peft_config"):
        if how.quantisation is not None:
            raise UserError(
                "the adapter's base is an adapter itself, which quantised weights cannot take up",
                where=str(folder),
                fix=f"merge the base first: contrl merge --adapter_model_name {base} --output_name FOLDER",
            )
        model = merged(model)
        model.name_or_path = base
    return load_adapter(model, folder)


def _from_folder(folder: Path, how: Reading) -> Any:
    if is_classifier(folder) and not how.classifier:
        raise UserError(
            "the folder holds a classifier (a reward model), not a language model",
            where=str(folder),
            fix="name the model it was trained from",
        )
    try:
        return _pretrained(str(folder), how, where=str(folder), local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: BaseException) -> UserError:
    return UserError(
        "the folder's model or tokenizer cannot be read",
        where=str(folder),
        why=(str(error).strip().splitlines() or [type(error).__name__])[0],
        fix="it must hold config.json, model.safetensors and the tokenizer's files",
    )


def _no_head(where: str) -> UserError:
    return UserError(
        "this is no reward model: it has no head that scores", where=where, fix="train one: contrl reward --help"
    )


def _embedded(name: str, how: Reading) -> Any:
    model: Any = embedded.tiny(how.seed)[0] if name == "tiny" else embedded.smollm2()[0]
    if how.quantisation is not None:
        # Weights are quantised as they are read from a file.
        with tempfile.TemporaryDirectory() as place:
            model.save_pretrained(place)
            return _pretrained(place, how, where=name, local_files_only=True)
    if how.config.dtype != "auto":
        model = model.to(getattr(torch, how.config.dtype))
    if how.config.attn_implementation:
        model.set_attn_implementation(how.config.attn_implementation)
    if how.classifier and not how.new_head:
        raise _no_head(name)
    return on_trunk(model, how.seed, how.num_labels) if how.classifier else model


def _local_only(name: str, config: ModelConfig) -> bool:
    if not is_hub_id(name):
        raise UserError(f"there is no model folder {name}", fix="name an existing folder, tiny, smollm2, or a hub id")
    return only_cached(name, config.revision)


def _from_hub(name: str, how: Reading) -> Any:
    options = {"revision": how.config.revision, "local_files_only": _local_only(name, how.config)}
    try:
        try:
            return _pretrained(name, how, where=name, use_safetensors=True, **options)
        except OSError:
            # Repositories from before safetensors; transformers reads their pickles as weights only.
            return _pretrained(name, how, where=name, use_safetensors=False, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise fault(name, error) from error


def _pretrained(place: str, how: Reading, *, where: str, **source: Any) -> Any:
    """``from_pretrained`` that names every weight it could not find."""
    options = {**how.options(), **source}
    kind: Any = AutoModelForCausalLM
    if how.classifier:
        kind = AutoModelForSequenceClassification
        located = {name: value for name, value in source.items() if name != "use_safetensors"}
        config = AutoConfig.from_pretrained(place, trust_remote_code=how.config.trust_remote_code, **located)
        if not any("ForSequenceClassification" in name for name in config.architectures or ()):
            config.num_labels = how.num_labels
        options["config"] = config
    with _quiet(), torch.random.fork_rng(devices=[]):
        model, loading = kind.from_pretrained(place, output_loading_info=True, **options)
    missing = set(loading["missing_keys"]) & {name for name, _ in model.named_parameters()}
    if how.classifier:
        if not how.any_labels:
            check_one_label(model, where)
        new = missing & set(head_names(model)) if how.new_head else set()
        draw_head(model, new, how.seed)
        missing -= new
    if missing and not how.new_head:
        raise _no_head(where)
    if missing:
        raise UserError(f"weights are missing: {', '.join(sorted(missing)[:3])}", where=where)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No report of heads that are not there: they are checked and named here."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
