"""A reward model scores at the last real token, whatever the padding; and only one that was trained is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from contrl.errors import UserError
from contrl.models.embedded import character_tokenizer, tiny
from contrl.models.load import load_scorer
from contrl.rewards.model import ClassifierReward, end_scores, label_index, resolve_reward_model, whole_ids

_SHAPE: dict[str, Any] = {
    "vocab_size": 100,
    "num_labels": 1,
    "pad_token_id": 1,
    "eos_token_id": 1,
    "bos_token_id": None,
}
_LLAMA = {**_SHAPE, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_GPT2 = {**_SHAPE, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
TOKENIZER = character_tokenizer()


def classifier(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A classifier with random weights far from 0; its pad token equals its end token, the case that goes wrong."""
    config: Any = tf.GPT2Config(**_GPT2 | changes) if family == "gpt2" else tf.LlamaConfig(**_LLAMA | changes)
    kind: Any = tf.GPT2ForSequenceClassification if family == "gpt2" else tf.LlamaForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def saved(folder: Path, **changes: Any) -> str:
    classifier(**changes).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


def alone(model: Any, ids: list[int]) -> torch.Tensor:
    """The scores of one text without padding, by the trunk and the head themselves."""
    with torch.no_grad():
        hidden = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state
        return model.score(hidden[0, -1])


# --- where the score is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_leaves_the_score(family: str, side: str) -> None:
    """Texts of 3 and 6 tokens that end with the end token, which is the pad token too."""
    model = classifier(family)
    rows = [[5, 6, 1], [7, 8, 9, 10, 11, 1]]
    ids, mask = torch.ones(2, 8, dtype=torch.long), torch.zeros(2, 8, dtype=torch.long)
    for row, tokens in enumerate(rows):
        place = slice(0, len(tokens)) if side == "right" else slice(8 - len(tokens), 8)
        ids[row, place] = torch.tensor(tokens)
        mask[row, place] = 1
    with torch.no_grad():
        scores = end_scores(model, ids, mask)
    for row, tokens in enumerate(rows):
        torch.testing.assert_close(scores[row], alone(model, tokens))
    assert (scores[0] - alone(model, rows[0][:-1])).abs() > 1e-3


