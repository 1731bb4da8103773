"""MME in the paper's table: `python -m scripts.paper.mme`."""

import sys

from scripts.paper.report import main
from scripts.paper.table import MME

if __name__ == "__main__":
    sys.exit(main([MME]))
