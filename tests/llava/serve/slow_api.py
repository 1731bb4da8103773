"""The real OpenAI-compatible server around the slow worker's model: `python -m tests.llava.serve.slow_api` FLAGS."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llava.serve import openai_api
from tests.llava.serve.slow_worker import load_slow_engine


def main(argv: Sequence[str] | None = None) -> int:
    openai_api.load_engine = load_slow_engine  # type: ignore[assignment]
    return openai_api.main(argv)


if __name__ == "__main__":
    sys.exit(main())
