"""Computes the memory that answering takes from the shapes of LLaVA-1.5's layers: `python -m scripts.memory_table`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from llava.command import OneLineParser, integer, parse_and_run
from scripts.markdown_table import table_head, table_row
from scripts.training_memory import FLOAT32, GIB, MODELS, NF4, Llama

HALF = 2
"""Bytes of a float16 or bfloat16."""

WEIGHTS = ("float32", "float16", "8 bits", "4 bits")
"""Types of weights; the quantised ones are `--load-8bit` and `--load-4bit`."""

VISUAL_TOKENS = (288, 576, 864, 1152, 2880)
"""Columns of the table: half of CLIP's, CLIP's, 1.5 times and twice as many, LLaVA-1.6's base and four tiles."""


@dataclass(frozen=True)
class Tower:
    """Sizes of a CLIP vision tower."""

    width: int
    inner: int
    """Width of the MLP's hidden layer."""
    layers: int
    grid: int
    """Cells per side."""
    patch: int = 14
    """Pixels per side of a cell."""

    @property
    def parameters(self) -> int:
        """All weights: patches, [CLS], positions, the norms before and after, and the layers with their biases."""
        start = (3 * self.patch**2 + 1 + self.grid**2 + 1) * self.width + 2 * 2 * self.width
        attention = 4 * (self.width + 1) * self.width
        mlp = 2 * self.width * self.inner + self.inner + self.width
        return start + self.layers * (attention + mlp + 2 * 2 * self.width)


CLIP_L = Tower(1024, 4096, 24, 24)
"""CLIP ViT-L/14-336, the tower of LLaVA-1.5."""


def projector_parameters(model: Llama, tower: Tower) -> int:
    """Counts the weights of `mlp2x_gelu`: two linear layers with biases."""
    return (tower.width + 1 + model.width + 1) * model.width


def linear_outputs(model: Llama) -> int:
    """Counts the outputs of the language model's linear layers: 8 bits have a float32 scale for each."""
    return model.layers * (4 * model.width + 2 * model.inner + model.width)


def weight_bytes(model: Llama, kind: str, tower: Tower = CLIP_L) -> float:
    """Counts the bytes of all weights.

    Args:
        model: the language model.
        kind: one of WEIGHTS. Quantised are the linear layers of the language model's blocks; its embeddings, norms and
            output layer, the projector and the tower stay in float16.
        tower: the vision tower.
    """
    rest = model.parameters - model.linears + projector_parameters(model, tower) + tower.parameters
    linears = {
        "float32": FLOAT32 * model.linears,
        "float16": HALF * model.linears,
        "8 bits": model.linears + FLOAT32 * linear_outputs(model),
        "4 bits": NF4 * model.linears,
    }[kind]
    return linears + (FLOAT32 if kind == "float32" else HALF) * rest


def cache_bytes(model: Llama, tokens: int, kind: str = "float16") -> int:
    """Counts the bytes of keys and values: two vectors of the model's width for each token and layer."""
    return 2 * model.layers * model.width * tokens * (FLOAT32 if kind == "float32" else HALF)


def make_table(text: int, rows: int) -> str:
    """Formats weights, and weights with keys and values by visual tokens, as a Markdown table in GiB.

    Args:
        text: tokens of a prompt's text and of its answer.
        rows: conversations at the same time.
    """
    head = ["model", "weights in", "weights", *(f"{count} visual tokens" for count in VISUAL_TOKENS)]
    lines = [table_head(head)]
    for model in MODELS:
        for kind in WEIGHTS:
            weights = weight_bytes(model, kind)
            totals = [weights + rows * cache_bytes(model, text + count, kind) for count in VISUAL_TOKENS]
            lines.append(table_row([model.name, kind, *(f"{size / GIB:.1f}" for size in (weights, *totals))]))
    return "\n".join(lines)


def report(args: argparse.Namespace) -> None:
    """Prints the table and what it assumes."""
    print(f"Computed, in GiB: {args.rows} conversation(s), {args.text} tokens of text and answer each.\n")
    print(make_table(args.text, args.rows))


def make_parser() -> argparse.ArgumentParser:
    """Builds the parser."""
    parser = OneLineParser(prog="memory_table", description="Compute the memory of answering, by type of the weights.")
    parser.add_argument("--text", type=integer(), default=512, help="tokens of a prompt's text and its answer (512)")
    parser.add_argument("--rows", type=integer(), default=1, help="conversations at the same time (1)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    return parse_and_run(make_parser(), report, argv)


if __name__ == "__main__":
    sys.exit(main())
