"""Log-probabilities of labelled positions without the full ``[tokens, vocabulary]`` logits.

Hidden states are projected in chunks whose float logits fit a small budget; the backward pass recomputes a
chunk instead of keeping it. The head is called as a module, so LoRA or quantised heads work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

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
        self.has_dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in head.modules())

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 (or float64) logits ``[M, V]`` of hidden states ``[M, H]``, without temperature."""
        logits = self.head(hidden) * self.scale if self.scale != 1.0 else self.head(hidden)
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits

    def score(
        self, hidden: torch.Tensor, ids: torch.Tensor, temperature: float = 1.0, *, entropy: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probability ``[M]`` of each token given the hidden state that predicts it, and the entropy.

        Args:
            hidden: ``[M, H]``.
            ids: ``[M]`` the tokens that followed.
            temperature: divides the logits.
            entropy: also return the entropy ``[M]`` of each distribution, without gradient.
        """
        if len(ids) == 0:
            # Keeps the result attached to the hidden states, so that backward (and DDP) still runs.
            nothing = hidden.sum() * 0.0
            return nothing.expand(0), nothing.detach().expand(0)
        vocabulary = int(getattr(self.head, "out_features", 0) or self.head.weight.shape[0])
        rows = max(1, CHUNK_BYTES // (4 * vocabulary))
        recompute = len(ids) > rows and torch.is_grad_enabled()
        pieces = []
        for start in range(0, len(ids), rows):
            part = (hidden[start : start + rows], ids[start : start + rows], temperature, entropy)
            if recompute:
                pieces.append(checkpoint(self._chunk, *part, use_reentrant=False, preserve_rng_state=self.has_dropout))
            else:
                pieces.append(self._chunk(*part))
        logps = torch.cat([piece[0] for piece in pieces])
        return logps, torch.cat([piece[1] for piece in pieces]) if entropy else None

    def _chunk(
        self, hidden: torch.Tensor, ids: torch.Tensor, temperature: float, entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.logits(hidden)
        if temperature != 1.0:
            logits = logits / temperature
        normaliser = logits.logsumexp(-1)
        logps = logits.gather(-1, ids[:, None])[:, 0] - normaliser
        if not entropy:
            return logps, logps.detach()
        with torch.no_grad():
            probabilities = torch.softmax(logits, -1)
            return logps, normaliser - (probabilities * logits).sum(-1)
