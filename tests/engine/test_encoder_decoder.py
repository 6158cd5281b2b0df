"""T5 and Bart in the one forward: equal to the models' own logits, gradients through both halves, prompts read once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from torch import nn
from toys import CPU, VOCABULARY, gradients, ragged_batch

from contrl.engine.batching import to_batch
from contrl.engine.encoder_decoder import start_token
from contrl.engine.forward import Routing, routed, run, score_batch
from contrl.engine.layout_check import check_head, choose_layout
from contrl.engine.lm_head import LMHead
from contrl.errors import UserError
from contrl.interfaces import Completion, Group
from contrl.models.value_head import attach_head

FAMILIES = ("t5", "t5-untied", "bart")


def seq2seq(name: str, seed: int = 0) -> Any:
    """A tiny model with wide weights, so that a wrong position changes a log-probability by tenths."""
    if name == "bart":
        config: Any = tf.BartConfig(
            vocab_size=VOCABULARY,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=64,
            dropout=0.0,
        )
    else:
        config = tf.T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            dropout_rate=0.0,
            tie_word_embeddings=name == "t5",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tf.AutoModelForSeq2SeqLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 0.25)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
            if name == "bart":
                model.final_logits_bias.normal_(0.0, 1.0)
    return model.eval()


def own_logps(model: Any, groups: list[Group]) -> Iterator[torch.Tensor]:
    """One completion at a time through the model's own forward, labels shifted here."""
    for group in groups:
        for completion in group.completions:
            written = torch.tensor([[start_token(model), *completion.ids[:-1]]])
            logits = model(input_ids=torch.tensor([group.prompt_ids]), decoder_input_ids=written).logits[0]
            yield logits.log_softmax(-1).gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probabilities_are_those_of_the_models_own_logits(name: str) -> None:
    model, batch = seq2seq(name), ragged_batch()
    with torch.no_grad():
        got = score_batch(model, LMHead(model), batch, Routing("shared"))["logps"]
        wanted = nn.utils.rnn.pad_sequence(list(own_logps(model, batch.groups)), batch_first=True)
    torch.testing.assert_close(got, wanted * batch.mask, atol=1e-5, rtol=0)
    assert wanted.std() > 0.5


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_the_models_own_logits(name: str) -> None:
    model, batch = seq2seq(name), ragged_batch()
    got = gradients(model, score_batch(model, LMHead(model), batch, Routing())["logps"].sum())
    own = nn.utils.rnn.pad_sequence(list(own_logps(model, batch.groups)), batch_first=True)
    wanted = gradients(model, (own * batch.mask).sum())
    scale = max(float(value.abs().max()) for value in wanted.values())
    for parameter, value in wanted.items():
        assert (got[parameter] - value).abs().max() < 1e-5 * scale, parameter
    assert any("encoder" in parameter and value.abs().max() > 1e-2 for parameter, value in got.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_encoder_runs_once_per_group(name: str) -> None:
    model, batch = seq2seq(name), ragged_batch()
    rows: list[int] = []
    model.get_encoder().register_forward_hook(lambda module, args, out: rows.append(len(out.last_hidden_state)))
    score_batch(model, LMHead(model), batch, Routing())
    assert rows == [3]
    assert len(batch.group_index) == 9


def test_values_stand_before_each_token_and_reach_the_head() -> None:
    """With the head's weight on one state and bias b, a value is that state plus b."""
    model, batch = seq2seq("t5"), ragged_batch()
    head = attach_head(model)
    with torch.no_grad():
        head.summary.weight[0, 3], head.summary.bias[0] = 1.0, 2.0
    with routed(model, Routing(needs=frozenset({"values"}))):
        out = run(model, batch)
    group = batch.groups[0]
    written = torch.tensor([[start_token(model), *group.completions[0].ids[:-1]]])
    states = model(
        input_ids=torch.tensor([group.prompt_ids]), decoder_input_ids=written, output_hidden_states=True
    ).decoder_hidden_states[-1][0]
    assert out.values is not None
    torch.testing.assert_close(out.values[0, : len(states)], states[:, 3] + 2.0, atol=1e-5, rtol=0)
    out.values.sum().backward()
    assert head.summary.weight.grad is not None
    assert float(head.summary.bias.grad) == float(batch.mask.sum())


def test_an_adapter_is_run_and_trained() -> None:
    model = seq2seq("t5")
    adapted: Any = get_peft_model(model, LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q", "v"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.5)
    batch = ragged_batch()
    got = score_batch(adapted, LMHead(adapted), batch, Routing())["logps"]
    own = nn.utils.rnn.pad_sequence(list(own_logps(adapted.get_base_model(), batch.groups)), batch_first=True)
    torch.testing.assert_close(got, own * batch.mask, atol=1e-5, rtol=0)
    found = gradients(adapted, got.sum())
    assert {side for name, g in found.items() for side in ("encoder", "decoder") if side in name and g.any()} == {
        "encoder",
        "decoder",
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_the_check_at_the_start_knows_the_head(name: str) -> None:
    model, batch = seq2seq(name), ragged_batch()
    check_head(model, batch)
    assert choose_layout(model, batch).reason == "the encoder reads each prompt once"


def test_a_head_it_does_not_know_is_refused() -> None:
    class Louder(tf.T5ForConditionalGeneration):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 1.5
            return out

    model = Louder(seq2seq("t5").config)
    with pytest.raises(UserError, match="not its head's"):
        check_head(model, ragged_batch())


def test_an_empty_prompt_is_refused() -> None:
    model = seq2seq("t5")
    batch = to_batch([Group("a", "", [], [Completion([3, 4])])], CPU)
    with pytest.raises(UserError, match="no tokens"):
        score_batch(model, LMHead(model), batch, Routing())


def test_a_model_without_a_start_token_is_refused() -> None:
    model = seq2seq("t5")
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = config.bos_token_id = None
    with pytest.raises(UserError, match="starts from"):
        start_token(model)
