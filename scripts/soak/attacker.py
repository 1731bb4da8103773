"""Attacks the servers from a separate process, so that the soak run can time good requests meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from llava.command import OneLineParser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Attacks the servers that stdin names, as JSON, and prints the results as JSON."""
    OneLineParser(prog="attacker", description="Attack the servers of a soak run, which starts this.").parse_args(argv)

    def run() -> None:
        import httpx

        from scripts.soak.attack_loop import attack
        from scripts.soak.target import Target

        os.nice(10)  # a real client would run on another machine
        options = json.load(sys.stdin)
        amounts = {name: options.pop(name) for name in ("seconds", "large_bodies", "slow_images")}

        async def work() -> dict[str, Any]:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(timeout=120, trust_env=False, limits=limits) as client:
                return await attack(Target(client, **options), **amounts)

        print(json.dumps(asyncio.run(work())))

    return run_command("attacker", run)


if __name__ == "__main__":
    sys.exit(main())
