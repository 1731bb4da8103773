"""Times answers of mixed lengths: requests that join at the next token, against batches that run to their end.

`python -m scripts.bench.joining [--clients 32] [--rounds 3]`. Two engines in this process, on one random LLaVA (or
--model-path), are measured in turns: N clients each send the next question as soon as the last one is answered. Every
request has another picture; answers are as long as they may be, most of them short and a tenth of them long.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.command import OneLineParser, integer, parse_and_run
from playground.presets import PRESETS
from scripts.bench.machine import machine_line
from scripts.bench.shapes import CLIP_SMALL
from scripts.markdown_table import table_head, table_row
from scripts.percentiles import percentile

if TYPE_CHECKING:
    from llava.serve.engine import ChatEngine

LENGTHS, SHARES = (8, 24, 64, 256), (4, 3, 2, 1)
"""Tokens of answers, and how frequent they are."""
SMALL = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
"""A language model of 3 million weights."""
WAYS = {"to the end": False, "joining": True}


@dataclass(frozen=True)
class Sample:
    """One answered request."""

    first: float
    """Seconds until the first token."""
    pause: float
    """Longest time between two pieces of its text, in seconds."""
    tokens: int


@dataclass(frozen=True)
class Round:
    """What all clients measured in one round."""

    tokens_per_second: float
    first_p50: float
    first_p95: float
    pause_p95: float


def load_model(path: str | None, text: dict[str, int], vision: dict[str, Any], seed: int = 0) -> tuple[Any, ...]:
    """Loads a checkpoint with a quadtree; without a path, a random LLaVA with the tokenizer of the embedded model."""
    import torch

    from llava.model import LlavaConfig, LlavaLlamaForCausalLM
    from llava.model.builder import load_pretrained_model
    from llava.model.loading.tokenizer import load_tokenizer
    from llava.utils import demo_model_path

    if path is not None:
        return load_pretrained_model(path, qlip=True)
    tokenizer = load_tokenizer(demo_model_path())
    torch.manual_seed(seed)
    config = LlavaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        mm_vision_config=vision,
        mm_projector_type="mlp2x_gelu",
        **text,
    )
    with tempfile.TemporaryDirectory() as folder:
        LlavaLlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return load_pretrained_model(Path(folder), device="cpu", qlip=True)


def requests(count: int, preset: str, seed: int) -> list[tuple[Any, int]]:
    """Draws pictures, and how long the answers about them are."""
    from PIL import Image

    from playground.scenes import scene

    lengths = random.Random(seed).choices(LENGTHS, SHARES, k=count)
    return [(Image.fromarray(scene(PRESETS[preset], 4000, i).image), each) for i, each in enumerate(lengths)]


async def ask(engine: ChatEngine, picture: Any, length: int) -> Sample:
    """Sends one request and reads its answer to the end."""
    from llava.serve.engine.params import Sampling

    start = time.perf_counter()
    conversation = engine.question("What is in the picture?", 1)
    answer = await engine.asubmit(conversation, [picture], Sampling(temperature=0, max_new_tokens=length))
    pieces = [time.perf_counter() async for _ in answer]
    pauses = [later - earlier for earlier, later in pairwise(pieces)]
    first = answer.row.first_token_at or time.perf_counter()
    return Sample(first - start, max(pauses, default=0.0), answer.usage.generated_tokens)


async def load(engine: ChatEngine, clients: int, work: Sequence[tuple[Any, int]]) -> Round:
    """Lets N clients work through the requests."""
    waiting, samples = iter(work), list[Sample]()

    async def one_client() -> None:
        for picture, length in waiting:
            samples.append(await ask(engine, picture, length))

    start = time.perf_counter()
    await asyncio.gather(*(one_client() for _ in range(clients)))
    seconds = time.perf_counter() - start
    firsts = [sample.first for sample in samples]
    return Round(
        sum(sample.tokens for sample in samples) / seconds,
        percentile(firsts, 0.50),
        percentile(firsts, 0.95),
        percentile([sample.pause for sample in samples], 0.95),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="joining", description=__doc__.split(".")[0])
    parser.add_argument("--clients", type=integer(), default=32, help="clients at a time")
    parser.add_argument("--requests", type=integer(), default=3, help="of a client in a round")
    parser.add_argument("--rounds", type=integer(), default=3, help="rounds of each way")
    parser.add_argument("--batch", type=integer(), default=16, help="most answers generated together")
    parser.add_argument("--preset", choices=PRESETS, default="base", help="kind of scenes (%(default)s)")
    parser.add_argument("--seed", type=integer(0), default=0, help="of the lengths and the weights")
    parser.add_argument("--model-path", help="default: a random LLaVA of 3 million weights")
    return parse_and_run(parser, run, argv)


def run(args: argparse.Namespace) -> None:
    """Measures both ways in turns and prints a Markdown table of medians over rounds."""
    from llava.serve.engine import ChatEngine
    from llava.serve.engine.params import EngineLimits

    loaded = load_model(args.model_path, SMALL, CLIP_SMALL, args.seed)
    limits = EngineLimits(args.batch, max_waiting=2 * args.clients, max_prefix_mib=0)  # rounds ask the same
    engines = {way: ChatEngine(*loaded, limits=limits, joins=joins) for way, joins in WAYS.items()}
    work = requests(args.clients * args.requests, args.preset, args.seed)
    found: dict[str, list[Round]] = {way: [] for way in WAYS}
    for number in range(args.rounds + 1):
        for way, engine in engines.items():
            measured = asyncio.run(load(engine, args.clients, work if number else work[: args.batch]))
            found[way] += [measured] if number else []  # the first round is to warm up
    head = ("", "tokens/s", "ratio", "first token p50 / p95, s", "ratio of p95", "longest pause in an answer, p95, s")
    print(table_head(head))
    base = found["to the end"]
    for way, rounds in found.items():
        rate, p50, p95, pause = (statistics.median(each) for each in zip(*map(_numbers, rounds), strict=True))
        ratio, wait = (
            statistics.median(
                _numbers(mine)[i] / _numbers(theirs)[i] for mine, theirs in zip(rounds, base, strict=True)
            )
            for i in (0, 2)
        )
        firsts = f"{p50:.2f} / {p95:.2f}"
        print(table_row([way, f"{rate:.0f}", f"{ratio:.2f}", firsts, f"{wait:.2f}", f"{pause:.2f}"]))
    print(f"\n{machine_line()}")
    for engine in engines.values():
        engine.close()


def _numbers(measured: Round) -> tuple[float, ...]:
    return tuple(vars(measured).values())


if __name__ == "__main__":
    sys.exit(main())
