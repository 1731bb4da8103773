"""Writes a LLaVA checkpoint's vision tower as a separate CLIP checkpoint: `python -m scripts.extract_tower`.

For `qlip fit` and `qlip bias`, which take a tower. LLaVA-1.5's own is openai/clip-vit-large-patch14-336, unchanged.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, check_new_folder, parse_and_run
from llava.utils import demo_model_path


def extract_tower(model_path: str, out: Path, model_base: str | None = None) -> None:
    """Saves the tower and image processor of the checkpoint `model_path` in folder `out`, in transformers' format.

    In the checkpoint's dtype.

    Raises:
        FileExistsError: `out` is not empty; it may be the checkpoint itself.
        ValueError: it has no tower.
    """
    from llava.model.builder import load_pretrained_model
    from llava.model.loading.checkpoint import require_tower

    check_new_folder(out)
    _, model, processor, _ = load_pretrained_model(model_path, model_base, device="cpu", dtype="auto", qlip=False)
    require_tower(model.config, model_path)
    model.get_vision_tower().vision_tower.save_pretrained(out)
    processor.save_pretrained(out)
    print(f"{out}: {type(model.get_vision_tower().vision_tower).__name__}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="extract_tower", description="Write a checkpoint's vision tower as a CLIP checkpoint.")
    parser.add_argument("--model-path", default=demo_model_path(), help="default: the embedded model")
    parser.add_argument("--model-base", help="the language model under a projector-only or LoRA checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, empty or absent")
    return parse_and_run(parser, lambda args: extract_tower(args.model_path, args.out, args.model_base), argv)


if __name__ == "__main__":
    sys.exit(main())
