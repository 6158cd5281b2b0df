"""The configurations of recipes/trl: all are read without a mistake, and the first one teaches what it is for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from contrl.cli.main import main
from contrl.config import load
from contrl.experiment import find
from tests import runs as small
from tests.runs import ROOT, Runs, scores

world, runs = small.world, small.runs

EXAMPLES = sorted((ROOT / "recipes" / "trl").rglob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_configuration(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    monkeypatch.syspath_prepend(str(path.parent))
    config = load(path, resolve=find).config
    assert bool(config.rewards.functions) == (config.method.name == "ppo")


def test_the_page_names_every_example() -> None:
    page = (ROOT / "recipes" / "trl" / "README.md").read_text(encoding="utf-8")
    assert len(EXAMPLES) == 7
    assert [path.name for path in EXAMPLES if path.name not in page] == []


GOOD, BAD = ("great", "good", "lovely"), ("awful", "bad", "dull")


def sentiment(world: Path, folder: Path) -> None:
    """A classifier that tells good words from bad ones, trained on the spot."""
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    shape = LlamaConfig.from_pretrained(world / "model")
    shape.num_labels, shape.id2label = 2, {0: "NEGATIVE", 1: "POSITIVE"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForSequenceClassification(shape)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        texts = [(f"it is {word}", label) for label, words in enumerate((BAD, GOOD)) for word in words]
        for step in range(60):
            text, label = texts[step % len(texts)]
            ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
            model(input_ids=ids, labels=torch.tensor([label])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_reviews_become_positive(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred rollouts of a model of thirty thousand weights: the classifier's score of what it writes rises."""
    here = runs.folder / "trl"
    shutil.copytree(ROOT / "recipes" / "trl", here, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(here)
    (here / "imdb").mkdir()
    for split, number in (("train", 64), ("test", 16)):
        lines = [
            json.dumps({"text": f"I saw film {i} with my old friend, it is {(*GOOD, *BAD)[i % 6]}"}) + "\n"
            for i in range(number)
        ]
        (here / "imdb" / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    sentiment(runs.world, here / "judge")
    overrides = {
        "model": runs.world / "model",
        "rewards.functions.classifier.model": here / "judge",
        "method.max_new_tokens": 8,
        "prompts_per_step": 32,
        "training.learning_rate": 5e-3,
        "training.max_steps": 400,
    }
    assert main(["run", "positive_reviews.yaml", *(f"{path}={value}" for path, value in overrides.items())]) == 0
    found = {
        stage: value
        for (stage, _, name), (value, _, _) in scores(Path("runs/positive-reviews")).items()
        if name == "eval_score"
    }
    assert found[1] > found[0] + 0.5
