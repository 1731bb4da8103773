"""How tokens are chosen: the settings of one answer, and a sampler for batches whose rows have settings of their own.

A row's choice depends on its own logits, settings and seed only, never on its neighbours. Knows nothing of text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor


@dataclass(frozen=True)
class Sampling:
    """How the answer's tokens are chosen, and when it ends."""

    temperature: float = 0.2
    """0 takes the likeliest token each time; higher is freer."""
    top_p: float | None = None
    """Share of the probability that is sampled from, in (0, 1]; None for all."""
    num_beams: int = 1
    """Width of the beam search; above 1 the answer comes in one piece, and is the likeliest found."""
    max_new_tokens: int = 512
    """Longest answer, in tokens."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    seed: int | None = None
    """Makes a sampled answer repeatable; None draws anew each time."""

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        for name in ("num_beams", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must be a 64-bit integer, got {self.seed}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken each time."""
        return self.temperature == 0


def sample(logits: Tensor, temperature: Tensor, top_p: Tensor, draws: Tensor) -> Tensor:
    """Draws one token per row by inverting the cumulative distribution of its nucleus.

    Args:
        logits: float (B, V).
        temperature: float (B,), above 0.
        top_p: float (B,), in (0, 1]: the likeliest tokens that together reach this probability are kept.
        draws: float (B,), uniform in [0, 1).

    Returns:
        int64 (B,).
    """
    # Below the smallest normal number a division overflows; such a temperature is as good as greedy.
    cold = temperature.clamp(min=torch.finfo(torch.float32).tiny)
    shifted = logits.float() - logits.max(-1, keepdim=True).values.float()
    probabilities, order = (shifted / cold[:, None]).softmax(-1).sort(dim=-1, descending=True, stable=True)
    reached = probabilities.cumsum(-1)
    kept = (reached - probabilities < top_p[:, None]).sum(-1, keepdim=True)  # the first token always is
    mass = reached.gather(-1, kept - 1)
    place = torch.searchsorted(reached, draws[:, None] * mass, right=True).minimum(kept - 1)
    return order.gather(-1, place)[:, 0]


class RowSampler(LogitsProcessor):
    """Lets each row of a batch be sampled by its own settings while the batch is generated greedily.

    Where a row samples, the token it draws is left as the only possible one.
    """

    def __init__(self, rows: Sequence[Sampling], device: torch.device) -> None:
        """
        Args:
            rows: the settings of each row.
            device: where the logits will be.
        """
        sampled = [row for row in rows if not row.greedy]
        self.indices = torch.tensor([i for i, row in enumerate(rows) if not row.greedy], device=device)
        self.temperature = torch.tensor([row.temperature for row in sampled], device=device)
        self.top_p = torch.tensor([row.top_p or 1.0 for row in sampled], device=device)
        # On the CPU, so that a seed means the same answer on every machine's device, to float tolerance.
        self.generators = [torch.Generator() for _ in sampled]
        for generator, row in zip(self.generators, sampled, strict=True):
            if row.seed is None:
                generator.seed()
            else:
                generator.manual_seed(row.seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the scores (B, V), those of sampled rows with one token left."""
        if not self.generators:
            return scores
        draws = torch.cat([torch.rand(1, generator=generator) for generator in self.generators]).to(scores.device)
        tokens = sample(scores[self.indices], self.temperature, self.top_p, draws)
        chosen = scores.clone()
        chosen[self.indices] = -torch.inf
        chosen[self.indices, tokens] = 0
        return chosen
