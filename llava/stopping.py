"""Ends generation at keywords, for LLaVA's clients; imported as `llava.mm_utils.KeywordsStoppingCriteria`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops each row of a batch once its new text contains one of the keywords.

    Works on the prompt followed by new tokens and on new tokens alone, which is what LLaVA's `generate` produces.
    """

    def __init__(self, keywords: Sequence[str], tokenizer: Any, input_ids: Tensor) -> None:
        """
        Args:
            keywords: Texts to stop at.
            tokenizer: Decodes the new tokens.
            input_ids: The prompt, int64 (batch, length).
        """
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self.input_ids = input_ids
        ids = [torch.tensor(tokenizer(keyword).input_ids) for keyword in self.keywords]
        self.keyword_ids = [row[1:] if len(row) > 1 and row[0] == tokenizer.bos_token_id else row for row in ids]
        # A token holds at least one byte of text, so a keyword that ends here began at most this many tokens ago.
        self.window = max((len(keyword.encode()) for keyword in self.keywords), default=0) + 1

    def __call__(self, output_ids: Tensor, scores: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Finds the rows that have reached a keyword: bool (batch,)."""
        start = self._prompt_length(output_ids)
        stopped = [self._ends_with_keyword(row[start:]) for row in output_ids]
        return torch.tensor(stopped, dtype=torch.bool, device=output_ids.device)

    def _prompt_length(self, output_ids: Tensor) -> int:
        """Computes the prompt's length if the output begins with it, else 0."""
        length = self.input_ids.shape[1]
        prefix = output_ids[:, :length]
        included = prefix.shape == self.input_ids.shape and torch.equal(prefix, self.input_ids.to(prefix.device))
        return length if included else 0

    def _ends_with_keyword(self, new_ids: Tensor) -> bool:
        for ids in self.keyword_ids:
            if len(ids) and torch.equal(new_ids[-len(ids) :], ids.to(new_ids.device)):
                return True
        text = self.tokenizer.decode(new_ids[-self.window :], skip_special_tokens=True)
        return any(keyword in text for keyword in self.keywords)
