"""MMBench in the paper's table: `python -m scripts.paper.mmbench`."""

import sys

from scripts.paper.report import main
from scripts.paper.table import MMBENCH

if __name__ == "__main__":
    sys.exit(main([MMBENCH]))
