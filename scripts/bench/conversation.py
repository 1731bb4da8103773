"""Times the turns of a conversation about one picture, with the keys and values of earlier turns and without.

`python -m scripts.bench.conversation [--turns 5] [--rounds 3]`. Two engines in this process, on one random LLaVA of 160
million weights (or --model-path), answer the same turns one after the other. Prints the time from the request to the
first token in each turn, opening and cutting the picture included, and checks that the answers are the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llava.command import OneLineParser, integer, parse_and_run
from scripts.bench.joining import load_model
from scripts.bench.machine import machine_line
from scripts.markdown_table import table_head, table_row

if TYPE_CHECKING:
    from PIL import Image

    from llava.serve.engine import ChatEngine

VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 10,
    "num_attention_heads": 12,
    "image_size": 336,
    "patch_size": 14,
}
TEXT = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
QUESTIONS = ("What is in the picture?", "How many objects are there?", "Which one is red?", "Where is it?", "Why?")
WAYS = {"without": 0, "with": 1024}
"""MiB of keys and values that an engine keeps."""


def ask(engine: ChatEngine, turns: Sequence[Any], tokens: int) -> tuple[str, float, Any]:
    """Asks the last question of a conversation; returns the answer, the seconds to its first token, and its usage."""
    from llava.serve.engine.params import Sampling
    from llava.serve.engine.prompting import build_conversation

    start = time.perf_counter()
    conversation, images = build_conversation(engine, turns)
    answer = engine.submit(conversation, images, Sampling(temperature=0, max_new_tokens=tokens))
    text = "".join(answer)
    if (first := answer.row.first_token_at) is None:
        raise RuntimeError(f"the answer to {turns[-1].text!r} has no token")
    return text.strip() or "none", first - start, answer.usage


def converse(engines: dict[str, ChatEngine], picture: Image.Image, turns: int, tokens: int) -> list[dict[str, float]]:
    """Holds the same conversation with all engines, turn by turn; returns each turn's seconds by engine.

    Raises:
        RuntimeError: their answers differ.
    """
    from llava.serve.engine.prompting import Turn

    history: list[Turn] = []
    seconds: list[dict[str, float]] = []
    for number in range(turns):
        history.append(Turn("user", QUESTIONS[number % len(QUESTIONS)], (picture,) if number == 0 else ()))
        answers = {way: ask(engine, history, tokens) for way, engine in engines.items()}
        if len({text for text, _, _ in answers.values()}) > 1:
            raise RuntimeError(f"turn {number + 1}: the answers differ: {[text for text, _, _ in answers.values()]}")
        text, _, usage = answers["with"]
        print(f"turn {number + 1}: {usage.prompt_tokens} tokens, {usage.cached_tokens} of them known", file=sys.stderr)
        seconds.append({way: first for way, (_, first, _) in answers.items()})
        history.append(Turn("assistant", text))
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="conversation", description=__doc__.split(",")[0])
    parser.add_argument("--turns", type=integer(), default=5, help="questions about each picture")
    parser.add_argument("--rounds", type=integer(), default=3, help="pictures; the first one is to warm up")
    parser.add_argument("--tokens", type=integer(), default=16, help="of each answer")
    parser.add_argument("--size", type=integer(), default=336, help="of the pictures, in pixels")
    parser.add_argument("--seed", type=integer(0), default=0, help="of the weights and the pictures")
    parser.add_argument("--model-path", help="default: a random LLaVA of 160 million weights")
    return parse_and_run(parser, run, argv)


def run(args: argparse.Namespace) -> None:
    """Measures both ways in turns and prints a Markdown table of medians over the pictures."""
    from llava.serve.engine import ChatEngine
    from llava.serve.engine.params import EngineLimits
    from scripts.bench.cost_models import photograph

    loaded = load_model(args.model_path, TEXT, VISION, args.seed)
    weights = sum(parameter.numel() for parameter in loaded[1].parameters()) / 1e6
    engines = {way: ChatEngine(*loaded, limits=EngineLimits(max_prefix_mib=mib)) for way, mib in WAYS.items()}
    rounds = []
    for number in range(args.rounds + 1):
        picture = photograph(args.size, args.seed + number)
        measured = converse(engines, picture, args.turns if number else 2, args.tokens)
        rounds += [measured] if number else []
    print(table_head(["turn", *(f"{way}, s" for way in WAYS), "ratio"]))
    for turn, times in enumerate(zip(*rounds, strict=True)):
        medians = [statistics.median(each[way] for each in times) for way in WAYS]
        ratio = statistics.median(each["without"] / each["with"] for each in times)
        print(table_row([str(turn + 1), *(f"{each:.3f}" for each in medians), f"{ratio:.1f}"]))
    print(f"\n{machine_line(more=f'A language model of {weights:.0f} million weights.')}")
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    sys.exit(main())
