"""Stop keywords of LLaVA's clients."""

from __future__ import annotations

import pytest
import torch

from llava.mm_utils import KeywordsStoppingCriteria
from tests.llava.serve.fakes import BytesTokenizer

PROMPT = "say ### now"  # holds the keyword itself
ROWS = ["Hello###", "Hello, ", "Hello #", "Hello\n###"]
STOPPED = [True, False, False, True]


@pytest.mark.parametrize("with_prompt", [True, False])
def test_each_row_stops_at_a_keyword_of_its_own_new_text(with_prompt: bool) -> None:
    tokenizer = BytesTokenizer()
    prompt = torch.tensor([tokenizer(PROMPT).input_ids] * len(ROWS))
    criterion = KeywordsStoppingCriteria(["###"], tokenizer, prompt)
    longest = max(map(len, ROWS))
    new = torch.tensor([tokenizer.bytes(row.rjust(longest)) for row in ROWS])
    output = torch.cat([prompt, new], dim=1) if with_prompt else new
    stopped = criterion(output, None)
    assert stopped.dtype == torch.bool
    assert stopped.tolist() == STOPPED


@pytest.mark.parametrize("output", [[], [1, *BytesTokenizer.bytes(PROMPT)]])
def test_nothing_new_stops_nothing(output: list[int]) -> None:
    tokenizer = BytesTokenizer()
    criterion = KeywordsStoppingCriteria(["###"], tokenizer, torch.tensor([tokenizer(PROMPT).input_ids]))
    assert criterion(torch.tensor([output], dtype=torch.long), None).tolist() == [False]


def test_a_keyword_split_over_tokens_within_a_long_answer_is_found_as_it_ends() -> None:
    tokenizer = BytesTokenizer()
    criterion = KeywordsStoppingCriteria(["END", "###"], tokenizer, torch.tensor([[1]]))
    ids = tokenizer.bytes("a long answer that comes to its END")
    met = [bool(criterion(torch.tensor([ids[:n]]), None)) for n in range(1, len(ids) + 1)]
    assert met == [False] * (len(ids) - 1) + [True]
