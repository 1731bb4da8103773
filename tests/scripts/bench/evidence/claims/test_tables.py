"""The tables of claims: the pages show the file's figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench.evidence.answering.variants import SHIPPED
from scripts.bench.evidence.claims.published import read_claims
from scripts.bench.evidence.claims.tables import claim_parts, headline_table
from scripts.bench.evidence.pages.fill import fill
from tests.scripts.bench.evidence.rows import claim

ROOT = Path(__file__).parents[5]


@pytest.mark.parametrize("page", ["README.md", "docs/RESULTS.md"])
def test_pages_show_the_claims_of_the_file(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- claims: " in text
    assert fill(text, claim_parts(read_claims()), partly=True) == text


def test_the_headline_marks_a_gain_beyond_both_intervals() -> None:
    won = (0, 0, 0, 100)
    lost = (50, 0, 0, 50)
    rows = [
        claim(measure="V*", scenes=lost),
        claim(measure="V*", way=SHIPPED.name, scenes=won, value=100.0),
        claim(measure="V*", set="large", scenes=won),
        claim(measure="V*", set="large", way=SHIPPED.name, scenes=won),
    ]
    lines = headline_table(rows).splitlines()
    assert lines[3] == "| | **QLIP** | 64 | **100.0** |  |  |"
    assert lines[5] == "| | QLIP | 64 | 90.0 |  |  |"