def test_an_encoders_own_logits_are_taken() -> None:
    config = tf.BertConfig(
        vocab_size=100, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_labels=1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tf.BertForSequenceClassification(config).eval()
    ids = torch.tensor([[5, 6, 7, 0], [8, 9, 10, 11]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    with torch.no_grad():
        torch.testing.assert_close(end_scores(model, ids, mask)[0], model(input_ids=ids[:1, :3]).logits[0])


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_scores_come_back_in_order_whatever_the_batch(batch_size: int, tmp_path: Path) -> None:
    reward = ClassifierReward(saved(tmp_path), batch_size=batch_size, load=load_scorer)
    prompts, completions = ["1+1=", "a", "what is it? ", "a"], ["2", "bcdefghijk", "", "b"]
    got = reward(prompts=prompts, completions=completions, other=[0] * 4)
    for score, prompt, completion in zip(got, prompts, completions, strict=True):
        ids = [*TOKENIZER(prompt + completion)["input_ids"], TOKENIZER.eos_token_id]
        assert score == pytest.approx(float(alone(classifier(), ids)), abs=1e-5)


def test_it_is_loaded_at_the_first_call_in_eval_mode_without_gradient(tmp_path: Path) -> None:
    reward = ClassifierReward(tmp_path / "later", load=load_scorer)
    saved(tmp_path / "later")
    reward(prompts=["a"], completions=["b"])
    model = reward._ready()[0]
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_a_text_that_is_too_long_loses_its_beginning(tmp_path: Path) -> None:
    name = saved(tmp_path)
    with pytest.warns(UserWarning, match="over 4 tokens lose their beginning"):
        cut = ClassifierReward(name, max_length=4, load=load_scorer)(prompts=["abcdef"], completions=["ghi"])
    assert cut == pytest.approx(ClassifierReward(name, load=load_scorer)(prompts=["g"], completions=["hi"]), abs=1e-5)


# --- text and messages --------------------------------------------------------------------------------------


def test_messages_go_through_the_chat_template() -> None:
    prompt = [{"role": "user", "content": "1+1"}]
    wanted = TOKENIZER("user: 1+1\nassistant: 2<eos>")["input_ids"]
    assert whole_ids(prompt, [{"role": "assistant", "content": "2"}], TOKENIZER) == wanted
    assert whole_ids(prompt, "2", TOKENIZER) == wanted
    begun = [*prompt, {"role": "assistant", "content": "the sum is "}]
    assert whole_ids(begun, "2", TOKENIZER) == TOKENIZER("user: 1+1\nassistant: the sum is 2<eos>")["input_ids"]


def test_text_ends_with_one_end_token() -> None:
    end = TOKENIZER.eos_token_id
    assert (
        whole_ids("ab", "c", TOKENIZER) == whole_ids("ab", "c<eos>", TOKENIZER) == [*TOKENIZER("abc")["input_ids"], end]
    )


def test_what_cannot_be_made_one_text_is_refused() -> None:
    bare = character_tokenizer()
    bare.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        whole_ids([{"role": "user", "content": "x"}], "y", bare)
    with pytest.raises(UserError, match="the prompt is text and the completion messages"):
        whole_ids("x", [{"role": "assistant", "content": "y"}], TOKENIZER)


# --- labels -------------------------------------------------------------------------------------------------


def test_a_label_is_chosen_by_name_or_number(tmp_path: Path) -> None:
    labels = {"num_labels": 3, "id2label": {0: "bad", 1: "fair", 2: "good"}}
    name = saved(tmp_path, **labels)
    ids = [*TOKENIZER("ab")["input_ids"], TOKENIZER.eos_token_id]
    wanted = alone(classifier(**labels), ids)
    for label, index in (("good", 2), (0, 0), ("1", 1)):
        assert ClassifierReward(name, label, load=load_scorer)(prompts=["a"], completions=["b"]) == pytest.approx(
            [float(wanted[index])], abs=1e-5
        )
    for label in (None, "best", 3):
        with pytest.raises(UserError, match="it has 0: bad, 1: fair, 2: good"):
            ClassifierReward(name, label, load=load_scorer)(prompts=["a"], completions=["b"])


def test_the_only_label_needs_no_name() -> None:
    assert label_index(classifier().config, None) == 0


# --- what is loaded -----------------------------------------------------------------------------------------


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    """Its head would be drawn at random: scores without meaning, as in one of the origins."""
    model, tokenizer = tiny(0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="it has no head that scores"):
        ClassifierReward(tmp_path, load=load_scorer)(prompts=["a"], completions=["b"])


def test_a_run_folder_is_found_through(tmp_path: Path) -> None:
    """The scores of a run folder are those of its last stage's model."""
    name = saved(tmp_path / "run" / "stages" / "1-a" / "final")
    rows: dict[str, Any] = {"prompts": ["a", "cd"], "completions": ["b", "e"]}
    through_run = ClassifierReward(str(tmp_path / "run"), load=load_scorer)(**rows)
    assert through_run == pytest.approx(ClassifierReward(name, load=load_scorer)(**rows), abs=1e-6)


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        ClassifierReward(tmp_path, load=load_scorer)(prompts=["a"], completions=["b"])


# --- which one for which task -------------------------------------------------------------------------------


def test_a_tasks_own_reward_model_comes_first(tmp_path: Path) -> None:
    """P/<i>, then P_<i>, then P."""
    whole = tmp_path / "P"
    for folder in (whole / "0", tmp_path / "P_0", tmp_path / "P_1", whole):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({}), encoding="utf-8")
    assert resolve_reward_model(whole, 0) == (whole / "0", f"{whole / '0'}: its own, of task 0")
    assert resolve_reward_model(whole, 1) == (tmp_path / "P_1", f"{tmp_path / 'P_1'}: its own, of task 1")
    assert resolve_reward_model(whole, 2) == (whole, f"{whole}: one reward model for all tasks")
    assert resolve_reward_model(str(whole))[0] == whole


def test_a_missing_one_lists_what_was_tried(tmp_path: Path) -> None:
    (tmp_path / "P" / "0").mkdir(parents=True)
    with pytest.raises(UserError, match="there is no reward model for task 0") as error:
        resolve_reward_model(tmp_path / "P", 0)
    assert error.value.why == f"looked for {tmp_path / 'P' / '0'}, {tmp_path / 'P_0'}, {tmp_path / 'P'}"


def test_a_run_folder_counts_and_a_hubs_name_is_left_to_the_hub(tmp_path: Path) -> None:
    final = tmp_path / "P" / "3" / "final"
    final.mkdir(parents=True)
    (final / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert resolve_reward_model(tmp_path / "P", 3)[0] == tmp_path / "P" / "3"
    assert resolve_reward_model("some-owner/reward-model", 1)[1].endswith("the one on the hub, for all tasks")
