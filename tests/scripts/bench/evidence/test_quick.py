"""New answers to the published claims: what is said of them, and the exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench.evidence.answering.answer_log import AnswerLog
from scripts.bench.evidence.answering.variants import CLIP, SHIPPED
from scripts.bench.evidence.claims.published import write_claims
from scripts.bench.evidence.claims.verdicts import judge
from scripts.bench.evidence.quick import format_verdicts, main
from tests.scripts.bench.evidence.rows import claim, claimed_row


def test_verdicts_say_what_may_be_chance() -> None:
    near, far = claim(text="near"), claim(text="far")
    single = [judge(near, (6, 54), 0.95), judge(far, (18, 42), 0.95)]
    text = format_verdicts(single, [judge(near, (6, 54), 0.9999), judge(far, (18, 42), 0.9999)]).splitlines()
    assert text[0].startswith("covered") and text[1].startswith("by chance?")
    assert text[2] == "1 of 2 claims are covered at 95 % each, 2 at 95 % for all claims together"
    assert text[3].startswith("1 of 2 intervals are wider than 20 points")


def test_narrow_intervals_need_no_warning() -> None:
    sure = judge(claim(scenes=(10, 1990)), (5, 995), 0.95)
    assert len(format_verdicts([sure], [sure]).splitlines()) == 2


@pytest.mark.parametrize(("right", "code"), [("1" * 40, 0), ("0" * 40, 1)])
def test_the_exit_code_says_whether_all_claims_hold(tmp_path: Path, capsys, right: str, code: int) -> None:
    """With answers that are kept already, so that nothing has to be asked."""
    claims = [claim(scenes=(1, 99)), claim(way=SHIPPED.name, text="QLIP", scenes=(1, 99))]
    write_claims(claims, tmp_path / "claims.json")
    log = AnswerLog(tmp_path / "answers.jsonl")
    for way in (CLIP, SHIPPED):
        log.add(claimed_row(way.name, "shipped", right) | {"split": "series 123456"})
    files = ["--claims", str(tmp_path / "claims.json"), "--answers-file", str(tmp_path / "answers.jsonl")]
    assert main(["--seed", "123456", "--scenes", "40", *files]) == code
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3
    assert out[1].startswith("covered" if code == 0 else "NOT COVERED")


def test_a_seed_that_was_used_is_refused(capsys) -> None:
    for seed in ("11500", "9500", "1"):
        assert main(["--seed", seed]) == 2
        assert f"seed {seed} is not new" in capsys.readouterr().err
