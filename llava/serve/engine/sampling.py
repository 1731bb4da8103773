"""Samples tokens for batches in which each row has its own settings.

A row's tokens depend on its own logits, prompt, settings and seed, never on the rest of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from llava.serve.engine.params import Sampling

FLOAT32 = torch.finfo(torch.float32)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_p: Tensor,
    draws: Tensor,
    top_k: Tensor | None = None,
    min_p: Tensor | None = None,
) -> Tensor:
    """Draws one token per row by inverting the cumulative distribution of the tokens that are kept.

    As in vLLM, the temperature comes first; then `min_p` and `top_k` each keep the likeliest tokens, and `top_p` those
    of the kept ones that together reach its share of their probability. Tokens tied with the last of `top_k` are kept.

    Args:
        logits: float (B, V); a row without a finite maximum gets some token.
        temperature: float (B,), above 0.
        top_p: float (B,), in (0, 1].
        draws: float32 (B,), uniform in [0, 1).
        top_k: int64 (B,), at least 1; by default all tokens are kept.
        min_p: float (B,), in [0, 1]; by default 0.

    Returns:
        int64 (B,).
    """
    # In float32 a very low temperature becomes 0 and a very high one infinite; 0 / 0 and inf / inf would be NaN.
    scale = temperature.float().clamp(FLOAT32.tiny, FLOAT32.max)  # not in float64, which Apple's GPUs lack
    shifted = logits.float() - logits.max(-1, keepdim=True).values.float()
    ordered, order = shifted.sort(dim=-1, descending=True, stable=True)
    weights = (ordered / scale[:, None]).exp()  # 1 for the likeliest token
    kept = torch.ones_like(ordered, dtype=torch.bool)
    if min_p is not None:
        kept &= weights >= min_p[:, None]
    if top_k is not None:
        last = top_k.clamp(1, ordered.shape[-1])[:, None] - 1
        # Compares logits, since at a high temperature all weights are equal.
        kept &= ordered >= ordered.gather(-1, last)
    weights = weights.masked_fill(~kept, 0)
    reached = weights.cumsum(-1)
    share = top_p.masked_fill(top_p >= 1, torch.inf)  # keeps unlikely tokens despite rounding
    nucleus = kept & (reached - weights < share[:, None] * reached[:, -1:])
    # Keeps at least one token: a top_p that is 0 in float32 would keep none, as would a row of NaN.
    count = nucleus.sum(-1, keepdim=True).clamp(min=1)
    mass = reached.gather(-1, count - 1)
    place = torch.searchsorted(reached, draws[:, None] * mass, right=True).minimum(count - 1)
    return order.gather(-1, place)[:, 0]


def penalize(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Applies the repetition penalty to the tokens that a row has seen, as transformers and vLLM do.

    Args:
        logits: float32 (B, V).
        seen: bool (B, V).
        penalty: float (B,), above 0; divides positive logits and multiplies negative ones.

    Returns:
        float32 (B, V); finite where `logits` is.
    """
    factor = penalty.float().clamp(FLOAT32.tiny, FLOAT32.max)[:, None]
    penalized = torch.where(logits < 0, logits * factor, logits / factor).clamp(FLOAT32.min, FLOAT32.max)
    return torch.where(seen & logits.isfinite(), penalized, logits)


def make_generator(settings: Sampling) -> torch.Generator | None:
    """Makes the random generator of a request's seed; None for greedy ones.

    It is on the CPU, so that a seed gives the same answer on every device, to float tolerance.
    """
    if settings.greedy:
        return None
    generator = torch.Generator()
    if settings.seed is None:
        generator.seed()
    else:
        generator.manual_seed(settings.seed)
    return generator


def find_penalty(model: Any) -> float:
    """Finds the repetition penalty of rows that do not set one: the one in the model's generation config, else 1."""
    return getattr(getattr(model, "generation_config", None), "repetition_penalty", None) or 1.0


