"""The Python snippets of TRL's README of 2024, run as they stand there: only names of packages and files are ours."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

Rows = list[dict[str, Any]]

# Each argument of 2024 is told what it is called now; test_faces.py holds the words.
pytestmark = pytest.mark.filterwarnings("ignore:.*(SFTConfig|processing_class):FutureWarning")

SFT = """
# imports
from datasets import load_dataset
from contrl import SFTTrainer

# get dataset
dataset = load_dataset("DATASET", split="train")

# get trainer
trainer = SFTTrainer(
    "MODEL",
    train_dataset=dataset,
    dataset_text_field="text",
    max_seq_length=512,
)

# train
trainer.train()
"""

REWARD = """
# imports
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from contrl import RewardTrainer

# load model and dataset - dataset needs to be in a specific format
model = AutoModelForSequenceClassification.from_pretrained("MODEL", num_labels=1)
tokenizer = AutoTokenizer.from_pretrained("MODEL")

...

# load trainer
trainer = RewardTrainer(
    model=model,
    tokenizer=tokenizer,
    train_dataset=dataset,
)

# train
trainer.train()
"""

PPO = """
# imports
import torch
from transformers import AutoTokenizer
from contrl import PPOTrainer, PPOConfig, AutoModelForCausalLMWithValueHead, create_reference_model
from contrl.core import respond_to_batch

# get models
model = AutoModelForCausalLMWithValueHead.from_pretrained('MODEL')
model_ref = create_reference_model(model)

tokenizer = AutoTokenizer.from_pretrained('MODEL')
tokenizer.pad_token = tokenizer.eos_token

# initialize trainer
ppo_config = PPOConfig(batch_size=1, mini_batch_size=1)

# encode a query
query_txt = "This morning I went to the "
query_tensor = tokenizer.encode(query_txt, return_tensors="pt")

# get model response
response_tensor  = respond_to_batch(model, query_tensor)

# create a ppo trainer
ppo_trainer = PPOTrainer(ppo_config, model, model_ref, tokenizer)

# define a reward for response
# (this could be any reward such as human feedback or output from another model)
reward = [torch.tensor(1.0)]

# train model for one step with ppo
train_stats = ppo_trainer.step([query_tensor[0]], [response_tensor[0]], reward)
"""

DPO = """
# imports
from transformers import AutoModelForCausalLM, AutoTokenizer
from contrl import DPOTrainer

# load model and dataset - dataset needs to be in a specific format
model = AutoModelForCausalLM.from_pretrained("MODEL")
tokenizer = AutoTokenizer.from_pretrained("MODEL")

...

# load trainer
trainer = DPOTrainer(
    model=model,
    tokenizer=tokenizer,
    train_dataset=dataset,
)

# train
trainer.train()
"""


def execute(snippet: str, model: str, **given: Any) -> dict[str, Any]:
    """Run a snippet with a local model; ``given`` is what its ``...`` leaves out. Returns its names."""
    names = dict(given)
    exec(compile(snippet.replace("MODEL", model), "README.md", "exec"), names)
    return names


def test_supervised_fine_tuning(model_folder: str, tmp_path: Path) -> None:
    data = tmp_path / "reviews"
    data.mkdir()
    lines = [json.dumps({"text": f"{i}+{i}={2 * i}", "label": 0}) for i in range(10)]
    (data / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    names = execute(SFT.replace("DATASET", str(data)), model_folder)
    # 10 rows in steps of 8, three epochs.
    assert names["trainer"].state.global_step == 6


def test_reward_modelling(model_folder: str, pairs: Rows) -> None:
    names = execute(REWARD, model_folder, dataset=Dataset.from_list(pairs))
    assert names["trainer"].state.global_step == 6


def test_proximal_policy_optimisation(model_folder: str, make_model: Callable[..., Any]) -> None:
    names = execute(PPO, model_folder)
    stats, before = names["train_stats"], make_model().state_dict()
    assert names["response_tensor"].shape == (1, 20)
    assert (stats["objective/scores"], stats["completions/mean_length"], stats["lr"]) == (1.0, 20.0, 1.41e-5)
    # One answer that was rewarded, four epochs; its reference is where it began.
    assert abs(stats["objective/kl"]) < 1e-4
    after = names["model"].pretrained_model.state_dict()
    assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    reference = names["model_ref"].pretrained_model.state_dict()
    assert torch.equal(reference["lm_head.weight"], before["lm_head.weight"])


def test_direct_preference_optimisation(model_folder: str, pairs: Rows) -> None:
    names = execute(DPO, model_folder, dataset=Dataset.from_list(pairs))
    trainer = names["trainer"]
    assert trainer.state.global_step == 6
    assert math.isclose(trainer.state.log_history[-1]["train_loss"], math.log(2), abs_tol=0.05)


def test_sixty_steps_of_the_readmes_trainer_raise_the_probability_of_a_rewarded_token(model_folder: str) -> None:
    """The PPO snippet's own calls, in a loop, with a larger batch and a rate for a model of a few thousand weights."""
    config = "PPOConfig(batch_size=8, mini_batch_size=8, ppo_epochs=1, learning_rate=2e-2, init_kl_coef=0.01)"
    prepared = PPO.replace("PPOConfig(batch_size=1, mini_batch_size=1)", config)
    names = execute(prepared.partition("# define a reward")[0], model_folder)
    model, trainer, query = names["model"], names["ppo_trainer"], names["query_tensor"]
    good = names["tokenizer"].convert_tokens_to_ids("e")

    def chance() -> float:
        with torch.no_grad():
            return float(model(query)[0][0, -1].softmax(-1)[good])

    before = chance()
    respond = names["respond_to_batch"]
    for _ in range(60):
        responses = respond(model, query.repeat(8, 1), txt_len=4)
        rewards = [(response == good).float().sum() for response in responses]
        stats = trainer.step([query[0]] * 8, list(responses), rewards)
    assert chance() > 20 * before
    assert stats["objective/scores"] > 3
