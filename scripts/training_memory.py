"""Computes the GPU memory of training by mode: `python -m scripts.training_memory [--gpus 8] [--batch 1]`.

Nothing is measured. Counted are weights, gradients, optimizer states and activations in bfloat16 training; not counted
are the CUDA context, communication buffers, fragmentation, and what the frozen tower needs for a moment.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from llava.command import OneLineParser, integer, parse_and_run
from scripts.markdown_table import table_head, table_row

GIB = 2**30
BF16, FLOAT32 = 2, 4

NF4 = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a 4-bit weight: a constant of 1 byte for 64 weights, and one of 4 bytes for 256 of these constants."""

TORCH_ADAM = 2 * BF16
"""Bytes of AdamW per bfloat16 weight: two moments in the weight's dtype."""

DEEPSPEED_ADAM = 3 * FLOAT32
"""Bytes of DeepSpeed's AdamW per weight: a float32 copy of the weight and two moments."""

TOWER_PARAMETERS = 303_507_456
"""CLIP ViT-L/14-336 without its text model."""

TOWER_WIDTH = 1024
MODES = ("projector", "LoRA", "QLoRA", "full")
ZERO = {"projector": 2, "LoRA": 3, "QLoRA": 2, "full": 3}
"""ZeRO stages of the recipes."""


@dataclass(frozen=True)
class Llama:
    """Sizes of a language model."""

    name: str
    width: int
    inner: int
    """Width of the MLP's hidden layer."""
    layers: int
    heads: int
    vocabulary: int = 32_000

    @property
    def linears(self) -> int:
        """Weights of the linear layers that LoRA adapts and QLoRA quantises."""
        return self.layers * (4 * self.width**2 + 3 * self.width * self.inner)

    @property
    def parameters(self) -> int:
        """All weights: linear layers, both embeddings, two norms a layer and the last one."""
        return self.linears + 2 * self.vocabulary * self.width + (2 * self.layers + 1) * self.width

    @property
    def projector(self) -> int:
        """Weights of `mlp2x_gelu`, from the tower's width."""
        return (TOWER_WIDTH + 1) * self.width + (self.width + 1) * self.width

    def adapters(self, rank: int) -> int:
        """Counts the weights of LoRA adapters of a rank: (inputs + outputs) x rank for each of the seven layers."""
        return self.layers * rank * (4 * 2 * self.width + 3 * (self.width + self.inner))


MODELS = (Llama("7B", 4096, 11_008, 32, 32), Llama("13B", 5120, 13_824, 40, 40))


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def trained(model: Llama, mode: str, rank: int) -> int:
    """Counts the weights that a mode trains."""
    return model.projector + {"projector": 0, "full": model.parameters}.get(mode, model.adapters(rank))


def layer_bytes(model: Llama, mode: str, rank: int) -> int:
    """Counts what autograd keeps of a layer per token, in bfloat16, with attention that stores no probabilities.

    Frozen: the norms' float32 inputs (2 x 4 width) and scales (2 x 4), queries, keys, values and attention's output
    (4 x 2 width) with float32 logarithms (4 heads); gate, up and the gate's activation (3 x 2 inner). Trained layers
    also keep each norm's output before and after its weight (4 x 2 width) and the last linear layer's input (2 inner).
    LoRA keeps, for each of its seven layers, dropout's mask and output (1 + 2 bytes an input) and the rank's values.
    """
    frozen = 16 * model.width + 6 * model.inner + 4 * model.heads + 8
    if mode == "full":
        return frozen + 8 * model.width + 2 * model.inner
    if mode == "projector":
        return frozen
    return frozen + 3 * (6 * model.width + model.inner) + 7 * BF16 * rank