class RowSampler(LogitsProcessor):
    """Samples each row of a batch by its own settings, while the batch is generated greedily.

    For a row that samples, all tokens but the drawn one are masked out. An error in one row is reported, and the
    others get the tokens that they would get without it.
    """

    def __init__(
        self,
        rows: Sequence[Sampling],
        device: torch.device,
        prompts: Sequence[Tensor] | None = None,
        on_error: Callable[[int, Exception], None] | None = None,
        penalty: float = 1.0,
        generators: Mapping[int, torch.Generator] | None = None,
    ) -> None:
        """
        Args:
            rows: The settings of each row.
            device: Device of the logits.
            prompts: int64 (L,) for each row, negative in place of images; counted by the repetition penalty.
            on_error: Called with the index of a row that failed, and the error; by default the error is raised.
            penalty: Repetition penalty of rows whose settings have none.
            generators: Random generators of the rows that sample, by index, for answers that have begun; by default
                new ones.
        """
        self.penalties = [penalty if row.repetition_penalty is None else row.repetition_penalty for row in rows]
        self.rows, self.device, self.on_error = rows, device, on_error or _raise
        penalizes = any(penalty != 1 for penalty in self.penalties)
        self.prompts = [prompt[prompt >= 0].to(device) for prompt in prompts or () if penalizes]
        if generators is None:
            generators = {i: made for i, row in enumerate(rows) if (made := make_generator(row)) is not None}
        self.generators = dict(generators)
        self.temperature = self._settings([rows[i].temperature for i in self.generators])

    def __call__(self, input_ids: Tensor | Sequence[Tensor] | None, scores: Tensor) -> Tensor:
        """Applies each row's settings to its logits.

        Args:
            input_ids: int64 (B, T), or (T,) for each row: the answers so far; None if empty.
            scores: float (B, V), the model's logits.

        Returns:
            float (B, V); sampled rows have one token left.
        """
        for row, peak in enumerate(scores.max(-1).values.tolist()):
            if not math.isfinite(peak):  # the maximum is NaN if any logit is
                self.on_error(row, ArithmeticError(f"the model's logits have no finite maximum: {peak}"))
        if not self.generators and all(penalty == 1 for penalty in self.penalties):
            return scores
        draws = {row: draw for row in self.generators if (draw := self._try(row, self._draw, row)) is not None}
        all_rows = list(range(len(self.rows)))
        try:
            return self._choose(all_rows, input_ids, scores, draws)
        except Exception:  # caused by some row; one at a time, the others succeed
            chosen = scores.clone()
            for row in all_rows:
                alone = self._try(row, self._choose, [row], input_ids, scores, draws)
                if alone is not None:
                    chosen[row] = alone[row]
            return chosen

    def _choose(
        self, rows: Sequence[int], input_ids: Tensor | Sequence[Tensor] | None, scores: Tensor, draws: dict[int, Tensor]
    ) -> Tensor:
        """Applies the settings of some rows to the scores (B, V); leaves the others unchanged."""
        chosen = scores
        if penalized := [row for row in rows if self.penalties[row] != 1]:
            seen = self._seen(penalized, input_ids, scores.shape[-1])
            penalty = self._settings([self.penalties[row] for row in penalized])
            chosen = scores.clone()
            chosen[penalized] = penalize(scores[penalized].float(), seen, penalty).to(scores.dtype)
        if sampled := [row for row in rows if row in draws]:
            tokens = self._sample(sampled, chosen[sampled], draws)
            chosen = scores.clone() if chosen is scores else chosen
            chosen[sampled] = -torch.inf
            chosen[sampled, tokens] = 0
        return chosen

    def _sample(self, rows: Sequence[int], scores: Tensor, draws: dict[int, Tensor]) -> Tensor:
        settings = [self.rows[row] for row in rows]
        top_k = min_p = None
        if any(row.top_k > 0 for row in settings):
            vocabulary = scores.shape[-1]
            limits = [min(row.top_k, vocabulary) if row.top_k > 0 else vocabulary for row in settings]
            top_k = torch.tensor(limits, device=self.device)
        if any(row.min_p > 0 for row in settings):
            min_p = self._settings([row.min_p for row in settings])
        temperature = self._settings([row.temperature for row in settings])
        top_p = self._settings([1.0 if row.top_p is None else row.top_p for row in settings])
        drawn = torch.cat([draws[row] for row in rows]).to(self.device)
        return sample(scores, temperature, top_p, drawn, top_k, min_p)

    def _seen(self, rows: Sequence[int], input_ids: Tensor | Sequence[Tensor] | None, vocabulary: int) -> Tensor:
        """Marks the tokens of each row's prompt and answer: bool (len(rows), V)."""
        seen = torch.zeros(len(rows), vocabulary, dtype=torch.bool, device=self.device)
        for place, row in enumerate(rows):
            for ids in (*self.prompts[row : row + 1], *([] if input_ids is None else [input_ids[row]])):
                seen[place, ids[ids < vocabulary]] = True
        return seen

    def _draw(self, row: int) -> Tensor:
        return torch.rand(1, generator=self.generators[row])

    def _settings(self, values: Sequence[float]) -> Tensor:
        """Makes a float32 tensor of one setting; values beyond float32 become 0 or infinite."""
        return torch.tensor(values, dtype=torch.float64).float().to(self.device)

    def _try(self, row: int, work: Callable[..., Tensor], *args: object) -> Tensor | None:
        """Runs `work` for a row; reports an error and returns None."""
        try:
            return work(*args)
        except Exception as error:
            self.on_error(row, error)
            return None


def _raise(row: int, error: Exception) -> None:
    raise error
