"""Splits a LLaVA into a Llama and a CLIP tower: `python -m playground.parts --out DIR`.

As others publish Vicuna and CLIP: DIR gets `language-model/` and `tower/`, which LLaVA's training joins by a new
projector.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, check_new_folder, parse_and_run
from llava.utils import demo_model_path

if TYPE_CHECKING:
    from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedTokenizerBase

LANGUAGE_MODEL, TOWER = "language-model", "tower"


@dataclass(frozen=True)
class Parts:
    """A LLaVA without its projector, as classes of transformers."""

    language_model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerBase
    tower: CLIPVisionModel

    def save(self, folder: Path) -> None:
        """Writes `language-model` and `tower` into `folder`, in the dtype of the weights."""
        from playground.model import preprocessor_config, write_json

        self.language_model.save_pretrained(folder / LANGUAGE_MODEL)
        self.tokenizer.save_pretrained(folder / LANGUAGE_MODEL)
        self.tower.save_pretrained(folder / TOWER)
        write_json(folder / TOWER / "preprocessor_config.json", preprocessor_config(self.tower.config.image_size))


def split_checkpoint(model_path: str | Path) -> Parts:
    """Takes a LLaVA checkpoint with a CLIP tower apart, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llava.model.builder import load_pretrained_model

    tokenizer, model, _, _ = load_pretrained_model(model_path, device="cpu", qlip=False, dtype=torch.float32)
    names = set(LlamaConfig().to_dict()) - {"model_type", "architectures"}
    own = {name: value for name, value in model.config.to_dict().items() if name in names}
    llama = LlamaForCausalLM(LlamaConfig(**own))
    state = model.state_dict()
    llama.load_state_dict({name: state[name] for name in llama.state_dict()})
    return Parts(llama, tokenizer, model.get_vision_tower().vision_tower)


def make_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command's flags."""
    parser = OneLineParser(prog="parts", description="Split a LLaVA checkpoint into a Llama and a CLIP tower.")
    parser.add_argument("--model-path", default=demo_model_path(), help="default: the embedded model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, empty or absent")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    return parse_and_run(make_parser(), command, argv)


def command(args: argparse.Namespace) -> None:
    """Writes both parts."""
    check_new_folder(args.out)
    split_checkpoint(args.model_path).save(args.out)
    print(f"{args.out}: {LANGUAGE_MODEL}, {TOWER}")


if __name__ == "__main__":
    sys.exit(main())
