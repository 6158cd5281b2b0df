"""copr: the closed-form distribution over two answers by hand, targets of old pairs, a multiplier that adapts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contrl.errors import UserError
from contrl.interfaces import Outputs, Setting
from contrl.methods.dpo import DPO
from contrl.methods.kto import KTO
from contrl.methods.orpo import ORPO
from contrl.methods.reward_model import RewardModel
from contrl.methods.rloo import RLOO
from contrl.strategies.copr import COPR, over_answers
from tests.engine.toys import FROZEN, Setup, farthest, make_engine, pair_rows, policy, trace

OLD = pair_rows(6, 200)


def engine_of(tmp_path: Path, strategy: COPR, rows: int = 4) -> Any:
    return make_engine(policy(), tmp_path, Setup(DPO(), pair_rows(rows), strategy, OLD))


def after_first_task(tmp_path: Path, **fields: Any) -> COPR:
    """The strategy as the first task (of the rows OLD) leaves it."""
    strategy = COPR(**fields)
    context = engine_of(tmp_path, strategy).work.context
    strategy.before_task(context)
    strategy.after_task(replace(context, stage=context.sequence.stages[0]))
    return strategy


def test_the_optimum_by_hand(tmp_path: Path) -> None:
    """P from mean log-probabilities -1 and -2 is 0.731 : 0.269; times exp(+-1) and normalised 0.953 : 0.047."""
    strategy = COPR(tau=1.0)
    engine = engine_of(tmp_path, strategy, rows=1)
    batch = engine.work.context.services.batch(engine.work.groups)
    logps = batch.mask * torch.tensor([[-1.0], [-2.0]])
    assert over_answers(logps, batch).exp().tolist()[0] == pytest.approx([0.7311, 0.2689], abs=1e-4)
    assert strategy._best(logps, batch).exp().tolist()[0] == pytest.approx([0.9526, 0.0474], abs=1e-4)


def test_a_step_on_new_pairs_fits_the_optimum(tmp_path: Path) -> None:
    """At the start policy and earlier policy are one: each side is off by the same shift of the normaliser."""
    strategy = COPR(fit_coef=1.0, share=0.0)
    engine = engine_of(tmp_path, strategy)
    context = engine.work.context
    strategy.before_task(context)
    batch = context.services.batch(engine.work.groups)
    out = context.services.read(strategy._earlier, batch)
    found = strategy.loss(context, batch, out)
    assert found is not None
    mine = over_answers(out.logps, batch)
    best = (mine + torch.tensor([1.0, -1.0])).log_softmax(-1)
    torch.testing.assert_close(found.sums["copr/fit"], (mine - best).square().sum())
    assert strategy.count(context, engine.work.groups) == {"copr/fit": 4.0, "copr/kept": 0.0}


def test_old_pairs_are_kept_with_what_they_were_given(tmp_path: Path) -> None:
    strategy = after_first_task(tmp_path, buffer_size=3)
    assert len(strategy.targets) == 3
    assert all(key.startswith("earlier/") for key in strategy.targets)
    assert all(sum(map(math.exp, value)) == pytest.approx(1.0, abs=1e-6) for value in strategy.targets.values())
    other = COPR()
    other.load_state_dict(strategy.state_dict())
    assert other.targets == strategy.targets
    assert other._buffer.memory == strategy._buffer.memory


def test_the_constraint_holds_old_pairs(tmp_path: Path) -> None:
    """Its term has a gradient once the policy is off the targets, and the multiplier follows the excess."""
    strategy = after_first_task(tmp_path / "first", share=1.0, fit_coef=0.0, lambda_lr=0.1, constraint_threshold=0.01)
    done = trace(policy(), tmp_path / "with", Setup(DPO(), pair_rows(4), strategy, OLD, 4, training=FROZEN))
    distance = done.logs[0]["copr/kept_distance"]
    assert distance > 0.01
    wanted = 1e-4 + 0.1 * math.exp(1e-4) * (distance - 0.01)
    assert strategy.multiplier == pytest.approx(wanted, rel=1e-4)
    assert done.logs[0]["copr/lambda"] == pytest.approx(math.exp(wanted), rel=1e-4)


def test_a_batch_of_one_and_shuffled_rows(tmp_path: Path) -> None:
    """The sources read the second half of a batch as the old rows: here the split into passes changes nothing."""
    found = []
    for tokens in (10**6, 1):
        strategy = after_first_task(tmp_path / f"first{tokens}", share=1.0)
        setup = Setup(DPO(), pair_rows(4), strategy, OLD, 4, tokens_per_pass=tokens, training=FROZEN)
        done = trace(policy(), tmp_path / str(tokens), setup)
        assert all(bool(torch.isfinite(g).all()) for g in done.gradients[0].values())
        found.append(done.gradients[0])
    assert farthest(*found) < 1e-4


@pytest.mark.parametrize("method", [KTO(), RewardModel(), RLOO()], ids=["kto", "reward", "rloo"])
def test_where_it_is_refused(method: Any) -> None:
    refused = COPR().refuses(Setting(method))
    assert refused is not None
    assert "dpo, cpo or orpo" in refused.fix


def test_where_it_works() -> None:
    assert COPR().refuses(Setting(DPO())) is None
    assert COPR().refuses(Setting(ORPO())) is None
    with pytest.raises(UserError, match="tau > 0"):
        COPR(tau=0)


def test_nothing_of_anchors(tmp_path: Path) -> None:
    """Groups of another strategy that only it looks at are none of its business."""
    strategy = COPR()
    engine = engine_of(tmp_path, strategy)
    for group in engine.work.groups:
        group.is_anchor = True
    context = engine.work.context
    batch = context.services.batch(engine.work.groups)
    assert strategy.loss(context, batch, Outputs(torch.zeros(batch.mask.shape))) is None
    assert strategy.count(context, engine.work.groups) == {"copr/fit": 0.0, "copr/kept": 0.0}
