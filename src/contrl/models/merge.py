"""An adapter added to the weights of its base: a whole model that plain transformers loads.

The adapter decides what is read: a language model or, with the adapter's head, a classifier. The base is read in
full precision numbers even when the adapter was trained on quantised ones.
"""

from __future__ import annotations

from typing import Literal

from contrl.config import ModelConfig
from contrl.errors import UserError
from contrl.models.adapters import merged
from contrl.models.folders import base_of, is_adapter, is_classifier, weights_folder
from contrl.models.load import Policy, load_tokenizer
from contrl.models.pretrained import Reading, adapted

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def merge(adapter: str, base: str | None = None, *, dtype: Dtype = "auto", trust_remote_code: bool = False) -> Policy:
    """The whole model that an adapter and its base are together.

    Args:
        adapter: a folder that holds an adapter; a run or stage folder means the one at its end.
        base: the model it is put on; None takes the one the adapter names.
        dtype: of the merged weights; "auto" is float32.
        trust_remote_code: run Python code that comes with the base.

    Raises:
        UserError: when there is no adapter, or it does not fit the base.
        EnvironmentFault: when the base cannot be had from the hub.
    """
    folder = weights_folder(adapter)
    if folder is None:
        raise UserError(f"there is no adapter folder {adapter}", fix="name the folder that training wrote")
    if not is_adapter(folder):
        raise UserError(
            f"{folder} holds a whole model and no adapter", why="there is nothing to merge", fix="use it as it is"
        )
    config = ModelConfig(str(folder), dtype=dtype, trust_remote_code=trust_remote_code)
    how = Reading(config, classifier=is_classifier(folder), any_labels=True)
    model = merged(adapted(folder, how, base))
    tokenizer = load_tokenizer(config)
    return Policy(model, tokenizer, f"{folder} merged onto {base or base_of(folder)}")
