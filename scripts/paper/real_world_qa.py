"""RealWorldQA in the paper's table: `python -m scripts.paper.real_world_qa`."""

import sys

from scripts.paper.report import main
from scripts.paper.table import REAL_WORLD_QA

if __name__ == "__main__":
    sys.exit(main([REAL_WORLD_QA]))
