"""The published claims: the pages show the file's figures, and new answers are held against them fairly."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qlip import QLIPConfig
from scripts.bench.evidence.answering.answer_log import AnswerLog
from scripts.bench.evidence.answering.answers import Answers, Cell
from scripts.bench.evidence.answering.experiments import CLIP, SHIPPED
from scripts.bench.evidence.answering.scene_sets import KINDS, SCENE_SETS, new_series, series_of
from scripts.bench.evidence.claims.__main__ import update
from scripts.bench.evidence.claims.published import MEASURES, Claim, claimed_ways, read_claims, write_claims
from scripts.bench.evidence.claims.tables import claim_parts, headline_table
from scripts.bench.evidence.claims.verdicts import count_scenes, difference_interval, judge
from scripts.bench.evidence.pages.fill import fill
from scripts.bench.evidence.quick import format_verdicts, main

ROOT = Path(__file__).parents[5]


def claim(**changes: object) -> Claim:
    made = Claim(
        "base, CLIP: count", "base", "CLIP", "count", 64.0, 90.0, 85.0, 95.0, 1, (10, 90), "run", 9500, "2026-01-01"
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("page", ["README.md", "docs/RESULTS.md"])
def test_pages_show_the_claims_of_the_file(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- claims: " in text
    assert fill(text, claim_parts(read_claims()), partly=True) == text


def test_every_claim_is_of_a_known_set_and_has_its_command() -> None:
    claims = read_claims()
    assert len({(c.set, c.way, c.measure) for c in claims}) == len(claims)
    for item in claims:
        assert item.set in SCENE_SETS
        assert item.command.startswith("python -m scripts.bench.evidence.run ")
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", item.date)
        assert len(item.scenes) == len(MEASURES[item.measure]) + 1
        assert item.low is None or item.high is not None and item.low <= item.value <= item.high


def test_the_shipped_share_is_that_of_the_counts() -> None:
    assert claim(scenes=(10, 90)).shipped.mean == 90
    assert claim(measure="V*", scenes=(0, 1, 0, 3)).shipped.mean == pytest.approx(100 * (1 + 9) / 12)


def test_scenes_are_counted_by_their_right_answers() -> None:
    row = {
        "set": "base",
        "right": {"colour": "110", "shape": "100", "relation": "101"},
        "pictures": dict.fromkeys(("colour", "shape", "relation"), [0, 1, 2]),
    }
    assert count_scenes(row, MEASURES["V*"]) == (0, 2, 0, 1)
    row["pictures"]["shape"] = [0, 0, 2]
    with pytest.raises(ValueError, match=r"'base'.*\[2, 3, 4\]"):
        count_scenes(row, MEASURES["V*"])


def test_an_interval_of_differences_has_its_level() -> None:
    """Two samples of one truth: the interval covers no difference about as often as it says, at 90 % and near 100 %."""
    rng = np.random.default_rng(5)
    for truth in (0.9, 0.985):
        covered = 0
        for seed in range(200):
            samples = [np.bincount(rng.binomial(1, truth, size), minlength=2) for size in (60, 100)]
            low, high = difference_interval(*(sample.tolist() for sample in samples), level=0.9, seed=seed)
            covered += low <= 0 <= high
        assert covered >= 0.85 * 200


def test_a_difference_is_found_where_there_is_one() -> None:
    verdict = judge(claim(scenes=(10, 90)), (30, 30), 0.99)
    assert (verdict.found, verdict.covers) == (50.0, False)
    assert verdict.low < 50 - 90 < verdict.high < 0
    assert judge(claim(scenes=(0, 100)), (0, 60), 0.95).covers
    assert judge(claim(scenes=(1, 99)), (0, 60), 0.95).covers


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


def cell_row(way: str, model: str, right: str) -> dict:
    return {
        "model": model, "split": "series 7", "set": "base", "way": claimed_ways()[way].key(QLIPConfig(max_tokens=128)),
        "scenes": len(right), "right": dict.fromkeys(KINDS, right),
        "pictures": dict.fromkeys(KINDS, list(range(len(right)))), "tokens": [64] * len(right), "seconds": 0.0,
    }  # fmt: skip


def test_values_are_updated_from_all_checkpoints_and_counts_from_the_shipped_one() -> None:
    cell = Cell([cell_row("CLIP", "seed 1", "1110"), cell_row("CLIP", "seed 2", "1000")])
    untouched = claim(set="large")
    first, second = update([claim(), untouched], {("base", "CLIP"): cell}, "seed 1", date="2026-02-02")
    assert (first.value, first.scenes, first.checkpoints, first.date) == (50.0, (1, 3), 2, "2026-02-02")
    assert second == untouched
    with pytest.raises(ValueError, match="'seed 3'.*'seed 1', 'seed 2'"):
        update([claim()], {("base", "CLIP"): cell}, "seed 3")


def test_a_file_of_claims_reads_as_it_was_written(tmp_path: Path) -> None:
    write_claims([claim(), claim(low=None, high=None)], tmp_path / "claims.json")
    assert read_claims(tmp_path / "claims.json") == [claim(), claim(low=None, high=None)]
    (tmp_path / "other.json").write_text("[{}]")
    with pytest.raises(ValueError, match="other.json is not a file of claims"):
        read_claims(tmp_path / "other.json")
    write_claims([claim(way="ours")], tmp_path / "claims.json")
    with pytest.raises(ValueError, match="'ours'.*CLIP"):
        read_claims(tmp_path / "claims.json")


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


@pytest.mark.parametrize(("right", "code"), [("1" * 40, 0), ("0" * 40, 1)])
def test_the_exit_code_says_whether_all_claims_hold(tmp_path: Path, capsys, right: str, code: int) -> None:
    """With answers that are kept already, so that nothing has to be asked."""
    claims = [claim(scenes=(1, 99)), claim(way=SHIPPED.name, text="QLIP", scenes=(1, 99))]
    write_claims(claims, tmp_path / "claims.json")
    log = AnswerLog(tmp_path / "answers.jsonl")
    for way in (CLIP, SHIPPED):
        log.add(cell_row(way.name, "shipped", right) | {"split": "series 123456"})
    files = ["--claims", str(tmp_path / "claims.json"), "--answers-file", str(tmp_path / "answers.jsonl")]
    assert main(["--seed", "123456", "--scenes", "40", *files]) == code
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3
    assert out[1].startswith("covered" if code == 0 else "NOT COVERED")


def test_a_seed_that_was_used_is_refused(capsys) -> None:
    for seed in ("11500", "9500", "1"):
        assert main(["--seed", seed]) == 2
        assert f"seed {seed} is not new" in capsys.readouterr().err


def test_splits_are_names_or_series() -> None:
    assert (series_of("test"), series_of(new_series(20261126))) == (11500, 20261126)
    for wrong in ("train", "series", "series x"):
        with pytest.raises(ValueError, match=f"{wrong!r}.*validation, test, and series NUMBER"):
            series_of(wrong)


def test_answers_of_a_series_are_read_apart(tmp_path: Path) -> None:
    log = AnswerLog(tmp_path / "answers.jsonl")
    log.add(cell_row("CLIP", "a", "10"))
    own = QLIPConfig(max_tokens=128)
    assert Answers([tmp_path / "answers.jsonl"], "series 7", own).cell(CLIP, "base") is not None
    assert Answers([tmp_path / "answers.jsonl"], "test", own).cell(CLIP, "base") is None
    json.loads((tmp_path / "answers.jsonl").read_text())
