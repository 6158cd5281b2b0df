"""Record how TRL 1.16.0 converts, tokenises and packs rows, from its own code.

Run where TRL is installed: ``PYTHONPATH=src:. python tests/golden/record_formats.py``. Token ids and labels are what
the trainers' own ``_prepare_dataset`` makes of the rows; conversions and packing are TRL's public functions.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trl
from datasets import Dataset
from trl import DPOTrainer, KTOTrainer, RewardTrainer, SFTTrainer

from tests.data.toys import (
    ASKS_THE_ROW,
    CHATML,
    CHATML_WITH_WHOLE_BLOCKS,
    OPENS_THOUGHT,
    chat_tokenizer,
    merging_tokenizer,
)

VERSION = "1.16.0"

USER, BLUE, GREEN = (
    {"role": role, "content": content}
    for role, content in (("user", "Sky?"), ("assistant", "Blue."), ("assistant", "Green."))
)
AGAIN, SURE = {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}
TOOL = '[{"type": "function", "function": {"name": "look", "parameters": {}}}]'

TOKENIZERS: dict[str, Any] = {
    "characters": lambda: chat_tokenizer(CHATML),
    "blocks": lambda: chat_tokenizer(CHATML_WITH_WHOLE_BLOCKS),
    "thought": lambda: chat_tokenizer(OPENS_THOUGHT),
    "asks": lambda: chat_tokenizer(ASKS_THE_ROW),
    "merging": merging_tokenizer,
}
TEXT_PAIR = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
CHAT_PAIR: dict[str, Any] = {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}
IMPLICIT_TEXT = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
IMPLICIT_CHAT = {"chosen": [USER, BLUE, AGAIN, SURE], "rejected": [USER, GREEN]}
PREFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("characters", TEXT_PAIR),
    "text that ends already": ("characters", {**TEXT_PAIR, "chosen": " blue.<eos>"}),
    "implicit text": ("characters", IMPLICIT_TEXT),
    "merged on one side": ("merging", {"prompt": "da", "chosen": "bc", "rejected": "dd"}),
    "merged on both sides": ("merging", {"prompt": "da", "chosen": "bc", "rejected": "b"}),
    "messages": ("characters", CHAT_PAIR),
    "implicit messages": ("characters", IMPLICIT_CHAT),
    "several turns": ("characters", {"prompt": [USER, BLUE, AGAIN], "chosen": [SURE], "rejected": [GREEN]}),
    "generation prompt with a thought": ("thought", CHAT_PAIR),
    "options of the row": ("asks", {**CHAT_PAIR, "tools": TOOL, "chat_template_kwargs": {"enable_thinking": False}}),
}
SUPERVISED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "text": ("characters", {"text": "The sky is blue."}, {}),
    "prompt and completion": ("characters", {"prompt": "The sky is", "completion": " blue."}, {}),
    "prompt trained too": ("characters", {"prompt": "The sky is", "completion": " blue."}, {"completion_only": False}),
    "merged boundary": ("merging", {"prompt": "da", "completion": "bcd"}, {}),
    "messages": ("characters", {"messages": [USER, BLUE]}, {}),
    "assistant only": ("blocks", {"messages": [USER, BLUE, AGAIN, SURE]}, {"assistant_only": True}),
    "pair, assistant only": ("blocks", {"prompt": [USER], "completion": [BLUE, AGAIN, SURE]}, {"assistant_only": True}),
    "pair, assistant only, prompt too": (
        "blocks",
        {"prompt": [USER, BLUE, AGAIN], "completion": [SURE]},
        {"assistant_only": True, "completion_only": False},
    ),
    "messages as pair": ("characters", {"prompt": [USER], "completion": [BLUE]}, {}),
    "from and value": (
        "characters",
        {"conversations": [{"from": "user", "value": "Sky?"}, {"from": "assistant", "value": "Blue."}]},
        {},
    ),
    "ids with a mask": ("characters", {"input_ids": [1, 2, 3, 4], "assistant_masks": [0, 0, 1, 1]}, {}),
    "ids with labels": ("characters", {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {}),
}
PACKING: dict[str, tuple[list[list[int]], int, str]] = {
    "bfd": ([[1, 2, 3], [4, 5, 6, 7], [8]], 4, "bfd"),
    "bfd cuts": ([[1, 2, 3, 4, 5], [6, 7], [8, 9, 10, 11], [12]], 4, "bfd"),
    "bfd_split": ([[1, 2, 3, 4, 5], [6, 7], [8, 9, 10, 11], [12]], 4, "bfd_split"),
    "empty rows vanish": ([[], [1, 2], [], [3]], 4, "bfd"),
    "wrapped": ([[1, 2, 3, 4], [5, 6], [7, 8]], 3, "wrapped"),
}


def prepare(trainer: Any, row: dict[str, Any], tokenizer: Any, assistant_only: bool = False, **more: Any) -> dict:
    """One row through the trainer's own preparation, nothing cut."""
    stub = SimpleNamespace(_tokenizer=tokenizer, chat_template=None, calculate_KL=False, **more)
    args = SimpleNamespace(
        max_length=None,
        dataset_num_proc=None,
        dataset_text_field="text",
        assistant_only_loss=assistant_only,
        truncation_mode="keep_start",
        desirable_weight=1.0,
        undesirable_weight=1.0,
        shuffle_dataset=False,
    )
    arguments = [False, None] if trainer is SFTTrainer else []
    dataset = Dataset.from_list([row])
    prepared = trainer._prepare_dataset(stub, dataset, tokenizer, args, *arguments, "train")
    return dict(prepared[0])


