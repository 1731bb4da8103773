"""`python -m qlip`."""

import sys

from qlip.cli import main

sys.exit(main())
