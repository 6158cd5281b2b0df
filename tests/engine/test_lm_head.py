"""The chunked head equals a dense log-softmax in value and gradient, and never holds tokens x vocabulary.

``dense`` below is the definition: the model family's own formula for logits, written out, then log-softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from toys import CPU, build, gradients, ragged_batch

from contrl.engine import lm_head
from contrl.engine.batching import to_batch
from contrl.engine.forward import Routing, score_batch
from contrl.engine.layout_check import check_head
from contrl.engine.lm_head import LMHead
from contrl.errors import UserError
from contrl.interfaces import Completion, Group

TOKENS, HIDDEN, VOCABULARY, CHUNK = 64, 32, 128, 32


def in_chunks_of(rows: int, vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_head, "CHUNK_BYTES", 4 * vocabulary * rows)


def hidden_and_ids(vocabulary: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    return hidden, torch.randint(0, vocabulary, (TOKENS,), generator=generator)


def dense(logits: torch.Tensor, ids: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    logps = (logits / temperature).log_softmax(-1)
    return logps.gather(-1, ids[:, None])[:, 0], -(logps.exp() * logps).sum(-1)


def plain_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return hidden @ model.lm_head.weight.T


def biased_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return hidden @ model.lm_head.weight.T + model.lm_head.bias


def capped_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return 5.0 * torch.tanh(hidden @ model.lm_head.weight.T / 5.0)


def quarter_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return hidden @ model.lm_head.weight.T * 0.25


FORMULAS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "llama": plain_logits,
    "phi": biased_logits,
    "gemma2": capped_logits,
    "recurrent-gemma": capped_logits,
    "cohere": quarter_logits,
    "granite": quarter_logits,
}


@pytest.mark.parametrize("rows", [TOKENS, CHUNK, 7, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_head_equals_dense_log_softmax(
    name: str, temperature: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 1e-5: log-probabilities, entropy, and the gradients of hidden states and head. One chunk or many."""
    model = build(name, vocab_size=VOCABULARY)
    in_chunks_of(rows, VOCABULARY, monkeypatch)
    hidden, ids = hidden_and_ids(VOCABULARY)
    upstream = torch.linspace(-1, 1, TOKENS) / TOKENS
    logps, entropy = LMHead(model).score(hidden, ids, temperature, extras=["entropy"])
    wanted_logps, wanted_entropy = dense(FORMULAS[name](model, hidden), ids, temperature)
    torch.testing.assert_close(logps, wanted_logps, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy["entropy"], wanted_entropy, rtol=0, atol=1e-5)
    assert not entropy["entropy"].requires_grad
    leaves = [hidden, *model.lm_head.parameters()]
    got = torch.autograd.grad((logps * upstream).sum(), leaves)
    wanted = torch.autograd.grad((wanted_logps * upstream).sum(), leaves)
    for a, b in zip(got, wanted, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_half_precision_heads_are_scored_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 within 1e-2 of float32: only the projection is rounded, the log-softmax is not."""
    model = build("llama", spread=0.1, vocab_size=VOCABULARY)
    hidden, ids = hidden_and_ids(VOCABULARY)
    in_chunks_of(CHUNK, VOCABULARY, monkeypatch)
    wanted, _ = dense(plain_logits(model, hidden), ids, 0.7)
    logps, _ = LMHead(model.to(torch.bfloat16)).score(hidden.detach().bfloat16(), ids, 0.7)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, wanted, rtol=0, atol=1e-2 * float(wanted.detach().abs().max()))


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere"])
def test_double_precision_stays_double(name: str) -> None:
    model = build(name, vocab_size=VOCABULARY).double()
    hidden, ids = hidden_and_ids(VOCABULARY, torch.float64)
    logps, _ = LMHead(model).score(hidden, ids)
    torch.testing.assert_close(logps, dense(FORMULAS[name](model, hidden), ids, 1.0)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [TOKENS, 5])
def test_lora_on_the_head_is_part_of_it(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is called as a module, so its adapter is seen: logits = x W' + x A' B' alpha / r."""
    model = get_peft_model(build("llama", vocab_size=VOCABULARY), LoraConfig(r=4, target_modules=["lm_head"]))
    head = model.get_base_model().lm_head
    torch.nn.init.normal_(head.lora_B["default"].weight, std=0.2)
    in_chunks_of(rows, VOCABULARY, monkeypatch)
    hidden, ids = hidden_and_ids(VOCABULARY)
    a, b = head.lora_A["default"].weight, head.lora_B["default"].weight
    logits = hidden @ head.base_layer.weight.T + hidden @ a.T @ b.T * head.scaling["default"]
    wanted = dense(logits, ids, 1.0)[0]
    logps = LMHead(model).score(hidden, ids)[0]
    torch.testing.assert_close(logps, wanted, rtol=0, atol=1e-5)
    assert (wanted - dense(hidden @ head.base_layer.weight.T, ids, 1.0)[0]).abs().max().item() > 0.1
    for x, y in zip(
        torch.autograd.grad(logps.mean(), [hidden, a, b]),
        torch.autograd.grad(wanted.mean(), [hidden, a, b]),
        strict=True,
    ):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5)


