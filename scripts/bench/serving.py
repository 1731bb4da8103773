"""Times a model worker under load: `python -m scripts.bench.serving [--clients 1 8 32] [--rounds 3]`.

Two workers with the embedded model (or --model-path) run side by side, one that batches waiting requests and one that
answers them one by one. They are measured in turns, so that both meet the same state of the machine: N clients each
send the next question as soon as the last one is answered, every request with another picture. Prints medians over
rounds. The clients share the machine's cores with the workers.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llava.command import OneLineParser, integer, parse_and_run
from playground.presets import PRESETS
from playground.questions import WORDINGS
from scripts.bench.machine import machine_line
from scripts.markdown_table import table_head, table_row
from scripts.percentiles import percentile

if TYPE_CHECKING:
    import httpx

START_TIMEOUT = 300.0  # seconds; a large model takes minutes to load
ANSWER_TIMEOUT = 600.0

HEAD = (
    "clients",
    "one by one, tokens/s",
    "together",
    "ratio",
    "first text p50 / p95, one by one, s",
    "together, s",
)
"""Columns of the table."""


@dataclass(frozen=True)
class Sample:
    """One answered request."""

    first_text: float
    """Seconds until the first piece of the answer."""
    tokens: int
    """Tokens of the answer."""


@dataclass(frozen=True)
class Round:
    """What N clients measured in one round."""

    tokens_per_second: float
    first_texts: list[float]


@dataclass(frozen=True)
class Row:
    """One line of the table: medians over rounds."""

    clients: int
    batch: int
    tokens_per_second: float
    first_p50: float
    first_p95: float


def requests(count: int, preset: str, max_new_tokens: int) -> list[dict[str, Any]]:
    """Builds requests in LLaVA's protocol; each asks what is in another scene."""
    from PIL import Image

    from llava.conversation import conv_templates
    from playground.scenes import scene

    made = []
    for index in range(count):
        picture = io.BytesIO()
        Image.fromarray(scene(PRESETS[preset], 4000, index).image).save(picture, "PNG")
        conversation = conv_templates["vicuna_v1"].copy()
        wordings = WORDINGS["listing"]
        conversation.append_message(conversation.roles[0], f"<image>\n{wordings[index % len(wordings)]}")
        conversation.append_message(conversation.roles[1], None)
        made.append(
            {
                "prompt": conversation.get_prompt(),
                "images": [base64.b64encode(picture.getvalue()).decode()],
                "temperature": 0,
                "max_new_tokens": max_new_tokens,
                "stop": conversation.sep2,
            }
        )
    return made


async def ask(client: httpx.AsyncClient, model: str, request: dict[str, Any]) -> Sample:
    """Sends one request and reads its answer to the end."""
    from llava.serve.workers.frames import read_frames

    start, first, last = time.perf_counter(), None, b"{}"
    async with client.stream("POST", "/worker_generate_stream", json={"model": model, **request}) as reply:
        async for frame in read_frames(reply.aiter_raw()):
            last = frame
            first = first or time.perf_counter()
    end = json.loads(last)
    if end.get("error_code") != 0:
        raise RuntimeError(f"the worker failed: {end.get('text')}")
    return Sample((first or time.perf_counter()) - start, end["usage"]["completion_tokens"])


async def load(url: str, clients: int, work: Sequence[dict[str, Any]]) -> Round:
    """Lets N clients work through the requests."""
    import httpx

    waiting = iter(work)
    samples: list[Sample] = []

    async with httpx.AsyncClient(
        base_url=url, timeout=ANSWER_TIMEOUT, trust_env=False, limits=httpx.Limits(max_connections=clients)
    ) as client:
        status = await client.post("/worker_get_status")
        model = status.json()["model_names"][0]

        async def one_client() -> None:
            for request in waiting:
                samples.append(await ask(client, model, request))

        start = time.perf_counter()
        await asyncio.gather(*(one_client() for _ in range(clients)))
        seconds = time.perf_counter() - start
    return Round(sum(sample.tokens for sample in samples) / seconds, [sample.first_text for sample in samples])


@contextmanager
def worker(batch: int, waiting: int, model_flags: Sequence[str]) -> Iterator[str]:
    """Runs a worker; yields its address once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [
        "--no-register",
        "--port",
        str(port),
        "--limit-model-concurrency",
        str(batch),
        "--max-waiting",
        str(waiting),
    ]
    process = subprocess.Popen([sys.executable, "-m", "llava.serve.model_worker", *flags, *model_flags])
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while not answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the worker did not start; see its message above")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    """Checks whether a worker is up."""
    import httpx

    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def measure(urls: dict[int, str], clients: int, work: Sequence[dict[str, Any]], rounds: int) -> list[Row]:
    """Measures both workers in turns; a row for each, by batch size."""
    found: dict[int, list[Round]] = {batch: [] for batch in urls}
    for _ in range(rounds):
        for batch, url in urls.items():
            found[batch].append(asyncio.run(load(url, clients, work)))
    return [
        Row(
            clients,
            batch,
            statistics.median(each.tokens_per_second for each in results),
            statistics.median(percentile(each.first_texts, 0.50) for each in results),
            statistics.median(percentile(each.first_texts, 0.95) for each in results),
        )
        for batch, results in found.items()
    ]


def print_rows(alone: Row, together: Row) -> None:
    """Prints what one number of clients got one by one and together, as a line of a Markdown table."""
    ratio = together.tokens_per_second / alone.tokens_per_second
    rates = [f"{row.tokens_per_second:.0f}" for row in (alone, together)]
    firsts = [f"{row.first_p50:.2f} / {row.first_p95:.2f}" for row in (alone, together)]
    print(table_row([str(alone.clients), *rates, f"{ratio:.1f}", *firsts]), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="serving", description="Times a model worker under load, with batching and without.")
    parser.add_argument("--clients", type=integer(), nargs="+", default=[1, 8, 32], help="clients at a time")
    parser.add_argument("--requests", type=integer(), default=4, help="of a client in a round, at least 16 in all")
    parser.add_argument("--rounds", type=integer(), default=3, help="rounds per worker")
    parser.add_argument("--batch", type=integer(), default=32, help="most answers generated together")
    parser.add_argument("--preset", choices=PRESETS, default="base", help="kind of scenes")
    parser.add_argument("--max-new-tokens", type=integer(), default=64)
    parser.add_argument("--model-path", help="default: the embedded model")
    return parse_and_run(parser, run, argv)


def run(args: argparse.Namespace) -> None:
    """Starts the workers, measures them and prints a table."""
    most = max(args.clients)
    work = requests(max(16, args.requests * most), args.preset, args.max_new_tokens)
    model_flags = ["--model-path", args.model_path] if args.model_path else []
    with ExitStack() as stack:
        urls = {batch: stack.enter_context(worker(batch, 2 * most, model_flags)) for batch in (1, args.batch)}
        for url in urls.values():
            asyncio.run(load(url, min(most, 8), work[:16]))  # to warm up
        print(table_head(HEAD), flush=True)
        for clients in args.clients:
            print_rows(*measure(urls, clients, work[: max(16, args.requests * clients)], args.rounds))
    print(f"\n{machine_line()}")


if __name__ == "__main__":
    sys.exit(main())
