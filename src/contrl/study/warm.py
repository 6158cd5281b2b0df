"""Everything that a run imports, imported once: the processes of a study are forked from one that has loaded this.

Loading torch and transformers takes longer than a small run. Nothing here computes, so the only thread there is at the
fork is that of pyarrow's allocator, which is made for it.
"""

from __future__ import annotations

import gc

import datasets
import peft
import pyarrow.parquet
import transformers.models.auto.modeling_auto
import transformers.models.llama.modeling_llama
import transformers.trainer

import contrl.continual.comparison
import contrl.launch
from contrl.experiment import METHODS, STRATEGIES, find

LOADED = (
    *(datasets, peft, pyarrow.parquet, contrl.continual.comparison, contrl.launch),
    *(transformers.trainer, transformers.models.auto.modeling_auto, transformers.models.llama.modeling_llama),
    *(find("method", name) for name in METHODS),
    *(find("strategy", name) for name in STRATEGIES),
)
gc.freeze()
