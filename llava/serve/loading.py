"""The flags that choose a model, and the engine loaded from them.

Adding the flags imports nothing heavy: torch and the model's code are loaded when the flags are checked or used.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from llava.command import integer, read_name, real
from llava.conversation import conv_templates
from qlip.config import Budget, SplitOrder, Tiling

if TYPE_CHECKING:
    from llava.serve.engine import ChatEngine
    from llava.serve.engine.params import EngineLimits

QLIP_FLAGS = ("alpha", "max_tokens", "split_order", "image_size", "budget", "tiling")
"""Flags that change one of the quadtree's settings each."""

DEMO_NOTICE = """\
This is the embedded demo: a tiny model that only knows coloured shapes and short signs. For a real one:
  llava --model-path liuhaotian/llava-v1.5-7b --image-file PICTURE"""


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that choose the model, its device, its quantization and its vision tower."""
    parser.add_argument(
        "--model-path", type=read_name, help="checkpoint folder or hub id (default: the embedded demo model)"
    )
    parser.add_argument("--model-base", type=read_name, help="base model of a LoRA or projector-only checkpoint")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best this machine has)")
    parser.add_argument(
        "--conv-mode",
        choices=conv_templates,
        metavar="NAME",
        help="prompt template (default: the checkpoint's, or its language model's)",
    )
    quantised = parser.add_mutually_exclusive_group()
    quantised.add_argument("--load-8bit", action="store_true", help="load the language model in 8 bits")
    quantised.add_argument("--load-4bit", action="store_true", help="load the language model in 4 bits")
    parser.add_argument("--qlip", action=argparse.BooleanOptionalAction, help="see by quadtree")
    parser.add_argument("--alpha", type=real(infinite=True), help="split threshold of the quadtree; implies --qlip")
    parser.add_argument("--max-tokens", type=integer(), help="most visual tokens per picture; implies --qlip")
    parser.add_argument(
        "--split-order",
        choices=get_args(SplitOrder),
        help="which blocks a budget splits first: by score times side, or by score alone; implies --qlip",
    )
    parser.add_argument(
        "--image-size",
        type=integer(),
        help="shorter side in pixels that a picture is resized to; with geometry native, the default, it only chooses "
        "how often CLIP's cells are halved, as for a picture of this shorter side; implies --qlip",
    )
    parser.add_argument(
        "--budget",
        choices=get_args(Budget),
        help="spend tokens by the picture's own score, or where the question attends to; implies --qlip",
    )
    parser.add_argument(
        "--tiling",
        choices=get_args(Tiling),
        help="models trained on tiles (LLaVA-1.6): one quadtree over the picture, or one in each tile; implies --qlip",
    )


def qlip_option(args: argparse.Namespace) -> bool | dict[str, Any] | None:
    """Reads the `qlip` argument of `load_pretrained_model` from the flags; None leaves the choice to the checkpoint.

    Raises:
        ValueError: if quadtree flags come with `--no-qlip`.
    """
    given = {name: getattr(args, name) for name in QLIP_FLAGS}
    given = {name: value for name, value in given.items() if value is not None}
    if given and args.qlip is False:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"--no-qlip contradicts {flags}")
    return given or args.qlip


def check_model_flags(args: argparse.Namespace, *, needs_tower: bool = True) -> None:
    """Checks the device and the checkpoint that the flags of `add_model_flags` name, without loading weights.

    Args:
        args: The parsed flags.
        needs_tower: Whether the command takes pictures; a text-only model is then refused.

    Raises:
        ValueError: this machine has no such device, or the model's folder holds no checkpoint with a vision tower.
    """
    from llava.model.loading.checkpoint import inspect, require_tower
    from llava.utils import check_device

    if args.device is not None:
        check_device(args.device)
    if args.model_path and Path(args.model_path).is_dir() and args.model_base is None:
        config = inspect(Path(args.model_path)).config
        if needs_tower:
            require_tower(config, args.model_path)


def load_engine(
    args: argparse.Namespace,
    *,
    switchable: bool = False,
    limits: EngineLimits | None = None,
    use_flash_attn: bool = False,
    needs_tower: bool = True,
) -> ChatEngine:
    """Loads the model that the flags of `add_model_flags` name.

    Args:
        args: The parsed flags.
        switchable: Load a tower that runs both the quadtree and CLIP's grid, so that each request may choose; the
            flags or the checkpoint then give the default.
        limits: Bounds on the engine's batches and queue.
        use_flash_attn: Use FlashAttention 2 in the language model.
        needs_tower: Refuse a text-only model.

    Raises:
        FileNotFoundError: no such checkpoint, or one of its files is missing.
        ValueError: contradictory flags, no such device, or a checkpoint that cannot be used.
    """
    from llava.mm_utils import get_model_name_from_path
    from llava.model.builder import load_pretrained_model
    from llava.model.loading.chat_template import choose_template
    from llava.model.loading.checkpoint import inspect, require_tower
    from llava.model.loading.folder import local_folder
    from llava.model.multimodal_encoder.builder import takes_quadtree
    from llava.model.multimodal_encoder.qlip_encoder import ALIBI_SETTINGS
    from llava.serve.engine import ChatEngine
    from llava.serve.engine.template_warning import warn_of_guess
    from llava.utils import default_device, demo_model_path
    from qlip.decoder_masks import counts_tokens

    model_path = str(args.model_path or demo_model_path())
    option = qlip_option(args)
    check_model_flags(args, needs_tower=needs_tower)
    quadtree = True
    if switchable:
        config = inspect(local_folder(model_path)).config
        quadtree = bool(config.qlip if option is None else option)
        if takes_quadtree(config):  # MPT (ALiBi) takes no other settings than these
            restricted = counts_tokens(config) and not config.qlip
            option = option or (dict(ALIBI_SETTINGS) if restricted else True)
    tokenizer, model, image_processor, context_len = load_pretrained_model(
        model_path,
        args.model_base,
        get_model_name_from_path(model_path),
        load_8bit=args.load_8bit,
        load_4bit=args.load_4bit,
        device=args.device or default_device(),
        use_flash_attn=use_flash_attn,
        qlip=option,
    )
    if needs_tower and image_processor is None:  # the model came from the hub, or consists of two parts
        require_tower(model.config, model_path)
    template = args.conv_mode or choose_template(model_path, model.config)
    engine = ChatEngine(tokenizer, model, image_processor, context_len, template, limits, quadtree)
    if args.conv_mode is None:
        warn_of_guess(model_path, model.config, engine.conv_mode)
    return engine
