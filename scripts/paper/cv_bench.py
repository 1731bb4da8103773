"""CV-Bench in the paper's table: `python -m scripts.paper.cv_bench`."""

import sys

from scripts.paper.report import main
from scripts.paper.table import CV_BENCH

if __name__ == "__main__":
    sys.exit(main([CV_BENCH]))