def preferences() -> dict[str, Any]:
    """Ids as DPO, and as the reward trainer, makes them."""
    found: dict[str, Any] = {}
    for name, (tokenizer, row) in PREFERENCES.items():
        dpo = prepare(DPOTrainer, row, TOKENIZERS[tokenizer]())
        reward = prepare(RewardTrainer, row, TOKENIZERS[tokenizer]())
        found[name] = {
            "tokenizer": tokenizer,
            "row": row,
            "dpo": {column: dpo[column] for column in ("prompt_ids", "chosen_ids", "rejected_ids")},
            "reward": {column: reward[column] for column in ("chosen_ids", "rejected_ids")},
        }
    return found


def supervised() -> dict[str, Any]:
    """Ids and labels as SFT makes them."""
    found: dict[str, Any] = {}
    for name, (tokenizer, row, options) in SUPERVISED.items():
        only = options.get("completion_only")
        made = prepare(
            SFTTrainer,
            row,
            TOKENIZERS[tokenizer](),
            assistant_only=options.get("assistant_only", False),
            completion_only_loss="completion" in row if only is None else only,
        )
        found[name] = {
            "tokenizer": tokenizer,
            "row": row,
            "options": options,
            "input_ids": made["input_ids"],
            "labels": made["labels"],
        }
    return found


def unpaired() -> dict[str, Any]:
    """Ids as KTO makes them, of the two text rows that a pair becomes."""
    row = {"prompt": "The sky is", "completion": " blue.", "label": True}
    made = prepare(KTOTrainer, row, TOKENIZERS["characters"]())
    return {"row": row, **{column: made[column] for column in ("prompt_ids", "completion_ids")}}


def conversions() -> dict[str, Any]:
    """TRL's public helpers."""
    two = {"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"], "source": ["x", "y"]}
    rows = (IMPLICIT_TEXT, IMPLICIT_CHAT, TEXT_PAIR, CHAT_PAIR, {"prompt": "Sky?", **IMPLICIT_CHAT})
    templated = (
        {"messages": [USER, BLUE]},
        {"prompt": [USER]},
        {"prompt": [USER, BLUE]},
        {"prompt": [USER], "completion": [BLUE]},
        {"prompt": [USER], "completion": [BLUE], "label": True},
        CHAT_PAIR,
        IMPLICIT_CHAT,
    )
    return {
        "extract": [{"row": row, "result": dict(trl.maybe_extract_prompt(dict(row)))} for row in rows],
        "unpair": {"columns": two, "result": trl.unpair_preference_dataset(Dataset.from_dict(two)).to_dict()},
        "template": [
            {"tokenizer": name, "row": row, "result": trl.apply_chat_template(row, TOKENIZERS[name]())}
            for name in ("characters", "thought")
            for row in templated
        ],
    }


def packing() -> dict[str, Any]:
    """``pack_dataset`` on one column of ids."""
    return {
        name: {
            "input_ids": rows,
            "seq_length": length,
            "strategy": strategy,
            "result": trl.pack_dataset(Dataset.from_dict({"input_ids": rows}), length, strategy).to_dict(),
        }
        for name, (rows, length, strategy) in PACKING.items()
    }


def main() -> None:
    """Write the record beside this file."""
    if trl.__version__ != VERSION:
        raise SystemExit(f"this records TRL {VERSION}, here is {trl.__version__}")
    record = {
        "recorded_with": {"trl": VERSION},
        "preferences": preferences(),
        "supervised": supervised(),
        "unpaired": unpaired(),
        "conversions": conversions(),
        "packing": packing(),
    }
    path = Path(__file__).with_name(f"formats-trl-{VERSION}.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(record, file, indent=1, ensure_ascii=False)
        file.write("\n")


if __name__ == "__main__":
    main()
