"""Where a completion ends: end tokens, stop tokens, stop texts that cross token borders, and the limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from contrl.errors import UserError
from contrl.rollout.external import finish_of
from contrl.rollout.sampler import Noise, Sampling, generate
from contrl.rollout.stopping import Ending

Make = Callable[..., Any]
CPU = torch.device("cpu")
PROMPTS = [(f"row-{i}", [2 + (5 * i + j) % 20 for j in range(1 + i % 4)]) for i in range(8)]
PIECES = ["<pad>", "<end>", *"abcdefgh", "ab", "bc", "cd", "de", " ", " a", " b", "aa", "ca", "ha", "gg", "fe", "ee"]


def tokenizer_of(pieces: list[str]) -> PreTrainedTokenizerFast:
    """One token a piece; decoding joins them."""
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pieces[0], eos_token=pieces[1])


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    assert len(PIECES) == 23
    return tokenizer_of(PIECES)


def test_a_stop_text_ends_with_the_token_that_completes_it(make_model: Make, tokenizer: Any) -> None:
    """Each completion is the one without stops, cut where its text first holds "ca" or "b": a plain search per prefix.

    The texts are completed by one token, by two, or in the middle of one.
    """
    model, sampling = make_model(), Sampling(16, 4, 1.5)
    free = generate(model, PROMPTS, sampling, Noise((1,)), [1])
    stops = ("ca", "b")
    stopped = generate(model, PROMPTS, Sampling(16, 4, 1.5, stop=stops), Noise((1,)), [1], 200, tokenizer=tokenizer)
    reasons = set()
    for whole, short in zip(
        [c for completions in free for c in completions], [c for group in stopped for c in group], strict=True
    ):
        prefixes = [whole.ids[:size] for size in range(1, len(whole.ids) + 1)]
        hit = [ids for ids in prefixes if any(stop in tokenizer.decode(ids) for stop in stops)]
        assert short.ids == (hit[0] if hit else whole.ids)
        assert short.ended == (bool(hit) or whole.ended)
        assert short.sampler_logps == pytest.approx(whole.sampler_logps[: len(short.ids)], abs=1e-9)
        reasons.add(finish_of(short, [1]))
    assert reasons == {"eos", "stop", "length"}


def test_stop_texts_equal_generate(make_model: Make, tokenizer: Any) -> None:
    """Greedy, prompt by prompt, against transformers' own stop strings."""
    model = make_model()
    stops = ("a", "fe")
    greedy = Sampling(14, temperature=0.0, stop=stops)
    sampled = generate(model, PROMPTS, greedy, Noise((0,)), [1], tokenizer=tokenizer)
    ends = set()
    for (_, prompt), (completion,) in zip(PROMPTS, sampled, strict=True):
        out = model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=14,
            eos_token_id=1,
            pad_token_id=0,
            stop_strings=list(stops),
            tokenizer=tokenizer,
        )
        assert completion.ids == out[0, len(prompt) :].tolist()
        ends.add(finish_of(completion, [1]))
    assert "stop" in ends


def test_stop_tokens_end_like_end_tokens(make_model: Make) -> None:
    sampling = Sampling(10, 3, stop_tokens=(5, 9))
    stopped = generate(make_model(), PROMPTS, sampling, Noise((2,)), [1])
    assert stopped == generate(make_model(), PROMPTS, Sampling(10, 3), Noise((2,)), [1, 5, 9])
    finishes = {finish_of(c, [1]) for completions in stopped for c in completions}
    assert finishes == {"eos", "stop", "length"}


def test_a_stop_text_may_lie_in_bytes(make_model: Make) -> None:
    """A byte-level vocabulary: "€" is three tokens, and only the third completes it; a window cuts none off."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = tokenizer("x" * 40 + "€€")["input_ids"]
    assert len(ids) == 46
    ending = Ending([], ("€€",), tokenizer, CPU)
    over = [bool(ending(torch.tensor([ids[:size][-ending.window :]]))) for size in range(1, 47)]
    assert over == [False] * 45 + [True]


def test_without_stop_texts_nothing_is_decoded() -> None:
    """One token a row is enough, and no tokenizer is needed."""
    ending = Ending([3, 4], (), None, CPU)
    assert ending.window == 1
    assert ending(torch.tensor([[3], [5], [4]])).tolist() == [True, False, True]


def test_stop_texts_without_a_tokenizer_are_refused(make_model: Make) -> None:
    with pytest.raises(UserError, match=r"'END' cannot be looked for without a tokenizer"):
        generate(make_model(), PROMPTS, Sampling(4, stop=("END",)), Noise((0,)), [1])


def test_a_model_that_never_ends_is_cut_at_the_limit(make_model: Make, tokenizer: Any) -> None:
    """The end token's logit is -inf at every position, so no answer ends by itself; the length is the limit exactly."""
    model = make_model()

    def never(module: Any, args: Any, output: Any) -> Any:
        output.logits[..., 1] = -torch.inf
        return output

    handle = model.register_forward_hook(never)
    try:
        for sampling in (Sampling(9, 3), Sampling(9, temperature=0.0), Sampling(9, 2, stop=("hhhhhh",))):
            sampled = generate(model, PROMPTS, sampling, Noise((0,)), [1], tokenizer=tokenizer)
            for completions in sampled:
                assert [len(c.ids) for c in completions] == [9] * sampling.samples_per_prompt
                assert not any(c.ended for c in completions)
                assert {finish_of(c, [1]) for c in completions} == {"length"}
    finally:
        handle.remove()
