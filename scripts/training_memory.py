"""Computes the GPU memory of training by mode: `python -m scripts.training_memory [--gpus 8] [--batch 1]`.

Nothing is measured. Counted are weights, gradients, optimizer states and activations under `--bf16 True`; not counted
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

ADAM = 2 * FLOAT32
"""Bytes of AdamW's two moments; DeepSpeed adds a float32 copy of the weight."""

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


def frozen_bytes(model: Llama, mode: str) -> float:
    """Counts the bytes of frozen weights: bfloat16, but QLoRA's linear layers in 4 bits and its norms in float32."""
    if mode == "full":
        return BF16 * TOWER_PARAMETERS
    if mode == "QLoRA":
        norms = (2 * model.layers + 1) * model.width
        embeddings = 2 * model.vocabulary * model.width
        return BF16 * (TOWER_PARAMETERS + embeddings) + NF4 * model.linears + FLOAT32 * norms
    return BF16 * (TOWER_PARAMETERS + model.parameters)


def layer_bytes(model: Llama, mode: str, rank: int, float32_weights: bool) -> int:
    """Counts what autograd keeps of a layer per token, with attention that stores no probabilities.

    Frozen: the norms' float32 inputs (2 x 4 width) and scales (2 x 4), queries, keys, values and attention's output
    (4 x 2 width) with float32 logarithms (4 heads); gate, up and the gate's activation (3 x 2 inner). Trained in
    bfloat16: also each norm's output before and after its weight (4 x 2 width) and the last linear layer's input (2
    inner). Trained in mixed precision: the norms' outputs are float32 (2 x 4 width), and five linear layers each keep a
    copy of them in bfloat16 (5 x 2 width). LoRA: for each of seven layers dropout's mask and output (1 + 2 bytes an
    input) and the rank's values.
    """
    frozen = 16 * model.width + 6 * model.inner + 4 * model.heads + 8
    if mode == "projector":
        return frozen
    if mode == "full":
        return frozen + (18 if float32_weights else 8) * model.width + 2 * model.inner
    return frozen + 3 * (6 * model.width + model.inner) + 7 * BF16 * rank


def activation_bytes(
    model: Llama, mode: str, rank: int, tokens: int, checkpointing: bool, float32_weights: bool = True
) -> int:
    """Counts the activations of a batch of `tokens`.

    With checkpointing each layer keeps its input, and one layer at a time is computed again; without, mixed precision
    also keeps the linear layers' weights in bfloat16. Logits take 14 bytes a token and word: bfloat16, float32
    log-probabilities, and the float32 gradients of both steps of the loss. They are freed before the layers' backward
    pass, so of logits and a recomputed layer the larger counts.

    Args:
        model: the language model.
        mode: one of MODES.
        rank: of LoRA adapters.
        tokens: all sequences of the batch together.
        checkpointing: whether `--gradient_checkpointing` is on.
        float32_weights: what is trained is float32, in mixed precision; False: bfloat16, as under DeepSpeed.
    """
    layer = tokens * layer_bytes(model, mode, rank, float32_weights)
    logits = tokens * 14 * model.vocabulary
    mixed = mode == "full" and float32_weights
    if checkpointing:
        return model.layers * tokens * (FLOAT32 if mixed else BF16) * model.width + max(layer, logits)
    return model.layers * layer + logits + (BF16 * model.linears if mixed else 0)


def one_gpu(model: Llama, mode: str, rank: int, tokens: int) -> Memory:
    """Computes the memory of one GPU without DeepSpeed: what is trained is float32."""
    count, kept = trained(model, mode, rank), activation_bytes(model, mode, rank, tokens, True)
    return Memory(frozen_bytes(model, mode) + FLOAT32 * count, FLOAT32 * count, ADAM * count, kept)


def sharded(model: Llama, mode: str, rank: int, tokens: int, gpus: int) -> Memory:
    """Computes the memory of each of several GPUs under the recipe's ZeRO stage: what is trained is bfloat16."""
    count, kept = trained(model, mode, rank), activation_bytes(model, mode, rank, tokens, True, False)
    weights = frozen_bytes(model, mode) + BF16 * count
    shared = weights / gpus if ZERO[mode] == 3 else weights
    return Memory(shared, BF16 * count / gpus, (FLOAT32 + ADAM) * count / gpus, kept)


def make_table(gpus: int, batch: int, length: int, rank: int) -> str:
    """Formats all modes as a Markdown table, in GiB."""
    columns = ("mode", "model", "trained", "weights", "gradients", "AdamW", "activations", "without checkpointing")
    lines = [table_head([*columns, "one GPU", f"each of {gpus} GPUs"])]
    for mode in MODES:
        for model in MODELS:
            one = one_gpu(model, mode, rank, batch * length)
            without = activation_bytes(model, mode, rank, batch * length, False)
            share = sharded(model, mode, rank, batch * length, gpus)
            parts = [one.weights, one.gradients, one.optimizer, one.activations, without, one.total, share.total]
            cells = [f"{part / GIB:.1f}" for part in parts]
            cells[-1] += f" (ZeRO-{ZERO[mode]})"
            lines.append(table_row([mode, model.name, f"{trained(model, mode, rank) / 1e6:.0f} M", *cells]))
    return "\n".join(lines)


def report(args: argparse.Namespace) -> None:
    """Prints the table and what it assumes."""
    print(f"Computed, in GiB: sequences of {args.length} tokens, {args.batch} a GPU, LoRA of rank {args.rank}.\n")
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
