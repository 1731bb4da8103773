"""All columns of the paper's table: `python -m scripts.paper`."""

import sys

from scripts.paper.report import main
from scripts.paper.table import ALL

if __name__ == "__main__":
    sys.exit(main(ALL))
