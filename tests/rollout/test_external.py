"""A sampler that is another program: one written on plain ``generate``, and what its answer is checked for."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from contrl.errors import UserError
from contrl.rollout.external import Finish, Sampled, Sampler, from_sampled
from contrl.rollout.sampler import Noise, Sampling, generate

Make = Callable[..., Any]
PROMPTS = [[3, 7, 2], [5], [11, 4, 9, 8]]
EOS = [1, 5]


class GenerateSampler:
    """Samples with ``generate`` of transformers on a copy of the weights, as a program of its own would."""

    def __init__(self, model: Any) -> None:
        self.model, self.version = copy.deepcopy(model), -1

    def update(self, model: Any, version: int) -> None:
        self.model.load_state_dict(model.state_dict())
        self.version = version

    def sample(
        self, prompts: Sequence[list[int]], sampling: Sampling, eos_ids: Sequence[int], seed: int
    ) -> list[list[Sampled]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return [self._answers(prompt, sampling, eos_ids) for prompt in prompts]

    def _answers(self, prompt: list[int], sampling: Sampling, eos_ids: Sequence[int]) -> list[Sampled]:
        out = self.model.generate(
            torch.tensor([prompt]),
            do_sample=True,
            num_return_sequences=sampling.samples_per_prompt,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            eos_token_id=list(eos_ids),
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        logps = torch.log_softmax(torch.stack(out.scores, 1), -1)
        answers = []
        for row, tokens in enumerate(out.sequences[:, len(prompt) :].tolist()):
            ends = [i + 1 for i, token in enumerate(tokens) if token in eos_ids]
            ids = tokens[: ends[0]] if ends else tokens
            kept = [float(logps[row, i, token]) for i, token in enumerate(ids)]
            finish: Finish = "eos" if ends else "length"
            answers.append(Sampled(ids, kept, finish, self.version))
        return answers


def test_a_sampler_on_generate_gives_completions(make_model: Make) -> None:
    """Its log-probabilities are those of a plain forward of the weights it was given; old_logps are left out."""
    model = make_model()
    sampler: Sampler = GenerateSampler(make_model(seed=9))
    sampler.update(model, version=4)
    sampling = Sampling(8, 5, 1.3)
    answers = sampler.sample(PROMPTS, sampling, EOS, seed=3)
    assert {answer.version for group in answers for answer in group} == {4}
    completions = from_sampled(answers, len(PROMPTS), sampling, 23)
    assert {c.ended for group in completions for c in group} == {True, False}
    for prompt, group in zip(PROMPTS, completions, strict=True):
        assert len(group) == 5
        for completion in group:
            assert completion.old_logps is None
            assert completion.ended == (completion.ids[-1] in EOS)
            with torch.no_grad():
                table = torch.log_softmax(model(torch.tensor([prompt + completion.ids])).logits[0] / 1.3, -1)
            wanted = table[len(prompt) - 1 : -1].gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]
            assert completion.sampler_logps == pytest.approx(wanted.tolist(), abs=1e-5)


GOOD = Sampled([4, 1], [-0.5, -0.1], "eos", 0)
SAMPLING = Sampling(4, 1)


def test_a_good_answer_passes_and_rounding_above_zero_is_zero() -> None:
    (group,) = from_sampled([[dataclasses.replace(GOOD, logps=[-0.5, 1e-5])]], 1, SAMPLING, 23)
    assert (group[0].ids, group[0].sampler_logps, group[0].ended) == ([4, 1], [-0.5, 0.0], True)
    ((cut,),) = from_sampled([[dataclasses.replace(GOOD, finish="length")]], 1, SAMPLING, 23)
    assert not cut.ended
    ((stopped,),) = from_sampled([[dataclasses.replace(GOOD, finish="stop")]], 1, SAMPLING, 23)
    assert stopped.ended


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": [], "logps": []}, "has 0 tokens"),
        ({"ids": [2] * 5, "logps": [-1.0] * 5}, "has 5 tokens, not 1 to 4"),
        ({"logps": [-0.5]}, "1 log-probabilities for 2 tokens"),
        ({"ids": [4, 23]}, "token 23 is none of the policy's 23"),
        ({"ids": [-1, 4]}, "token -1"),
        ({"logps": [-0.5, float("nan")]}, "nan is no log-probability"),
        ({"logps": [-0.5, float("-inf")]}, "-inf is no log-probability"),
        ({"logps": [0.2, -0.5]}, "0.2 is no log-probability"),
        ({"finish": "abort"}, "'abort' is unknown"),
    ],
)
def test_an_answer_that_cannot_be_right_is_refused_by_prompt(change: dict[str, Any], message: str) -> None:
    bad = dataclasses.replace(GOOD, **change)
    with pytest.raises(UserError, match=f"to prompt 1: .*{message}"):
        from_sampled([[GOOD], [bad]], 2, SAMPLING, 23)


def test_missing_answers_are_refused() -> None:
    with pytest.raises(UserError, match="1 answers to 2 prompts"):
        from_sampled([[GOOD]], 2, SAMPLING, 23)
    with pytest.raises(UserError, match="2 samples came and 1 were asked for"):
        from_sampled([[GOOD, GOOD]], 1, SAMPLING, 23)


def test_what_is_kept_of_a_sampler_fits_what_generate_keeps(make_model: Make) -> None:
    """The same fields but for old_logps, so that whatever takes the one takes the other."""
    ((own,),) = generate(make_model(), [("a", [2])], Sampling(3), Noise((0,)), [])
    assert own.sampler_logps is not None
    answer = Sampled(own.ids, own.sampler_logps, "length", 0)
    ((other,),) = from_sampled([[answer]], 1, Sampling(3), 23)
    assert dataclasses.replace(own, old_logps=None) == other
