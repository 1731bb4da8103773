"""V*, V* attr and V* rel of the paper's table, from one run: `python -m scripts.paper.v_star`."""

import sys

from scripts.paper.report import main
from scripts.paper.table import V_STAR

if __name__ == "__main__":
    sys.exit(main(V_STAR))
