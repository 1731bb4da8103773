"""`python -m llava.eval.sweep`."""

import sys

from llava.eval.sweep.command import main

if __name__ == "__main__":
    sys.exit(main())
