"""The rows of the question-aware budget's tables."""

from __future__ import annotations

import pytest

from qlip import QLIPConfig
from scripts.bench.evidence.question.measure import choose_ways, make_ways


def test_rows_are_chosen_by_name_and_an_unknown_one_is_named() -> None:
    ways = make_ways(QLIPConfig(), 64, [])
    assert choose_ways(ways, None) == ways
    chosen = choose_ways(ways, ["question 0.15, scores 0.15", "unsplit, CLIP's view"])
    assert [way.name for way in chosen] == ["unsplit, CLIP's view", "question 0.15, scores 0.15"]
    with pytest.raises(ValueError, match="there is no way 'CLIP'; allowed are unsplit, CLIP's view, score, 1.2 x"):
        choose_ways(ways, ["CLIP"])
