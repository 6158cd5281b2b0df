"""Log-probabilities of labelled positions without the full ``[tokens, vocabulary]`` logits.

Hidden states are projected in chunks whose float logits fit a small budget; the backward pass recomputes a
chunk instead of keeping it. The head is called as a module, so LoRA or quantised heads work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from contrl.engine.encoder_decoder import output_terms
from contrl.errors import UserError

CHUNK_BYTES = 64 * 2**20
"""Budget for one chunk of float32 logits."""


def causal_lm(model: Any) -> Any:
    """The causal language model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


class LMHead:
    """The model's output projection with its soft-cap and scale, applied to chosen positions only."""

    def __init__(self, model: nn.Module) -> None:
        causal = causal_lm(model)
        head = causal.get_output_embeddings()
        if head is None:
            raise UserError(f"{type(causal).__name__} has no output embeddings", fix="use a causal language model")
        self.head: Any = head
        text_config = causal.config.get_text_config()
        self.softcap: float | None = getattr(text_config, "final_logit_softcapping", None)
        self.softcap = self.softcap or getattr(text_config, "logits_soft_cap", None)
        # Cohere multiplies the logits, Granite divides them.
        self.scale = float(getattr(text_config, "logit_scale", None) or 1.0)
        self.scale /= float(getattr(text_config, "logits_scaling", None) or 1.0)
        factor, self.bias = output_terms(causal)
        self.scale *= factor
        self.has_dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in head.modules())

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 (or float64) logits ``[M, V]`` of hidden states ``[M, H]``, without temperature."""
        logits = self.head(hidden) * self.scale if self.scale != 1.0 else self.head(hidden)
        logits = logits if self.bias is None else logits + self.bias
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits

    def rows_per_chunk(self) -> int:
        """How many positions are projected at once."""
        vocabulary = int(getattr(self.head, "out_features", 0) or self.head.weight.shape[0])
        return max(1, CHUNK_BYTES // (4 * vocabulary))

    def score(
        self, hidden: torch.Tensor, ids: torch.Tensor, temperature: float = 1.0, *, extras: Collection[str] = ()
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Log-probability ``[M]`` of each token given the hidden state that predicts it, and what else is asked for.

        Args:
            hidden: ``[M, H]``.
            ids: ``[M]`` the tokens that followed.
            temperature: divides the logits.
            extras: of ``EXTRAS``; each is returned as ``[M]``, without gradient.
        """
        extras = tuple(name for name in EXTRAS if name in extras)
        if len(ids) == 0:
            # Keeps the result attached to the hidden states, so that backward (and DDP) still runs.
            nothing = hidden.sum() * 0.0
            return nothing.expand(0), {name: nothing.detach().expand(0) for name in extras}
        rows = self.rows_per_chunk()
        recompute = len(ids) > rows and torch.is_grad_enabled()
        pieces = []
        for start in range(0, len(ids), rows):
            part = (hidden[start : start + rows], ids[start : start + rows], temperature, extras)
            if recompute:
                pieces.append(checkpoint(self._chunk, *part, use_reentrant=False, preserve_rng_state=self.has_dropout))
            else:
                pieces.append(self._chunk(*part))
        logps = torch.cat([piece[0] for piece in pieces])
        return logps, {name: torch.cat([piece[1][name] for piece in pieces]) for name in extras}

    def _chunk(
        self, hidden: torch.Tensor, ids: torch.Tensor, temperature: float, extras: tuple[str, ...]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits = self.logits(hidden)
        if temperature != 1.0:
            logits = logits / temperature
        normaliser = logits.logsumexp(-1)
        chosen = logits.gather(-1, ids[:, None])[:, 0]
        with torch.no_grad():
            found = {name: _EXTRAS[name](logits, normaliser, chosen) for name in extras}
        return chosen - normaliser, found


def _entropy(logits: torch.Tensor, normaliser: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    return normaliser - (torch.softmax(logits, -1) * logits).sum(-1)


_EXTRAS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "entropy": _entropy,
    "correct": lambda logits, normaliser, chosen: (chosen >= logits.amax(-1)).to(logits.dtype),
    "log_sum_p2": lambda logits, normaliser, chosen: (2 * logits).logsumexp(-1) - 2 * normaliser,
    "mean_logits": lambda logits, normaliser, chosen: logits.mean(-1),
}

EXTRAS = tuple(_EXTRAS)
"""Per-token quantities that come with a log-probability: the logits exist only inside a chunk."""


class Contrast:
    """The KL divergence of a policy's next-token distributions from a teacher's, chunk by chunk like ``LMHead``.

    Args:
        head, teacher: of the policy and of the frozen policy.
        direction: "forward" KL(teacher || policy) or "reverse" KL(policy || teacher).
    """

    def __init__(self, head: LMHead, teacher: LMHead, direction: str) -> None:
        self.head, self.teacher, self.direction = head, teacher, direction

    def __call__(self, hidden: torch.Tensor, taught: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        """``[M]`` divergences, with gradient to the policy only.

        Args:
            hidden, taught: ``[M, H]`` and ``[M, K]``, states of the policy and of the teacher at the same places.
            temperature: divides both logits.
        """
        if len(hidden) == 0:
            return (hidden.sum() * 0.0).expand(0)
        rows = self.head.rows_per_chunk()
        pieces = []
        for start in range(0, len(hidden), rows):
            part = (hidden[start : start + rows], taught[start : start + rows], temperature)
            if len(hidden) > rows and torch.is_grad_enabled():
                pieces.append(checkpoint(self._chunk, *part, use_reentrant=False, preserve_rng_state=False))
            else:
                pieces.append(self._chunk(*part))
        return torch.cat(pieces)

    def _chunk(self, hidden: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
        with torch.no_grad():
            theirs = (self.teacher.logits(taught) / temperature).log_softmax(-1)
        mine = (self.head.logits(hidden) / temperature).log_softmax(-1)
        first, second = (theirs, mine) if self.direction == "forward" else (mine, theirs)
        return (first.exp() * (first - second)).sum(-1)


class ScoreHead:
    """A classifier's output for whole sequences, from the hidden state of their last real token."""

    def __init__(self, model: nn.Module) -> None:
        causal = causal_lm(model)
        head = getattr(causal, "score", None)
        if head is None or int(causal.config.num_labels) != 1:
            raise UserError(
                f"{type(causal).__name__} ({causal.config.num_labels} labels) gives no single score for its last token",
                fix="use a decoder's sequence classifier with one label",
            )
        self.head: Any = head

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores ``[N]`` of hidden states ``[N, H]``, at least float32."""
        scores = self.head(hidden)[:, 0]
        return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
