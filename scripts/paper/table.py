"""The paper's table on LLaVA-1.5, and which of our scores each number is compared with. Source: arXiv 2505.23004.

The paper does not say which of a benchmark's numbers it reports; docs/EVALUATION.md lists the ones taken here.
"""

from __future__ import annotations

from dataclasses import dataclass

MODELS = {"7B": "liuhaotian/llava-v1.5-7b", "13B": "liuhaotian/llava-v1.5-13b"}
TOWERS = ("CLIP", "QLIP")


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    name: str
    """Its heading."""

    script: str
    """The benchmark, by its script in scripts/v1_5/eval."""

    paper: tuple[float | None, float | None, float | None, float | None]
    """7B, 7B + QLIP, 13B, 13B + QLIP; None where the paper has no number."""

    measure: str
    """What is compared: a measure in the benchmark's score."""

    row: str
    """Its row there."""

    absent: str = ""
    """Why a score may lack the row; without a reason that is an error."""

    def of_paper(self, model: str, tower: str) -> float | None:
        """Looks up the paper's number."""
        return self.paper[len(TOWERS) * list(MODELS).index(model) + TOWERS.index(tower)]

    def of_score(self, rows: dict[str, dict[str, float]]) -> float | None:
        """Looks up our number in a benchmark's score; None where it may be absent.

        Raises:
            ValueError: the score does not have it.
        """
        if self.row in rows:
            return rows[self.row][self.measure]
        if self.absent:
            return None
        raise ValueError(f"the score of {self.name} has no row {self.row}; it has {', '.join(rows)}")


V_STAR = (
    Column("V*", "vstar", (42.4, 53.4, 45.0, 58.6), "accuracy", "overall"),
    Column("V* attr", "vstar", (None, 50.4, None, 53.9), "accuracy", "attributes"),
    Column("V* rel", "vstar", (None, 60.5, None, 65.8), "accuracy", "relations"),
)
MMBENCH = Column("MMBench", "mmbench", (62.5, 59.7, 67.4, 67.9), "accuracy", "CircularEval", "no rotations")
POPE = Column("POPE F1", "pope", (74.4, 79.6, 82.4, 83.6), "F1", "mean")
CV_BENCH = Column("CV-Bench", "cvbench", (39.9, 40.2, 61.6, 60.7), "accuracy", "overall")
SCIENCE_QA = Column("ScienceQA", "sqa", (64.0, 63.5, 67.8, 67.9), "accuracy", "IMG")
MME = Column("MME", "mme", (1207.0, 1241.0, 1390.0, 1388.0), "score", "perception")
REAL_WORLD_QA = Column("RealWorldQA", "realworldqa", (49.0, 47.3, 48.0, 49.4), "accuracy", "all")

COLUMNS: dict[str, tuple[Column, ...]] = {
    "v_star": V_STAR,
    "mmbench": (MMBENCH,),
    "pope": (POPE,),
    "cv_bench": (CV_BENCH,),
    "science_qa": (SCIENCE_QA,),
    "mme": (MME,),
    "real_world_qa": (REAL_WORLD_QA,),
}
"""The command's names -> columns from the same run, in the paper's order."""
