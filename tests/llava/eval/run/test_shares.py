"""Shares of questions reach a cluster's workers as they were written."""

from __future__ import annotations

import json
from pathlib import Path

from llava.eval.run.inputs.questions import Question
from llava.eval.run.shares import read_share, write_shares


def test_shares_come_back_as_they_were_written(tmp_path: Path) -> None:
    asked = [
        Question(i, f"p{i}\u2028", f"t{i}", Path(f"/x/{i}.png"), f"{i}.png", {"round_id": i}, index=i) for i in range(5)
    ]
    asked[3] = Question(3, "p3", "t3", "data:image/png;base64,iVBOR//w0KGgo=", "sha256:0", index=3)
    assert write_shares(tmp_path / "s.jsonl", asked, 2) == 3
    lines = (tmp_path / "s.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [pair for line in lines for pair in read_share(json.loads(line)["questions"])] == asked
