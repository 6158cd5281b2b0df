"""Panels: what stands on one axis, in which order, with which healthy range."""

from contrl.report.curves import Curve, Segment, Training
from contrl.report.panels import LOSS_NOTE, MAX_PANELS, panels


def training(*names: str) -> Training:
    segment = Segment(1, "a", ((1.0, 0.5), (2.0, 0.6)))
    return Training(tuple(Curve(name, (segment,)) for name in sorted(names)), {1: 0}, 2)


def shown(method: str, *names: str) -> dict[str, list[str]]:
    found = panels(training(*names), {"method": method}, {})
    return {panel.id: [series.label for series in panel.series] for panel in found}


def test_reward_and_verifier_share_an_axis_and_the_policy_loss_comes_last():
    names = ["loss", "reward", "verifier/success", "rewards/f/mean", "rewards/g/mean", "rewards/f/std", "kl", "strange"]
    found = panels(training(*names), {"method": "grpo"}, {})
    assert [panel.id for panel in found] == ["reward", "reward_functions", "kl", "curve-2", "policy_loss"]
    assert [series.label for series in found[0].series] == ["reward", "verifier/success"]
    assert found[3].title == "strange"
    assert found[-1].note == LOSS_NOTE
    assert [panel.folded for panel in found] == [False, False, False, True, True]
    alone = panels(training("reward", "rewards/f/mean"), {"method": "grpo"}, {})
    assert [(panel.title, panel.folded) for panel in alone] == [
        ("Reward and verifier", False),
        ("rewards/f/mean", True),
    ]


def test_pairs_show_the_margin_first_and_both_log_probabilities_together():
    names = ["loss", "eval_loss", "rewards/margins", "logps/chosen", "logps/rejected", "rewards/accuracies"]
    assert shown("dpo", *names) == {
        "margin": ["rewards/margins"],
        "logps": ["chosen", "rejected"],
        "accuracy": ["rewards/accuracies"],
        "supervised_loss": ["loss", "loss, held out"],
    }


def test_levels_and_healthy_ranges():
    found = panels(training("completions/mean_length", "frac_reward_zero_std"), {"method": "rloo"}, {"length": 16.0})
    by_id = {panel.id: panel for panel in found}
    assert by_id["length"].lines == {"limit": 16.0}
    assert by_id["no_signal"].healthy == (None, 0.8)


def test_a_log_of_many_names_draws_a_bounded_number_and_keeps_the_policy_loss():
    found = panels(training("loss", *(f"x{i:03d}" for i in range(99))), {"method": "ppo"}, {})
    assert len(found) == MAX_PANELS + 1
    assert found[-1].id == "policy_loss"