def activation_bytes(model: Llama, mode: str, rank: int, tokens: int, checkpointing: bool) -> int:
    """Counts the activations of a batch of `tokens`.

    With checkpointing each layer keeps its input, and one layer at a time is computed again. Logits take 14 bytes a
    token and word: bfloat16, float32 log-probabilities, and the float32 gradients of both steps of the loss. They are
    freed before the layers' backward pass, so of logits and a recomputed layer the larger counts.
    """
    layer, logits = tokens * layer_bytes(model, mode, rank), tokens * 14 * model.vocabulary
    if checkpointing:
        return model.layers * tokens * BF16 * model.width + max(layer, logits)
    return model.layers * layer + logits


def weight_bytes(model: Llama, mode: str, rank: int) -> float:
    """Counts the bytes of all weights: bfloat16, but QLoRA's linear layers in 4 bits and its norms in float32."""
    others = BF16 * (TOWER_PARAMETERS + model.projector)
    if mode == "QLoRA":
        norms = (2 * model.layers + 1) * model.width
        embeddings = 2 * model.vocabulary * model.width
        return others + NF4 * model.linears + FLOAT32 * norms + BF16 * (embeddings + model.adapters(rank))
    return others + BF16 * (model.parameters + (model.adapters(rank) if mode == "LoRA" else 0))


def one_gpu(model: Llama, mode: str, rank: int, activations: float) -> Memory:
    """Computes the memory of one GPU without DeepSpeed."""
    count = trained(model, mode, rank)
    return Memory(weight_bytes(model, mode, rank), BF16 * count, TORCH_ADAM * count, activations)


def sharded(model: Llama, mode: str, rank: int, activations: float, gpus: int) -> Memory:
    """Computes the memory of each of several GPUs under the recipe's ZeRO stage."""
    count, weights = trained(model, mode, rank), weight_bytes(model, mode, rank)
    shared = weights / gpus if ZERO[mode] == 3 else weights
    return Memory(shared, BF16 * count / gpus, DEEPSPEED_ADAM * count / gpus, activations)


def make_table(gpus: int, batch: int, length: int, rank: int) -> str:
    """Formats all modes as a Markdown table, in GiB."""

    def gib(count: float) -> str:
        return f"{count / GIB:.1f}"

    lines = [
        table_head(
            ["mode", "model", "trained", "weights", "gradients", "AdamW", "activations", "without checkpointing",
             "one GPU", f"each of {gpus} GPUs, ZeRO"]
        )
    ]  # fmt: skip
    for mode in MODES:
        for model in MODELS:
            kept = [
                activation_bytes(model, mode, rank, batch * length, checkpointing) for checkpointing in (True, False)
            ]
            one = one_gpu(model, mode, rank, kept[0])
            parts = [one.weights, one.gradients, one.optimizer, *kept, one.total]
            share = sharded(model, mode, rank, kept[0], gpus).total
            millions = f"{trained(model, mode, rank) / 1e6:.0f} M"
            lines.append(table_row([mode, model.name, millions, *map(gib, parts), f"{gib(share)} (ZeRO-{ZERO[mode]})"]))
    return "\n".join(lines)


def report(args: argparse.Namespace) -> None:
    """Prints the table and what it assumes."""
    print(f"Computed, GiB: bfloat16, {args.batch} sequences of {args.length} tokens, LoRA rank {args.rank}.\n")
    print(make_table(args.gpus, args.batch, args.length, args.rank))


def make_parser() -> argparse.ArgumentParser:
    """Builds the parser."""
    parser = OneLineParser(prog="training_memory", description="Compute the GPU memory of training, by mode.")
    parser.add_argument("--gpus", type=integer(), default=8, help="GPUs that DeepSpeed shards over (8)")
    parser.add_argument("--batch", type=integer(), default=1, help="sequences on a GPU (1)")
    parser.add_argument("--length", type=integer(), default=2048, help="tokens of a sequence (2048)")
    parser.add_argument("--rank", type=integer(), default=128, help="rank of LoRA adapters (128)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    return parse_and_run(make_parser(), report, argv)


if __name__ == "__main__":
    sys.exit(main())