def test_recomputation_repeats_the_adapters_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout inside the head, backward must see the masks of the forward, chunk by chunk.

    The reference runs the same chunks from the same seed without recomputing anything.
    """
    config = LoraConfig(r=4, target_modules=["lm_head"], lora_dropout=0.5)
    model = get_peft_model(build("llama", vocab_size=VOCABULARY), config).train()
    torch.nn.init.normal_(model.get_base_model().lm_head.lora_B["default"].weight, std=0.5)
    hidden, ids = hidden_and_ids(VOCABULARY)
    in_chunks_of(8, VOCABULARY, monkeypatch)
    head = LMHead(model)
    torch.manual_seed(11)
    got = gradients(model, head.score(hidden, ids)[0].mean())
    torch.manual_seed(11)
    pieces = [head.logits(hidden[i : i + 8]).log_softmax(-1) for i in range(0, TOKENS, 8)]
    wanted = gradients(model, torch.cat(pieces).gather(-1, ids[:, None]).mean())
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=1e-6)
        assert wanted[name].abs().max() > 1e-3


def test_nothing_labelled_is_nothing_with_a_finite_gradient() -> None:
    """A pass may hold no trained token; loss 0 and gradients 0 keep every rank's backward alive."""
    model = build("llama")
    groups = [Group("a", "t", [3, 4], [Completion([5, 6], trained=[False, False]), Completion([7], trained=[False])])]
    for layout in ("shared", "plain"):
        batch = to_batch(groups, CPU)
        out = score_batch(model, LMHead(model), batch, Routing(layout, needs=frozenset({"entropy"})))
        assert out["logps"].shape == (2, 2)
        assert not out["logps"].any()
        assert not out["entropy"].any()
        found = gradients(model, out["logps"].sum())
        assert all(torch.isfinite(g).all() and not g.any() for g in found.values())


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operator returns, backward included."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return out


def test_logits_of_all_tokens_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 tokens x 1,000 words in chunks of 48 rows: no tensor of forward or backward exceeds a chunk of logits."""
    tokens, vocabulary, rows = 512, 1000, 48
    model = build("llama", vocab_size=vocabulary)
    hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
    ids = torch.randint(0, vocabulary, (tokens,))
    in_chunks_of(rows, vocabulary, monkeypatch)
    with Largest() as seen:
        LMHead(model).score(hidden, ids, 0.7, extras=["entropy"])[0].mean().backward()
    assert HIDDEN * vocabulary < rows * vocabulary  # the head's own gradient is not what is measured
    assert seen.numel == rows * vocabulary
    with Largest() as seen:
        dense(plain_logits(model, hidden), ids, 0.7)[0].mean().backward()
    assert seen.numel == tokens * vocabulary  # and the instrument sees them where they are


def test_backward_recomputes_what_forward_does_not_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept for backward: hidden states, weights and a few numbers a token, not the chunks' logits."""
    tokens, vocabulary, rows = 512, 1000, 48
    model = build("llama", vocab_size=vocabulary)
    hidden, ids = torch.randn(tokens, HIDDEN, requires_grad=True), torch.randint(0, vocabulary, (tokens,))

    def kept(rows: int) -> int:
        in_chunks_of(rows, vocabulary, monkeypatch)
        sizes: dict[int, int] = {}

        def pack(value: torch.Tensor) -> torch.Tensor:
            sizes[value.data_ptr()] = value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            LMHead(model).score(hidden, ids)[0].mean().backward()
        return sum(sizes.values())

    assert kept(tokens) >= tokens * vocabulary  # one chunk keeps its logits
    assert kept(rows) < tokens * vocabulary / 2


def test_a_whole_forward_holds_no_more_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same through the model: the layouts ask the stack below the head, never the model for logits."""
    vocabulary, rows = 3000, 40
    model = build("llama", vocab_size=vocabulary).train()
    answers = [Completion([5 + (i * k) % 50 for i in range(30)]) for k in range(1, 5)]
    batch = to_batch([Group("a", "t", [3, 4], answers[:2]), Group("b", "t", [9], answers[2:])], CPU)
    in_chunks_of(rows, vocabulary, monkeypatch)
    assert HIDDEN < rows < int(batch.mask.sum()) == 120
    for layout in ("shared", "plain"):
        with Largest() as seen:
            score_batch(model, LMHead(model), batch, Routing(layout, needs=frozenset({"entropy"})))[
                "logps"
            ].sum().backward()
        assert seen.numel == rows * vocabulary


# --- the check at the start ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "opt", "gemma2", "cohere", "granite", "phi", "recurrent-gemma", "llama4"]
)
def test_known_heads_pass_the_check(name: str, dtype: torch.dtype) -> None:
    check_head(build(name).to(dtype), ragged_batch())


def test_an_unknown_head_is_refused_by_name() -> None:
    """HyperCLOVA X *multiplies* by the setting that Granite divides by: better refused than trained wrong."""
    with pytest.raises(UserError, match="HyperCLOVAX"):
        check_head(build("hyperclovax"), ragged_batch())


def test_a_model_without_output_embeddings_is_refused() -> None:
    with pytest.raises(UserError, match="LlamaModel has no output embeddings"):
        LMHead(build("llama").model)
