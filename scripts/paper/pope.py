"""POPE F1 in the paper's table: `python -m scripts.paper.pope`."""

import sys

from scripts.paper.report import main
from scripts.paper.table import POPE

if __name__ == "__main__":
    sys.exit(main([POPE]))
