"""Language models with a value head, under TRL's names and with its calls: logits, loss and values from one forward.

The head is the engine's own (``value_head.py``) and sits inside the language model under the engine's name, so what is
called here is what the engine trains. A folder holds a plain model, and the head in a file of its own beside it.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import try_to_load_from_cache
from peft import PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForSeq2SeqLM
from transformers.utils import logging

from contrl.config import ModelConfig
from contrl.errors import UserError
from contrl.models.adapters import load_adapter, merged
from contrl.models.embedded import NAMES
from contrl.models.folders import base_of, is_adapter, weights_folder
from contrl.models.hub import fault, only_cached
from contrl.models.pretrained import Reading, read_model
from contrl.models.quantisation import keep_gradients, quantisation_of
from contrl.models.value_head import ValueHead, attach_head, load_value, save_value, value_of, without_value

_OPTIONS = ("attn_implementation", "revision", "trust_remote_code", "load_in_4bit", "load_in_8bit")
_NOT_NEEDED = ("device_map", "low_cpu_mem_usage", "use_cache", "use_safetensors", "token")
_HEAD = ("summary_dropout_prob", "v_head_initializer_range", "v_head_init_strategy")
_OF_TRL = "v_head."


class ModelWithValueHead(nn.Module):
    """A language model and its value head; whatever else is asked of it is the language model's.

    Args:
        pretrained_model: a transformers or PEFT language model; it is used as it is. A head that it has is kept.
        summary_dropout_prob: accepted and without effect: values are measured and trained without dropout.
        v_head_init_strategy: "normal" draws the head's weights; None starts it at zero.
        v_head_initializer_range: standard deviation of what is drawn.

    Raises:
        UserError: when the model is of another kind, or an option is unknown.
    """

    kind: ClassVar[TaskType]
    has_encoder: ClassVar[bool]
    pretrained_model: Any

    def __init__(self, pretrained_model: Any, **options: Any) -> None:
        super().__init__()
        _check_kind(pretrained_model, type(self))
        unknown = sorted(set(options) - set(_HEAD))
        if unknown:
            raise UserError(f"{type(self).__name__} has no option {unknown[0]!r}", fix=f"known: {', '.join(_HEAD)}")
        self.pretrained_model = pretrained_model
        if not isinstance(value_of(pretrained_model), ValueHead):
            _draw(attach_head(pretrained_model), options)

    # --- from and to folders ------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        peft_config: Any = None,
        is_trainable: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ) -> Self:
        """A model by name, or a model object, with its value head: the saved one where there is one.

        Args:
            pretrained_model_name_or_path: a model object, or what every option takes that means a model: a model, run,
                stage or checkpoint folder, ``tiny``, ``smollm2``, a hub id.
            peft_config: a new adapter to train; the value head is trained as well.
            is_trainable: whether an adapter that was saved is trained on. (TRL's default was to freeze it.)
            seed: of a new adapter and of ``tiny``.
            kwargs: the head's options; of models given by name also dtype, revision, trust_remote_code,
                attn_implementation, load_in_4bit, load_in_8bit.

        Raises:
            UserError, EnvironmentFault: when the name means nothing or nothing of this kind, for a second adapter and
                for an unknown option.
        """
        head = {name: kwargs.pop(name) for name in _HEAD if name in kwargs}
        named, given = isinstance(pretrained_model_name_or_path, str | Path), pretrained_model_name_or_path
        config = _options(str(given) if named else "", kwargs)
        model = cls._read(config, seed, adapts=peft_config is not None) if named else given
        if peft_config is not None:
            model = _adapted(model, peft_config, cls.kind, seed)
        elif not is_trainable and isinstance(model, PeftModel):
            for parameter in model.parameters():
                parameter.requires_grad_(False)
        whole = cls(model, **head)
        folder = _folder(config) if named else None
        if folder is not None and not load_value(model, folder):
            found = _head_of_trl(folder)
            if found:
                whole.post_init(found)
        return whole

    @classmethod
    def _read(cls, config: ModelConfig, seed: int, *, adapts: bool) -> Any:
        folder = weights_folder(config.name_or_path)
        held = folder is not None and is_adapter(folder)
        quantisation = quantisation_of(config, has_adapter=adapts or held)
        how = Reading(config, seed, quantisation=quantisation)
        model = _read_seq2seq(config.name_or_path, how) if cls.has_encoder else read_model(config.name_or_path, how)
        if quantisation is not None:
            keep_gradients(model)
        return model

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the language model (or its adapter) as transformers does, and ``value_head.safetensors`` beside it."""
        if kwargs.pop("push_to_hub", False):
            self.push_to_hub()
        # The state holds the head under TRL's name, which is no tensor of the language model.
        kwargs.pop("state_dict", None)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with without_value(self.pretrained_model):
            self.pretrained_model.save_pretrained(folder, **kwargs)
        save_value(self.pretrained_model, folder)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Refused: a hub takes folders."""
        raise UserError(
            "a model with a value head is not pushed to the hub from here",
            why="its head is a file beside the model's, and uploading is never done in passing",
            fix="save_pretrained(FOLDER), then: hf upload NAME FOLDER",
        )

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """The language model's tensors under its own names and the head's under ``v_head.``, as TRL's were."""
        found = {} if destination is None else destination
        with without_value(self.pretrained_model):
            found |= self.pretrained_model.state_dict(prefix=prefix, keep_vars=keep_vars)
        found |= self.v_head.state_dict(prefix=f"{prefix}{_OF_TRL}", keep_vars=keep_vars)
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Inverse of ``state_dict``."""
        head = {name.removeprefix(_OF_TRL): value for name, value in state_dict.items() if name.startswith(_OF_TRL)}
        rest = {name: value for name, value in state_dict.items() if not name.startswith(_OF_TRL)}
        with without_value(self.pretrained_model):
            result = self.pretrained_model.load_state_dict(rest, strict=strict, assign=assign)
        self.v_head.load_state_dict(head, strict=strict)
        return result

    def post_init(self, state_dict: dict[str, Any]) -> None:
        """Take the head's tensors out of a state dictionary, where they are named ``v_head.summary.*``.

        Raises:
            UserError: when they do not fit.
        """
        names = [name for name in state_dict if name.startswith(_OF_TRL)]
        tensors = {name.removeprefix(_OF_TRL): state_dict.pop(name) for name in names}
        try:
            self.v_head.load_state_dict(tensors, strict=bool(names))
        except RuntimeError as error:
            raise UserError("the value head does not fit this model", why=str(error)) from error

    # --- what programs call -------------------------------------------------------------------------------

    @property
    def v_head(self) -> ValueHead:
        """The value head, TRL's name of it."""
        found = value_of(self.pretrained_model)
        assert isinstance(found, ValueHead)
        return found

    @property
    def is_peft_model(self) -> bool:
        """Whether an adapter is trained."""
        return isinstance(self.pretrained_model, PeftModel)

    def forward(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """One forward of the language model and its head.

        Args:
            input_ids, attention_mask: ``[B, T]``.
            kwargs: further arguments of the model; ``return_past_key_values`` adds the cache to what is returned.

        Returns:
            Logits ``[B, T, V]`` in at least float32, the loss where ``labels`` are given or None, values ``[B, T]``.
            Of an encoder-decoder T is that of the decoder.
        """
        with_cache = kwargs.pop("return_past_key_values", False)
        out = self.pretrained_model(
            input_ids=input_ids, attention_mask=attention_mask, **{**kwargs, "output_hidden_states": True}
        )
        hidden = (out.decoder_hidden_states if self.has_encoder else out.hidden_states)[-1]
        values = self.v_head(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
        logits = out.logits.float() if out.logits.dtype in (torch.bfloat16, torch.float16) else out.logits
        answer = (logits, getattr(out, "loss", None), values)
        return (*answer, out.past_key_values) if with_cache else answer

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' ``generate`` of the language model."""
        return self.pretrained_model.generate(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self.__dict__.get("_modules", {}).get("pretrained_model")
            if inner is None or name == "pretrained_model":
                raise
            return getattr(inner, name)


class AutoModelForCausalLMWithValueHead(ModelWithValueHead):
    """A decoder with a value head."""

    kind: ClassVar[TaskType] = TaskType.CAUSAL_LM
    has_encoder: ClassVar[bool] = False


class AutoModelForSeq2SeqLMWithValueHead(ModelWithValueHead):
    """An encoder-decoder with a value head on its decoder."""

    kind: ClassVar[TaskType] = TaskType.SEQ_2_SEQ_LM
    has_encoder: ClassVar[bool] = True


def language_model(model: Any) -> Any:
    """The language model inside a model with a value head; any other model as it is."""
    return model.pretrained_model if isinstance(model, ModelWithValueHead) else model


def _check_kind(model: Any, wanted: type[ModelWithValueHead]) -> None:
    if not callable(getattr(model, "get_output_embeddings", None)) or model.get_output_embeddings() is None:
        raise UserError(
            f"{type(model).__name__} is no language model", where=wanted.__name__, fix="give one that has an LM head"
        )
    if bool(model.config.is_encoder_decoder) != wanted.has_encoder:
        other = AutoModelForCausalLMWithValueHead if wanted.has_encoder else AutoModelForSeq2SeqLMWithValueHead
        what = "a decoder" if wanted.has_encoder else "an encoder-decoder"
        raise UserError(f"the model is {what}", where=wanted.__name__, fix=f"use {other.__name__}")


def _draw(head: ValueHead, options: Mapping[str, Any]) -> None:
    strategy = options.get("v_head_init_strategy")
    if strategy not in (None, "normal"):
        raise UserError(f"v_head_init_strategy is {strategy!r}", fix="use normal, or None for zero")
    if strategy == "normal":
        nn.init.normal_(head.summary.weight, std=float(options.get("v_head_initializer_range", 0.2)))


def _options(name: str, given: dict[str, Any]) -> ModelConfig:
    """contrl's options of a model given by name."""
    left = {key: value for key, value in given.items() if key not in _NOT_NEEDED and value is not None}
    values: dict[str, Any] = {key: left.pop(key) for key in _OPTIONS if key in left}
    dtypes = [str(left.pop(key)).removeprefix("torch.") for key in ("torch_dtype", "dtype") if key in left]
    if left:
        raise UserError(
            f"from_pretrained has no option {', '.join(sorted(left))}",
            fix="load the language model yourself and give the object",
        )
    return ModelConfig(name, **values | ({"dtype": dtypes[-1]} if dtypes else {}))


def _adapted(model: Any, peft_config: Any, kind: TaskType, seed: int) -> Any:
    if isinstance(model, PeftModel):
        raise UserError(
            "the model has an adapter already, and peft_config asks for another",
            fix="leave peft_config out to continue this adapter, or merge it first: model.merge_and_unload()",
        )
    config = copy.deepcopy(peft_config)
    config.task_type = kind
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise UserError(
                f"no adapter can be put on {type(model).__name__}", why=str(error).strip().splitlines()[0]
            ) from error


def _read_seq2seq(name: str, how: Reading) -> Any:
    """The encoder-decoder that ``name`` means, an adapter on its base included."""
    folder = weights_folder(name)
    if folder is not None and is_adapter(folder):
        base = _read_seq2seq(base_of(folder), how)
        return load_adapter(merged(base) if isinstance(base, PeftModel) else base, folder)
    if folder is None and name in NAMES:
        raise UserError(f"{name} is a decoder", fix="use AutoModelForCausalLMWithValueHead")
    local = folder is not None or only_cached(name, how.config.revision)
    options = {**how.options(), "local_files_only": local, "revision": how.config.revision or "main"}
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            model, loading = AutoModelForSeq2SeqLM.from_pretrained(
                str(folder or name), output_loading_info=True, **options
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if folder is None:
            raise fault(name, error) from error
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError("the folder holds no encoder-decoder that can be read", where=str(folder), why=why) from error
    missing = set(loading["missing_keys"]) & {name for name, _ in model.named_parameters()}
    if missing:
        raise UserError(f"weights are missing: {', '.join(sorted(missing)[:3])}", where=str(folder or name))
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No report of a head that a language model does not have: it is looked for here."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _folder(config: ModelConfig) -> Path | None:
    """Where the weights lie that were just read: their folder, or that of a hub model in the local cache."""
    folder = weights_folder(config.name_or_path)
    if folder is None and config.name_or_path not in NAMES:
        cached = try_to_load_from_cache(config.name_or_path, "config.json", revision=config.revision)
        folder = Path(cached).parent if isinstance(cached, str) else None
    return folder


def _head_of_trl(folder: Path) -> dict[str, torch.Tensor]:
    """The head that TRL kept among the model's own tensors, or with an adapter in ``pytorch_model.bin``."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            found |= {name: file.get_tensor(name) for name in names if name.startswith(_OF_TRL)}
    for path in sorted(folder.glob("pytorch_model*.bin")) if not found else ():
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError("the file with the value head cannot be read", where=str(path), why=str(error)) from error
        found |= {name: value for name, value in tensors.items() if name.startswith(_OF_TRL)}
    return found
