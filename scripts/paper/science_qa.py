"""ScienceQA in the paper's table: `python -m scripts.paper.science_qa`."""

import sys

from scripts.paper.report import main
from scripts.paper.table import SCIENCE_QA

if __name__ == "__main__":
    sys.exit(main([SCIENCE_QA]))
