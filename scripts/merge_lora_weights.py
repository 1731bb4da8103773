"""Writes a LoRA or projector checkpoint and its base model as one LLaVA checkpoint, in float16.

`python scripts/merge_lora_weights.py --model-path LORA --model-base VICUNA --save-model-path OUT`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, check_new_folder, parse_and_run, written_whole

if TYPE_CHECKING:
    from torch import nn


def merge_lora(args: argparse.Namespace) -> None:
    """Loads the checkpoint on its base and saves the merged model."""
    from llava.mm_utils import get_model_name_from_path
    from llava.model.builder import load_pretrained_model
    from llava.model.loading.chat_template import keep_template
    from llava.model.loading.checkpoint import inspect
    from llava.model.loading.folder import local_folder
    from llava.model.loading.quantization import refuse_quantised

    check_new_folder(args.save_model_path)
    if inspect(local_folder(args.model_path)).kind == "full":
        raise ValueError(f"--model-path {args.model_path} has all weights: there is nothing to merge into --model-base")
    refuse_quantised(local_folder(args.model_base))
    name = get_model_name_from_path(args.model_path)
    tokenizer, model, _, _ = load_pretrained_model(
        args.model_path, args.model_base, name, device_map="cpu", torch_dtype=args.dtype
    )
    check_finite(model, args.dtype)
    keep_template(str(args.model_path), model.config)
    with written_whole(args.save_model_path) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(f"{args.save_model_path}: {type(model).__name__}, {sum(p.numel() for p in model.parameters())} parameters")


def check_finite(model: nn.Module, dtype: str) -> None:
    """Checks that every weight is a number; one that is too large for `dtype` has become infinite.

    Raises:
        ValueError: a weight is infinite or NaN.
    """
    for name, weight in model.state_dict().items():
        if not weight.isfinite().all():
            raise ValueError(f"{name} is not finite in {dtype}; give a --dtype that holds it, bfloat16 or float32")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="merge_lora_weights", description="Write a LoRA and its base model as one checkpoint.")
    parser.add_argument("--model-path", required=True, help="the LoRA or projector checkpoint: folder or hub id")
    parser.add_argument("--model-base", required=True, help="the base model: folder or hub id")
    parser.add_argument("--save-model-path", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        default="float16",
        help="of the weights written (float16)",
    )
    return parse_and_run(parser, merge_lora, argv)


if __name__ == "__main__":
    sys.exit(main())
