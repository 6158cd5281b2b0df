"""Losses on preference pairs against a reference: one term per pair, not reduced, one function per paper.

``PAIRWISE`` holds those that read one pair at a time, under TRL's names; every function here equals TRL 1.16's
term before its mean (``dpo_trainer.py``, ``_compute_loss``). Losses that compare pairs are in ``transport.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Pairs:
    """What a pairwise loss may read, every tensor ``[P]``.

    Attributes:
        chosen, rejected: log-ratio of policy to reference, summed over the completion's trained tokens.
        chosen_score, rejected_score: the same seen through an f-divergence; reverse KL leaves them as they are.
        chosen_tokens, rejected_tokens: trained tokens, at least 1.
        beta: strength of the pull towards the reference.
        label_smoothing: share of pairs believed to be labelled the wrong way round.
        discopop_tau: temperature of DiscoPOP's mixture.
        reward_shift: what BCO subtracts from rewards; 0 without a running mean.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_score: torch.Tensor
    rejected_score: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    beta: float
    label_smoothing: float = 0.0
    discopop_tau: float = 0.05
    reward_shift: torch.Tensor | float = 0.0

    @property
    def logits(self) -> torch.Tensor:
        """``beta`` times the difference of the scores: the implicit reward margin."""
        return self.beta * (self.chosen_score - self.rejected_score)

    @property
    def score_per_token(self) -> torch.Tensor:
        """Difference of the scores, each divided by its own number of tokens."""
        return self.chosen_score / self.chosen_tokens - self.rejected_score / self.rejected_tokens


def smoothed_sigmoid(logits: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """``-(1 - e) log s(x) - e log s(-x)``: logistic loss whose label is wrong with probability e (cDPO)."""
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def sigmoid(pairs: Pairs) -> torch.Tensor:
    """DPO, arXiv:2305.18290, equation 7: ``-log s(margin)``."""
    return -logsigmoid(pairs.logits)


def hinge(pairs: Pairs) -> torch.Tensor:
    """SLiC, arXiv:2305.10425, on DPO's margin as in RSO, arXiv:2309.06657: ``max(0, 1 - margin)``."""
    return torch.relu(1 - pairs.logits)


def ipo(pairs: Pairs) -> torch.Tensor:
    """IPO, arXiv:2310.12036, equation 17, on means over tokens: ``(difference - 1 / (2 beta))^2``."""
    return (pairs.score_per_token - 1 / (2 * pairs.beta)) ** 2


def exo_pair(pairs: Pairs) -> torch.Tensor:
    """EXO, arXiv:2402.00856, equation 16 for two completions: KL from the policy's choice to (1 - e, e)."""
    wrong = torch.as_tensor(pairs.label_smoothing, dtype=pairs.logits.dtype, device=pairs.logits.device)
    log_chosen, log_rejected = logsigmoid(pairs.logits), logsigmoid(-pairs.logits)
    return log_chosen.exp() * (log_chosen - torch.log1p(-wrong)) + log_rejected.exp() * (log_rejected - wrong.log())


def nca_pair(pairs: Pairs) -> torch.Tensor:
    """NCA for pairs, arXiv:2402.05369: each completion classified against the reference by itself."""
    chosen, rejected = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def robust(pairs: Pairs) -> torch.Tensor:
    """Robust DPO, arXiv:2403.00409: unbiased when labels are flipped with probability e < 1/2."""
    wrong = pairs.label_smoothing
    return (-(1 - wrong) * logsigmoid(pairs.logits) + wrong * logsigmoid(-pairs.logits)) / (1 - 2 * wrong)


def bco_pair(pairs: Pairs) -> torch.Tensor:
    """BCO, arXiv:2404.04656: chosen classified as good, rejected as bad, around ``reward_shift``."""
    chosen, rejected = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    return -logsigmoid(chosen - pairs.reward_shift) - logsigmoid(pairs.reward_shift - rejected)


def sppo_hard(pairs: Pairs) -> torch.Tensor:
    """SPPO, arXiv:2405.00675, equation 4.7 with win probabilities 1 and 0."""
    return (pairs.chosen - 0.5 / pairs.beta) ** 2 + (pairs.rejected + 0.5 / pairs.beta) ** 2


def apo_zero(pairs: Pairs) -> torch.Tensor:
    """APO-zero, arXiv:2408.06266, equation 7: chosen up, rejected down."""
    return torch.sigmoid(-pairs.beta * pairs.chosen) + torch.sigmoid(pairs.beta * pairs.rejected)


def apo_down(pairs: Pairs) -> torch.Tensor:
    """APO-down, arXiv:2408.06266, equation 8: both down, the rejected one further."""
    return torch.sigmoid(pairs.beta * pairs.chosen) + torch.sigmoid(pairs.beta * (pairs.rejected - pairs.chosen))


def discopop(pairs: Pairs) -> torch.Tensor:
    """DiscoPOP, arXiv:2406.08414, equation 5: logistic and exponential loss mixed by the margin itself."""
    share = torch.sigmoid(pairs.logits / pairs.discopop_tau)
    return -logsigmoid(pairs.logits) * (1 - share) + torch.exp(-pairs.logits) * share


def sigmoid_norm(pairs: Pairs) -> torch.Tensor:
    """Length-normalised DPO, Tulu 3, arXiv:2411.15124: DPO on means over tokens."""
    return -logsigmoid(pairs.beta * pairs.score_per_token)


PAIRWISE: dict[str, Callable[[Pairs], torch.Tensor]] = {
    "sigmoid": sigmoid,
    "hinge": hinge,
    "ipo": ipo,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "robust": robust,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
    "sigmoid_norm": sigmoid_norm,
}


# --- from token log-probabilities to what the losses read --------------------------------------------------


def length_desensitised(logps: torch.Tensor, mask: torch.Tensor, tail_share: float | None) -> torch.Tensor:
    """Log-probability of each completion, tokens beyond its partner's length counted only in part ``[P, 2]``.

    LD-DPO, arXiv:2409.06411. None counts every token fully, which is the plain sum.

    Args:
        logps, mask: ``[P, 2, T]``, zero where untrained.
        tail_share: weight of the tokens that the shorter side of the pair does not have.
    """
    if tail_share is None:
        return logps.sum(-1)
    shared = mask.sum(-1).amin(-1)[:, None, None]
    factors = torch.where(mask.cumsum(-1) <= shared, 1.0, tail_share)
    return (logps * factors).sum(-1)


def wpo_weights(logps: torch.Tensor, log_sum_p2: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """How likely the policy itself would have written each pair ``[P]``, without gradient.

    WPO, arXiv:2406.11827, equation 2 with sampled alignment: the mean over tokens of log p minus log of the sum of
    squared probabilities, exponentiated, and both sides multiplied.

    Args:
        logps, log_sum_p2, mask: ``[P, 2, T]``.
    """
    aligned = ((logps.detach() - log_sum_p2) * mask).sum(-1) / mask.sum(-1).clamp(min=1)
    return aligned.exp().prod(-1)
